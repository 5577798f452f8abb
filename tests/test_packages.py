"""The package plan: everything with a reason, nothing the profile needs removed."""

from __future__ import annotations

import pytest

import goldens
from ndakit import packages
from ndakit.errors import ErrorGroup


def plan(name: str) -> packages.PackagePlan:
    found = goldens.profile(name)
    return packages.plan(found, next(iter(found.nodes)))


def with_packages(text: str) -> packages.PackagePlan:
    source = goldens.PROFILES["bakery"].read_text() + f"image: {{packages: {text}}}\n"
    return packages.plan(goldens.parse(source), "lb1")


@pytest.mark.parametrize("name", sorted(goldens.PROFILES))
def test_every_package_has_a_reason_and_one_side(name: str) -> None:
    found = plan(name)
    assert all(why for why in (*found.add.values(), *found.remove.values()))
    assert not found.add.keys() & found.remove.keys()
    assert list(found.add) == sorted(found.add)
    assert {"haproxy", "ip-full"} <= found.add.keys()


def test_words_are_what_the_imagebuilder_takes() -> None:
    assert plan("bakery").words == (
        "haproxy", "ip-full", "keepalived",
        "-dnsmasq", "-odhcp6c", "-odhcpd-ipv6only", "-ppp", "-ppp-mod-pppoe",
    )  # fmt: skip


def test_keepalived_is_for_pairs_bonding_for_bonds_drivers_for_platforms() -> None:
    assert "keepalived" not in plan("standalone").add
    assert "kmod-bonding" in plan("links").add
    assert "kmod-bonding" not in plan("bakery").add
    assert {"kmod-vmxnet3", "open-vm-tools"} <= plan("standalone").add.keys()
    assert "qemu-ga" in plan("apache-pair").add


def test_the_profiles_own_wishes_come_on_top() -> None:
    found = with_packages("{tcpdump: add, dnsmasq: add, kmod-usb2: remove}")
    assert found.add["tcpdump"] == "the profile asks for it (image.packages)"
    assert "dnsmasq" in found.add
    assert "dnsmasq" not in found.remove
    assert found.remove["kmod-usb2"] == "the profile asks for it (image.packages)"


def test_removing_what_the_profile_needs_is_an_error_for_each() -> None:
    with pytest.raises(ErrorGroup) as caught:
        with_packages("{haproxy: remove, keepalived: remove}")
    assert [e.code for e in caught.value.errors] == ["packages-contradict"] * 2
    assert "VRRP" in caught.value.errors[1].what
