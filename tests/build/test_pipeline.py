"""Plan and build: what is stale and why, that nothing runs needlessly, and that no accident leaves half an image."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from imagebuilder_fakes import PROFILE, fake, workspace_folder
from ndakit.build import pipeline, plan
from ndakit.build import reasons as build_reasons
from ndakit.cli import flash as cli_flash
from ndakit.core.errors import BuildError, ErrorGroup, NdakitError
from ndakit.core.events import Event, OutputLine, Planned, StepDone, StepStarted, Waiting, Warned
from ndakit.core.workspace import Workspace
from ndakit.image.artifacts import Artifact, folder_of
from ndakit.image.built import DiskFull
from ndakit.imagebuilder import failures, request, sources
from ndakit.imagebuilder.imagebuilder import ImageBuilderBroken
from ndakit.load import load
from ndakit.model import Profile, package_plan
from places import ROOT
from waiting import processes_below, wait_for

pytestmark = pytest.mark.images


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Place(NamedTuple):
    """A workspace with one profile, and an ImageBuilder folder for it."""

    workspace: Workspace
    folder: Path
    profile: Path

    def build(self, *nodes: str, events: list[Event] | None = None) -> tuple[pipeline.BuildResult, ...]:
        heard = events if events is not None else []
        builder = sources.OpenWrtBuilder(self.folder)
        return pipeline.build(self.workspace, load.load(self.workspace, "bakery"), nodes, builder, heard.append)

    def reasons(self, node: str = "lb1") -> tuple[str, ...]:
        builder = sources.OpenWrtBuilder(self.folder)
        return plan.plan(self.workspace, load.load(self.workspace, "bakery"), [node], builder)[0].reasons

    def edit(self, old: str, new: str) -> None:
        text = self.profile.read_text()
        assert old in text
        self.profile.write_text(text.replace(old, new))

    def scratch(self) -> list[Path]:
        folder = self.workspace.state / "scratch"
        return list(folder.iterdir()) if folder.is_dir() else []


@pytest.fixture
def place(tmp_path: Path) -> Place:
    root = workspace_folder(tmp_path / "ws")
    return Place(Workspace.at(root), fake(tmp_path / "ib"), root / "profiles/bakery.yaml")


def set_mode(place: Place, mode: str) -> None:
    text = (place.folder / "fake.json").read_text()
    (place.folder / "fake.json").write_text(text.replace('"mode": ""', f'"mode": "{mode}"'))


def test_an_image_knows_whether_it_is_what_its_profile_says_now(place: Place) -> None:
    """What `flash` asks, without an ImageBuilder at hand."""
    (built,) = place.build("lb1")
    assert plan.outdated(place.workspace, load.load(place.workspace, "bakery"), "lb1", built.artifact.record) == ()
    place.edit("192.168.0.11", "192.168.0.19")
    reasons = plan.outdated(place.workspace, load.load(place.workspace, "bakery"), "lb1", built.artifact.record)
    assert any("bakery.yaml" in reason for reason in reasons)
    with pytest.raises(cli_flash.ImageOutdated, match="is not what the profile says now") as caught:
        cli_flash.flash_node(place.workspace, "bakery", "lb1", "./x.img", None, as_built=False, as_json=False)
    assert "./inv build bakery --node lb1 --builder openwrt" in caught.value.fix


def test_a_nodes_package_plan_is_computed_once_in_a_build(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    compute = package_plan.plan

    def count(profile: Profile, node: str) -> package_plan.PackagePlan:
        counted.append(node)
        return compute(profile, node)

    monkeypatch.setattr(package_plan, "plan", count)
    place.build("lb1")
    assert counted == ["lb1"]


def test_a_build_makes_every_node_and_a_second_one_runs_nothing(place: Place) -> None:
    events: list[Event] = []
    first = place.build(events=events)
    assert [(r.node, r.built, r.reasons) for r in first] == [
        ("lb1", True, ("there is no image yet",)), ("lb2", True, ("there is no image yet",)),
    ]  # fmt: skip
    assert [e.step for e in events if isinstance(e, StepDone)] == ["overlay", "imagebuilder", "image", "artifact"] * 2
    assert all(r.artifact.verify() == [] for r in first)
    events.clear()
    second = place.build(events=events)
    assert [(r.node, r.built) for r in second] == [("lb1", False), ("lb2", False)]
    assert events == [Planned("lb1", True, ()), Planned("lb2", True, ())]
    assert [r.artifact.record for r in second] == [r.artifact.record for r in first]


def test_one_node_can_be_built_alone(place: Place) -> None:
    assert [r.node for r in place.build("lb2")] == ["lb2"]
    assert not folder_of(place.workspace, "bakery", "lb1").exists()


def test_the_record_says_what_was_built_by_what_and_how(place: Place) -> None:
    (result,) = place.build("lb1")
    record = Artifact.load(result.artifact.folder).record
    assert (record.profile, record.node, record.hostname, record.release) == ("bakery", "lb1", "bakery-lb1", "24.10.8")
    assert (record.target, record.device, record.builder, record.warning) == ("x86/64", "generic", "openwrt", None)
    assert "FILES=overlays/bakery/lb1" in record.argv
    assert "BIN_DIR=images/bakery/lb1" in record.argv
    assert record.packages["haproxy"] == "3.0.11-r1"
    assert record.images[0].name == "openwrt-24.10.8-bakery-lb1-x86-64-generic-squashfs-combined-efi.img.gz"
    assert set(record.sources) >= {"profiles/bakery.yaml", "templates/rootfs/etc/haproxy.cfg.j2"}
    assert str(place.workspace.root) not in (result.artifact.folder / "record.json").read_text()


@pytest.mark.parametrize("device", ["x86-64", "dockstar"])
def test_two_caches_give_files_that_are_the_same_to_the_byte(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each private copy makes a key and signs with it (fwtool, 532 bytes behind the gzip stream): that is left out."""
    flash = {"target": "kirkwood/generic", "device": "seagate_dockstar"} if device == "dockstar" else {}
    folder = fake(tmp_path / "ib", **flash)
    text = PROFILE.replace("image: {rootfs_mib: 64}", "device: dockstar") if flash else PROFILE
    contents: list[dict[str, bytes]] = []
    for name in ("one", "other"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name / "cache"))
        workspace = Workspace.at(workspace_folder(tmp_path / name / "ws", text))
        log = workspace.logs("build")
        loaded = load.load(workspace, "bakery")
        (result,) = pipeline.build(workspace, loaded, ["lb1"], sources.OpenWrtBuilder(folder))
        assert result.artifact.verify() == []
        images = result.artifact.record.images
        contents.append({i.name: (result.artifact.folder / i.name).read_bytes() for i in images})
        assert "_check_keys" in (log / "bakery-lb1.log").read_text()
    assert contents[0] == contents[1]
    assert not any(b"FWx0" in content[-16:] and content[-8] == 0 for content in contents[0].values())


