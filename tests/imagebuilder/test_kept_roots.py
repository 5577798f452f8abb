"""Installed packages are kept for the next customer, and nothing but time depends on that."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagebuilder_fakes import driver, fake, request
from ndakit.core import process
from ndakit.core.files import file_sha256
from ndakit.core.release import Release
from ndakit.image.built import Built
from ndakit.imagebuilder import cache, make_steps
from ndakit.imagebuilder.cache import Memory
from ndakit.imagebuilder.imagebuilder import ImageBuilder
from ndakit.imagebuilder.request import ImageRequest
from places import SUPPORT

pytestmark = pytest.mark.images

RECIPE = """\
_check_keys: FORCE
\t@usign -G

_call_image: staging_dir/host/.prereq-build
\techo 'Building images for $(BOARD)'
\techo
\trm -rf $(TARGET_DIR) $(TARGET_DIR_ORIG)
\tmkdir -p $(TARGET_DIR) $(BIN_DIR) $(TMP_DIR) $(DL_DIR)
\t$(MAKE) package_reload
\t$(MAKE) package_install
\t$(MAKE) -s prepare_rootfs
\t$(MAKE) -s build_image
\t$(MAKE) -s json_overview_image_info
\t$(MAKE) -s checksum

package_index: FORCE
"""


class Place:
    """A fake ImageBuilder that is copied for every build, and one memory."""

    def __init__(self, folder: Path, release: str = "24.10.8") -> None:
        self.tmp = folder
        self.release = release
        self.memory = Memory("f" * 64, base=folder / "kept")
        self._number = 0

    def build(self, *, banner: str = "hello\n", keep: bool = True, **changes: Any) -> Built:
        """One image in a working copy of its own; `log` is what was said."""
        self._number += 1
        here = self.tmp / f"build{self._number}"
        folder = fake(here / "ib", self.release)
        self.prepare(folder)
        log = here / "log"
        builder = ImageBuilder(folder, Release.parse(self.release), log=log, memory=self.memory if keep else None)
        asked = request(here, **changes)
        (asked.files / "etc/banner").write_text(banner)
        try:
            return builder.image(asked, here / "out")
        finally:
            self.installed = "\nInstalling packages...\n" in log.read_text()
            self.checked = ".prereq-build" in log.read_text()

    def prepare(self, folder: Path) -> None:
        """For tests that change the working copy."""

    def archive(self) -> Path:
        (archive,) = (self.tmp / "kept").glob("*/*.tar")
        return archive

    def note(self) -> Path:
        (note,) = (self.tmp / "kept").glob("*/*.json")
        return note


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def sums(built: Built) -> list[str]:
    return [image.sha256 for image in built.images]


def test_the_second_customer_gets_the_same_bytes_without_a_second_installation(place: Place) -> None:
    bare = [sums(place.build(banner=text, keep=False)) for text in ("first\n", "second\n")]
    first = place.build(banner="first\n")
    assert place.installed
    second = place.build(banner="second\n")
    assert not place.installed
    assert [sums(first), sums(second)] == bare
    assert bare[0] != bare[1]
    assert second.packages == first.packages
    assert second.argv[:2] == ("make", "image")


@pytest.mark.parametrize("changes", [{"add": ("haproxy", "keepalived")}, {"remove": ()}], ids=str)
def test_other_packages_are_installed_anew(changes: dict[str, Any], place: Place) -> None:
    place.build()
    built = place.build(**changes)
    assert place.installed
    assert sums(built) == sums(place.build(keep=False, **changes))


def test_size_file_system_and_name_need_no_new_installation(place: Place) -> None:
    place.build()
    changes: dict[str, Any] = {"rootfs_mib": 128, "filesystem": "ext4", "firmware": "bios", "extra_name": "other"}
    built = place.build(**changes)
    assert not place.installed
    assert sums(built) == sums(place.build(keep=False, **changes))


def test_a_package_file_put_into_the_copy_is_installed_anew_and_the_same_one_is_not(place: Place) -> None:
    place.build()
    place.prepare = lambda folder: (folder / "packages/own_1_all.ipk").write_bytes(b"own")  # type: ignore[assignment]  # a hook of this test
    place.build()
    assert place.installed
    place.build()
    assert not place.installed


def test_another_imagebuilder_has_another_memory(place: Place) -> None:
    place.build()
    place.memory = Memory("e" * 64, base=place.tmp / "kept")
    place.build()
    assert place.installed


def _truncate(place: Place) -> None:
    with place.archive().open("r+b") as file:
        file.truncate(5000)


def _flip(place: Place) -> None:
    content = bytearray(place.archive().read_bytes())
    content[700] ^= 1
    place.archive().write_bytes(content)


def _halve(place: Place) -> None:
    place.note().write_text(place.note().read_text()[:40])


def _edit(**changes: object) -> Callable[[Place], None]:
    def edit(place: Place) -> None:
        place.note().write_text(json.dumps(json.loads(place.note().read_text()) | changes))

    return edit


DAMAGES: dict[str, Callable[[Place], None]] = {
    "archive cut off": _truncate,
    "one bit flipped": _flip,
    "archive gone": lambda place: place.archive().unlink(),
    "note half written": _halve,
    "note of another format": _edit(format=0),
    "note that leads outside": _edit(place="../../elsewhere"),
    "note without a time": _edit(made_s=None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_kept_root_is_not_used_and_replaced(damage: str, place: Place) -> None:
    first = place.build()
    DAMAGES[damage](place)
    again = place.build()
    assert place.installed
    assert sums(again) == sums(first)
    facts = json.loads(place.note().read_text())
    assert file_sha256(place.note().parent / facts["archive"]) == facts["sha256"]


def test_a_kept_root_that_cannot_be_unpacked_is_left_out(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    first = place.build()
    real = process.run

    def run(argv: process.Argv, **more: object) -> process.Done:
        if "-xpf" in argv:
            root = place.tmp / "build2/ib/build_dir/target-x/root-x86/etc"
            root.mkdir()
            (root / "half").write_text("half of it")
            raise process.ProcessFailed(process.Done(("tar",), 2, "", "No space left on device", 0.1))
        return real(argv, **more)  # type: ignore[arg-type]  # handed through as they came

    monkeypatch.setattr(process, "run", run)
    assert sums(place.build()) == sums(first)
    assert place.installed


@pytest.mark.parametrize("step", ["tar", "note"])
def test_a_root_that_cannot_be_kept_costs_no_image(step: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "file_sha256" if step == "tar" else "write_atomic", full)
    assert place.build().images
    assert list((place.tmp / "kept").glob("*/*.json")) == []
    assert list((place.tmp / "kept").glob("*/.*")) == []
    monkeypatch.undo()
    assert place.build().images
    assert place.installed


def test_a_cache_that_cannot_be_written_costs_no_image(place: Place) -> None:
    (place.tmp / "kept").write_text("a file where the folder should be")
    assert place.build().images


@pytest.mark.parametrize(
    ("line", "age_s", "used"),
    [
        ("src/gz core https://example.org/core", 60, True),
        ("src/gz core https://example.org/core", cache.REMOTE_AGE_S + 60, False),
        ("src/gz core https://example.org/core", -3600, False),  # a clock that was wrong, then or now
        ("# src/gz core https://example.org/core\nsrc imagebuilder file:packages", 10 * cache.REMOTE_AGE_S, True),
    ],
)
def test_packages_from_the_network_are_looked_up_again_after_hours(
    line: str, age_s: float, used: bool, place: Place
) -> None:
    def prepare(folder: Path) -> None:
        (folder / "repositories.conf").write_text(line + "\n")

    place.prepare = prepare  # type: ignore[method-assign]  # a hook of this test
    place.build()
    _edit(made_s=time.time() - age_s)(place)
    place.build()
    assert place.installed is not used


def test_old_roots_and_what_killed_runs_left_are_removed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_KEPT_ROOTS", 2)
    folder = place.tmp / "kept" / ("f" * 32)
    for number in range(3):
        place.build(add=("haproxy",) * (number % 2), remove=("ppp",) * (number // 2))
        for file in folder.iterdir():
            old_s = file.stat().st_mtime - 2 * 3600
            os.utime(file, (old_s, old_s))
        (folder / ".x.partial").write_bytes(b"half")
        os.utime(folder / ".x.partial", (0, 0))
    place.build(add=("keepalived",))
    assert len(list(folder.glob("*.json"))) == 2
    assert len(list(folder.glob("*.tar"))) == 2
    assert not (folder / ".x.partial").exists()


def test_the_machine_is_checked_once_and_again_when_a_program_changes(place: Place, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("1")

    def prepare(folder: Path) -> None:
        (folder / "staging_dir/host/bin").mkdir()
        (folder / "staging_dir/host/bin/gawk").symlink_to(program)

    place.prepare = prepare  # type: ignore[method-assign]  # a hook of this test
    place.build()
    assert place.checked
    place.build()
    assert not place.checked
    assert (place.tmp / "build2/ib/staging_dir/host/bin/bash").readlink() == Path("/bin/sh")
    program.write_text("changed")
    place.build()
    assert place.checked


def test_steps_that_are_not_known_are_left_to_make_image(place: Place) -> None:
    first = place.build()

    def prepare(folder: Path) -> None:
        text = (folder / "Makefile").read_text()
        (folder / "Makefile").write_text(text.replace("\t$(MAKE) -s checksum", "\t$(MAKE) -s checksum\n\t@echo new"))

    place.prepare = prepare  # type: ignore[method-assign]  # a hook of this test
    again = place.build()
    assert place.installed
    assert "new\n" in (place.tmp / "build2/log").read_text()
    assert sums(again) == sums(first)


def test_the_steps_are_those_of_the_real_makefile() -> None:
    steps = make_steps.read(RECIPE)
    assert steps is not None
    assert steps.once == ("staging_dir/host/.prereq-build",)
    assert steps.install == ("_check_keys", "package_reload", "package_install")
    assert steps.finish == ("prepare_rootfs", "build_image", "json_overview_image_info", "checksum")


def test_the_steps_of_old_releases_have_no_overview_and_no_keys() -> None:
    steps = make_steps.read(RECIPE.replace("\t$(MAKE) -s json_overview_image_info\n", "").partition("\n\n")[2])
    assert steps is not None
    assert steps.install == ("package_reload", "package_install")
    assert steps.finish == ("prepare_rootfs", "build_image", "checksum")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("_call_image:", "_call_other:"),
        ("\t$(MAKE) -s checksum\n", ""),
        ("\t$(MAKE) -s checksum\n", "\t$(MAKE) -s checksum\nifneq ($(X),)\n\t$(MAKE) -s more\nendif\n"),
        ("\techo\n", "\tsed -i s/a/b/ .config\n"),
        ("package_install", "package_setup"),
        ("$(MAKE) -s build_image", "$(MAKE) -s build_image EXTRA=1"),
        ("\t$(MAKE) -s prepare_rootfs\n", ""),
        ("\t$(MAKE) -s prepare_rootfs\n\t$(MAKE) -s build_image", "\t$(MAKE) -s build_image\n\t$(MAKE) -s checksum"),
    ],
)
def test_a_recipe_that_is_not_understood_has_no_steps(old: str, new: str) -> None:
    assert old in RECIPE
    assert make_steps.read(RECIPE.replace(old, new)) is None


def test_a_device_has_the_name_that_make_knows() -> None:
    assert make_steps.profile_id("", "generic") == "DEVICE_generic"
    assert make_steps.profile_id("PROFILE_NAMES = DEVICE_a DEVICE_generic\n", "generic") == "DEVICE_generic"
    assert make_steps.profile_id("PROFILE_NAMES = Default Generic\n", "Generic") == "Generic"


def test_disabled_services_reach_the_second_half(tmp_path: Path) -> None:
    steps = make_steps.read(RECIPE)
    assert steps is not None
    asked: ImageRequest = dataclasses.replace(request(tmp_path), disabled_services=("cron", "a"))
    argv = make_steps.finish_argv(steps, asked, "DEVICE_generic", Path("/out"))
    assert argv[-4:] == [f"USER_FILES={asked.files}", "BIN_DIR=/out", "EXTRA_IMAGE_NAME=bakery-lb1",
                         "DISABLED_SERVICES=a cron"]  # fmt: skip


def test_a_build_killed_while_it_installs_keeps_nothing_and_does_not_trip_the_next(place: Place) -> None:
    folder = fake(place.tmp / "killed", mode="sleep-installing")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path;"
        "from imagebuilder_fakes import request; from ndakit.imagebuilder.cache import Memory;"
        "from ndakit.imagebuilder.imagebuilder import ImageBuilder;"
        "from ndakit.core.release import Release; tmp = Path(sys.argv[2]);"
        "b = ImageBuilder(tmp / 'killed', Release.parse('24.10.8'), log=tmp / 'log',"
        " memory=Memory('f' * 64, base=tmp / 'kept')); b.image(request(tmp), tmp / 'out')"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(SUPPORT), str(place.tmp)])
    end_s = time.monotonic() + 60
    while not (folder / "build_dir/target-x/root-x86/etc/init.d/dropbear").exists():
        assert time.monotonic() < end_s
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert list((place.tmp / "kept").glob("*/*.json")) == []
    assert place.build().images
    assert place.installed


def test_a_driver_without_memory_runs_make_image(tmp_path: Path) -> None:
    driver(tmp_path).image(request(tmp_path), tmp_path / "out")
    assert "\n$ make image PROFILE=generic" in (tmp_path / "log").read_text()
