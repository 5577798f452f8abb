"""Topology tproxy: what each release gets for it, the exceptions from source NAT, and how a node is asked for it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest

import goldens
from ndakit.core.release import NEWEST_POINTS, newest
from ndakit.lab.clients import LabPeople
from ndakit.lab.plan import plan
from ndakit.lint.lint import lint
from ndakit.model import Profile, rules, transparent
from ndakit.model.package_needs import needed
from ndakit.model.server_side import servers
from ndakit.node.facts import NodeFacts
from ndakit.render.engines.haproxy import haproxy
from ndakit.render.node import NodeView
from ndakit.render.render import Tree, render
from ndakit.verify.claims import all_claims

HAPROXY, USER, NFT = "/etc/haproxy.cfg", "/etc/firewall.user", "/etc/nftables.d/20-tproxy.nft"


def of_release(release: str) -> Profile:
    """The worked example for IIS on another release."""
    text = goldens.PROFILES["iis-tproxy"].read_text().replace("release: 24.10.8", f"release: {release}")
    return goldens.parse(text.replace(", egress: www", ""))  # fw3 has no source NAT for IPv6


def tree(release: str) -> Tree:
    return render(of_release(release), "lb1", goldens.TEMPLATES)


@pytest.mark.parametrize("branch", NEWEST_POINTS)
def test_each_release_gets_its_own_form_of_rules_rights_and_packages(branch: tuple[int, int]) -> None:
    release = newest(branch)
    assert release is not None
    files, packages = tree(release), needed(of_release(release))
    config = files[HAPROXY].text
    assert config.count("\tsource 0.0.0.0 usesrc clientip\n") == 2
    assert ("\tsetcap cap_net_raw\n" in config, "\tuser nobody\n" in config) == ((branch >= (24, 10),) * 2)
    fw4 = branch >= (22, 3)
    assert (NFT in files, USER in files) == (fw4, not fw4)
    assert ("kmod-nft-socket" in packages, "iptables-mod-tproxy" in packages) == (fw4, not fw4)
    network = files["/etc/config/network"].text
    kinds = ("rule", "rule6", "route", "route6")
    assert [network.count(f"\nconfig {kind}\n") for kind in kinds] == [1, 1, 1, 1]


def test_without_such_a_service_nothing_of_it_is_there() -> None:
    files = goldens.tree("apache-pair")
    assert NFT not in files
    assert "config rule" not in files["/etc/config/network"].text
    assert "usesrc" not in files[HAPROXY].text
    assert "setcap" not in files[HAPROXY].text
    assert NodeView(goldens.profile("apache-pair"), "lb1").divert is None


@pytest.mark.parametrize("name", ["divert", "divert-local", "rule"])
def test_no_name_of_a_network_meets_those_of_its_rules_and_routes(name: str) -> None:
    profile = goldens.parse(re.sub(r"\blan\b", name, goldens.PROFILES["iis-tproxy"].read_text()))
    assert name in profile.networks
    assert lint(render(profile, "lb1", goldens.TEMPLATES), profile, "lb1") == []


@pytest.mark.parametrize("sorry", ["{page: sorry.html}", "{pool: spare}"])
@pytest.mark.parametrize(
    "shed", ["maintenance: true", "limits: {queue: {length: 5}}", "limits: {requests: {count: 9, on_excess: sorry}}"]
)
def test_the_backend_that_says_sorry_connects_to_nobody_and_needs_no_source(shed: str, sorry: str) -> None:
    text = goldens.PROFILES["iis-tproxy"].read_text().replace("sorry: {page: sorry.html}", f"sorry: {sorry}")
    spare = '\n  spare: {port: 80, servers: {spare1: [192.168.5.29, "fd00:0:0:5::29"]}}\n\nservices:'
    profile = goldens.parse(text.replace("\nservices:", spare).replace("pool: iis,", f"pool: iis, {shed},"))
    made = render(profile, "lb1", goldens.TEMPLATES)
    assert ("backend _sorry:iis\n" in made[HAPROXY].text) == ("page" in sorry)
    assert lint(made, profile, "lb1") == []


def test_a_family_that_no_such_service_has_gets_no_rule() -> None:
    network = goldens.tree("rtmp-tproxy")["/etc/config/network"].text
    assert "config rule\n" in network
    assert "config rule6" not in network
    assert "divert ip6tables" not in goldens.tree("tproxy-1806")[USER].text


def test_clients_of_each_family_are_led_to_servers_of_theirs_which_are_checked_there() -> None:
    view = haproxy(NodeView(goldens.profile("tproxy-2512"), "lb1"))
    backends = {b.name: b for b in view.backends}
    web, web6 = backends["web.web"], backends["web.web.ipv6"]
    assert [s.socket for s in web.servers] == ["192.168.0.21:80", "192.168.0.22:80"]
    assert [s.socket for s in web6.servers] == ["[fd00:0:0:1::21]:80", "[fd00:0:0:1::22]:80"]
    assert (web.checked, web6.checked) == (False, True)  # IPv4 follows the backend of topology proxy
    assert {b.name for b in view.backends if b.transparent} == {
        "web.web", "spare.web", "web.web.ipv6", "spare.web.ipv6", "streams", "far"
    }  # fmt: skip
    (frontend,) = (f for f in view.frontends if f.name == "service:web")
    assert [(d.backend, [str(a) for a in d.addresses], d.empty) for d in frontend.fallback_rules] == [
        ("spare.web.ipv6", ["2001:db8:0:1::10"], ("web.web.ipv6",)),
        ("web.web.ipv6", ["2001:db8:0:1::10"], ()),
        ("spare.web", [], ("web.web",)),
    ]
    assert frontend.backend == "web.web"


def test_source_nat_leaves_what_haproxy_says_to_servers_alone() -> None:
    rules = goldens.tree("tproxy-2512")["/etc/config/firewall"].text.split("config nat")[1:]
    kept = [r for r in rules if "clients-" in r]
    assert rules.index(kept[-1]) < next(i for i, r in enumerate(rules) if "target 'SNAT'" in r)
    assert all("option src 'lan'" in r and "option src_ip '192.168.8.0/24'" in r and "'ACCEPT'" in r for r in kept)
    streams = [r for r in kept if "clients-streams" in r]
    assert ["dest_port '1935'" in r or "dest_port '19350-19359'" in r for r in streams] == [True, True]


def test_servers_and_inner_routers_send_answers_to_the_balancers() -> None:
    sides = {s.name: s for s in servers(goldens.profile("tproxy-2512"))}
    assert [str(g.gateway) for g in sides["web1"].gateways] == ["192.168.0.1", "fd00:0:0:1::1"]
    (answer,) = sides["router-192-168-0-254"].answers
    assert (str(answer.gateway), str(answer.source), answer.port) == ("192.168.0.1", "10.20.0.21", "81")


def test_sockets_of_sorry_pools_are_among_those_that_answer() -> None:
    sockets = transparent.sockets(goldens.profile("tproxy-2512"), "web", 4)
    assert {str(a) for a, _ in sockets} == {"192.168.0.21", "192.168.0.22", "192.168.0.29"}


@pytest.mark.parametrize("name", ["iis-tproxy", "rtmp-tproxy"])
def test_what_is_claimed_of_the_examples(name: str) -> None:
    profile = goldens.profile(name)
    (service,), claims = profile.services, {c.name for c in all_claims(profile)}
    assert {f"client-address/{service}", f"way-back/{service}", "divert/lb1", "divert/lb2", f"servers/{service}",
            f"check/{service}", "failover/power-off"} <= claims  # fmt: skip
    assert (f"client-headers/{service}" in claims) == (profile.services[service].protocol == "http")


@pytest.mark.parametrize(("topology", "near"), [("tproxy", False), ("proxy", True)])
def test_servers_that_would_answer_neighbours_directly_are_asked_from_beyond_the_gateway(
    topology: str, near: bool
) -> None:
    text = (goldens.DATA / "valid/tproxy-nat.yaml").read_text().replace("tproxy", topology)
    profile = goldens.parse(text.replace("name: proxy-nat", "name: near"))
    lab = LabPeople(profile, plan(profile), None, print)
    seats = lab.plan.clients if near else lab.plan.outside
    assert lab.client_for(profile.endpoints("web")[0], "web") == seats["lan"]


@pytest.mark.parametrize(
    ("families", "told"),
    [
        ("", ["server iis1 at 192.168.5.21 gets 4 checks a second (pool iis, 2 nodes)"]),
        ("families: [ipv4], ", []),
    ],
)
def test_a_server_is_checked_once_for_each_family(families: str, told: list[str]) -> None:
    text = goldens.PROFILES["iis-tproxy"].read_text().replace("interval_s: 2", "interval_s: 1")
    profile = goldens.parse(text.replace("iis: {vip: www, ", f"iis: {{vip: www, {families}"))
    assert [f.what for f in rules.findings(profile) if f.code == "many-checks"] == told


# -- how a node is asked -----------------------------------------------------------------------------------------------

RULES_NFT = (
    "\t\tmeta l4proto tcp socket transparent 1 meta mark set meta mark | 0x00000001 counter packets 22 bytes 2195 "
    'accept comment "answers to clients, for HAProxy"\n'
)
RULES_IPTABLES = (
    "-P PREROUTING ACCEPT\n-N ndakit_divert\n-A PREROUTING -p tcp -m socket --transparent -j ndakit_divert\n"
    "-A ndakit_divert -j MARK --set-xmark 0x1/0x1\n-A ndakit_divert -j ACCEPT\n"
)


@dataclass
class Result:
    stdout: str
    rc: int = 0


@dataclass
class Console:
    """Answers for each command, by its beginning; the others fail."""

    answers: dict[str, str] = field(default_factory=dict)

    def run(self, command: str, *args: str) -> Result:
        return next((Result(a) for start, a in self.answers.items() if command.startswith(start)), Result("", 1))


WHOLE = {
    "nft list ruleset": RULES_NFT,
    "ip -4 rule": "0:\tfrom all lookup local\n1000:\tfrom all fwmark 0x1/0x1 lookup 100\n",
    "ip -4 route show table 100": "local default dev lo proto static scope host \n",
    "ip -6 rule": "1000:\tfrom all fwmark 0x1/0x1 lookup 100\n",
    "ip -6 route show table 100": "local default dev lo proto static metric 1024 pref medium\n",
}


@pytest.mark.parametrize(
    "rules", [{}, {"nft list ruleset": "", "iptables": RULES_IPTABLES, "ip6tables": RULES_IPTABLES}]
)
@pytest.mark.parametrize("version", [4, 6])
def test_a_node_with_everything_takes_answers_in(rules: dict[str, str], version: int) -> None:
    assert NodeFacts(Console(WHOLE | rules)).taken_in(version) == ""


@pytest.mark.parametrize(
    ("command", "answer", "words"),
    [
        ("nft list ruleset", "", "has no DIVERT rule"),
        ("nft list ruleset", RULES_NFT.replace("socket transparent 1 ", ""), "has no DIVERT rule"),
        (
            "nft list ruleset",
            RULES_NFT.replace("0x00000001", "0x00000002"),
            "has no policy rule for packets with the mark 0x2",
        ),
        ("ip -4 rule", "32766:\tfrom all lookup main\n", "has no policy rule for packets with the mark 0x1"),
        ("ip -4 route show table 100", "", "has no local route for everything in table 100"),
        ("ip -4 route show table 100", "local 10.0.0.0/8 dev lo \n", "has no local route for everything in table 100"),
        ("ip -4 route show table 100", "default via 192.0.2.1 dev eth0 \n", "has no local route"),
    ],
)
def test_what_a_node_lacks_is_named(command: str, answer: str, words: str) -> None:
    facts = NodeFacts(Console(WHOLE | {command: answer}))
    assert facts.taken_in(4).startswith(words)
    assert facts.taken_in(6) == "" or command.startswith("nft")


@pytest.mark.parametrize("gone", ["-A PREROUTING -p tcp -m socket", "-A ndakit_divert -j MARK"])
def test_half_of_the_rules_of_iptables_is_none(gone: str) -> None:
    rules = "".join(line for line in RULES_IPTABLES.splitlines(keepends=True) if not line.startswith(gone))
    facts = NodeFacts(Console(WHOLE | {"nft list ruleset": "", "iptables": rules}))
    assert facts.taken_in(4).startswith("has no DIVERT rule")