def test_a_key_that_the_user_gave_the_imagebuilder_still_signs(place: Place) -> None:
    (place.folder / "key-build").write_bytes(b"the house's own key")
    (result,) = place.build("lb1")
    content = result.artifact.image.read_bytes()
    assert content[-16:-12] == b"FWx0"
    assert result.artifact.verify() == []


def test_the_same_inputs_have_the_same_id_and_bytes_elsewhere(place: Place, tmp_path: Path) -> None:
    (one,) = place.build("lb1")
    other = Place(Workspace.at(workspace_folder(tmp_path / "elsewhere")), tmp_path / "ib2", Path())
    shutil.copytree(place.folder, other.folder)
    before = os.umask(0o077)
    try:
        (two,) = other.build("lb1")
    finally:
        os.umask(before)
    assert one.artifact.id == two.artifact.id
    assert one.artifact.image.read_bytes() == two.artifact.image.read_bytes()


def test_the_overlay_lies_in_the_workspace_afterwards(place: Place) -> None:
    place.build("lb1")
    assert (place.workspace.overlays / "bakery/lb1/etc/haproxy.cfg").is_file()


def test_the_users_imagebuilder_is_only_read(place: Place) -> None:
    before = {p: p.stat().st_mtime_ns for p in place.folder.rglob("*")}
    place.build("lb1")
    assert {p: p.stat().st_mtime_ns for p in place.folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("rootfs_mib: 64", "rootfs_mib: 80", "image.rootfs_mib: 64 → 80"),
        ("rootfs_mib: 64", "rootfs_mib: 64, filesystem: ext4", "image.filesystem: squashfs → ext4"),
        ("rootfs_mib: 64", "rootfs_mib: 64, packages: {tcpdump: add}", "packages: +tcpdump"),
        ("release: 24.10.8", "release: 24.10.7", "release: 24.10.8 → 24.10.7"),
        ("192.168.0.22", "192.168.0.23", "profiles/bakery.yaml changed"),
        ("192.168.0.22", "192.168.0.23", "that changes /etc/haproxy.cfg"),
    ],
)
def test_a_changed_profile_is_named_as_the_reason(old: str, new: str, reason: str, place: Place) -> None:
    place.build("lb1")
    place.edit(old, new)
    assert reason in place.reasons()


