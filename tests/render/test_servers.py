"""The servers' side: who needs what follows from the topologies; the scripts do it, undo it, say what is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import goldens
from ndakit.cli.servers import chosen, facts, readme, write_scripts
from ndakit.core import process
from ndakit.core.workspace import Workspace
from ndakit.load.load import load
from ndakit.model import Profile, rules
from ndakit.model.server_side import ServerSide, servers
from ndakit.render.servers import NoSuchServer, OnlyWatched, in_words, script

TEMPLATES = (goldens.ROOT / "templates",)

PROFILE = """\
name: sides
release: 24.10.8
access:
  ssh_keys: {me: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me}
  sources: {office: 192.168.0.0/24}
networks:
  wan: {nics: [eth0], subnet: 203.0.113.0/24, gateway: 203.0.113.1, dns: [203.0.113.53]}
  lan:
    nics: [eth1]
    subnet: [192.168.0.0/24, "fd00:0:0:1::/64"]
    routes: [{to: 10.20.0.0/24, via: 192.168.0.254}]
nodes:
  lb1: {addresses: {wan: 203.0.113.11, lan: [192.168.0.11, "fd00:0:0:1::11"]}}
  lb2: {addresses: {wan: 203.0.113.12, lan: [192.168.0.12, "fd00:0:0:1::12"]}}
vips:
  www: {network: wan, address: 203.0.113.10}
  lan-gw: {network: lan, address: 192.168.0.1, role: gateway}
  intern: {network: lan, address: [192.168.0.10, "fd00:0:0:1::10"]}
pools:
  static: {port: 80, servers: {img1: 192.168.0.31}}
  media: {servers: {med1: [192.168.0.61, "fd00:0:0:1::61"]}}
  far: {servers: {far1: 10.20.0.21}}
  policy: {port: 8085, reply_route: policy, servers: {pol1: 192.168.0.71}}
  plain: {port: 80, servers: {web1: 192.168.0.81, img1: 192.168.0.31}}
services:
  natted: {vip: www, port: 8082, topology: nat, protocol: tcp, pool: static}
  fast: {vip: intern, port: 8081, topology: dr, protocol: tcp, pool: media}
  faraway: {vip: intern, families: [ipv4], port: 8083, topology: tun, protocol: tcp, pool: far}
  routed: {vip: www, port: 8085, topology: nat, protocol: tcp, pool: policy}
  shop: {vip: www, port: 80, protocol: http, pool: plain}
