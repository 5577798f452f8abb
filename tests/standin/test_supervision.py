"""Daemons of rendered nodes that end: they come back however often; without keepalived no VIP stays. Nothing boots."""

from __future__ import annotations

import pytest
from test_base_init_scripts import CFG
from test_goldens_firewall import GOLDEN, release_of

from labrig import LINKS, PROCD, MakeRoot, Root
from ndakit.verify.claims.faults import KILLING, MAKE_UNSTARTABLE

VIPS = "ip -o address show | grep -cE '(203.0.113.10|192.168.0.1)/32'\n"
HELD = "for a in '203.0.113.10/32 dev eth0' '192.168.0.1/32 dev eth1'; do ip address add $a; done\n"


def rendered(make_root: MakeRoot, name: str) -> Root:
    """The root of an example's first node. Git keeps no modes for the example's programs, so they are put anew."""
    tree = GOLDEN / name / "lb1"
    root = make_root(tree, release=str(release_of(tree)))
    for program in [*(tree / "etc/init.d").glob("*"), *(tree / "usr/libexec/ndakit").glob("*")]:
        root.put(str(program.relative_to(tree)), program.read_text(), 0o755)
    return root


def pretending(name: str, process: str = "") -> str:
    """Shell function `pretend`: start a program that shows up as `name` (a script shows up as its interpreter).
    `process`: what the process calls itself; the same if empty."""
    own = f'io.open("/proc/self/comm", "w"):write("{process or name}")'
    return (
        f"mkdir -p /tmp/run /tmp/pretended; cp /usr/bin/lua5.4 /tmp/pretended/{name}\n"
        f"pretend() {{ /tmp/pretended/{name} -e '{own}\n"
        'while true do require("posix.unistd").sleep(1) end\' & daemon=$!\n'
        "sleep 0.3; }\n"
    )


@pytest.mark.long
@pytest.mark.parametrize("name", ["fw3-1806", "apache-pair"])
def test_haproxy_comes_back_seven_times_in_every_release(make_root: MakeRoot, name: str) -> None:
    root = rendered(make_root, name)
    root.put("etc/haproxy.cfg", CFG)
    said = root.run(
        PROCD + f"{KILLING}\nip link set lo up; /etc/init.d/haproxy start; sleep 1; killing haproxy 100", timeout_s=90
    )
    assert said.out == "haproxy: 7\n", said.err


@pytest.mark.long
def test_without_the_service_section_haproxy_stays_down_at_the_sixth_end(make_root: MakeRoot) -> None:
    root = rendered(make_root, "apache-pair")
    root.put("etc/haproxy.cfg", CFG)
    text = "echo 'config service\n\toption respawn_timeout 1' >/etc/config/system\n"
    said = root.run(
        PROCD + f"{KILLING}\n" + text + "ip link set lo up; /etc/init.d/haproxy start; sleep 1; killing haproxy 100",
        timeout_s=90,
    )
    assert said.out == "haproxy: 5\n", said.err


def test_an_agent_without_its_hypervisor_is_not_started_again_and_again(make_root: MakeRoot) -> None:
    root = rendered(make_root, "apache-pair")
    ask = 'ubus call service list \'{"name":"qemu-ga"}\' | grep -c command\n'
    said = root.run(
        PROCD + f"/etc/init.d/qemu-ga start; {ask} mkdir -p /dev/virtio-ports\n"
        "touch /dev/virtio-ports/org.qemu.guest_agent.0\n"
        f"/etc/init.d/qemu-ga start; {ask} grep respawn /etc/init.d/qemu-ga"
    )  # fmt: skip
    assert said.out == "0\n1\n\tprocd_set_param respawn 3600 5 5\n", said.err


def test_a_node_without_keepalived_gives_its_vips_up_and_says_so_once(make_root: MakeRoot) -> None:
    root = rendered(make_root, "apache-pair")
    said = root.run(
        LINKS + PROCD + HELD + pretending("keepalived", "keepalived_vrrp")
        + "pretend; /etc/init.d/ndakit-vips start; sleep 2.5\n"
        + VIPS + "kill -9 $daemon; sleep 2.5\n" + VIPS + "sleep 2; logread | grep -c 'has given its VIPs up'\n"
    )  # fmt: skip
    assert said.out.split()[:3] == ["2", "0", "1"], (said.out, said.err)


