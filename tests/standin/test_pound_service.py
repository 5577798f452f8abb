"""Pound's init script, that of the package in packages/pound, with Debian's Pound behind it. Nothing boots."""

from __future__ import annotations

import json
import re

import pytest

import goldens
from labrig import PROCD, MakeRoot, Root
from ndakit.verify.claims.faults import KILLING
from places import LAB

PACKAGES = "pound ip-full -dnsmasq -odhcpd-ipv6only -odhcp6c -ppp -ppp-mod-pppoe -opkg -apk-mbedtls"
OURS = LAB.parent / "packages/pound/files"
# As root: the namespace here knows nobody else. That Pound becomes its own user is seen in a machine.
CFG = "ListenHTTP\n\tAddress 127.0.0.1\n\tPort 8080\n\tService\n\t\tError 404\n\tEnd\nEnd\n"
START = PROCD + "ip link set lo up; /etc/init.d/pound start; sleep 1; first=$(pidof pound)\n"
SAME = '[ -n "$first" ] && [ "$(pidof pound)" = "$first" ] && echo same\n'
BREAK = "cp /etc/pound/pound.cfg /tmp/good; echo Nonsense >>/etc/pound/pound.cfg\n"


def pound_root(make_root: MakeRoot, release: str = "24.10.8", configuration: str | None = CFG) -> Root:
    root = make_root(release=release, packages=PACKAGES)
    if configuration is not None:
        root.put("etc/pound/pound.cfg", configuration)
    return root


def test_the_lab_runs_the_packages_own_files() -> None:
    there = LAB / "base/packages/pound/etc"
    assert (there / "init.d/pound").read_bytes() == (OURS / "pound.init").read_bytes()
    assert (there / "pound/pound.cfg").read_bytes() == (OURS / "pound.cfg").read_bytes()


@pytest.mark.parametrize("release", ["19.07.10", "21.02.7", "24.10.8", "25.12.5"])
def test_pound_is_a_service_of_procd_with_an_account(make_root: MakeRoot, release: str) -> None:
    said = pound_root(make_root, release).run(
        START + "ubus call service list '{\"name\":\"pound\"}' | tr -d ' \\n\\t'; echo\n"
        "grep -c ^pound:x:443: /etc/passwd /etc/group; /etc/init.d/pound check\n"
    )
    service, *rest = said.out.splitlines()
    (instance,) = json.loads(service)["pound"]["instances"].values()
    assert instance["command"] == ["/usr/sbin/pound", "-F", "-f", "/etc/pound/pound.cfg"], said.err
    assert instance["respawn"] == {"threshold": 3600, "timeout": 1, "retry": 0}
    assert rest == ["/etc/passwd:1", "/etc/group:1", "pound: Config file /etc/pound/pound.cfg is OK"], said.err


def test_a_configuration_that_pound_refuses_leaves_the_running_one_alone(make_root: MakeRoot) -> None:
    said = pound_root(make_root).run(
        START + BREAK + "".join(f"/etc/init.d/pound {verb} 2>/dev/null || echo {verb}\n{SAME}" for verb in VERBS)
        + "sleep 2\n" + SAME + "logread | grep -c 'the configuration is refused, nothing was changed'\n"
    )  # fmt: skip
    assert said.out.split() == [*(word for verb in VERBS for word in (verb, "same")), "same", "3"], said.err


VERBS = ("start", "restart", "reload")


def test_a_reload_starts_pound_anew_only_if_the_file_has_changed(make_root: MakeRoot) -> None:
    said = pound_root(make_root).run(
        START + "/etc/init.d/pound reload; sleep 1\n" + SAME
        + "echo '# changed' >>/etc/pound/pound.cfg; /etc/init.d/pound reload; sleep 1\n"
        + 'now=$(pidof pound); [ -n "$now" ] && [ "$now" != "$first" ] && echo anew; first=$now\n'
        + "/etc/init.d/pound restart; sleep 1\n"
        + 'now=$(pidof pound); [ -n "$now" ] && [ "$now" != "$first" ] && echo anew\n'
    )  # fmt: skip
    assert said.out.split() == ["same", "anew", "anew"], said.err


def test_a_broken_configuration_at_boot_starts_nothing_and_says_why(make_root: MakeRoot) -> None:
    said = pound_root(make_root, configuration=f"{CFG}Nonsense\n").run(
        START + 'echo first=$first; ubus call service list \'{"name":"pound"}\' | grep -c command\n'
        "logread | grep 'the configuration is refused'\n"
    )
    assert said.out.split()[:2] == ["first=", "0"], said.err
    assert "unrecognized keyword" in said.out


def test_the_packages_own_configuration_listens_nowhere_and_starts_nothing(make_root: MakeRoot) -> None:
    said = pound_root(make_root, configuration=None).run(
        START + "echo first=$first; logread | grep 'nothing to listen'\n"
    )
    assert said.out.splitlines()[0] == "first="
    assert "not started" in said.out
    assert pound_root(make_root, configuration=None).run("pound -c -v -f /etc/pound/pound.cfg").code == 0


HAPROXY = (
    "defaults\n\tmode http\n\ttimeout connect 1s\n\ttimeout client 1s\n\ttimeout server 1s\n"
    "frontend f\n\tbind 127.0.0.1:10443\n\thttp-request return status 200\n"
)


def test_after_haproxy_was_away_https_is_back_in_two_seconds(make_root: MakeRoot) -> None:
    """As rendered: by itself Pound would take half a minute."""
    root = make_root(release="24.10.8", packages=f"{PACKAGES} haproxy curl")
    for path, file in goldens.tree("wildcard-shops").items():
        if path.startswith(("/etc/pound/", "/etc/ndakit/private/")):
            root.put(path.lstrip("/"), re.sub(r'(?m)^(User|Group) "pound"\n', "", file.text), file.mode)
    root.put("etc/haproxy.cfg", HAPROXY)
    url = "https://a.shops.example/"
    there = "a.shops.example:443:203.0.113.10"
    ask = f"curl -sk -m 4 -o /dev/null -w '%{{http_code}}\\n' --resolve {there} {url}\n"
    said = root.run(
        PROCD + "ip link set lo up; for a in 203.0.113.10/32 2001:db8:0:1::10/128; do ip address add $a dev lo; done\n"
        "/etc/init.d/haproxy start; /etc/init.d/pound start; sleep 1\n" + ask
        + "/etc/init.d/haproxy stop; sleep 0.5\n" + ask
        + "/etc/init.d/haproxy start; sleep 2\n" + ask
    )  # fmt: skip
    assert said.out.split() == ["200", "503", "200"], said.err


def test_pound_comes_back_seven_times(make_root: MakeRoot) -> None:
    said = pound_root(make_root).run(START + f"{KILLING}\nkilling pound 100", timeout_s=90)
    assert said.out == "pound: 7\n", said.err