def test_a_change_without_effect_on_the_image_rebuilds_nothing(place: Place) -> None:
    place.build("lb1")
    place.profile.write_text(f"# a remark\n{PROFILE}")
    assert place.reasons() == ()


def test_a_changed_template_is_named_as_the_reason(place: Place) -> None:
    own = place.workspace.root / "templates/rootfs/etc/sysctl.conf.j2"
    own.parent.mkdir(parents=True)
    shutil.copyfile(ROOT / "templates/rootfs/etc/sysctl.conf.j2", own)
    place.build("lb1")
    own.write_text(own.read_text() + "# mine\n")
    assert place.reasons() == ("templates/rootfs/etc/sysctl.conf.j2 changed",)


def test_a_new_and_a_vanished_template_are_named_as_the_reason(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ndakit.build.pipeline.lint.lint", lambda *_: []
    )  # what may stand where is not in question here
    place.build("lb1")
    own = place.workspace.root / "templates/rootfs/usr/share/note"
    own.parent.mkdir(parents=True)
    own.write_text("mine\n")
    assert place.reasons() == ("templates/rootfs/usr/share/note is new",)
    place.build("lb1")
    own.unlink()
    assert place.reasons() == ("templates/rootfs/usr/share/note is gone",)


def test_a_new_version_that_renders_differently_is_named_as_the_reason(place: Place) -> None:
    (result,) = place.build("lb1")
    record, now = result.artifact.record, dict(result.artifact.record.inputs)
    now["files"] = {**now["files"], "/etc/banner": "0644 other"}
    told = build_reasons.changes(record, now, record.sources)
    assert told == ["rendered differently than by the version that built it: /etc/banner"]
    now = {**record.inputs, "settings": {**record.inputs["settings"], "CONFIG_GRUB_TIMEOUT": "3"}}
    assert build_reasons.changes(record, now, record.sources) == ["CONFIG_GRUB_TIMEOUT: 1 → 3"]


def test_a_changed_imagebuilder_is_named_as_the_reason(place: Place) -> None:
    place.build("lb1")
    (place.folder / "packages/extra_1_all.ipk").write_bytes(b"a package more")
    assert place.reasons() == ("the ImageBuilder changed",)


def test_a_harmed_or_unfinished_image_is_made_again_with_the_reason(place: Place) -> None:
    (result,) = place.build("lb1")
    image = result.artifact.image
    image.write_bytes(image.read_bytes()[:-100])
    assert "is not the file that was built" in place.reasons()[0]
    (again,) = place.build("lb1")
    assert again.built
    assert again.artifact.verify() == []
    (image.parent / "record.json").write_text("{half")
    assert "cannot be used" in place.reasons()[0]
    (image.parent / "record.json").unlink()
    assert place.reasons() == ("there is no image yet",)


def test_a_failed_build_leaves_the_old_image_and_no_scratch(place: Place) -> None:
    (good,) = place.build("lb1")
    place.edit("rootfs_mib: 64", "rootfs_mib: 64, packages: {nosuch: add}")
    with pytest.raises(failures.PackagesMissing, match="nosuch") as caught:
        place.build("lb1")
    assert str(place.workspace.state / "log/build/bakery-lb1.log") in caught.value.where
    assert good.artifact.verify() == []
    assert place.scratch() == []


def test_every_node_is_checked_before_the_first_image_is_made(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def finding(tree: object, profile: object, node: str) -> list[NdakitError]:
        return [BuildError(f"wrong in {node} {i}", where="x", fix="y") for i in (1, 2)] if node == "lb2" else []

    monkeypatch.setattr("ndakit.build.pipeline.lint.lint", finding)
    events: list[Event] = []
    with pytest.raises(ErrorGroup) as caught:
        place.build(events=events)
    assert [e.what for e in caught.value.errors] == ["wrong in lb2 1", "wrong in lb2 2"]
    assert not [e for e in events if isinstance(e, StepStarted)]
    assert not place.workspace.images.exists()
    assert not place.workspace.overlays.exists()


def test_too_little_space_is_said_before_anything_runs(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("ndakit.build.pipeline.shutil.disk_usage", lambda _: usage._replace(free=10 * 1024 * 1024))
    events: list[Event] = []
    with pytest.raises(pipeline.SpaceShort, match=r"building needs \d+ MiB here, 10 MiB are free"):
        place.build(events=events)
    assert not [e for e in events if isinstance(e, StepStarted)]


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.ENOSPC, DiskFull), (errno.EROFS, pipeline.WorkspaceUnwritable)],
)
def test_a_disk_that_refuses_is_an_error_of_the_machine(
    code: int, kind: type[NdakitError], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code), "somewhere")

    monkeypatch.setattr("ndakit.build.pipeline.artifacts.store", refuse)
    with pytest.raises(kind) as caught:
        place.build("lb1")
    assert caught.value.exit_code == 3
    assert not folder_of(place.workspace, "bakery", "lb1").exists()
    assert place.scratch() == []


