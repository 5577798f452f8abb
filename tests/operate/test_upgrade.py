"""`./inv flash --upgrade`: what is refused, in which order things happen, and how a box is when it is stopped."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fake_pair
import goldens
from fake_pair import INSTANCES, NEW, OLD, FakeBox, FakePair
from ndakit.core.errors import ErrorGroup
from ndakit.core.workspace import Workspace
from ndakit.image.artifacts import Artifact
from ndakit.load import load
from ndakit.model import Profile
from ndakit.node import status
from ndakit.node.errors import HostKeyChanged
from ndakit.node.shell import Ran
from ndakit.operate import upgrade, upgrade_checks
from ndakit.operate.upgrade import (
    HandOverFailed,
    NotBack,
    OldImageBack,
    Order,
    SysupgradeRefused,
    UpgradeOutlook,
)
from ndakit.operate.upgrade_checks import RunsAlready


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load.load(Workspace(goldens.ROOT), "apache-pair").profile


@pytest.fixture
def artifact(tmp_path: Path, profile: Profile) -> Artifact:
    return fake_pair.build(tmp_path, profile)


@pytest.fixture
def pair(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> FakePair:
    made = FakePair(profile)
    monkeypatch.setattr(status, "ask", lambda shell, profile, node, address: shell.status())
    return made


def order(profile: Profile, artifact: Artifact, **more: Any) -> Order:
    return Order(profile, "lb1", artifact, **more)


def _as_before(pair: FakePair) -> None:
    """Nothing was written, nothing is left behind, and the node takes part."""
    box = pair.boxes["lb1"]
    assert box.image == OLD
    assert box.keepalived
    assert f"rm -rf {upgrade.FOLDER}" in box.commands[-1] or not box.files


def test_a_master_gets_its_image_and_the_other_serves_meanwhile(
    pair: FakePair, profile: Profile, artifact: Artifact
) -> None:
    readied: list[UpgradeOutlook] = []
    done = pair.upgrade(order(profile, artifact), readied.append).run()
    assert (done.was, done.now, done.trouble) == (OLD, NEW, ())
    assert [name for name, _ in done.steps] == [
        "checks", "image copied (0 MiB)", "sysupgrade -T", "backup", "VIPs handed over", "written and started anew",
        "all well again",
    ]  # fmt: skip
    line = pair.boxes["lb1"].commands
    places = [
        next(n for n, one in enumerate(line) if one.startswith(words))
        for words in ("put ", "umask 077; cd / && tar", "sysupgrade -T", "/etc/init.d/keepalived stop", "sysupgrade -f")
    ]
    assert places == sorted(places)
    assert pair.saved == ["lb1"]
    assert readied[0].masters == INSTANCES
    assert not any("/etc/init.d/keepalived start" in one for one in line)
    assert "from now on nothing can be stopped" in "".join(pair.talk)


def test_a_backup_node_hands_nothing_over(pair: FakePair, profile: Profile, artifact: Artifact) -> None:
    pair.boxes["lb1"].state, pair.boxes["lb2"].state = "BACKUP", "MASTER"
    pair.upgrade(order(profile, artifact)).run()
    assert not any("keepalived stop" in one for one in pair.boxes["lb1"].commands)


def test_host_keys_go_with_it_and_the_configuration_only_on_request(
    pair: FakePair, profile: Profile, artifact: Artifact
) -> None:
    pair.upgrade(order(profile, artifact, keep=True)).run()
    line = pair.boxes["lb1"].commands
    assert f"sysupgrade {upgrade.IMAGE}" in line
    assert not any("-f" in shlex.split(one) for one in line if one.startswith("sysupgrade"))


def test_a_node_that_is_alone_has_nobody_to_hand_over_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = load.load(Workspace(goldens.DATA), "standalone").profile
    (node,) = alone.nodes
    pair = FakePair(alone)
    pair.writes = lambda box: setattr(box, "silent_until_s", 1e9)
    monkeypatch.setattr(status, "ask", lambda shell, profile, node, address: shell.status())
    made = fake_pair.build(tmp_path, alone, node)
    with pytest.raises(NotBack, match="nobody serves meanwhile"):
        pair.upgrade(Order(alone, node, made)).run()
    assert not any("keepalived stop" in one for one in pair.boxes[node].commands)


# -- refusals ----------------------------------------------------------------------------------------------------------


def _box(**changes: Any) -> Callable[[FakePair], None]:
    def change(pair: FakePair) -> None:
        for name, value in changes.items():
            setattr(pair.boxes["lb1"], name, value)

    return change


def _other(**changes: Any) -> Callable[[FakePair], None]:
    def change(pair: FakePair) -> None:
        for name, value in changes.items():
            setattr(pair.boxes["lb2"], name, value)

    return change


REFUSALS: dict[str, tuple[Callable[[FakePair], None], str]] = {
    "another profile's box": (
        _box(image_of='{"id": "x", "profile": "shop", "node": "lb1"}'), "the box runs the image of shop/lb1"
    ),
    "the other node": (
        _box(image_of='{"id": "x", "profile": "apache-pair", "node": "lb2"}'), "runs the image of apache-pair/lb2"
    ),
    "a box that nobody knows": (_box(image_of="{}", hostname="OpenWrt"), "the box calls itself OpenWrt"),
    "another kind of machine": (_box(target="armsr/armv8"), "image is for x86/64, device generic; the box is armsr"),
    "no room in /tmp": (_box(tmp_kib=900), "the image needs 2 MiB in /tmp on the box while it is written, and 1 MiB"),
    "no memory": (_box(memory_kib=9000), "the image needs 17 MiB of memory"),
    "a disk that is too small": (
        _box(disk_sectors="262143"), "the image is a disk of 128 MiB, and the box's disk has 127 MiB"
    ),
    "the other is not back": (_other(silent_until_s=1e9), "lb2 could not take over from lb1: it does not answer"),
    "the other does not balance": (_other(keepalived=False), "keepalived does not run there"),
    "the other is in FAULT": (_other(state="FAULT"), "its VRRP instance wan-main is FAULT"),
    "two masters": (_other(state="MASTER"), "is on lb1 and lb2 at once"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_speaks_against_it_is_told_before_anything_is_done(
    pair: FakePair, profile: Profile, artifact: Artifact, name: str
) -> None:
    change, words = REFUSALS[name]
    change(pair)
    with pytest.raises(ErrorGroup) as caught:
        pair.upgrade(order(profile, artifact)).run()
    assert words in caught.value.text()
    assert caught.value.exit_code == 5
    assert not pair.boxes["lb1"].files
    assert not pair.saved


def test_everything_that_speaks_against_it_is_told_at_once(
    pair: FakePair, profile: Profile, artifact: Artifact
) -> None:
    _box(target="armsr/armv8", tmp_kib=1)(pair)
    _other(state="FAULT")(pair)
    with pytest.raises(ErrorGroup) as caught:
        pair.upgrade(order(profile, artifact)).run()
    assert len(caught.value.errors) == 3
    assert {type(one).__name__ for one in caught.value.errors} == {"WrongTarget", "NoRoomForImage", "OtherNodeNotReady"}


@pytest.mark.parametrize("sectors", ["262144", "", "cat: can't open"])
def test_a_disk_that_is_large_enough_or_that_nobody_can_measure_does_not_speak_against_it(
    pair: FakePair, profile: Profile, artifact: Artifact, sectors: str
) -> None:
    _box(disk_sectors=sectors)(pair)
    assert pair.upgrade(order(profile, artifact)).run().now == NEW


def test_an_image_of_the_lab_is_not_for_a_real_box(pair: FakePair, profile: Profile, artifact: Artifact) -> None:
    lab = Artifact(artifact.folder, replace(artifact.record, warning="a stand-in", revision="r0-ndakit-lab"))
    with pytest.raises(ErrorGroup, match="not for a real disk: a stand-in"):
        pair.upgrade(order(profile, lab)).run()


def test_a_box_without_an_id_is_known_by_its_name(pair: FakePair, profile: Profile, artifact: Artifact) -> None:
    """Images of an older ndakit say nothing of themselves."""
    pair.boxes["lb1"].image_of = "{}"

    def newer(box: FakeBox) -> None:
        pair.well_written(box)
        box.image_of = ""

    pair.writes = newer
    assert pair.upgrade(order(profile, artifact)).run().now == NEW


def test_an_image_that_runs_already_is_written_on_request_only(
    pair: FakePair, profile: Profile, artifact: Artifact
) -> None:
    pair.boxes["lb1"].image = NEW
    with pytest.raises(RunsAlready, match="runs this image already"):
        pair.upgrade(order(profile, artifact)).run()
    assert not pair.boxes["lb1"].files
    assert pair.upgrade(order(profile, artifact, again=True)).run().now == NEW


def test_a_flash_device_wants_its_board(profile: Profile, artifact: Artifact, pair: FakePair) -> None:
    dockstar = Artifact(artifact.folder, replace(artifact.record, target="kirkwood/generic", device="seagate_dockstar"))
    box = upgrade_checks.facts(pair.boxes["lb1"])  # type: ignore[arg-type]  # as much of a shell as is used
    there = replace(box, target="kirkwood", board="seagate,dockstar")
    told = upgrade_checks.refusals(profile, "lb1", dockstar, there, "x", again=False)
    assert told == []
    told = upgrade_checks.refusals(profile, "lb1", dockstar, replace(there, board="pogoplug"), "x", again=False)
    assert [type(one).__name__ for one in told] == ["WrongTarget"]


def test_what_sysupgrade_there_refuses_is_told_and_undone(pair: FakePair, profile: Profile, artifact: Artifact) -> None:
    pair.boxes["lb1"].tells["sysupgrade -T"] = Ran(1, b"", b"upgrade: Invalid image type\n")
    with pytest.raises(SysupgradeRefused, match="Invalid image type"):
        pair.upgrade(order(profile, artifact)).run()
    _as_before(pair)
    assert not any("keepalived stop" in one for one in pair.boxes["lb1"].commands)


def test_a_refusal_at_the_last_moment_brings_the_node_back_into_the_pair(
    pair: FakePair, profile: Profile, artifact: Artifact
) -> None:
    pair.boxes["lb1"].tells["sysupgrade -f"] = Ran(1, b"", b"Image check failed.\n")
    work = pair.upgrade(order(profile, artifact))
    with pytest.raises(SysupgradeRefused, match="Image check failed"):
        work.run()
    _as_before(pair)
    assert pair.boxes["lb1"].state == "MASTER"
    assert "its keepalived was started again" in work.state


def test_kept_files_that_the_boot_partition_cannot_take_are_refused(
    pair: FakePair, profile: Profile, artifact: Artifact
) -> None:
    pair.boxes["lb1"].boot_kib = 1
    with pytest.raises(ErrorGroup, match="OpenWrt would lose it without a word"):
        pair.upgrade(order(profile, artifact, keep=True)).run()
    _as_before(pair)
    pair.upgrade(order(profile, artifact)).run()  # host keys are small


def test_what_is_notable_is_told_before_the_question(pair: FakePair, profile: Profile, artifact: Artifact) -> None:
    newer = Artifact(artifact.folder, replace(artifact.record, release="23.05.6"))
    pair.boxes["lb1"].tells["sysupgrade -T"] = Ran(
        0, b"", b"Partition layout has changed. Full image will be written.\n"
    )
    readied: list[UpgradeOutlook] = []
    pair.upgrade(order(profile, newer, keep=True), readied.append).run()
    text = "\n".join(readied[0].notes)
    for words in (
        "24.10.8 becomes 23.05.6, which is older",
        "the whole disk is written",
        "over the new image and wins",
    ):
        assert words in text


# -- what goes wrong on the way ----------------------------------------------------------------------------------------


def test_nobody_takes_over(pair: FakePair, profile: Profile, artifact: Artifact) -> None:
    pair.elect = lambda: None  # type: ignore[method-assign]
    work = pair.upgrade(order(profile, artifact))
    with pytest.raises(HandOverFailed, match="nobody became master of wan-main, lan-main within 20 s"):
        work.run()
    _as_before(pair)


def test_a_box_that_does_not_return(pair: FakePair, profile: Profile, artifact: Artifact) -> None:
    pair.writes = lambda box: setattr(box, "silent_until_s", 1e9)
    with pytest.raises(NotBack, match=r"has not come back within 15 minutes .*lb2 serves") as caught:
        pair.upgrade(order(profile, artifact)).run()
    assert "./inv flash apache-pair --node lb1 --to DISK" in caught.value.fix
    assert "backups/x" in caught.value.fix


def test_a_box_that_never_went_away(pair: FakePair, profile: Profile, artifact: Artifact) -> None:
    pair.writes = lambda box: None
    with pytest.raises(NotBack, match="it still answers as before"):
        pair.upgrade(order(profile, artifact)).run()


def test_a_box_that_returns_with_its_old_image(pair: FakePair, profile: Profile, artifact: Artifact) -> None:
    def power_cut(box: FakeBox) -> None:
        pair.well_written(box)
        box.image = OLD

    pair.writes = power_cut
    with pytest.raises(OldImageBack, match=r"runs its old image, not nnnn.*nothing was written"):
        pair.upgrade(order(profile, artifact)).run()


def test_another_host_key_afterwards_is_not_waited_away(pair: FakePair, profile: Profile, artifact: Artifact) -> None:
    def another(box: FakeBox) -> None:
        if box.node == "lb1" and box.image == NEW:
            raise HostKeyChanged(box.name, expected=["a"], kind="b", fingerprint="c", pins="d", command="e")

    pair.opens = another
    with pytest.raises(HostKeyChanged):
        pair.upgrade(order(profile, artifact)).run()


def test_what_is_not_well_afterwards_is_told(pair: FakePair, profile: Profile, artifact: Artifact) -> None:
    def broken(box: FakeBox) -> None:
        pair.well_written(box)
        box.keepalived = False

    pair.writes = broken
    done = pair.upgrade(order(profile, artifact)).run()
    assert "lb1: keepalived does not run" in done.trouble
    assert dict(done.steps)["all well again"] > 180


def test_what_was_not_well_before_is_not_the_upgrades_fault(
    pair: FakePair, profile: Profile, artifact: Artifact
) -> None:
    """The other node of a profile with a new release still runs the old one."""
    pair.boxes["lb2"].release = "23.05.6"
    assert pair.upgrade(order(profile, artifact)).run().trouble == ()


STOPS = ("checks", "put", "sysupgrade -T", "/etc/init.d/keepalived stop", "sysupgrade -f", "waiting", "settling")


@pytest.mark.parametrize("place", STOPS)
def test_ctrl_c_says_how_the_box_is(pair: FakePair, profile: Profile, artifact: Artifact, place: str) -> None:
    def stop(box: FakeBox, line: str) -> None:
        first = {"checks": "cat /etc/openwrt_release"}.get(place, place)
        if box.node == "lb1" and line.startswith(first) and box.image == OLD:
            raise KeyboardInterrupt
        if place == "settling" and box.node == "lb1" and box.image == NEW and "uptime" in line:
            pair.opens = lambda box: (_ for _ in ()).throw(KeyboardInterrupt())

    def stop_waiting(box: FakeBox) -> None:
        if box.node == "lb1" and box.image == NEW:
            raise KeyboardInterrupt

    pair.happens = stop
    if place == "waiting":
        pair.opens = stop_waiting
    work = pair.upgrade(order(profile, artifact))
    with pytest.raises(KeyboardInterrupt):
        work.run()
    box = pair.boxes["lb1"]
    if place in ("sysupgrade -f", "waiting"):
        assert "may be writing its new image: leave it its power" in work.state
        assert not any("keepalived start" in one for one in box.commands)  # nobody knows whether it is writing
    elif place == "settling":
        assert work.state == "lb1 runs the new image"
    else:
        _as_before(pair)
        assert work.state.startswith("lb1 is as it was")