"""


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ServerSide]:
    root = tmp_path_factory.mktemp("sides")
    (root / "profiles").mkdir()
    (root / "profiles/sides.yaml").write_text(PROFILE)
    return {s.name: s for s in servers(load(Workspace.at(root), "sides").profile)}


def profile_of(tmp_path: Path) -> Workspace:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/sides.yaml").write_text(PROFILE)
    return Workspace.at(tmp_path)


def test_a_nat_server_has_the_gateway_vip_as_default_gateway(sides: dict[str, ServerSide]) -> None:
    assert [str(g.gateway) for g in sides["img1"].gateways] == ["192.168.0.1"]


def test_with_a_policy_route_only_the_answers_take_the_gateway_vip(sides: dict[str, ServerSide]) -> None:
    side = sides["pol1"]
    assert side.gateways == ()
    assert [(str(a.gateway), str(a.source), a.protocol, a.port) for a in side.answers] == [
        ("192.168.0.1", "192.168.0.71", "tcp", "8085")
    ]
    assert [str(n) for n in side.answers[0].nodes] == ["192.168.0.11", "192.168.0.12"]


def test_of_several_gateway_vips_a_server_has_that_of_its_services_group(tmp_path: Path) -> None:
    """The other one may be on another node, where nobody knows the connections."""
    workspace = profile_of(tmp_path)
    text = PROFILE.replace("vips:\n", "vips:\n  mail: {network: wan, address: 203.0.113.20, group: mail}\n")
    text = text.replace(
        "  intern:", "  mail-gw: {network: lan, address: 192.168.0.2, role: gateway, group: mail}\n  intern:"
    )
    text = text.replace("natted: {vip: www", "natted: {vip: mail").replace("routed: {vip: www", "routed: {vip: mail")
    (workspace.root / "profiles/sides.yaml").write_text(text)
    by_name = {s.name: s for s in servers(load(workspace, "sides").profile)}
    assert [str(g.gateway) for g in by_name["img1"].gateways] == ["192.168.0.2"]
    assert [str(a.gateway) for a in by_name["pol1"].answers] == ["192.168.0.2"]
    assert [str(g.gateway) for g in by_name["web1"].gateways] == ["192.168.0.1"]


BEHIND = (
    PROFILE.replace(
        "  plain: {port: 80,",
        "  behind: {port: 8090, reply_route: policy, servers: {beh1: 10.20.0.31, beh2: 10.20.0.32}}\n"
        "  plain: {port: 80,",
    )
    + "  behind: {vip: www, port: 8090, topology: nat, protocol: tcp, pool: behind}\n"
)


def test_servers_behind_an_inner_router_leave_it_to_that_router_to_send_their_answers_to_the_balancers(
    tmp_path: Path,
) -> None:
    workspace = profile_of(tmp_path)
    (workspace.root / "profiles/sides.yaml").write_text(BEHIND)
    profile = load(workspace, "sides").profile
    by_name = {s.name: s for s in servers(profile)}
    router = by_name["router-192-168-0-254"]
    assert [(str(a.gateway), str(a.own), str(a.source), a.protocol, a.port) for a in router.answers] == [
        ("192.168.0.1", "192.168.0.254", "10.20.0.31", "tcp", "8090"),
        ("192.168.0.1", "192.168.0.254", "10.20.0.32", "tcp", "8090"),
    ]
    assert [str(n) for n in router.answers[0].nodes] == ["192.168.0.11", "192.168.0.12"]
    assert by_name["beh1"].nothing
    assert "reach the router 192.168.0.254, and that one sends them to the balancers" in by_name["beh1"].needs[0]
    made = script(router, "linux", profile, TEMPLATES)
    assert made is not None
    assert "# What router 192.168.0.254 needs so that" in made.text
    assert [s.name for s in chosen(profile, "router/192.168.0.254")] == ["router-192-168-0-254"]
    said = in_words(router, profile, TEMPLATES)
    assert said is not None and in_words(by_name["beh1"], profile, TEMPLATES) is None
    for line in (
        "- from 10.20.0.31, tcp, source port 8090: next hop 192.168.0.1",
        "- from 10.20.0.32, tcp, source port 8090: next hop 192.168.0.1",
        "- to 192.168.0.11",
        "- to 192.168.0.12",
        "rp_filter 1",
    ):
        assert line in said.text
    write_scripts(workspace, "sides", None, None, as_json=False)
    folder = tmp_path / "servers/sides"
    assert sorted(p.name for p in (folder / router.name).glob("[!.]*")) == ["linux.sh", "router.txt"]
    assert not os.access(folder / router.name / "router.txt", os.X_OK)
    assert "router.txt" in (folder / "README.md").read_text()
    assert not (folder / "beh1/router.txt").exists()


def test_what_no_service_uses_gets_no_scripts(tmp_path: Path) -> None:
    """The provider's router that `vrrp.demote_on` pings is nobody's server."""
    workspace = profile_of(tmp_path)
    text = PROFILE.replace("pools:\n", "pools:\n  uplink: {check: ping, servers: {provider: 203.0.113.1}}\n")
    (workspace.root / "profiles/sides.yaml").write_text(text + "vrrp: {preempt: true, demote_on: [uplink]}\n")
    write_scripts(workspace, "sides", None, None, as_json=False)
    folder = tmp_path / "servers/sides"
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["far1", "img1", "med1", "pol1", "web1"]
    assert (
        "Only watched, so that nothing is to be done there: provider (203.0.113.1)."
        in (folder / "README.md").read_text()
    )
    profile = load(workspace, "sides").profile
    with pytest.raises(OnlyWatched, match="'provider' needs nothing"):
        chosen(profile, "provider")
    with pytest.raises(OnlyWatched):
        chosen(profile, "uplink/provider")


OFF_LINK = BEHIND.replace("reply_route: policy, servers: {beh1", "servers: {beh1")
SERVICE = "behind: {vip: www, port: 8090, topology: nat"
POOL = "behind: {port: 8090, servers"
GATEWAY = "  lan-gw: {network: lan, address: 192.168.0.1, role: gateway}\n"


@pytest.mark.parametrize(
    ("changes", "code"),
    [([], "return-not-on-link"), ([(SERVICE, "behind: {vip: www, port: 8090, topology: tun")], ""),
     ([(SERVICE, "behind: {vip: www, port: 8090, topology: proxy")], ""),
     ([(POOL, "behind: {port: 8090, reply_route: policy, servers")], ""),
     ([(POOL, "behind: {port: 8090, reply_route: policy, servers"), (GATEWAY, "")], "return-router-without-gateway"),
     ([(POOL, "behind: {port: 8090, reply_route: policy, servers"), (GATEWAY, GATEWAY.replace("}", ", group: other}"))],
      "return-other-group"),
     # Through the default gateway: nobody there sends answers to us.
     ([(POOL, "behind: {port: 8090, reply_route: policy, servers"), ("10.20.0.31", "198.51.100.31")],
      "return-not-on-link")],
)  # fmt: skip
def test_what_the_refusal_of_servers_elsewhere_offers_works(changes: list[tuple[str, str]], code: str) -> None:
    text = OFF_LINK
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    profile = Profile.model_validate(yaml.load(text, Loader=yaml.BaseLoader))
    codes = {f.code for f in rules.findings(profile) if f.severity == "error" and "behind" in f.what + f.fix}
    assert codes == ({code} if code else set())


def test_a_dr_server_has_the_vips_on_its_loopback_and_keeps_its_gateway(sides: dict[str, ServerSide]) -> None:
    side = sides["med1"]
    assert [(str(a.address), a.device) for a in side.addresses] == [("192.168.0.10", "lo"), ("fd00:0:0:1::10", "lo")]
    assert side.gateways == ()
    assert side.hides


def test_a_tun_server_has_the_vip_on_a_tunnel_that_ends_at_its_own_address(sides: dict[str, ServerSide]) -> None:
    side = sides["far1"]
    assert [(t.device, str(t.local)) for t in side.tunnels] == [("ndakit4", "10.20.0.21")]
    assert [(str(a.address), a.device) for a in side.addresses] == [("192.168.0.10", "ndakit4")]


def test_one_machine_in_two_pools_is_one_machine(sides: dict[str, ServerSide]) -> None:
    assert sides["img1"].names == ("static/img1", "plain/img1")
    assert len(sides) == 5


def test_a_server_of_that_name_is_found_by_its_places_too(tmp_path: Path) -> None:
    profile = load(profile_of(tmp_path), "sides").profile
    assert [s.name for s in chosen(profile, "plain/img1")] == ["img1"]
    with pytest.raises(NoSuchServer, match="no pool has a server 'img9'"):
        chosen(profile, "img9")


def test_the_table_names_every_server_and_the_facts_are_json(tmp_path: Path) -> None:
    profile = load(profile_of(tmp_path), "sides").profile
    table = readme(profile, servers(profile)).decode()
    assert all(f"| {name} |" in table for name in ("img1", "med1", "far1", "pol1", "web1"))
    told = json.loads(json.dumps([facts(s) for s in servers(profile)]))
    assert next(f for f in told if f["server"] == "far1")["not_for"].keys() == {"windows", "freebsd"}


def test_an_operating_system_that_cannot_do_it_gets_no_script(tmp_path: Path, sides: dict[str, ServerSide]) -> None:
    profile = load(profile_of(tmp_path), "sides").profile
    assert script(sides["far1"], "windows", profile, TEMPLATES) is None
    assert script(sides["far1"], "linux", profile, TEMPLATES) is not None


def test_every_shell_script_passes_shellcheck(tmp_path: Path, sides: dict[str, ServerSide]) -> None:
    profile = load(profile_of(tmp_path), "sides").profile
    files = []
    for side in sides.values():
        for system in ("linux", "freebsd"):
            made = script(side, system, profile, TEMPLATES)
            if made is not None:
                files.append(tmp_path / f"{side.name}-{system}.sh")
                files[-1].write_bytes(made.content)
    done = subprocess.run(["shellcheck", *files], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert len(files) == 8


# -- the Linux scripts, in a network namespace of their own ------------------------------------------------------------

SETUP = """\
set -e
mount -t tmpfs none /run
ip link set lo up
ip link add card type veth peer name wire
ip link set card addrgenmode none; ip link set wire addrgenmode none
ip link set card up; ip link set wire up
ip addr add {own}/24 dev card
ip -6 addr add {own6}/64 dev card nodad
ip route add default via 192.168.0.254
n=0 # the kernel makes IPv6 routes when it finds that the cable carries something, and tells nobody
settled() {{ ip -6 route show table local | grep -q "$1"; }}
until settled '^local {own6} dev card' && settled '^multicast .*dev card' && settled '^multicast .*dev wire'; do
    [ $((n += 1)) -lt 1200 ] || {{ echo 'IPv6 did not settle'; exit 1; }}
    sleep 0.05
