"""Lock files: their form, what differs, and that a locked build makes what is pinned or nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_pipeline import Place, own_cache

from imagebuilder_fakes import PROFILE, fake, workspace_folder
from ndakit.build import lockfile, pipeline
from ndakit.build.lockfile import Base, Lock, LockBroken, LockDrift, LockMissing, LockMixed, PinnedNode, PinnedSection
from ndakit.cli import build
from ndakit.cli.build import BuildOptions
from ndakit.core.events import Event, StepStarted, Warned
from ndakit.core.workspace import Workspace
from ndakit.image.artifacts import Artifact, ImageNotBuilt, folder_of
from ndakit.imagebuilder import sources
from ndakit.imagebuilder.fetch.errors import OfflineMissing
from ndakit.imagebuilder.sources import FetchOptions
from ndakit.load import load

__all__ = ["own_cache"]  # a fixture

BASE = Base("24.10.8", "x86/64", "generic", "openwrt-imagebuilder-24.10.8-x86-64", "f" * 64)
LOCK = Lock(
    {"openwrt": PinnedSection(BASE, {"lb1": PinnedNode("haproxy -ppp", {"haproxy": "3.0.11-r1", "libstdc++6": '1"2'})})}
)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A workspace with a profile of one node, which is built quickly."""
    root = workspace_folder(tmp_path / "ws", PROFILE.replace("  lb2: {addresses: {lan: 192.168.0.12}}\n", ""))
    return Place(Workspace.at(root), fake(tmp_path / "ib"), root / "profiles/bakery.yaml")


def pin(place: Place, *, kind: str = "openwrt") -> Path:
    """Build everything, and pin it."""
    place.build()
    build.lock(place.workspace, "bakery", update=True, as_json=True)
    path = place.profile.with_suffix(".lock")
    assert f"[{kind}]" in path.read_text()
    return path


def locked(place: Place, *, events: list[Event] | None = None) -> tuple[pipeline.BuildResult, ...]:
    heard = events if events is not None else []
    loaded, builder = load.load(place.workspace, "bakery"), sources.OpenWrtBuilder(place.folder)
    return pipeline.build(place.workspace, loaded, (), builder, heard.append, locked=True)


def test_what_is_written_is_read_back_and_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "bakery.lock"
    lockfile.write(path, "bakery", LOCK)
    assert lockfile.read(path) == LOCK
    assert path.read_text().startswith("# What the images of profile bakery are built from.")
    assert lockfile.read(tmp_path / "none.lock") == Lock({})


@pytest.mark.parametrize("text", ["format = ", "", "format = 2", "format = 1\n[lab]\nfoo = 1", "format = 1\nlab = 3"])
def test_a_lock_file_that_cannot_be_used_is_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bakery.lock"
    path.write_text(text)
    with pytest.raises(LockBroken):
        lockfile.read(path)


def test_every_difference_is_named() -> None:
    pinned = LOCK.sections["openwrt"]
    assert lockfile.differences(pinned, pinned) == []
    now = PinnedSection(
        Base("24.10.9", "x86/64", "generic", "ib-2", "e" * 64),
        {"lb1": PinnedNode("haproxy tcpdump", {"haproxy": "3.0.12-r1", "tcpdump": "4-r1"}), "lb2": PinnedNode("", {})},
    )
    assert lockfile.differences(pinned, now) == [
        "release: 24.10.8 → 24.10.9",
        f"ImageBuilder: openwrt-imagebuilder-24.10.8-x86-64 {'f' * 12}… → ib-2 {'e' * 12}…",
        "lb1: not asked for → tcpdump",
        "lb1: -ppp → not asked for",
        "lb1: haproxy 3.0.11-r1 → 3.0.12-r1",
        'lb1: libstdc++6 1"2 → (not there)',
        "lb1: tcpdump (not there) → 4-r1",
        "lb2: not pinned → in the profile",
    ]


def test_an_archives_hash_counts_where_both_know_it() -> None:
    one = Base("24.10.8", "x86/64", "generic", "ib", "f" * 64, "a.tar.zst", "1" * 64)
    same = Base("24.10.8", "x86/64", "generic", "ib", "e" * 64, "a.tar.zst", "1" * 64)
    other = Base("24.10.8", "x86/64", "generic", "ib", "f" * 64, "a.tar.zst", "2" * 64)
    by_hand = Base("24.10.8", "x86/64", "generic", "mine", "f" * 64)
    assert lockfile.base_differences(one, same) == []
    assert lockfile.base_differences(one, by_hand) == []
    assert lockfile.base_differences(one, other) == [
        f"ImageBuilder archive: a.tar.zst {'1' * 12}… → a.tar.zst {'2' * 12}…"
    ]


def test_a_locked_build_without_a_lock_file_is_refused(place: Place) -> None:
    with pytest.raises(LockMissing, match=r"there is no lock file(.|\n)*inv lock bakery --update"):
        locked(place)
    place.profile.with_suffix(".lock").write_text("format = 1\n")
    with pytest.raises(LockMissing, match="pins nothing for --builder openwrt"):
        locked(place)


def test_a_locked_build_of_what_is_pinned_goes_through(place: Place) -> None:
    pin(place)
    assert [r.built for r in locked(place)] == [False]
    shutil.rmtree(place.workspace.images)
    results = locked(place)
    assert [r.built for r in results] == [True]
    assert {r.artifact.record.lock["state"] for r in results} == {"as pinned"}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("rootfs_mib: 64", "rootfs_mib: 64, packages: {tcpdump: add}", "lb1: not asked for → tcpdump"),
        ("release: 24.10.8", "release: 24.10.7", "release: 24.10.8 → 24.10.7"),
    ],
)
def test_a_profile_that_left_its_lock_file_is_refused_before_anything_runs(
    old: str, new: str, told: str, place: Place
) -> None:
    pin(place)
    place.edit(old, new)
    events: list[Event] = []
    with pytest.raises(LockDrift, match=told) as caught:
        locked(place, events=events)
    assert caught.value.exit_code == 4
    assert not [e for e in events if isinstance(e, StepStarted)]


