"""Who gets in: the evaluator against one that asks for every address, and the fixes of what it refuses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from counting import lines_run
from ndakit.model import Profile, capacity_of, sysctl_values
from ndakit.model import rules as model_rules
from ndakit.model.admin_access import WHOLE, Door, Filter, Way
from ndakit.model.rules.access import door
from ndakit.model.spans import EVERYBODY, NEVER, PUBLIC, Spans, shown
from ndakit.model.sysctl_values import MachineSize, harm
from ndakit.model.sysctls import KNOWN, general
from ndakit.render.node import NodeView
from places import DATA

BASE = (DATA / "valid/full.yaml").read_text()
FEW = ip_network("192.0.2.0/26")
"""So few addresses that every one of them can be asked about."""

subnets = st.builds(
    lambda length, number: IPv4Network((int(FEW.network_address) + (number >> (32 - length) << (32 - length)), length)),
    st.integers(26, 32), st.integers(0, 63),
)  # fmt: skip
addresses = st.integers(0, 63).map(lambda n: IPv4Address(int(FEW.network_address) + n))


def numbers(spans: Spans) -> set[int]:
    return {n for first, last in spans.pairs for n in range(first, last + 1)}


@settings(deadline=None)
@given(st.lists(subnets), st.lists(subnets), subnets)
def test_spans_are_sets_of_addresses(one: list[IPv4Network], other: list[IPv4Network], part: IPv4Network) -> None:
    a, b = Spans.of(one, 4), Spans.of(other, 4)
    assert numbers(a | b) == numbers(a) | numbers(b)
    assert numbers(a & b) == numbers(a) & numbers(b)
    assert numbers(a - b) == numbers(a) - numbers(b)
    assert numbers(a.within(part)) == numbers(a) & numbers(Spans.of([part], 4))
    assert (a <= b) == (numbers(a) <= numbers(b))
    assert a.size == len(numbers(a))
    assert all(before[1] + 1 < after[0] for before, after in zip(a.pairs, a.pairs[1:], strict=False))


def asked(one: Door, source: IPv4Address) -> bool:
    """The kernel's way: whether this address gets in, by a walk through the routes and the rules."""
    links = [w.to for w in one.ways if w.via is None and w.to.prefixlen < 31]
    if any(source in (s.network_address, s.broadcast_address) for s in links):
        return False
    if source in one.nodes or source in one.vips:
        return False
    fitting = [w for w in one.ways if source in w.to]
    if not fitting:
        return False
    best = min(fitting, key=lambda w: (-w.to.prefixlen, w.via is not None, w.metric))
    if best.via is not None:
        own = {a for a, _ in one.addresses}
        if best.via in own or not any(best.via in w.to for w in one.ways if w.via is None and w.device == best.device):
            return False
        if any(w.via is None and w.to.prefixlen < best.to.prefixlen for w in fitting):
            return False
    for address, device in one.addresses:
        if device != best.device:
            continue
        for rule in one.filters:
            if rule.devices is not None and device not in rule.devices:
                continue
            if rule.destinations and not any(address in d for d in rule.destinations):
                continue
            if not rule.sources or any(source in s for s in rule.sources):
                if rule.accepts:
                    return True
                break
    return False


devices = st.sampled_from(["eth0", "eth1"])
ways = st.builds(Way, subnets, devices, st.none() | addresses, st.integers(0, 2))
filters = st.builds(
    Filter,
    st.booleans(),
    st.none() | st.frozensets(devices, min_size=1),
    st.lists(subnets, max_size=2).map(tuple),
    st.lists(addresses.map(lambda a: ip_network(a)), max_size=1).map(tuple),
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(addresses, devices), min_size=1, max_size=3).map(tuple),
    st.lists(ways, max_size=6, unique_by=lambda w: (w.to, w.metric)).map(tuple),
    st.lists(filters, max_size=4).map(tuple),
    st.lists(addresses, max_size=2).map(tuple),
    subnets,
)
def test_the_evaluator_agrees_with_a_walk_for_every_address(
    own: tuple[Any, ...], routes: tuple[Way, ...], rules: tuple[Filter, ...], vips: tuple[Any, ...], source: IPv4Network
) -> None:
    one = Door(own, routes, rules, None, tuple(a for a, _ in own), vips)
    assert (one.why_not(source) == "") == any(asked(one, a) for a in source)


def standing(
    filters: Sequence[Filter] = (Filter(accepts=True),), listens: tuple[Any, ...] | None = None, *further: Way
) -> Door:
    own = ip_address("192.0.2.11")
    link = Way(ip_network("192.0.2.0/24"), "eth0")
    out = Way(WHOLE[4], "eth0", ip_address("192.0.2.1"))
    return Door(((own, "eth0"),), (link, out, *further), tuple(filters), listens, (own,), (ip_address("192.0.2.10"),))


