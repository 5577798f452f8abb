"""Working copies of an ImageBuilder: cheap, never the original, never in each other's way, and the same bytes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagebuilder_fakes import PROFILE, fake, request, workspace_folder
from ndakit.build import pipeline
from ndakit.core import process
from ndakit.core.errors import NdakitError
from ndakit.core.workspace import Workspace
from ndakit.imagebuilder import cache, failures, prerequisites, sources, working_copy
from ndakit.imagebuilder.imagebuilder import ImageBuilderMismatch
from ndakit.imagebuilder.sources import Job, OpenWrtBuilder
from ndakit.load import load
from ndakit.model import Profile

pytestmark = pytest.mark.images


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    return load.load(Workspace.at(workspace_folder(tmp_path / "ws")), "bakery").profile


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An ImageBuilder with something in each of its folders."""
    folder = fake(tmp_path / "ib")
    for name in (
        "staging_dir/host/bin/opkg", "target/linux/x86/image/Makefile", "include/rootfs.mk", "scripts/check.sh",
        "build_dir/target-x/linux-x86/bzImage", "packages/haproxy_3_all.ipk", "keys/abc", ".targetinfo",
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
        (folder / name).chmod(0o750 if "bin/" in name else 0o640)
        os.utime(folder / name, (1_700_000_000, 1_700_000_000))
    return folder


def state(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Every file with mode, time and content."""
    return {
        str(p.relative_to(folder)): (p.stat().st_mode, p.stat().st_mtime_ns, p.read_text(errors="replace"))
        for p in folder.rglob("*")
        if p.is_file()
    }


def build(source: Path, folder: Path, profile: Profile, **changes: object) -> str:
    """Build an image in `folder`; its SHA-256."""
    folder.mkdir(parents=True)
    with OpenWrtBuilder(source).provide(Job(profile, folder, folder / "log")) as driver:
        (image,) = driver.image(request(folder, **changes), folder / "out").images
        return image.sha256


def test_a_build_leaves_the_original_as_it_was(source: Path, profile: Profile, tmp_path: Path) -> None:
    before = state(source)
    build(source, tmp_path / "one", profile)
    assert state(source) == before


def test_what_make_writes_into_is_no_hard_link(source: Path, profile: Profile, tmp_path: Path) -> None:
    working_copy.private_copy(source, tmp_path / "copy")
    shared = {p for p in state(source) if (tmp_path / "copy" / p).stat().st_nlink > 1}
    assert shared == {
        "staging_dir/host/bin/opkg", "target/linux/x86/image/Makefile", "include/rootfs.mk", "include/version.mk",
        "scripts/check.sh", "packages/haproxy_3_all.ipk", "packages/kernel_1_all.ipk",
    }  # fmt: skip
    assert state(tmp_path / "copy") == state(source)


def test_a_hard_link_is_no_change_of_the_original(
    source: Path, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in source.rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    before = working_copy.fingerprint(source, tmp_path / "known")
    working_copy.private_copy(source, tmp_path / "copy")

    def read(path: str) -> str:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(working_copy, "_sha256", read)
    assert working_copy.fingerprint(source, tmp_path / "known") == before


def test_a_file_that_was_just_written_is_read_again_the_next_time(source: Path, tmp_path: Path) -> None:
    path = source / "scripts/check.sh"
    path.write_text("one")
    first = working_copy.fingerprint(source, tmp_path / "known")
    facts = path.stat()
    path.write_text("two")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # changed within the same tick of the clock
    assert working_copy.fingerprint(source, tmp_path / "known") != first


def test_builds_at_once_do_not_meet_and_make_the_same(source: Path, profile: Profile, tmp_path: Path) -> None:
    (source / "dl").mkdir()
    (source / "dl/downloaded_1_all.ipk").write_text("one")
    sums: dict[int, str] = {}

    def one(number: int) -> None:
        sums[number] = build(source, tmp_path / f"at-once{number}", profile)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(sums) == 4
    assert set(sums.values()) == {build(source, tmp_path / "alone", profile)}
    kept = tmp_path / "cache/ndakit/openwrt/24.10.8-x86-64"
    assert [p.name for p in kept.iterdir()] == ["downloaded_1_all.ipk"]


def test_a_source_that_changes_while_it_is_copied_is_remembered_under_no_name(
    source: Path, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = working_copy.private_copy

    def copy(one: Path, other: Path) -> None:
        (source / "scripts/check.sh").write_text("changed meanwhile")
        real(one, other)

    monkeypatch.setattr(working_copy, "private_copy", copy)
    build(source, tmp_path / "one", profile)
    assert not (tmp_path / "cache/ndakit/imagebuilders").exists()


def test_missing_programs_are_named_with_their_use_before_anything_is_copied(
    source: Path, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = process.find
    monkeypatch.setattr(process, "find", lambda tool: None if tool in ("gawk", "getopt") else real(tool))
    folder = tmp_path / "one"
    folder.mkdir()
    with (
        pytest.raises(failures.PrerequisitesMissing) as caught,
        OpenWrtBuilder(source).provide(Job(profile, folder, folder / "log")),
    ):
        raise AssertionError("it was provided")
    assert "gawk (reads package lists); getopt (" in caught.value.what
    assert caught.value.fix == "apt-get install gawk util-linux"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("has", ["23.05.2", "24.10.7"])
def test_another_release_is_refused_before_anything_is_copied(has: str, profile: Profile, tmp_path: Path) -> None:
    other = fake(tmp_path / "other", has)
    folder = tmp_path / "one"
    folder.mkdir()
    with (
        pytest.raises(ImageBuilderMismatch, match=rf"release {has}, the profile asks for 24\.10\.8") as caught,
        OpenWrtBuilder(other).provide(Job(profile, folder, folder / "log")),
    ):
        raise AssertionError("it was provided")
    assert caught.value.where == str(other)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "changes"),
    [(ImageBuilderMismatch, {"target": "x86/generic"}), (failures.DeviceUnknown, {"device": "gneric"})],
)
def test_another_target_is_refused_with_the_users_folder_named(
    kind: type[NdakitError], changes: dict[str, object], source: Path, profile: Profile, tmp_path: Path
) -> None:
    with pytest.raises(kind) as caught:
        build(source, tmp_path / "one", profile, **changes)
    assert caught.value.where == str(source)


def test_this_machine_has_what_an_imagebuilder_needs() -> None:
    prerequisites.check("here")


def test_a_path_with_umlauts_is_built_in(source: Path, profile: Profile, tmp_path: Path) -> None:
    plain = build(source, tmp_path / "plain", profile)
    there = tmp_path / "Büro-Köln"
    source.rename(tmp_path / "Gerät")
    assert build(tmp_path / "Gerät", there, profile) == plain


SURROUNDINGS: dict[str, dict[str, str]] = {
    "here": {},
    "elsewhere": {
        "LANG": "de_DE.UTF-8", "LC_ALL": "tr_TR.UTF-8", "TZ": "Pacific/Kiritimati", "SOURCE_DATE_EPOCH": "1",
        "MAKEFLAGS": "-j4", "FILES": "/etc", "PACKAGES": "tcpdump", "PROFILE": "other", "V": "s",
    },
}  # fmt: skip


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)
    monkeypatch.undo()
    time.tzset()


def test_folder_umask_locale_time_zone_and_time_decide_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, surroundings: None
) -> None:
    """With the lab's ImageBuilder, which makes real disks; the second build keeps nothing of the first one."""
    monkeypatch.delenv("XDG_CACHE_HOME")  # the lab's packages are in the user's
    digests: list[dict[str, str]] = []
    for number, (name, words) in enumerate(SURROUNDINGS.items()):
        for key, value in words.items():
            monkeypatch.setenv(key, value)
        time.tzset()
        os.umask(0o077 if number else 0o022)
        monkeypatch.setattr(cache, "Memory", lambda fingerprint, n=name: _memory(tmp_path / f"kept-{n}", fingerprint))
        root = workspace_folder(tmp_path / name / ("deeper/" * number), PROFILE.replace("mib: 64", "mib: 128"))
        for path in root.rglob("*"):
            os.utime(path, (1_000_000_000 * number, 1_000_000_000 * number))
        workspace = Workspace.at(root)
        loaded = load.load(workspace, "bakery")
        builder = sources.choose("lab", None, workspace, loaded.profile)
        (result,) = pipeline.build(workspace, loaded, ["lb1"], builder)
        folder = root / "images/bakery/lb1"
        names = [image.name for image in result.artifact.record.images]
        digests.append({name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names})
        assert len(list((tmp_path / f"kept-{name}").glob("*/*.tar"))) == 1
    assert digests[0]
    assert digests[0] == digests[1]


def _memory(base: Path, fingerprint: str, real: type[cache.Memory] = cache.Memory) -> cache.Memory:
    return real(fingerprint, base=base)


FULL = """\
import sys
from pathlib import Path
from ndakit.build import pipeline
from ndakit.image import artifacts
from ndakit.imagebuilder import sources
from ndakit.load import load
from ndakit.core.errors import NdakitError
from ndakit.core.workspace import Workspace

workspace = Workspace.at(Path(sys.argv[1]))
builder = sources.OpenWrtBuilder(Path(sys.argv[2]))
builder.space_mib = lambda profile: 0  # as if others took the space only now
try:
    pipeline.build(workspace, load.load(workspace, "bakery"), ["lb1"], builder)
    print("built")
except NdakitError as error:
    print(type(error).__name__, (workspace.images / "bakery/lb1").exists(), *(workspace.state / "scratch").glob("*"))
"""


@pytest.mark.parametrize("size_kib", [180, 400])
def test_a_disk_that_gets_full_in_the_middle_leaves_nothing_that_looks_good(size_kib: int, tmp_path: Path) -> None:
    """On a file system of this size, in a namespace of its own; then the same command with room for it."""
    text = workspace_folder(tmp_path / "ws") / "profiles/bakery.yaml"
    source, small = fake(tmp_path / "ib"), tmp_path / "small"
    small.mkdir()
    build_here = f'"$1" -c "$2" "{small}" "{source}"'
    line = (
        f'mount -t tmpfs -o size={size_kib}k tmpfs "{small}" && mkdir "{small}/profiles" &&'
        f' cp "{text}" "{small}/profiles/" && {build_here};'
        f' mount -o remount,size=64m "{small}" && {build_here}'
    )
    words = ["unshare", "--map-root-user", "--mount", "sh", "-c", line, "sh", sys.executable, FULL]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == ["DiskFull False", "built"], done.stdout + done.stderr