def test_a_workspace_path_with_a_space_is_refused_at_once(tmp_path: Path) -> None:
    root = workspace_folder(tmp_path / "my ws")
    place = Place(Workspace.at(root), fake(tmp_path / "ib"), root / "profiles/bakery.yaml")
    events: list[Event] = []
    with pytest.raises(request.PathUnusable, match="a space"):
        place.build(events=events)
    assert not [e for e in events if isinstance(e, StepStarted)]


def test_warnings_of_the_imagebuilder_are_told_and_recorded(place: Place) -> None:
    place.edit("rootfs_mib: 64", "rootfs_mib: 120, packages: {big: add}")
    events: list[Event] = []
    (result,) = place.build("lb1", events=events)
    told = [e.text for e in events if isinstance(e, Warned)]
    assert told == list(result.artifact.record.warnings)
    assert "left for changes" in told[0]


def test_two_builds_at_once_make_each_image_once(place: Place) -> None:
    heard: list[list[Event]] = [[], []]
    results: list[tuple[pipeline.BuildResult, ...]] = []
    threads = [threading.Thread(target=lambda n=n: results.append(place.build(events=heard[n]))) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(sum(r.built for r in result) for result in results) == [0, 2]
    assert sum(isinstance(e, Waiting) for events in heard for e in events) == 1


def test_ctrl_c_in_the_middle_ends_make_and_leaves_nothing(place: Place) -> None:
    set_mode(place, "sleep")

    def interrupt(event: Event) -> None:
        if isinstance(event, OutputLine) and "Installing" in event.text:
            raise KeyboardInterrupt

    loaded = load.load(place.workspace, "bakery")
    with pytest.raises(KeyboardInterrupt):
        pipeline.build(place.workspace, loaded, ["lb1"], sources.OpenWrtBuilder(place.folder), interrupt)
    assert place.scratch() == []
    assert not folder_of(place.workspace, "bakery", "lb1").exists()
    assert processes_below(place.workspace.root) == []


def test_a_killed_build_leaves_no_process_no_image_and_does_not_trip_the_next(place: Place) -> None:
    set_mode(place, "sleep")
    script = (
        "import sys; from pathlib import Path; from ndakit.imagebuilder import sources;"
        "from ndakit.load import load; from ndakit.build import pipeline;"
        "from ndakit.core.workspace import Workspace; ws = Workspace.at(Path(sys.argv[1]));"
        "pipeline.build(ws, load.load(ws, 'bakery'), ['lb1'], sources.OpenWrtBuilder(Path(sys.argv[2])))"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(place.workspace.root), str(place.folder)])
    log = place.workspace.state / "log/build/bakery-lb1.log"
    wait_for(lambda: log.is_file() and "Installing" in log.read_text())
    child.send_signal(signal.SIGKILL)
    child.wait()
    wait_for(lambda: processes_below(place.workspace.root) == [])
    assert not folder_of(place.workspace, "bakery", "lb1").exists()
    (left,) = place.scratch()
    os.utime(left, (0, 0))  # leftovers are swept once they are older than a few seconds
    text = (place.folder / "fake.json").read_text()
    (place.folder / "fake.json").write_text(text.replace('"sleep"', '""'))
    (result,) = place.build("lb1")
    assert result.artifact.verify() == []
    assert place.scratch() == []


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_build_killed_while_it_stores_leaves_a_whole_image_or_none(moment: str, place: Place) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from ndakit.image import artifacts;"
        "from ndakit.imagebuilder import sources;"
        "from ndakit.load import load; from ndakit.build import pipeline;"
        "from ndakit.core.workspace import Workspace; ws = Workspace.at(Path(sys.argv[1]));"
        "swap = artifacts.swap_folder;"
        "end = lambda: os.kill(os.getpid(), signal.SIGKILL);"
        "before = lambda *two: end(); after = lambda *two: (swap(*two), end());"
        "artifacts.swap_folder = {'before': before, 'after': after}[sys.argv[3]];"
        "pipeline.build(ws, load.load(ws, 'bakery'), ['lb1'], sources.OpenWrtBuilder(Path(sys.argv[2])))"
    )
    argv = [sys.executable, "-c", script, str(place.workspace.root), str(place.folder), moment]
    assert subprocess.run(argv, check=False, timeout=60).returncode == -signal.SIGKILL
    if moment == "before":
        assert place.reasons() == ("there is no image yet",)
    else:
        assert Artifact.load(folder_of(place.workspace, "bakery", "lb1")).verify() == []
        assert place.reasons() == ()
    (result,) = place.build("lb1")
    assert result.built is (moment == "before")
    assert result.artifact.verify() == []