def test_a_keepalived_without_its_vrrp_process_is_as_good_as_none(make_root: MakeRoot) -> None:
    root = rendered(make_root, "apache-pair")
    said = root.run(
        LINKS + PROCD + HELD + pretending("keepalived") + "pretend; /etc/init.d/ndakit-vips start; sleep 2.5\n"
        + VIPS + "kill -9 $daemon\n"
    )  # fmt: skip
    assert said.out.split() == ["0"], (said.out, said.err)


def test_a_script_that_is_called_keepalived_is_none(make_root: MakeRoot) -> None:
    """busybox's pidof finds one too: /etc/init.d/keepalived, which may hang."""
    root = rendered(make_root, "apache-pair")
    root.put("usr/bin/keepalived", "#!/bin/sh\nsleep 20\n", 0o755)
    said = root.run(
        LINKS + PROCD + HELD + "/usr/bin/keepalived & script=$!\nsleep 0.3; pidof keepalived | wc -w\n"
        + "/etc/init.d/ndakit-vips start; sleep 2.5\n" + VIPS + "kill -9 $script\n"
    )  # fmt: skip
    assert said.out.split() == ["1", "0"], (said.out, said.err)


ASK = (
    "ask() { n=0; while [ $n -lt $1 ]; do n=$((n+1)); /usr/libexec/ndakit/daemon-runs haproxy; printf $?; done; "
    "echo; }\n"
)


def test_an_haproxy_that_ends_again_and_again_does_not_count_as_running(make_root: MakeRoot) -> None:
    root = rendered(make_root, "apache-pair")
    root.put("usr/bin/haproxy", "#!/bin/sh\nsleep 20\n", 0o755)
    anew = "kill -9 $daemon; wait $daemon 2>/dev/null; pretend\n"
    said = root.run(
        pretending("haproxy") + ASK
        + "ask 2; pretend; ask 12\n"  # it was never there, then it is
        + anew + "ask 3\n"  # it ended after a long life: nothing
        + anew + "ask 13\n"  # after a short one: not before it has lived for ten questions
        + anew + "ask 3\n" + "kill -9 $daemon; wait $daemon 2>/dev/null; ask 1\n"
        + "/usr/bin/haproxy & script=$!\nsleep 0.2; ask 2; kill -9 $script\n"  # a script is none
    )  # fmt: skip
    assert said.out.split() == ["11", "0" * 12, "000", "1" * 10 + "000", "000", "1", "11"], (said.out, said.err)


@pytest.mark.long
def test_the_real_keepalived_is_killed_cannot_start_and_comes_back_with_the_vips(make_root: MakeRoot) -> None:
    root = rendered(make_root, "bakery")
    root.put("etc/haproxy.cfg", CFG)
    wait = (
        'until_vips() { i=0; until [ "$(ip -o address show dev eth0 | grep -c 192.168.0.10/32)" = $1 ]; do\n'
        'i=$((i+1)); [ $i -lt 200 ] || { echo "never $1"; break; }; sleep 0.1; done; }\n'
    )
    said = root.run(
        LINKS + PROCD + wait
        + "ip link set lo up; ip link set eth0 up; ip address add 192.168.0.11/24 dev eth0\n"
        + "/etc/init.d/haproxy start; /etc/init.d/keepalived start; /etc/init.d/ndakit-vips start\n"
        + "until_vips 1; echo master\n"
        + f"{MAKE_UNSTARTABLE}; until_vips 0; echo gave up; sleep 8; until_vips 0\n"
        + "logread | grep -c 'given its VIPs up'; umount /usr/sbin/keepalived; until_vips 1; echo master again\n"
        + f"{KILLING}\nkilling keepalived 100; until_vips 1; echo master still\n",
        timeout_s=120,
    )  # fmt: skip
    assert said.out == "master\ngave up\n1\nmaster again\nkeepalived: 7\nmaster still\n", said.err
