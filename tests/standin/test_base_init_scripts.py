"""The stand-in's init scripts, release by release: the rows of lab/README.md's table "Init scripts by release"."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from standin import families, resolve
from test_base_services import PIDS
from test_goldens_firewall import GOLDEN, release_of

from labrig import LINKS, NETIFD, PROCD, MakeRoot
from places import LAB

RELEASES = ("18.06.9", "19.07.10", "21.02.7", "22.03.7", "23.05.6", "24.10.8", "25.12.5")
PACKAGES = (
    "haproxy keepalived conntrackd stunnel -dnsmasq -odhcpd-ipv6only -odhcp6c -ppp -ppp-mod-pppoe -opkg -apk-mbedtls"
)
RAW = "etc/keepalived/keepalived.conf"
SECTIONS = {
    "anonymous": "config global_defs\n",
    "old": "config global_defs 'globals'\n",
    "new": "config globals 'globals'\n",
}
READ = {
    "18.06.9": {"anonymous", "old"},
    "19.07.10": {"anonymous", "old"},
    **{release: {"old", "new"} for release in RELEASES[2:]},
}
TREES = [tree for tree in sorted(GOLDEN.glob("*/*")) if (tree / "etc/config/keepalived").is_file()]
CFG = (
    "defaults\n\tmode http\n\ttimeout connect 1s\n\ttimeout client 1s\n\ttimeout server 1s\n"
    "frontend f\n\tbind 127.0.0.1:80\n"
)


def listed(out: str, name: str) -> dict[str, object]:
    """The one instance of a service in what `ubus call service list` printed."""
    instances = json.loads(out)[name]["instances"]
    (instance,) = instances.values()
    return dict(instance)


@pytest.mark.parametrize("release", RELEASES)
def test_keepalived_reads_its_file_from_the_section_of_its_release(make_root: MakeRoot, release: str) -> None:
    root = make_root(release=release)
    root.put(RAW, "global_defs {\n}\n")
    for kind, head in SECTIONS.items():
        root.put(
            f"etc/{kind}", head + "\toption enabled '1'\n\toption alt_config_file '/etc/keepalived/keepalived.conf'\n"
        )
    loop = (
        "for kind in anonymous old new; do cp /etc/$kind /etc/config/keepalived; /etc/init.d/keepalived start\n"
        '[ "$(readlink /tmp/keepalived.conf)" = /etc/keepalived/keepalived.conf ] && echo $kind; done\n'
        "rm /etc/keepalived/keepalived.conf; cp /etc/old /etc/config/keepalived; /etc/init.d/keepalived start\n"
        "readlink /tmp/keepalived.conf && echo linked a file that is not there\n"
    )
    said = root.run(LINKS + NETIFD + loop)
    assert set(said.out.split()) == READ[release], said.err


@pytest.mark.parametrize("tree", TREES, ids=lambda p: "/".join(p.parts[-2:]))
def test_every_rendered_keepalived_configuration_is_the_one_that_runs(make_root: MakeRoot, tree: Path) -> None:
    root = make_root(tree, release=str(release_of(tree)))
    said = root.run(LINKS + NETIFD + "/etc/init.d/keepalived start; readlink /tmp/keepalived.conf")
    assert said.out == "/etc/keepalived/keepalived.conf\n", said.err


@pytest.mark.parametrize("release", RELEASES)
def test_keepalived_starts_without_a_configuration_before_25_12(make_root: MakeRoot, release: str) -> None:
    root = make_root(release=release)
    asked = 'ubus call service list \'{"name":"keepalived"}\' | grep -c running\n'
    said = root.run(
        LINKS + NETIFD + f"rm /etc/config/keepalived; /etc/init.d/keepalived start; {asked}"
        "echo \"config globals 'globals'\" >/etc/config/keepalived\n"
        f"uci set keepalived.globals.enabled=0; uci commit; /etc/init.d/keepalived restart; {asked}"
    )
    assert said.out == ("0\n0\n" if release == "25.12.5" else "1\n1\n"), said.err


@pytest.mark.parametrize("release", RELEASES)
def test_from_21_02_on_an_old_section_gets_its_new_name_at_the_first_boot(make_root: MakeRoot, release: str) -> None:
    root = make_root(release=release)
    root.put("etc/config/keepalived", "config global_defs\n\toption router_id 'x'\n")
    said = root.run(PROCD + "(. /etc/uci-defaults/keepalived); uci get keepalived.globals.router_id")
    assert said.out == ("" if release in RELEASES[:2] else "x\n"), said.err
    root.put("etc/config/keepalived", "config global_defs 'globals'\n\toption router_id 'x'\n")
    said = root.run(PROCD + "(. /etc/uci-defaults/keepalived); uci get keepalived.globals")
    assert said.out == ("global_defs\n" if release in RELEASES[:2] else "globals\n"), said.err


@pytest.mark.parametrize("release", RELEASES)
def test_haproxy_is_a_service_of_procd_from_19_07_on(make_root: MakeRoot, release: str) -> None:
    root = make_root(release=release)
    root.put("etc/haproxy.cfg", CFG)
    said = root.run(
        PROCD + "ip link set lo up; /etc/init.d/haproxy start; sleep 0.5; one=$(pidof haproxy); echo ${one:+runs}\n"
        "ubus call service list '{\"name\":\"haproxy\"}' | tr -d ' \\n\\t'; echo\n"
        '/etc/init.d/haproxy reload; sleep 0.5; [ "$one" = "$(pidof haproxy)" ] && echo same\n'
        '/etc/init.d/haproxy force_reload >/dev/null; sleep 1; [ "$one" = "$(pidof haproxy)" ] || echo new\n'
    )
    runs, service, *rest = said.out.split("\n")
    assert runs == "runs", said.err
    if release == "18.06.9":
        assert service == "{}"
        assert rest == ["new", ""]  # its reload starts a new process always
        return
    instance = listed(service, "haproxy")
    assert instance["command"] == ["/usr/sbin/haproxy", "-q", "-W", "-db", "-f", "/etc/haproxy.cfg"]
    forced = release in ("24.10.8", "25.12.5")
    assert rest == ["same", *(["new"] if forced else []), ""]


@pytest.mark.parametrize("release", RELEASES)
def test_only_in_18_06_a_new_device_starts_haproxy(make_root: MakeRoot, release: str) -> None:
    root = make_root(release=release)
    root.put("etc/haproxy.cfg", CFG)
    said = root.run(
        PROCD + "ip link set lo up; /etc/init.d/haproxy enable; ACTION=add DEVICENAME=eth0 /sbin/hotplug-call net\n"
        "sleep 0.5; pidof haproxy >/dev/null && echo runs"
    )
    assert said.out == ("runs\n" if release == "18.06.9" else ""), said.err


@pytest.mark.parametrize("release", RELEASES)
def test_conntrackd_starts_with_a_file_and_does_not_look_at_its_changes(make_root: MakeRoot, release: str) -> None:
    root = make_root(release=release, packages=PACKAGES)
    ask = 'ubus call service list \'{"name":"conntrackd"}\' | grep -c command\n'
    said = root.run(
        PROCD + f"/etc/init.d/conntrackd start; {ask}"
        f"mkdir -p /etc/conntrackd; echo x >/etc/conntrackd/conntrackd.conf; /etc/init.d/conntrackd start; {ask}"
    )
    assert said.out == "0\n1\n", said.err
    script = (LAB / "base/packages/conntrackd/etc/init.d/conntrackd").read_text()
    assert "procd_set_param file" not in script


@pytest.mark.parametrize("release", RELEASES)
def test_stunnel_reads_the_section_called_globals_in_18_06_and_the_first_of_that_type_later(
    make_root: MakeRoot, release: str
) -> None:
    root = make_root(release=release, packages=PACKAGES)
    root.put("etc/raw.conf", "foreground = yes\n")
    root.put("etc/config/stunnel", "config globals\n\toption alt_config_file '/etc/raw.conf'\n")
    said = root.run(PROCD + "/etc/init.d/stunnel start >/dev/null 2>&1; readlink /var/etc/stunnel.conf")
    assert said.out == ("" if release == "18.06.9" else "/etc/raw.conf\n"), said.err


@pytest.mark.parametrize("release", RELEASES)
def test_a_respawn_without_values_takes_them_from_the_system_s_service_section(
    make_root: MakeRoot, release: str
) -> None:
    root = make_root(release=release)
    ask = (
        '/etc/init.d/dropbear restart; ubus call service list \'{"name":"dropbear"}\' | '
        "sed -n 's/.*\"\\(threshold\\|timeout\\|retry\\)\": //p' | tr -d '\\n'; echo\n"
    )
    said = root.run(
        LINKS + NETIFD + ask + "echo config service >/etc/config/system; uci set system.@service[0].respawn_timeout=1\n"
        f"uci set system.@service[0].respawn_retry=0; uci commit; {ask}"
    )
    assert said.out == "3600,5,5\n3600,1,0\n", said.err


@pytest.mark.parametrize("release", RELEASES)
def test_the_firewall_says_nothing_at_boot(release: str) -> None:
    package = "firewall" if release in RELEASES[:3] else "firewall4"
    script = (LAB / f"base/packages/{package}/etc/init.d/firewall").read_text()
    assert re.search(r"^boot\(\) \{\n\tQUIET=-q\n\tstart\n\}$", script, re.M)
    assert "${QUIET:+-q} start" in script


@pytest.mark.parametrize(("package", "name"), [("qemu-ga", "qemu-ga"), ("open-vm-tools", "vmtoolsd")])
def test_the_hypervisors_agents_are_started_without_a_hypervisor_too(package: str, name: str) -> None:
    script = (LAB / f"base/packages/{package}/etc/init.d/{name}").read_text()
    assert re.search(r"start_service\(\) \{\n\tprocd_open_instance\n", script)
    assert re.search(r"^\tprocd_set_param respawn$", script, re.M)


@pytest.mark.long
def test_a_daemon_that_is_given_up_stays_down_until_it_is_stopped_and_started(make_root: MakeRoot) -> None:
    root = make_root()
    root.put(
        "etc/init.d/t",
        "#!/bin/sh /etc/rc.common\nSTART=90\nUSE_PROCD=1\nstart_service() {\n\tprocd_open_instance\n"
        "\tprocd_set_param command /bin/sleep 1000\n\tprocd_set_param respawn\n\tprocd_close_instance\n}\n",
        0o755,
    )
    kills = (
        PIDS + 'kills() { n=0; while [ $n -lt 7 ] && set -- $(pids) && [ -n "$1" ]; do\n'
        "kill -9 $1; n=$((n+1)); sleep 1.3; done; echo $n; }\n"
    )
    said = root.run(
        PROCD
        + kills
        + "echo config service >/etc/config/system; uci set system.@service[0].respawn_timeout=1; uci commit\n"
        "/etc/init.d/t start; kills; /etc/init.d/t start; kills; /etc/init.d/t stop; /etc/init.d/t start\n"
        'ubus call service list \'{"name":"t"}\' | grep -c \'"pid"\'\n'
        "uci set system.@service[0].respawn_retry=0; uci commit; /etc/init.d/t restart; kills\n"
    )
    # Six ends, and it is left alone. Started without a stop, the next end is one too many. For ever: all seven.
    assert said.out == "6\n1\n1\n7\n", said.err


@pytest.mark.parametrize("release", RELEASES)
def test_each_release_has_the_packages_that_it_really_has(release: str) -> None:
    packages = resolve.feed(LAB / "imagebuilder/packages.toml", families.family(release, "x86/64"))
    oldest = release == "18.06.9"
    for name in ("kmod-nf-ipvs", "ipvsadm", "open-vm-tools"):
        assert (name in packages) is not oldest
    assert {"conntrackd", "conntrack", "qemu-ga", "kmod-bonding", "kmod-nf-conntrack-netlink"} <= packages.keys()
    asked: set[str] = set()
    for name in ("keepalived", *packages["keepalived"].depends):
        asked |= set(packages[name].depends) if name in packages else set()
    assert ("kmod-nf-ipvs" in asked) is (release >= "23.05")
