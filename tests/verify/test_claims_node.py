"""Claims about one node by itself, tried on stand-ins for a lab: what they find wrong, and what a lab may lack."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

import choosing
from ndakit.lab.clients import LabLacks, LabPeople
from ndakit.lab.host import SshProbe
from ndakit.lab.network import LabNetwork
from ndakit.lab.plan import VantagePoint, plan
from ndakit.model import Profile
from ndakit.verify.claims import all_claims, node
from ndakit.verify.claims.faults import together_s

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f admin"
BARE = choosing.profile(KEY, proxied=False)
PROFILE = Profile.model_validate(yaml.load(f"{BARE}monitoring: {{statistics: {{}}}}\n", Loader=yaml.BaseLoader))
"""One node, and services that the kernel balances: none that HAProxy carries. Its statistics are asked for."""


def lab(**answers: Any) -> LabNetwork:
    """As much of a lab as is asked; `answers` says what its methods return or do."""
    shut = {"scan_all": lambda wanted: [dict.fromkeys(ports, "filtered") for _, _, ports, _ in wanted]}
    return cast(LabNetwork, SimpleNamespace(profile=PROFILE, plan=plan(PROFILE), identity=None, **shut, **answers))


@pytest.mark.parametrize("dead", ["dropbear", "haproxy", "keepalived"])
def test_a_daemon_that_does_not_run_is_named_on_a_standalone_node_of_the_kernels_services(dead: str) -> None:
    def running(*dead: str) -> LabNetwork:
        return lab(facts=lambda node: SimpleNamespace(service_running=lambda name: name not in dead))

    assert node.daemons(running(), "lb1").ok
    assert node.daemons(running(dead), "lb1").detail == f"not running: {dead}"


def test_haproxy_is_claimed_only_where_it_has_something_to_do() -> None:
    bare = Profile.model_validate(yaml.load(BARE, Loader=yaml.BaseLoader))
    without = lab(facts=lambda node: SimpleNamespace(service_running=lambda name: name != "haproxy"))
    assert not node.daemons(without, "lb1").ok
    without.profile = bare
    assert node.daemons(without, "lb1").ok
    assert "statistics/lb1" in {c.name for c in all_claims(PROFILE)}
    assert "statistics/lb1" not in {c.name for c in all_claims(bare)}


@pytest.mark.parametrize("status", [200, 0, 503])
def test_a_statistics_page_without_servers_has_to_be_there_all_the_same(status: int) -> None:
    answer = SimpleNamespace(status=status)
    fake = lab(statistics=lambda point, address: [], get=lambda point, address, port, path: answer)
    outcome = node.statistics(fake, "lb1")
    assert outcome.ok is (status == 200)
    assert ("noc does not get it from 192.168.0.11" in outcome.detail) is (status != 200)


def test_nothing_is_claimed_of_ssh_and_statistics_that_nobody_could_try() -> None:
    for claim in (node.ssh, node.statistics):
        fake = lab()
        fake.plan.admins.clear()
        assert claim(fake, "lb1").detail == node.NOBODY_INSIDE


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        (SshProbe("SSH-2.0-dropbear", ("publickey",), ""), ""),
        (SshProbe("SSH-2.0-dropbear", ("publickey", "password"), ""), "offers publickey, password, not just publickey"),
        (SshProbe("SSH-2.0-dropbear", (), "", True), "lets anybody in, without a key or a password"),
        (SshProbe("", (), "Connection refused"), "gets no SSH answer"),
    ],
)
def test_ssh_that_takes_anything_but_keys_is_found_out(probe: SshProbe, words: str) -> None:
    outcome = node.ssh(lab(ssh_probe=lambda point, address: probe), "lb1")
    assert outcome.ok is (words == "")
    assert words in outcome.detail


def test_a_client_for_whom_no_address_is_left_is_told_with_what_to_do() -> None:
    people = LabPeople(PROFILE, plan(PROFILE), None, lambda text: None)
    endpoint = PROFILE.endpoints("rr")[0]
    four = VantagePoint("nobody", tuple(a for a in people.client_for(endpoint).addresses if a.version == 4))
    people.plan.clients["wan"] = four
    six = next(e for e in PROFILE.endpoints("rr") if e.address.version == 6)
    with pytest.raises(LabLacks, match=r"the lab has no client who could ask 2001:db8:0:1::10") as failure:
        people.client_for(six)
    assert failure.value.where == "network wan"
    assert "leave an address of that network unused" in failure.value.fix


def adverts(node: str, begin_s: float, end_s: float) -> list[tuple[float, str]]:
    """One every second."""
    return [(begin_s + i, node) for i in range(int(end_s - begin_s) + 1)]


def test_two_masters_are_counted_from_the_moment_that_parted_nodes_meet_again() -> None:
    said = [*adverts("lb1", 10.2, 16.2), *adverts("lb2", 10.9, 13.9)]
    assert together_s(said, since_s=10.0) == pytest.approx(3.9)
    assert together_s(adverts("lb1", 10.2, 16.2), since_s=10.0) == 0


def test_a_master_that_hands_over_is_not_master_beside_the_other() -> None:
    assert together_s([*adverts("lb2", 10.2, 14.2), *adverts("lb1", 14.3, 16.3)], since_s=None) == 0
    assert together_s([*adverts("lb2", 10.2, 15.2), *adverts("lb1", 13.3, 16.3)], since_s=None) == pytest.approx(1.9)