done
set +e
"""


def in_namespace(folder: Path, side: ServerSide, commands: str, own: str, own6: str = "fd00:0:0:1::61") -> str:
    """What commands print in a namespace of a machine with the server's addresses; `$script` is its script."""
    profile = load(Workspace.at(folder), "sides").profile
    made = script(side, "linux", profile, TEMPLATES)
    assert made is not None
    file = folder / "linux.sh"
    file.write_bytes(made.content)
    text = SETUP.format(own=own, own6=own6) + f"script={file}\n" + commands
    done = subprocess.run(["unshare", "-Urnm", "sh", "-c", text], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_up_twice_gives_a_dr_server_what_it_needs_and_status_agrees(
    tmp_path: Path, sides: dict[str, ServerSide]
) -> None:
    profile_of(tmp_path)
    said = in_namespace(
        tmp_path, sides["med1"], own="192.168.0.61",
        commands="sh $script status; echo before $?; sh $script up; sh $script up; sh $script status; echo after $?\n"
        "cat /proc/sys/net/ipv4/conf/all/arp_ignore /proc/sys/net/ipv4/conf/all/arp_announce; ip -o addr show dev lo",
    )  # fmt: skip
    assert "missing: 192.168.0.10 on lo" in said
    assert "missing: net.ipv4.conf.all.arp_ignore = 1 (it is 0)" in said
    assert "before 1" in said
    assert "after 0\n1\n2\n" in said
    assert said.count("192.168.0.10/32") == 1
    assert "fd00:0:0:1::10/128" in said


def test_down_puts_back_what_was_there(tmp_path: Path, sides: dict[str, ServerSide]) -> None:
    profile_of(tmp_path)
    state = (
        "ip -o addr show dev lo; ip route; ip rule; cat /proc/sys/net/ipv4/conf/all/arp_ignore; ip route show table all"
    )
    for name, own in (("med1", "192.168.0.61"), ("img1", "192.168.0.31"), ("pol1", "192.168.0.71")):
        said = in_namespace(
            tmp_path, sides[name], own=own,
            commands=f"({state}) >/run/1; sh $script up; ({state}) >/run/2; sh $script down; ({state}) >/run/3\n"
            "cmp -s /run/1 /run/2 && echo nothing happened; diff /run/1 /run/3 && echo same",
        )  # fmt: skip
        assert said.endswith("same\n"), said
        assert "nothing happened" not in said


def test_a_nat_servers_gateway_is_replaced_and_only_answers_move_with_a_policy_route(
    tmp_path: Path, sides: dict[str, ServerSide]
) -> None:
    profile_of(tmp_path)
    said = in_namespace(tmp_path, sides["img1"], own="192.168.0.31", commands="sh $script up; ip route show default")
    assert "default via 192.168.0.1 dev card" in said
    said = in_namespace(
        tmp_path, sides["pol1"], own="192.168.0.71",
        commands="way='ip route get 203.0.113.5 from 192.168.0.71 ipproto 6 sport'; sh $script up\n"
        "ip route show default; $way 8085; $way 22; sh $script status; echo $?",
    )  # fmt: skip
    lines = said.splitlines()
    assert lines[1].startswith("default via 192.168.0.254")
    assert "via 192.168.0.1 " in lines[2]
    assert "via 192.168.0.254 " in said[said.index("via 192.168.0.1 ") + 10 :]
    assert lines[-1] == "0"


def test_the_script_of_another_server_touches_nothing(tmp_path: Path, sides: dict[str, ServerSide]) -> None:
    profile_of(tmp_path)
    said = in_namespace(
        tmp_path, sides["img1"], own="192.168.0.99", commands="sh $script up; echo $?; ip route show default"
    )
    assert "no network card of this machine has 192.168.0.31: this is not server img1" in said
    assert "default via 192.168.0.254" in said


def test_the_command_writes_scripts_and_table_and_leaves_nothing_old(tmp_path: Path) -> None:
    profile_of(tmp_path)
    shutil.copy(goldens.ROOT / "tasks.py", tmp_path)
    argv: list[str | Path] = [goldens.ROOT / "inv", "servers", "sides"]
    done = process.run(argv, timeout_s=60, cwd=tmp_path)
    folder = tmp_path / "servers/sides"
    assert sorted(p.name for p in folder.glob("[!.]*")) == ["README.md", "far1", "img1", "med1", "pol1", "web1"]
    assert os.access(folder / "med1/linux.sh", os.X_OK)
    assert "far1: 1 written" in done.stdout
    assert process.run([*argv, "--server", "nobody"], timeout_s=60, cwd=tmp_path, check=False).returncode == 2


AROUND = """\
set -e
other() { # another machine with its network cards: name; its pid in $name
	unshare -n sleep 60 &
	eval "$1=$!"
	while [ "$(readlink /proc/$!/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
}
at() {
	eval "nsenter -t \\$$1 -n sh -ec \\"\\$2\\""
}
other balancer
other client
other server
ip link set lo up
ip link add lan type veth peer name lan netns $balancer
ip link add inner type veth peer name eth0 netns $server
at balancer "ip link add wan type veth peer name eth0 netns $client"
ip addr add 192.168.0.254/24 dev lan
ip addr add 10.20.0.1/24 dev inner
ip link set lan up
ip link set inner up
ip route add default via 192.168.0.253 # the router's own way out is not the balancers
echo 1 >/proc/sys/net/ipv4/ip_forward
at balancer 'ip addr add 192.168.0.11/24 dev lan; ip addr add 192.168.0.1/32 dev lan
	ip addr add 203.0.113.10/24 dev wan
	ip link set lan up; ip link set wan up; ip route add 10.20.0.0/24 via 192.168.0.254
	echo 1 >/proc/sys/net/ipv4/ip_forward
	nft add table ip n; nft "add chain ip n p { type nat hook prerouting priority -100; }"
	nft add rule ip n p tcp dport 8090 dnat to 10.20.0.31'
at client 'ip addr add 203.0.113.66/24 dev eth0; ip link set eth0 up'
at server 'ip addr add 10.20.0.31/24 dev eth0; ip link set lo up; ip link set eth0 up
	ip route add default via 10.20.0.1'
nsenter -t $server -n "$PYTHON" -c '
import socket
listener = socket.create_server(("", 8090))
print("listens", flush=True)
while True:
    listener.accept()[0].sendall(b"beh1")
' >listens &
while ! grep -q listens listens; do sleep 0.05; done
ask() { # who, source, whom
	nsenter -t "$1" -n "$PYTHON" -c '
import socket, sys
try:
    with socket.create_connection((sys.argv[2], 8090), 1, (sys.argv[1], 0)) as one:
        print(one.recv(9).decode())
except OSError:
    print("nobody")
' "$2" "$3"
}
"""


def test_a_router_with_its_script_brings_the_answers_back_through_the_balancer(tmp_path: Path) -> None:
    """Machines as namespaces; nftables stands in for IPVS: it needs the answers as much."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/sides.yaml").write_text(BEHIND)
    profile = load(Workspace.at(tmp_path), "sides").profile
    made = script(next(s for s in servers(profile) if s.router), "linux", profile, TEMPLATES)
    assert made is not None
    (tmp_path / "linux.sh").write_bytes(made.content)
    commands = """
echo client: $(ask $client 203.0.113.66 203.0.113.10)
echo check: $(ask $balancer 192.168.0.11 10.20.0.31)
for action in up status; do sh linux.sh $action >/dev/null; echo $action $?; done
echo client: $(ask $client 203.0.113.66 203.0.113.10)
echo check: $(ask $balancer 192.168.0.11 10.20.0.31)
ip route get 192.168.0.11 from 10.20.0.31 iif inner ipproto 6 sport 8090
ip route get 198.51.100.1 from 10.20.0.31 iif inner ipproto 6 sport 8090
ip route get 198.51.100.1 from 10.20.0.31 iif inner ipproto 6 sport 99
sh linux.sh down >/dev/null
echo client: $(ask $client 203.0.113.66 203.0.113.10)
kill $balancer $client $server
"""
    argv = [
        "unshare",
        "-Urnm",
        "-fp",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        f"mount -t tmpfs none /run; {AROUND}{commands}",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60,
                          env={**os.environ, "PYTHON": sys.executable})  # fmt: skip
    said = [line.strip() for line in done.stdout.splitlines()]
    assert said[:6] == ["client: nobody", "check: beh1", "up 0", "status 0", "client: beh1", "check: beh1"], done.stderr
    direct, answers, others = (line for line in said if " from 10.20.0.31 " in line)
    assert " via " not in direct
    assert "via 192.168.0.1 " in answers
    assert "via 192.168.0.253 " in others
    assert said[-1] == "client: nobody"


@pytest.mark.parametrize(("topology", "policy"), [("nat", False), ("tproxy", False), ("tproxy", True)])
def test_servers_of_a_node_that_stands_alone_have_its_own_address_as_their_gateway(topology: str, policy: bool) -> None:
    text = PROFILE.partition("nodes:")[0] + (
        "nodes: {box: {addresses: {wan: 203.0.113.11, lan: [192.168.0.11, 'fd00:0:0:1::11']}}}\n"
        "vips: {www: {network: wan, address: 203.0.113.11}}\n"
        f"pools: {{web: {{reply_route: {'policy' if policy else 'default'}, servers: {{web1: 192.168.0.31}}}}}}\n"
        f"services: {{web: {{vip: www, port: 80, topology: {topology}, protocol: tcp, pool: web}}}}\n"
    )
    (side,) = servers(goldens.parse(text))
    ways = side.answers if policy else side.gateways
    assert [str(way.gateway) for way in ways] == ["192.168.0.11"]
    assert policy or "IPv4 default gateway 192.168.0.11 (node box): answers of web" in side.needs[0]
    assert not side.nothing
