"""A pair, built and booted: every claim holds, and every claim fails when its fact is broken on the running system."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import planted
from imported import load_again, meaning
from lab_relay import relay
from ndakit.cli import rebuild as cli_rebuild
from ndakit.cli.build import BuildOptions
from ndakit.cli.nodes import status_text
from ndakit.cli.rebuild import RebuildOptions
from ndakit.core.deadline import Deadline
from ndakit.core.files import file_sha256
from ndakit.core.workspace import Workspace
from ndakit.image.artifacts import Artifact, images_of
from ndakit.load import load
from ndakit.node import control, keys, status
from ndakit.node.facts import facts_of
from ndakit.node.host_keys import Pins
from ndakit.node.ssh import Ssh, accept, host_key
from ndakit.node.ssh_options import Target
from ndakit.operate import backup
from ndakit.operate.backup import Wanted
from ndakit.operate.backups import Backup, Differences
from ndakit.operate.import_ import importer, sources
from ndakit.verify.claims.base import first_service_port, reachable_addresses
from pairs import Pair, new_key, running

pytestmark = pytest.mark.timed

PROFILE = """\
name: pair
release: 24.10.8
access:
  ssh_keys: {{admin: {key}}}
  sources: {{noc: 203.0.113.128/25}}
networks:
  wan: {{nics: [eth0], subnet: 203.0.113.0/24, gateway: 203.0.113.1, dns: [203.0.113.53]}}
  lan: {{nics: [eth1], subnet: 192.168.0.0/24, egress: www}}
nodes:
  lb1: {{addresses: {{wan: 203.0.113.11, lan: 192.168.0.11}}}}
  lb2: {{addresses: {{wan: 203.0.113.12, lan: 192.168.0.12}}}}
vips:
  www: {{network: wan, address: 203.0.113.10}}
  lan-gw: {{network: lan, address: 192.168.0.1, role: gateway}}
vrrp: {{prefer: lb1, preempt: true, preempt_delay_s: 2}}
pools:
  apache:
    port: 80
    check: {{type: http, path: /health, interval_s: 0.5, timeout_s: 1, rise: 2, fall: 2}}
    sorry: {{page: sorry.html}}
    servers: {{web1: {{address: 192.168.0.21, weight: 2}}, web2: {{address: 192.168.0.22, weight: 1}}}}
services:
  www: {{vip: www, port: 80, protocol: http, pool: apache, hostnames: [www.example.com]}}
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    public, private = new_key(folder)
    with running(folder, "pair", PROFILE.format(key=public), identity=private) as booted:
        yield booted


def broken(pair: Pair, node: str, breaking: str, mending: str) -> contextlib.AbstractContextManager[None]:
    """Something is wrong on a node for a while, and is looked for on that node."""
    return planted.on_node(pair.lab, node, breaking, mending)


HARMLESS = (
    *("identity/lb1", "identity/lb2", "addresses/lb1", "addresses/lb2", "daemons/lb1", "daemons/lb2"),
    *("vrrp/lb1", "vrrp/lb2"),
    *("statistics/lb1", "statistics/lb2", "vips/one-holder", "vrrp/forged", "service/www", "client-address/www"),
    *("firewall/wan", "firewall/lan", "egress/lan", "check/apache", "sorry/apache"),
)


@pytest.mark.parametrize("name", HARMLESS)
def test_the_claim_holds(pair: Pair, name: str) -> None:
    outcome = pair.outcome(name)
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


@pytest.mark.parametrize("node", ["lb1", "lb2"])
def test_ssh_takes_the_admins_key_and_nothing_else(pair: Pair, node: str) -> None:
    outcome = pair.outcome(f"ssh/{node}")
    assert outcome.ok, outcome.detail
    assert "login by key works" in outcome.figure


def test_a_lab_image_says_in_its_banner_and_release_that_it_is_for_testing(pair: Pair) -> None:
    assert "lab stand-in" in pair.lab.run("lb1", "cat /etc/openwrt_release")
    login = pair.lab.run("lb1", "ash -l -c true")
    assert "Load balancer on OpenWrt" in login
    assert "for testing only" in login
    assert "do not flash it" in login


def test_nothing_in_the_overlay_is_unknown_to_the_stand_in(pair: Pair) -> None:
    assert [pair.lab.facts(n).unsupported() for n in ("lb1", "lb2")] == [[], []]


