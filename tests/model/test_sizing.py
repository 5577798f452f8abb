"""What `sizing` and `tuning` come to: limits, kernel values with their reasons, and the memory that they take."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import goldens
from ndakit.core.release import Release
from ndakit.model import Capacity, Profile, capacity_of, rules
from ndakit.model.capacity import POOLS_CONNECTIONS, STATISTICS_CONNECTIONS, power_of_two
from ndakit.model.rules.findings import Finding
from ndakit.model.sizing import Tuning
from ndakit.model.sysctls import KNOWN, general, gone, owner
from ndakit.render.node import NodeView

BASE = (goldens.DATA / "valid/handover.yaml").read_text()


def profile(*changes: tuple[str, str], sizing: str = "{}", sysctl: str = "{}") -> Profile:
    text = BASE.split("sizing:")[0] + f"sizing: {sizing}\ntuning: {{sysctl: {sysctl}}}\n"
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    data: Any = yaml.load(text, Loader=yaml.BaseLoader)
    return Profile.model_validate(data)


def values(sized: Profile) -> dict[str, tuple[str, str]]:
    return {v.key: (v.value, v.why) for v in NodeView(sized, "lb1").sysctls}


def test_without_sizing_the_limits_are_those_that_always_were() -> None:
    size = capacity_of(profile())
    assert (size.connections_max, size.tracked_max, size.ports_from, size.backlog) == (10000, 131072, 10240, 4096)
    assert size.memory_needed_mib <= size.memory_mib == 1024


def test_a_small_device_has_small_limits_that_fit_into_its_memory() -> None:
    size = capacity_of(profile(("release: 24.10.8", "release: 24.10.8\ndevice: dockstar")))
    assert (size.connections_max, size.tracked_max, size.memory_mib) == (1000, 16384, 128)
    assert size.memory_needed_mib <= 128


def test_a_session_takes_rate_times_duration_and_two_minutes_of_tracking() -> None:
    size = capacity_of(profile(sizing="{sessions_per_second: 1000, session_duration_s: 0.1}"))
    assert size.sessions == 100
    assert size.tracked_needed == 240_200
    assert size.tracked_max == 262_144
    assert size.time_wait_max == 131_072


def test_the_rush_has_room_for_twice_the_sessions() -> None:
    assert capacity_of(profile(sizing="{sessions_per_second: 300, session_duration_s: 60}")).connections_max == 36_000


def test_ports_are_widened_when_one_server_has_to_take_all() -> None:
    assert capacity_of(profile(sizing="{sessions_per_second: 900, session_duration_s: 1}")).ports_from == 10240
    size = capacity_of(profile(sizing="{sessions_per_second: 1000, session_duration_s: 1}"))
    assert (size.ports_from, size.ports) == (1024, 64512)


def test_daemons_ports_are_kept_out_of_a_widened_range() -> None:
    written = values(profile(sizing="{sessions_per_second: 1000, session_duration_s: 1}"))
    assert written["net.ipv4.ip_local_reserved_ports"][0] == "3780,8404"
    assert "net.ipv4.ip_local_reserved_ports" not in values(profile())


def _own(name: str, *changes: tuple[str, str]) -> Profile:
    text = (goldens.DATA / name).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return Profile.model_validate(yaml.load(text, Loader=yaml.BaseLoader))


RESERVED = "net.ipv4.ip_local_reserved_ports"


def test_a_range_of_ports_on_the_nodes_own_address_is_kept_from_its_own_questions() -> None:
    own = _own("valid/own-ports-range.yaml")
    value, why = values(own)[RESERVED]
    assert value == "10240-20000"
    assert "own address" in why
    assert capacity_of(own).ports == 65535 - 20000
    # What needs no port of the usual range takes the wide one, and what starts inside of it is cut there.
    most = _own("valid/own-ports-range.yaml", ("10000-20000", "9000-65535"))
    assert (capacity_of(most).ports_from, capacity_of(most).ports) == (1024, 9000 - 1024 - 1)
    assert values(most)[RESERVED][0] == "5060,9000-65535"


def test_a_vip_of_its_own_takes_no_source_port_away() -> None:
    own = _own("valid/own-ports-range.yaml", ("address: 203.0.113.11}\n  gw", "address: 203.0.113.12}\n  gw"))
    assert capacity_of(own).served.size == 0
    assert RESERVED not in values(own)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("own-ports-all", "address: 203.0.113.11}\n  gw", "address: 203.0.113.12}\n  gw"),
     ("own-ports-all", "[1024-65535]", "[10000-20000]"),
     ("own-ports-tuned", "tuning: {sysctl: {net.ipv4.ip_local_port_range: 10000 20010}}\n", "")],
)  # fmt: skip
def test_each_way_out_of_too_few_source_ports_is_one(name: str, old: str, new: str) -> None:
    assert "own-address-ports" in {f.code for f in rules.findings(_own(f"invalid/{name}.yaml"))}
    assert [f for f in rules.findings(_own(f"invalid/{name}.yaml", (old, new))) if f.severity == "error"] == []


def test_a_narrow_range_of_source_ports_beside_the_services_is_taken() -> None:
    own = _own("invalid/own-ports-tuned.yaml", ("10000 20010", "50000 50999"))
    assert "own-address-ports" not in {f.code for f in rules.findings(own)}


@given(st.floats(0.1, 5000), st.floats(0.001, 600))
def test_every_limit_holds_what_is_expected(rate: float, duration_s: float) -> None:
    size = capacity_of(profile(sizing=f"{{sessions_per_second: {rate:.3f}, session_duration_s: {duration_s:.3f}}}"))
    assert size.connections_max >= 2 * size.sessions_per_second * size.session_duration_s
    assert size.tracked_max >= size.tracked_needed
    assert size.tracked_max >= 2 * size.connections_max
    assert size.time_wait_max >= 2 * 60 * size.sessions_per_second
    assert size.tracked_max & (size.tracked_max - 1) == 0
    assert size.memory_needed_mib == sum(mib for _, mib in size.memory)


@given(st.floats(0.5, 2**40))
def test_the_next_power_of_two_is_the_next_one(value: float) -> None:
    power = power_of_two(value)
    assert power >= value
    assert power == 1 or power / 2 < value


def test_what_is_refused_fits_once_the_memory_is_what_the_message_says() -> None:
    load = "sessions_per_second: 3000, session_duration_s: 20"
    (finding,) = [
        f for f in rules.findings(profile(sizing=f"{{memory_mib: 512, {load}}}")) if f.code == "sizing-memory"
    ]
    needed = re.search(r"memory_mib: (\d+)", finding.fix)
    assert needed is not None
    enough = profile(sizing=f"{{memory_mib: {needed[1]}, {load}}}")
    assert "sizing-memory" not in {f.code for f in rules.findings(enough)}
    short = profile(sizing=f"{{memory_mib: {int(needed[1]) - 1}, {load}}}")
    assert "sizing-memory" in {f.code for f in rules.findings(short)}


def too_much(sized: Profile) -> Finding | None:
    return next((f for f in rules.findings(sized) if f.code == "sizing-memory"), None)


def test_a_limit_of_connections_that_needs_the_memory_is_named_and_done_as_told_it_fits() -> None:
    finding = too_much(services(3, 200, 200_000, 150_000))
    assert finding is not None
    assert finding.at == ("services", "web1", "limits", "connections")
    assert "200000 connections of service web1" in finding.what
    count = re.search(r"count of web1 and web2 to ([0-9]+) or less", finding.fix)
    assert count is not None
    assert "sessions_per_second" not in finding.fix
    fitting = int(count[1])
    assert fitting > 10_000
    assert too_much(services(3, 200, fitting, fitting)) is None
    assert too_much(services(3, 200, fitting + 100, fitting)) is not None
    needed = re.search(r"memory_mib: (\d+)", finding.fix)
    assert needed is not None
    assert too_much(services(3, 200, 200_000, 150_000, sizing=f"{{memory_mib: {needed[1]}}}")) is None


def test_a_table_of_ones_own_that_needs_the_memory_is_named_and_done_as_told_it_fits() -> None:
    key = "net.netfilter.nf_conntrack_max"
    finding = too_much(profile(sysctl=f"{{{key}: '3000000'}}"))
    assert finding is not None
    assert finding.at == ("tuning", "sysctl", key)
    assert f"delete {key}" in finding.fix
    assert "sessions_per_second" not in finding.fix
    assert too_much(profile()) is None


def test_a_load_that_needs_the_memory_is_what_is_to_be_lowered() -> None:
    finding = too_much(services(2, 200, sizing="{sessions_per_second: 20000}"))
    assert finding is not None
    assert "lower sessions_per_second or session_duration_s" in finding.fix
    assert "count" not in finding.fix
    assert too_much(services(2, 200, sizing="{sessions_per_second: 1}")) is None


def test_what_no_single_change_mends_is_told_so() -> None:
    both = services(1, 200_000, sizing="{sessions_per_second: 20000}")
    finding = too_much(both)
    assert finding is not None
    assert "do several of these: lower sessions_per_second" in finding.fix
    assert "lower limits.connections.count" in finding.fix
    assert too_much(services(1, 200, sizing="{sessions_per_second: 1}")) is None


def test_a_machine_that_is_too_small_for_anything_is_only_told_to_grow() -> None:
    finding = too_much(services(1, sizing="{memory_mib: 64}"))
    assert finding is not None
    assert "lower" not in finding.fix


def test_services_that_the_kernel_balances_need_no_memory_of_haproxy() -> None:
    kernel = profile(
        ("protocol: http", "protocol: tcp, topology: nat"), ("check: http", "check: tcp"), (", demote_on: [web]", ""),
        sizing="{sessions_per_second: 5000, session_duration_s: 10}",
    )  # fmt: skip
    size = capacity_of(kernel)
    assert (size.connections_max, size.haproxy_max, size.files) == (0, 0, 0)
    assert dict(size.memory)["HAProxy"] == 0
    assert dict(size.memory)["IPVS"] == 248


def test_a_kernel_value_of_ones_own_replaces_the_computed_one_and_says_so() -> None:
    value, why = values(profile(sysctl="{net.core.somaxconn: 9000}"))["net.core.somaxconn"]
    assert value == "9000"
    assert why.startswith("tuning.sysctl of the profile; computed was 4096: ")


def test_a_limit_of_ones_own_is_compared_with_the_computed_one_not_with_itself() -> None:
    written = values(profile(sysctl="{net.netfilter.nf_conntrack_max: 20000}"))
    value, why = written["net.netfilter.nf_conntrack_max"]
    assert (value, written["net.netfilter.nf_conntrack_buckets"][0]) == ("20000", "20000")
    assert why.startswith("tuning.sysctl of the profile; computed was 131072: ")


def test_a_kernel_value_beyond_the_computed_ones_comes_last() -> None:
    written = values(profile(sysctl="{net.ipv4.tcp_rmem: '4096  87380 6291456'}"))
    assert list(written)[-1] == "net.ipv4.tcp_rmem"
    assert written["net.ipv4.tcp_rmem"][0] == "4096 87380 6291456"


def test_every_kernel_value_has_a_reason_and_is_known() -> None:
    for name, _ in goldens.cases():
        view = NodeView(goldens.profile(name), next(iter(goldens.profile(name).nodes)))
        for item in view.sysctls:
            assert len(item.why) > 20
            assert general(item.key) in KNOWN


def test_no_known_key_is_gone_and_no_computed_one_neither() -> None:
    newest = Release.parse("25.12.5")
    assert [k for k in KNOWN if gone(k, newest)] == []
    assert [k for k in values(profile()) if gone(k, newest)] == []


def test_a_key_is_gone_only_from_the_release_on_whose_kernel_dropped_it() -> None:
    assert gone("net.ipv4.tcp_adv_win_scale", Release.parse("24.10.8")) is not None
    assert gone("net.ipv4.tcp_adv_win_scale", Release.parse("23.05.6")) is None


@pytest.mark.parametrize("key", ["net.ipv4.ip_forward", "net.ipv4.conf.eth0.forwarding", "net.ipv4.vs.conntrack"])
def test_what_other_keys_decide_cannot_be_set(key: str) -> None:
    assert owner(key) is not None
    assert "sysctl-owned" in {f.code for f in rules.findings(profile(sysctl=f"{{{key}: 1}}"))}


def test_a_value_of_a_device_is_known_by_its_general_name() -> None:
    assert general("net.ipv4.conf.eth0.rp_filter") == "net.ipv4.conf.*.rp_filter"
    assert not list(rules.findings(profile(sysctl="{net.ipv4.conf.eth0.rp_filter: 2}")))


def test_memory_of_all_parts_is_counted() -> None:
    size = capacity_of(profile())
    assert isinstance(size, Capacity)
    assert replace(size, connections_max=20000).memory_needed_mib > size.memory_needed_mib + 300
    assert replace(size, tracked_max=2**20).memory_needed_mib > size.memory_needed_mib + 250


# -- HAProxy's connections ---------------------------------------------------------------------------------------------


def services(count: int, *limits: int, sizing: str = "{}") -> Profile:
    """A profile with so many proxied services, the first ones with limits of their own."""
    lines = []
    for number in range(count):
        limit = f", limits: {{connections: {{count: {limits[number]}}}}}" if number < len(limits) else ""
        lines.append(f"  web{number}: {{vip: www, port: {80 + number}, protocol: http, pool: web{limit}}}")
    text = goldens.PROFILES["bakery"].read_text()
    text = text[: text.index("services:")] + "services:\n" + "\n".join(lines) + f"\nsizing: {sizing}\n"
    return goldens.parse(text)


def test_600000_connections_get_the_files_that_they_need() -> None:
    large = services(1, sizing="{memory_mib: 65536, sessions_per_second: 3000, session_duration_s: 100}")
    size, written = capacity_of(large), values(large)
    assert size.connections_max == 600_000
    assert written["fs.nr_open"][0] == str(size.files)
    assert size.files > 2 * size.haproxy_max > 1_200_000
    assert "600100 connections" in written["fs.nr_open"][1]
    assert "fs.nr_open" not in values(services(1))
    tuned = large.model_copy(update={"tuning": Tuning(sysctl={"fs.nr_open": "1048576"})})
    assert "sysctl-harms" in {f.code for f in rules.findings(tuned)}


def test_haproxys_own_limit_is_above_what_its_services_may_take() -> None:
    size = capacity_of(services(1))
    assert (size.connections_max, size.together_max, size.haproxy_max) == (10_000, 10_000, 10_100)
    assert size.haproxy_max - size.together_max > STATISTICS_CONNECTIONS + POOLS_CONNECTIONS
    two = capacity_of(services(2))
    assert (two.connections_max, two.together_max, two.limited_together) == (10_000, 20_000, False)


def test_services_get_together_what_the_memory_carries_and_each_its_own() -> None:
    many = capacity_of(services(8))
    assert many.limited_together
    assert many.connections_max <= many.together_max < many.services_sum
    full = replace(many, connections_max=many.together_max)
    assert full.memory_needed_mib <= many.memory_mib
    assert capacity_of(services(8, sizing="{memory_mib: 16384}")).together_max > many.together_max


def test_a_limit_of_a_service_counts_up_and_down() -> None:
    assert capacity_of(services(1, 50)).haproxy_max == 150
    assert capacity_of(services(2, 50)).together_max == 10_050
    large = services(1, 60_000)
    assert "sizing-memory" in {f.code for f in rules.findings(large)}
    assert capacity_of(large).connections_max == 60_000
    assert capacity_of(large).tracked_max >= 2 * 60_000


@given(st.lists(st.integers(1, 1_000_000), max_size=6), st.integers(1, 8), st.integers(64, 1_048_576))
def test_whatever_the_limits_haproxy_keeps_its_reserve_and_the_tables_have_room(
    limits: list[int], count: int, memory_mib: int
) -> None:
    size = capacity_of(services(count, *limits[:count], sizing=f"{{memory_mib: {memory_mib}}}"))
    assert size.connections_max <= size.together_max <= max(size.services_sum, size.connections_max)
    assert size.haproxy_max == size.together_max + 100
    assert size.tracked_max >= 2 * size.together_max
    assert size.files > 2 * size.haproxy_max
    if size.memory_needed_mib <= memory_mib:
        assert replace(size, connections_max=size.together_max).memory_needed_mib <= memory_mib


@pytest.mark.parametrize(
    ("limits", "entries"),
    [
        ("{connections: {count: 50}}", 0),
        ("{requests: {count: 100}}", 1024),
        ("{requests: {count: 100, per_s: 60}}", 2 * 500 * 60),
        ("{requests: {count: 100, per_s: 3600}}", 100_000),
        ("{connections: {per_client: 20}}", 10_000),
        ("{connections: {count: 3000, per_client: 20}}", 3000),
        ("{connections: {count: 3000, per_client: 20}, requests: {count: 9, per_s: 60}}", 60_000),
    ],
)
def test_what_is_remembered_of_clients_takes_memory(limits: str, entries: int) -> None:
    name = next(iter(profile().haproxy_services))
    service = yaml.load(f"limits: {limits}", Loader=yaml.BaseLoader)
    data: Any = yaml.load(BASE.split("sizing:")[0], Loader=yaml.BaseLoader)
    plain = capacity_of(Profile.model_validate(data))
    data["services"][name] |= service
    size = capacity_of(Profile.model_validate(data))
    assert size.client_entries == entries
    tables = dict(size.memory)["HAProxy's tables of clients"]
    assert tables == -(-entries * 256 // 2**20) and dict(plain.memory)["HAProxy's tables of clients"] == 0