@pytest.mark.parametrize(
    ("source", "reason"),
    [("192.0.2.0/24", ""), ("198.51.100.7/32", ""), ("0.0.0.0/0", ""), ("224.0.0.0/4", "never"),
     ("240.0.0.0/4", "never"), ("127.0.0.0/8", "never"), ("192.0.2.255/32", "never"), ("192.0.2.0/32", "never"),
     ("192.0.2.10/32", "vip"), ("192.0.2.11/32", "nodes"), ("192.0.2.10/31", "nodes"), ("2001:db8::/32", "family"),
     ("ff02::/16", "never"), ("::ffff:192.0.2.0/120", "never"), ("169.254.0.0/16", "never"),
     ("169.254.7.7/32", "never")],
)  # fmt: skip
def test_the_reason_says_why_nobody_of_a_source_gets_in(source: str, reason: str) -> None:
    assert standing().why_not(ip_network(source)) == reason


def test_routes_rules_and_listeners_are_reasons_of_their_own() -> None:
    near, far = ip_network("192.0.2.128/25"), ip_network("198.51.100.0/24")
    assert standing([Filter(False)]).why_not(near) == "firewall"
    assert standing([Filter(False, sources=(far,)), Filter(True)]).why_not(far) == "firewall"
    assert standing([Filter(False, sources=(far,)), Filter(True)]).why_not(near) == ""
    assert standing([Filter(True)], ()).why_not(near) == "not-listening"
    over = Way(near, "eth1", ip_address("192.0.2.200"))
    assert standing([Filter(True)], None, Way(near, "eth0", ip_address("192.0.2.1"))).why_not(near) == "astray"
    assert standing([Filter(True)], None, over).why_not(near) == "dead-router"
    assert standing([Filter(True)], None, Way(far, "eth0", ip_address("192.0.2.11"))).why_not(far) == "dead-router"
    lonely = Door(((ip_address("192.0.2.11"), "eth0"),), (Way(ip_network("192.0.2.0/24"), "eth0"),), (), None)
    assert lonely.why_not(far) == "no-way"


def test_a_link_local_admin_gets_in_where_the_node_has_ipv6() -> None:
    text = BASE.replace("noc: 203.0.113.128/25", "noc: fe80::/10")
    assert door(profile(text), "lb1").why_not(ip_network("fe80::/10")) == ""


def test_a_link_local_admin_gets_in_on_the_link_only() -> None:
    own, link = ip_address("169.254.0.11"), ip_network("169.254.0.0/24")
    near = Door(((own, "eth0"),), (Way(link, "eth0"), Way(WHOLE[4], "eth0", ip_address("169.254.0.1"))),
                (Filter(True),), None)  # fmt: skip
    assert near.why_not(ip_network("169.254.0.7/32")) == ""
    assert near.why_not(ip_network("169.254.1.7/32")) == "never"
    assert near.why_not(ip_network("198.51.100.7/32")) == ""


def test_the_tables_of_addresses_do_not_overlap() -> None:
    for version in (4, 6):
        assert not NEVER[version] & EVERYBODY[version]
        assert PUBLIC[version] <= EVERYBODY[version]
    assert shown(EVERYBODY[4].first, 4) == "1.0.0.0"
    assert shown(1, 6) == "::1"


def test_ten_times_more_sources_take_no_more_than_their_share_of_work() -> None:
    def steps(count: int) -> int:
        sources = tuple(ip_network((0x0A000000 + 512 * n, 24)) for n in range(count))
        one = standing([Filter(True, sources=sources)])
        reasons: list[str] = []
        work = lines_run(lambda: reasons.extend(one.why_not(s) for s in sources))
        assert set(reasons) == {""}
        return work

    assert steps(1000) < 25 * steps(100)  # quadratic work would be a hundred times as much


# -- fixes: what a message says to do leads to a profile without that mistake, and without another one ----------------


def profile(text: str) -> Profile:
    data = yaml.load(text, Loader=yaml.BaseLoader)
    return Profile.model_validate(data, context={"attach": lambda _: b"<p>sorry</p>"})


def errors(text: str) -> set[str]:
    return {f.code for f in model_rules.findings(profile(text)) if f.severity == "error"}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("default-in-more-parts", ", routes: [{to: 0.0.0.0/1, via: 192.168.0.253}, {to: 128.0.0.0/2, via: 192.168.0.253}, "
      "{to: 192.0.0.0/3, via: 192.168.0.253}]", ", gateway: 192.168.0.253"),
     ("default-in-parts", ", routes: [{to: 0.0.0.0/1, via: 192.168.0.253}, {to: 128.0.0.0/1, via: 192.168.0.253}]", ""),
     ("source-astray", ", routes: [{to: 192.168.0.128/26, via: 192.168.0.100}]", ""),
     ("source-of-nodes", "sources: {", "sources: {office: 203.0.113.128/25, "),
     ("source-of-no-family", '"::/0"', '["::/0", 192.168.0.0/24]'),
     ("firewall-own-ports", "9990-10010", "[9990-9999, 10001-10010]"),
     ("firewall-source-family", "sources: [six]", "sources: [noc, 192.168.0.99]")],
)  # fmt: skip
def test_what_a_message_says_to_do_works(name: str, old: str, new: str) -> None:
    text = (DATA / f"invalid/{name}.yaml").read_text()
    assert old in text
    before, after = errors(text), errors(text.replace(old, new))
    assert before
    assert len(list_of(text.replace(old, new))) < len(list_of(text))
    assert after <= before