# -- over SSH, as an admin does ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def over_ssh(pair: Pair) -> Iterator[dict[str, Ssh]]:
    """Both balancers over SSH: from this machine, through a host of the lab that is inside access.sources."""
    lab, root = pair.lab, pair.workspace.root
    seat = next(iter(lab.plan.admins.values()))
    mine = keys.given(root / "id_ed25519", lab.profile.access.ssh_keys)
    with contextlib.ExitStack() as stack:
        opened = {}
        for node in lab.profile.nodes:
            address = reachable_addresses(lab, node, seat)[0]
            source = seat.address(address.version)
            assert source is not None
            port = stack.enter_context(relay(lab.hosts[seat.host], source, address, lab.profile.ssh_port))
            target = Target("pair", node, "127.0.0.1", port=port)
            pins = Pins(root / "known_hosts/pair" / node, target.alias)
            shown = lab.run(node, "for f in /etc/dropbear/dropbear_*_host_key; do dropbearkey -y -f $f; done")
            fingerprint = host_key(target).fingerprint
            assert fingerprint in shown, "what the admin compares on the console"
            accept(target, pins, fingerprint)
            opened[node] = stack.enter_context(Ssh(target, pins, mine))
        yield opened


def status_of(over_ssh: dict[str, Ssh], pair: Pair) -> status.Pair:
    profile = pair.lab.profile
    return status.Pair(profile, {n: status.ask(s, profile, n, s.target.address) for n, s in over_ssh.items()}, {})


@pytest.mark.parametrize("node", ["lb1", "lb2"])
def test_a_node_tells_the_same_over_ssh_as_on_its_console(
    over_ssh: dict[str, Ssh], pair: Pair, node: str, tmp_path: Path
) -> None:
    here, there = facts_of(over_ssh[node]), pair.lab.facts(node)
    assert here.hostname() == f"pair-{node}"
    assert here.addresses() == there.addresses()
    assert here.release() == there.release()
    assert here.vrrp_states(2) == there.vrrp_states(2)
    record = images_of(pair.workspace, load.load(pair.workspace, "pair"), (node,))[node].record
    assert here.image() == {"id": record.id, "node": node, "profile": "pair"}
    content = bytes(range(256)) * 40
    over_ssh[node].put(content, "/tmp/there", mode=0o600)
    assert pair.lab.run(node, "ls -l /tmp/there").startswith("-rw-------")
    assert over_ssh[node].get("/tmp/there") == content
    over_ssh[node].run("rm /tmp/there")


def test_importing_the_running_pair_gives_its_profile_again(
    over_ssh: dict[str, Ssh], pair: Pair, tmp_path: Path
) -> None:
    read: list[sources.NodeFiles] = []
    for node, shell in over_ssh.items():
        before = shell.run("find /etc /usr/libexec -type f | xargs sha256sum").stdout
        read.append(sources.over_shell(shell, node))
        assert shell.run("find /etc /usr/libexec -type f | xargs sha256sum").stdout == before
    result = importer.convert(pair.workspace, "pair", read)
    assert [(one.place, one.text, one.why) for one in result.unsaid] == []
    assert result.draft.fill_in == []
    assert meaning(load_again(result, tmp_path)) == meaning(pair.lab.profile)


def test_the_status_of_a_pair_that_is_well_says_so_and_who_is_master(over_ssh: dict[str, Ssh], pair: Pair) -> None:
    told = status_of(over_ssh, pair)
    assert told.trouble == ()
    assert set(told.masters().values()) == {("lb1",)}
    assert set(told.holders().values()) == {("lb1",)}
    text = status_text(told, {n: t.image for n, t in told.nodes.items()})
    assert text.startswith("pair: well\n")
    assert "as in images/" in text


def test_the_status_names_a_daemon_that_is_gone(over_ssh: dict[str, Ssh], pair: Pair) -> None:
    with broken(pair, "lb2", "/etc/init.d/keepalived stop", "/etc/init.d/keepalived start"):
        assert "lb2: keepalived does not run" in status_of(over_ssh, pair).trouble
    pair.lab.settle()


def test_a_server_drained_over_ssh_gets_no_new_clients_until_it_is_brought_back(
    over_ssh: dict[str, Ssh], pair: Pair
) -> None:
    lab = pair.lab
    ahead = first_service_port(lab.profile, "www")
    seat = lab.client_for(ahead.endpoint, ahead.service)

    def shares() -> set[str]:
        return set(lab.load(seat, ahead.endpoint.address, ahead.port, "apache", 12).shares)

    for shell in over_ssh.values():
        assert {line.state for line in control.drain(shell, lab.profile, "apache", "web1")} == {"drained"}
    try:
        assert shares() == {"web2"}
        told = status_of(over_ssh, pair)
        assert {line.state for t in told.nodes.values() for line in t.servers if line.server == "web1"} == {"drained"}
        assert told.trouble == (), "somebody meant it"
        control.bring_back(over_ssh["lb2"], lab.profile, "apache", "web1")
        assert status_of(over_ssh, pair).trouble == (
            "apache/web1 is drained, but not on lb2: after a failover it gets traffic",
        )
    finally:
        for shell in over_ssh.values():
            assert {line.weight for line in control.bring_back(shell, lab.profile, "apache", "web1")} == {2}
    assert shares() == {"web1", "web2"}