def test_downloaded_packages_are_kept_for_the_next_build(place: Place, tmp_path: Path) -> None:
    (place.folder / "dl").mkdir()
    (place.folder / "dl/haproxy_3_all.ipk").write_bytes(b"downloaded by hand")
    place.build("lb1")
    assert (tmp_path / "cache/ndakit/openwrt/24.10.8-x86-64/haproxy_3_all.ipk").read_bytes() == b"downloaded by hand"


def test_other_wrong_choices_of_a_builder_are_refused(place: Place, tmp_path: Path) -> None:
    profile = load.load(place.workspace, "bakery").profile
    with pytest.raises(sources.BuilderContradiction, match="leave --imagebuilder out, or write --builder openwrt"):
        sources.choose("lab", tmp_path, place.workspace, profile)
    with pytest.raises(sources.BuilderContradiction, match="leave --offline out"):
        sources.choose("lab", None, place.workspace, profile, sources.FetchOptions(offline=True))
    with pytest.raises(sources.BuilderContradiction, match="--mirror, --checksum"):
        options = sources.FetchOptions(mirror="http://a.example", checksum="0" * 64)
        sources.choose("openwrt", place.folder, place.workspace, profile, options)
    with pytest.raises(sources.BuilderUnknown):
        sources.choose("docker", None, place.workspace, profile)
    with pytest.raises(ImageBuilderBroken, match="there is no Makefile in it"):
        sources.choose("openwrt", tmp_path, place.workspace, profile)


def test_the_lab_refuses_a_target_that_it_does_not_have(place: Place) -> None:
    place.edit("release: 24.10.8", "release: 24.10.8\ndevice: ath79/generic:tplink_archer-c7-v2")
    loaded = load.load(place.workspace, "bakery")
    builder = sources.choose("lab", None, place.workspace, loaded.profile)
    with pytest.raises(sources.LabUnavailable, match="not for 'ath79/generic'"):
        pipeline.build(place.workspace, loaded, ["lb1"], builder)


def test_what_this_machine_lacks_for_the_lab_is_an_error_of_the_machine(place: Place, tmp_path: Path) -> None:
    script = tmp_path / "shipped/lab/imagebuilder/instantiate.py"
    script.parent.mkdir(parents=True)
    said = "error: no space\\n  where: /cache\\n  fix:   make some\\n"
    script.write_text(f"import sys\nsys.stderr.write('{said}')\nsys.exit(3)\n")
    shutil.copytree(ROOT / "templates", tmp_path / "shipped/templates")
    workspace = Workspace(place.workspace.root, tmp_path / "shipped")
    with pytest.raises(sources.LabFailed, match="no space") as caught:
        pipeline.build(workspace, load.load(workspace, "bakery"), ["lb1"], sources.LabBuilder(workspace))
    assert (caught.value.where, caught.value.fix, caught.value.exit_code) == ("/cache", "make some", 3)


def test_the_labs_fingerprint_is_of_release_target_and_sources(place: Place, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "lab", tmp_path / "shipped/lab", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    workspace = Workspace(place.workspace.root, tmp_path / "shipped")
    profile = load.load(place.workspace, "bakery").profile
    first = sources.LabBuilder(workspace).fingerprint(profile)
    assert sources.LabBuilder(place.workspace).fingerprint(profile) == first
    (tmp_path / "shipped/lab/README.md").write_text("words\n")
    assert sources.LabBuilder(workspace).fingerprint(profile) == first
    (tmp_path / "shipped/lab/debian.py").write_text("# another\n")
    assert sources.LabBuilder(workspace).fingerprint(profile) != first
