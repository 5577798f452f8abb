"""The package plan: everything with a reason, nothing the profile needs removed."""

from __future__ import annotations

import pytest

import goldens
from ndakit.core.release import Family, Release
from ndakit.model import Profile, package_needs, package_plan
from ndakit.model.rules import packages as rules_packages


def plan(name: str) -> package_plan.PackagePlan:
    profile = goldens.profile(name)
    return package_plan.plan(profile, next(iter(profile.nodes)))


def with_packages(text: str) -> package_plan.PackagePlan:
    source = goldens.PROFILES["bakery"].read_text() + f"image: {{packages: {text}}}\n"
    return package_plan.plan(goldens.parse(source), "lb1")


@pytest.mark.parametrize("name", sorted(goldens.PROFILES))
def test_every_package_has_a_reason_and_one_side(name: str) -> None:
    planned = plan(name)
    assert all(why for why in (*planned.add.values(), *planned.remove.values()))
    assert not planned.add.keys() & planned.remove.keys()
    assert list(planned.add) == sorted(planned.add)
    assert "ip-full" in planned.add
    assert ("haproxy" in planned.add) is goldens.profile(name).runs_haproxy


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
    planned = with_packages("{tcpdump: add, dnsmasq: add, kmod-usb2: remove}")
    assert planned.add["tcpdump"] == "the profile asks for it (image.packages)"
    assert "dnsmasq" in planned.add
    assert "dnsmasq" not in planned.remove
    assert planned.remove["kmod-usb2"] == "the profile asks for it (image.packages)"


def codes(profile: Profile) -> list[str]:
    return [f.code for f in rules_packages.removed(profile)] + [f.code for f in rules_packages.rivals(profile)]


def wishing(text: str, release: str = "24.10.8") -> Profile:
    source = goldens.PROFILES["bakery"].read_text().replace("24.10.8", release)
    return goldens.parse(f"{source}image: {{packages: {text}}}\n")


@pytest.mark.parametrize("name", ["haproxy", "keepalived", "dropbear", "firewall4", "netifd"])
def test_what_the_profile_needs_cannot_be_removed(name: str) -> None:
    assert codes(wishing(f"{{{name}: remove}}")) == ["packages-contradict"]


def test_the_firewall_of_another_family_is_not_needed() -> None:
    assert codes(wishing("{firewall: remove}")) == []
    assert codes(wishing("{firewall: remove}", "21.02.7")) == ["packages-contradict"]
    assert codes(wishing("{firewall4: remove, nftables: remove}", "21.02.7")) == []


def test_an_haproxy_without_tls_cannot_be_beside_the_one_that_is_needed() -> None:
    assert codes(wishing("{haproxy-nossl: add}")) == ["packages-conflict"]
    assert codes(wishing("{haproxy-nossl: remove}")) == []


def test_a_need_has_its_names_by_family() -> None:
    by_hand = package_needs.by_firewall(fw3=("iptables-mod-tproxy",), fw4=("kmod-nft-tproxy", "kmod-nft-socket"))
    assert by_hand[Family.FW3_OPKG] == ("iptables-mod-tproxy",)
    assert by_hand[Family.FW4_APK] == by_hand[Family.FW4_OPKG] == ("kmod-nft-tproxy", "kmod-nft-socket")
    assert set(package_needs.everywhere("pen")) == set(Family)


def test_no_need_names_a_package_that_its_releases_lack_and_nobody_can_build() -> None:
    newest = {Family.FW3_OPKG: "21.02.7", Family.FW4_OPKG: "24.10.8", Family.FW4_APK: "25.12.5"}
    wrong = [
        (name, family)
        for names in (*(n.packages for n in package_needs.NEEDS), *(names for names, _ in package_needs.KEPT))
        for family, words in names.items()
        for name in words
        if package_plan.lack(Release.parse(newest[family]), name)
    ]
    # What no release has may be needed only where a recipe says how to get it.
    assert {name for name, _ in wrong} == set(package_plan.RECIPES)
    assert all((goldens.ROOT / "packages" / name / "Makefile").is_file() for name in package_plan.RECIPES)


def test_a_virtual_machine_goes_without_the_driver_of_a_graphics_card() -> None:
    source = goldens.PROFILES["bakery"].read_text().replace("24.10.8", "25.12.5")
    assert "kmod-drm-i915" not in package_plan.plan(goldens.parse(source), "lb1").remove
    assert "kmod-drm-i915" in package_plan.plan(goldens.parse(f"{source}platform: kvm\n"), "lb1").remove


@pytest.mark.parametrize(
    ("name", "release", "lacking"),
    [
        ("pound", "24.10.8", True),
        ("firewall", "24.10.8", True),
        ("firewall", "21.02.7", False),
        ("kmod-nft-tproxy", "21.02.7", True),
        ("kmod-nft-tproxy", "22.03.7", False),
        ("opkg", "25.12.5", True),
        ("tcpdump", "24.10.8", False),
    ],
)
def test_what_a_release_lacks_is_known(name: str, release: str, lacking: bool) -> None:
    assert (package_plan.lack(Release.parse(release), name) is not None) == lacking


@pytest.mark.parametrize("topology", ["dr", "nat", "tun"])
def test_services_that_the_kernel_balances_bring_its_module_and_keepalived_on_a_single_node_too(topology: str) -> None:
    before = goldens.profile("standalone")
    assert {"keepalived", "kmod-nf-ipvs", "ipvsadm"}.isdisjoint(package_needs.needed(before))
    name, service = next(iter(before.services.items()))
    kernel = service.model_copy(update={"topology": topology, "protocol": "tcp"})
    changed = before.model_copy(update={"services": {name: kernel}})
    assert {"keepalived", "kmod-nf-ipvs", "ipvsadm"} <= package_needs.needed(changed).keys()


def test_vmwares_agent_and_card_are_for_x86_only() -> None:
    arm = goldens.profile("standalone").model_copy(update={"device": "armsr-armv8"})
    assert {"open-vm-tools", "kmod-vmxnet3"}.isdisjoint(package_needs.needed(arm))