OF_THE_LAB = ("/root/.ssh/authorized_keys",)
"""Written by the stand-in at each start: Debian's dropbear reads keys there."""


def backed_up(pair: Pair, shell: Ssh, node: str, root: Path) -> Backup:
    loaded = load.load(pair.workspace, "pair")
    keys_of_box = tuple(f"{key.kind} {key.fingerprint}" for key in shell.pins.read())
    wanted = Wanted(
        "pair", node, shell.target.where, shell.target.address, keys_of_box, loaded.profile.hostname(node),
        str(loaded.profile.release),
    )  # fmt: skip
    return backup.take(shell, wanted, root, known=backup.at_hand(pair.workspace, loaded, node))


@pytest.mark.parametrize("node", ["lb1", "lb2"])
def test_a_backup_of_a_running_node_gives_its_image_again_on_an_empty_machine(
    over_ssh: dict[str, Ssh], pair: Pair, node: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = backed_up(pair, over_ssh[node], node, tmp_path / "backups")
    assert one.record.differences == Differences(not_saved=OF_THE_LAB), "nobody changed anything"
    assert one.record.original == "whole"
    assert "haproxy" in (one.folder / "packages.txt").read_text()
    (tmp_path / "empty/profiles").mkdir(parents=True)
    empty = Workspace(tmp_path / "empty")
    cli_rebuild.rebuild_image(empty, str(one.folder), None, BuildOptions(), RebuildOptions())
    assert "the same bytes as the image that the box ran" in capsys.readouterr().out
    images = pair.workspace.images / "pair" / node
    rebuilt = Artifact.load(empty.rebuilt / "pair" / node)
    for image in rebuilt.record.images:
        assert file_sha256(rebuilt.folder / image.name) == file_sha256(images / image.name)


def test_a_backup_tells_what_was_changed_on_a_running_node(
    over_ssh: dict[str, Ssh], pair: Pair, tmp_path: Path
) -> None:
    breaking = (
        "cp -p /etc/haproxy.cfg /tmp/was.cfg; echo '# by hand' >>/etc/haproxy.cfg; "
        "echo x >/etc/config/mine; mkdir -p /root; echo x >/root/notes"
    )
    with broken(pair, "lb2", breaking, "cp -p /tmp/was.cfg /etc/haproxy.cfg; rm /etc/config/mine /root/notes"):
        told = backed_up(pair, over_ssh["lb2"], "lb2", tmp_path / "backups").record.differences
    assert told == Differences(
        changed=("/etc/haproxy.cfg",), added=("/etc/config/mine",), not_saved=(*OF_THE_LAB, "/root/notes")
    )
    again = backed_up(pair, over_ssh["lb2"], "lb2", tmp_path / "backups").record.differences
    assert again == Differences(not_saved=OF_THE_LAB), "the same content, whenever it was written"


# -- each verifier fails when its fact is broken -----------------------------------------------------------------------


def assert_fails(pair: Pair, name: str, words: str) -> None:
    outcome = pair.outcome(name)
    assert not outcome.ok, f"{name} still holds: {outcome.figure}"
    assert words in outcome.detail


def test_another_host_name_is_found_out(pair: Pair) -> None:
    mend = "echo pair-lb1 > /proc/sys/kernel/hostname"
    with broken(pair, "lb1", "echo router > /proc/sys/kernel/hostname", mend):
        assert_fails(pair, "identity/lb1", "expected pair-lb1")


def test_a_foreign_address_is_found_out(pair: Pair) -> None:
    with broken(pair, "lb2", "ip addr add 203.0.113.99/24 dev eth0", "ip addr del 203.0.113.99/24 dev eth0"):
        assert_fails(pair, "addresses/lb2", "203.0.113.99/24 on eth0 is not in the profile")


def test_a_missing_address_is_found_out(pair: Pair) -> None:
    with broken(pair, "lb2", "ip addr del 192.168.0.12/24 dev eth1", "ip addr add 192.168.0.12/24 dev eth1"):
        assert_fails(pair, "addresses/lb2", "192.168.0.12 is not on eth1")


def test_keepalived_not_running_is_found_out(pair: Pair) -> None:
    with broken(pair, "lb2", "/etc/init.d/keepalived stop", "/etc/init.d/keepalived start"):
        assert_fails(pair, "daemons/lb2", "not running: keepalived")
        assert_fails(pair, "vrrp/lb2", "keepalived on lb2 tells of 0 of its 2 VRRP instances")


def test_a_backup_that_could_not_take_over_is_found_out(pair: Pair) -> None:
    with broken(pair, "lb2", "ip link set eth1 down", "ip link set eth1 up"):
        time.sleep(1.0)
        assert_fails(pair, "vrrp/lb2", "is in FAULT")
    pair.lab.settle()


def test_a_vip_on_both_nodes_is_found_out(pair: Pair) -> None:
    # keepalived would take an address of its own away again, and without it ndakit-vips would: both have to be gone.
    breaking = "/etc/init.d/ndakit-vips stop; /etc/init.d/keepalived stop; ip addr add 203.0.113.10/32 dev eth0"
    mending = "ip addr del 203.0.113.10/32 dev eth0; /etc/init.d/keepalived start; /etc/init.d/ndakit-vips start"
    with broken(pair, "lb2", breaking, mending):
        assert_fails(pair, "vips/one-holder", "www is on lb1, lb2")
    pair.lab.settle()


def test_an_open_firewall_is_found_out(pair: Pair) -> None:
    with broken(pair, "lb2", "nft flush ruleset", "/etc/init.d/firewall restart"):
        assert_fails(pair, "ssh/lb2", "a stranger on wan")
        assert_fails(pair, "statistics/lb2", "a stranger on wan")
        assert_fails(pair, "firewall/wan", "203.0.113.12:22 open, the profile says shut")


def test_a_closed_service_port_is_found_out(pair: Pair) -> None:
    shut = "nft insert rule inet fw4 input ip daddr 203.0.113.10 tcp dport 80 drop"
    with planted.on_every_node(pair.lab, shut, "/etc/init.d/firewall restart"):
        assert_fails(pair, "firewall/wan", "203.0.113.10:80 filtered, the profile says open")


def test_password_logins_are_found_out(pair: Pair) -> None:
    off = "uci set dropbear.@dropbear[0].{0}=off; uci set dropbear.@dropbear[0].{1}=off; uci commit dropbear"
    words = ("PasswordAuth", "RootPasswordAuth")
    opening = off.format(*words).replace("off;", "on;")
    listens = "i=0; until netstat -ltn | grep -q ':22 ' || [ $i -ge 50 ]; do i=$((i+1)); sleep 0.1; done"
    restart = f"; {renewed('dropbear', 'restart', stay=0)}; {listens}"
    with broken(pair, "lb2", opening + restart, off.format(*words) + restart):
        assert_fails(pair, "ssh/lb2", "not just publickey")


def test_a_missing_way_out_is_found_out(pair: Pair) -> None:
    with planted.on_every_node(pair.lab, "nft flush chain inet fw4 srcnat_wan", "/etc/init.d/firewall restart"):
        assert_fails(pair, "egress/lan", "expected 203.0.113.10")


def test_a_server_out_of_the_pool_is_a_wrong_share(pair: Pair) -> None:
    with pair.lab.server_down("apache", "web2"):
        assert pair.lab.wait_server("apache", "web2", up=False, timeout_s=10) is not None
        assert_fails(pair, "service/www", "web2 got 0% instead of 33%")
    assert pair.lab.wait_server("apache", "web2", up=True, timeout_s=10) is not None


def renewed(program: str, action: str, *, stay: int) -> str:
    """Shell text: have an init script act, and wait until other processes of its program have taken over. `stay`: how
    many of the old ones do not end."""
    return (
        f'old=" $(pidof {program}) "; /etc/init.d/{program} {action}; i=0; until [ $i -ge 50 ]; do i=$((i+1)); '
        f"sleep 0.1; new=0; kept=0; for one in $(pidof {program}); do "
        'case $old in *" $one "*) kept=$((kept+1));; *) new=$((new+1));; esac; done; '
        f"[ $new = 0 ] || [ $kept != {stay} ] || break; done"
    )


HAPROXY_ANEW = renewed("haproxy", "reload", stay=1)
"""HAProxy's master reads the file, its new worker takes over, and its old one ends."""
MEND_HAPROXY = f"cp /tmp/good.cfg /etc/haproxy.cfg; {HAPROXY_ANEW}"


def haproxy(script: str) -> str:
    """Edit HAProxy's configuration and have it read again; the copy beside it is for mending."""
    return f"cp /etc/haproxy.cfg /tmp/good.cfg; {script} && {{ {HAPROXY_ANEW}; }}"


def edited(pair: Pair, script: str) -> contextlib.AbstractContextManager[None]:
    """HAProxy's configuration is another one for a while."""
    changed = "! cmp -s /etc/haproxy.cfg /tmp/good.cfg"
    breaking = haproxy(f"sed -i '{script}' /etc/haproxy.cfg && {changed}")
    return planted.on_every_node(pair.lab, breaking, MEND_HAPROXY)


def test_wrong_weights_are_found_out(pair: Pair) -> None:
    with edited(pair, "s/ weight 2/ weight 1/"):
        assert_fails(pair, "service/www", "web1 got 50% instead of 67%")


def test_a_forgeable_client_address_is_found_out(pair: Pair) -> None:
    with edited(pair, "/del-header/d; /X-Forwarded-For/d"):
        assert_fails(pair, "client-address/www", "X-Forwarded-For is '192.0.2.66'")
        assert_fails(pair, "client-address/www", "the client's own X_Forwarded_For reached the server")
        assert_fails(pair, "client-address/www", "the client's own Connection reached the server")


def test_servers_that_are_not_checked_are_found_out(pair: Pair) -> None:
    with edited(pair, "/server web/s/ check / /"):
        assert_fails(pair, "check/apache", "web1 was still in the pool")


def test_another_sorry_page_is_found_out(pair: Pair) -> None:
    with edited(pair, "/errorfile/d"):
        assert_fails(pair, "sorry/apache", "expected status 503 with sorry.html")


def test_a_master_that_keeps_the_vips_without_haproxy_is_found_out(pair: Pair) -> None:
    script = "/usr/libexec/ndakit/daemon-runs"
    breaking = f"cp {script} /tmp/good; printf '#!/bin/sh\\nexit 0\\n' > {script}"
    with planted.on_every_node(pair.lab, breaking, f"cp /tmp/good {script}"):
        assert_fails(pair, "failover/haproxy-stopped", "the VIPs stayed on lb1")


def test_a_crash_in_the_log_is_found_out(pair: Pair) -> None:
    mend = "dmesg -c >/dev/null; /etc/init.d/log restart; sleep 1"
    with broken(pair, "lb2", "echo 'haproxy[99]: segfault at 0' > /dev/kmsg; sleep 1", mend):
        assert_fails(pair, "quiet/lb2", "segfault")


# -- failover ----------------------------------------------------------------------------------------------------------


def test_a_master_whose_haproxy_stops_hands_over(pair: Pair) -> None:
    outcome = pair.outcome("failover/haproxy-stopped")
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


def test_a_frozen_master_is_replaced_and_nothing_is_torn_when_it_thaws(pair: Pair) -> None:
    lab = pair.lab
    lab.machine("lb1").freeze()
    try:
        deadline = Deadline(15, "lb2 to take over")
        deadline.wait_until(lambda: lab.facts("lb2").holds(lab.profile.vips["www"].address[0]), every_s=0.3)
    finally:
        lab.machine("lb1").thaw()
    lab.settle()
    assert pair.outcome("vips/one-holder").ok


def test_no_backup_to_take_over_is_found_out(pair: Pair) -> None:
    lab = pair.lab
    with broken(pair, "lb2", "/etc/init.d/keepalived stop", "/etc/init.d/keepalived start"):
        assert_fails(pair, "failover/power-off", "no other node took the VIPs")
    assert lab.wait_other_master("lb1", timeout_s=30) == "lb2"


def test_the_preferred_node_takes_over_again(pair: Pair) -> None:
    assert not pair.lab.is_up("lb1"), "the test before this one leaves lb1 without power"
    outcome = pair.outcome("failover/return")
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


def test_nothing_crashed_in_all_this(pair: Pair) -> None:
    time.sleep(1)
    for node in ("lb1", "lb2"):
        outcome = pair.outcome(f"quiet/{node}")
        assert outcome.ok, outcome.detail


def test_a_dead_master_is_replaced_within_the_promised_time(pair: Pair) -> None:
    # The last one: the node that loses its power is not booted again.
    outcome = pair.outcome("failover/power-off")
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"
    assert float(outcome.values["gap_ms"]) < 4000
    survivor = pair.outcome("quiet/lb2")
    assert survivor.ok, survivor.detail