def list_of(text: str) -> list[str]:
    return [f.what for f in model_rules.findings(profile(text)) if f.severity == "error"]


@pytest.mark.parametrize("source", ["192.168.0.0/24", "203.0.113.128/25", "10.0.0.0/8"])
def test_the_profiles_own_door_lets_in_whom_its_networks_lead_to(source: str) -> None:
    text = BASE.replace("noc: 203.0.113.128/25", f"noc: {source}")
    assert door(profile(text), "lb1").why_not(ip_network(source)) == ""


# -- kernel values -----------------------------------------------------------------------------------------------------

MACHINE = MachineSize(memory_mib=1024, files=4096)


@pytest.mark.parametrize("at", sysctl_values._RANGES, ids=lambda at: at.pattern)
def test_a_kernel_value_does_harm_outside_of_its_range_and_none_where_the_fix_says(at: Any) -> None:
    key = re.sub(r"\(([^|]*)\|[^)]*\)", r"\1", at.pattern).replace("\\", "").replace("[46]", "4").replace("6?", "")
    key = key.replace(".*.", ".eth0.")
    beyond = [at.low - 1] if at.high is None else [at.low - 1, at.high + 1]
    for number in beyond:
        harmful = harm(key, str(number), MACHINE)
        assert (harmful is None) == (number in at.also)
        assert harmful is None or str(at.low) in harmful.fix
    for number in (at.low, *((at.high,) if at.high is not None else ()), *at.also):
        assert harm(key, str(number), MACHINE) is None
    assert general(key) in KNOWN
    odd = harm(key, "many", MACHINE)
    assert odd is not None
    assert odd.severity == "error"


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [("vm.min_free_kbytes", "131072", "131073"), ("vm.nr_hugepages", "128", "129"), ("fs.nr_open", "4096", "4095"),
     ("fs.file-max", "4096", "1024"), ("net.ipv4.tcp_mem", "1 2 1024", "1 2 1023"),
     ("net.ipv4.udp_mem", "1 1 1024", "1024 1 1024"), ("net.ipv4.tcp_rmem", "1 2 4096", "1 4096"),
     ("net.ipv4.tcp_wmem", "4096 16384 4194304", "0 1 4096"), ("net.core.default_qdisc", "fq_codel", "blackhole"),
     ("net.ipv4.tcp_congestion_control", "cubic", "bogus")],
)  # fmt: skip
def test_a_kernel_value_that_depends_on_the_machine_is_held_against_it(key: str, good: str, bad: str) -> None:
    assert harm(key, good, MACHINE) is None
    harmful = harm(key, bad, MACHINE)
    assert harmful is not None
    assert harmful.severity == "error"


def test_a_congestion_control_of_a_package_can_be_chosen_with_the_package() -> None:
    key = "net.ipv4.tcp_congestion_control"
    without = harm(key, "bbr", MACHINE)
    assert without is not None
    assert "kmod-tcp-bbr" in without.fix
    with_package = MachineSize(memory_mib=1024, files=4096, packages=frozenset({"kmod-tcp-bbr"}))
    assert harm(key, "bbr", with_package) is None
    other = harm(key, "bogus", with_package)
    assert other is not None
    assert other.fix == "delete it, or write cubic or reno or bbr"


@pytest.mark.parametrize(
    ("key", "its"),
    [("net.ipv4.conf.eth0.rp_filter", "eth0"), ("net.ipv6.conf.eth0/7.mtu", "eth0.7"),
     ("net.ipv4.neigh.default.gc_thresh3", "default"), ("net.ipv4.tcp_sack", None)],
)  # fmt: skip
def test_a_kernel_value_says_which_device_it_is_about(key: str, its: str | None) -> None:
    assert sysctl_values.device(key) == its


@pytest.mark.parametrize("key", ["kernel.modprobe", "kernel.modules_disabled", "kernel.usermodehelper.bset"])
def test_what_loads_the_kernels_modules_is_left_alone(key: str) -> None:
    assert harm(key, "1", MACHINE) is not None


def test_a_range_of_source_ports_of_ones_own_is_what_the_profile_counts_with() -> None:
    text = BASE + "tuning: {sysctl: {net.ipv4.ip_local_port_range: 50000 50999}}\n"
    size = capacity_of(profile(text))
    assert (size.ports_from, size.ports_to, size.ports) == (50000, 50999, 1000)
    values = {v.key: v.value for v in NodeView(profile(text), "lb1").sysctls}
    assert values["net.ipv4.ip_local_port_range"] == "50000 50999"
    assert "net.ipv4.ip_local_reserved_ports" not in values
    inside = NodeView(profile(text.replace("50000 50999", "8000 8999")), "lb1").sysctls
    assert {v.key: v.value for v in inside}["net.ipv4.ip_local_reserved_ports"] == "8404"