def test_another_imagebuilder_is_refused_before_anything_runs(place: Place) -> None:
    pin(place)
    (place.folder / "packages/extra_1_all.ipk").write_bytes(b"a package more")
    events: list[Event] = []
    with pytest.raises(LockDrift, match="ImageBuilder: "):
        locked(place, events=events)
    assert not [e for e in events if isinstance(e, StepStarted)]


def drifted(place: Place) -> Path:
    """Pinned versions that the ImageBuilder does not give: as if the feed had gone on."""
    path = pin(place)
    path.write_text(path.read_text().replace('haproxy = "3.0.11-r1"', 'haproxy = "3.0.10-r1"'))
    return path


def test_an_image_of_other_versions_is_not_stored_by_a_locked_build(place: Place) -> None:
    drifted(place)
    before = Artifact.load(folder_of(place.workspace, "bakery", "lb1")).record
    with pytest.raises(LockDrift, match=r"lb1: haproxy 3\.0\.10-r1 → 3\.0\.11-r1"):
        locked(place)
    assert Artifact.load(folder_of(place.workspace, "bakery", "lb1")).record == before
    assert place.scratch() == []
    shutil.rmtree(place.workspace.images)
    with pytest.raises(LockDrift):
        locked(place)
    assert not folder_of(place.workspace, "bakery", "lb1").exists()


def test_a_lock_file_that_pins_other_versions_makes_an_image_stale_once(place: Place) -> None:
    drifted(place)
    assert place.reasons() == ("the lock file pins other versions: lb1: haproxy 3.0.11-r1 → 3.0.10-r1",)
    events: list[Event] = []
    result = place.build(events=events)[0]
    assert result.artifact.record.lock["state"] == "other versions than pinned"
    assert "other versions than the lock file pins: lb1: haproxy 3.0.10-r1 → 3.0.11-r1" in [
        e.text for e in events if isinstance(e, Warned)
    ]
    assert place.reasons() == ()  # these pins were tried; making the same again would not help
    build.lock(place.workspace, "bakery", update=True, as_json=True)
    assert [r.built for r in locked(place)] == [False]


def test_lock_shows_differences_and_writes_only_with_update(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ImageNotBuilt):
        build.lock(place.workspace, "bakery", update=True, as_json=False)
    place.build()
    build.lock(place.workspace, "bakery", update=False, as_json=False)
    path = place.profile.with_suffix(".lock")
    assert "nothing was pinned" in capsys.readouterr().out
    assert not path.exists()
    build.lock(place.workspace, "bakery", update=True, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert (facts["builder"], facts["written"], facts["differences"]) == ("openwrt", True, ["nothing was pinned"])
    before = path.stat().st_mtime_ns
    build.lock(place.workspace, "bakery", update=True, as_json=False)
    assert "the images are as pinned" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == before
    assert load.names(place.workspace) == ("bakery",)


def test_pinning_for_one_builder_leaves_the_other_ones_pins(place: Place) -> None:
    path = place.profile.with_suffix(".lock")
    lockfile.write(path, "bakery", Lock({"lab": LOCK.sections["openwrt"]}))
    pin(place)
    assert set(lockfile.read(path).sections) == {"lab", "openwrt"}
    assert lockfile.read(path).sections["lab"] == LOCK.sections["openwrt"]


def test_images_of_different_imagebuilders_cannot_be_pinned(place: Place) -> None:
    place.profile.write_text(PROFILE)
    place.build("lb1")
    (place.folder / "packages/extra_1_all.ipk").write_bytes(b"a package more")
    place.build("lb2")
    with pytest.raises(LockMixed, match="lb1, lb2 were not built by the same ImageBuilder"):
        build.lock(place.workspace, "bakery", update=True, as_json=False)


def test_why_says_what_changed_and_builds_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    options = BuildOptions("openwrt", place.folder)
    assert build.why(place.workspace, ("bakery",), None, options, as_json=False) == 0
    assert "bakery/lb1: would be built\n  there is no image yet" in capsys.readouterr().out
    assert not place.workspace.images.exists()
    place.build()
    place.edit("192.168.0.22", "192.168.0.23")
    assert build.why(place.workspace, ("bakery",), "lb1", options, as_json=True) == 0
    (fact,) = json.loads(capsys.readouterr().out)
    assert (fact["node"], fact["up_to_date"]) == ("lb1", False)
    assert fact["reasons"] == ["profiles/bakery.yaml changed", "that changes /etc/haproxy.cfg"]


def test_why_fetches_no_imagebuilder(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.why(place.workspace, ("bakery",), "lb1", BuildOptions("openwrt"), as_json=False) == 0
    assert capsys.readouterr().out == "bakery/lb1: would be built\n  its ImageBuilder is not in the cache yet\n"
    with pytest.raises(OfflineMissing):
        build.why(
            place.workspace,
            ("bakery",),
            "lb1",
            BuildOptions("openwrt", fetch=FetchOptions(offline=True)),
            as_json=False,
        )


def test_an_imagebuilder_that_is_not_as_pinned_is_found_by_why_too(place: Place, tmp_path: Path) -> None:
    pin(place)
    other = fake(tmp_path / "other")
    (other / "packages/extra_1_all.ipk").write_bytes(b"a package more")
    with pytest.raises(LockDrift):
        build.why(place.workspace, ("bakery",), None, BuildOptions("openwrt", other, locked=True), as_json=False)
