"""`./inv flash`: what may be overwritten, what is there afterwards, and that nothing half-written looks finished."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ndakit.cli import flash as cli_flash
from ndakit.core.files import file_sha256
from ndakit.image.artifacts import Artifact, ImageFile
from ndakit.image.disk import DiskImageBroken
from ndakit.operate import disks, flash
from ndakit.operate.disks import TargetDisk, TargetUnusable
from records import record

MIB = 1024 * 1024
CONTENT = b"BOOT" + bytes(MIB - 4) + bytes(2 * MIB) + os.urandom(MIB) + bytes(MIB) + b"END" + bytes(512 - 3)
"""Boot code, two empty MiB, a full one, an empty one, and a last sector."""


def quiet(what: str, done_bytes: int, total_bytes: int) -> None:
    """Nobody looks."""


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """A build with one packed disk image, by OpenWrt's ImageBuilder."""
    folder = tmp_path / "images"
    folder.mkdir()
    path = folder / "x.img.gz"
    path.write_bytes(gzip.compress(CONTENT, 1) + b"OpenWrt's own data behind it")
    file = ImageFile(
        path.name, "combined-efi", "squashfs", path.stat().st_size, file_sha256(path), disk_bytes=len(CONTENT)
    )
    return Artifact(folder, record(path, images=(file,), warning=None))


def disk(path: Path, **changes: Any) -> TargetDisk:
    """A free disk of 32 GB."""
    made = TargetDisk(
        name="sdb", path=path, kind="disk", size_bytes=32_000_000_000, model="DataTraveler", serial="60A44C", bus="usb",
        read_only=False, removable=True, filesystem="", mounted=(), numbers=(8, 16), parts=(),
    )  # fmt: skip
    return replace(made, **changes)


@pytest.fixture
def stick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TargetDisk:
    """A disk of 8 MiB with old data everywhere; a file takes its place, everything else is as with a disk."""
    path = tmp_path / "sdb"
    path.write_bytes(b"\xee" * 8 * MIB)
    monkeypatch.setattr(flash, "_open", lambda one: os.open(one.path, os.O_RDWR))
    return disk(path, size_bytes=8 * MIB)


# -- which disk --------------------------------------------------------------------------------------------------------


def device(name: str, **facts: Any) -> dict[str, Any]:
    return {
        "name": name, "path": f"/dev/{name}", "type": "disk", "size": 32_000_000_000, "model": "M", "serial": None,
        "ro": False, "rm": True, "tran": "usb", "fstype": None, "label": None, "mountpoints": [None], "maj:min": "8:16",
    } | facts  # fmt: skip


def listed(*devices: dict[str, Any]) -> tuple[TargetDisk, ...]:
    return disks.parse(json.dumps({"blockdevices": devices}))


def part(name: str, mounted: str | None = None, kind: str = "part", **facts: Any) -> dict[str, Any]:
    return device(name, type=kind, mountpoints=[mounted], **facts)


REFUSED = [
    ({"children": [part("sdb1", "/")]}, "this machine runs from /dev/sdb (/)"),
    ({"children": [part("sdb1"), part("sdb2", "[SWAP]")]}, "this machine runs from /dev/sdb ([SWAP])"),
    (
        {"children": [part("sdb1", children=[part("vg-root", "/home", "lvm")])]},
        "this machine runs from /dev/sdb (/home)",
    ),
    ({"children": [part("sdb1", "/media/usb stick")]}, "/dev/sdb is mounted: sdb1 at /media/usb stick"),
    ({"mountpoints": ["/mnt"]}, "/dev/sdb is mounted: sdb at /mnt"),
    ({"children": [part("sdb1", children=[part("md0", None, "raid1")])]}, "/dev/sdb is in use: md0 (raid1)"),
    ({"children": [part("mpatha", None, "mpath")]}, "/dev/sdb is in use: mpatha (mpath)"),
    ({"ro": True}, "/dev/sdb is read-only"),
    ({"ro": "1"}, "/dev/sdb is read-only"),
    ({"size": 1000}, "/dev/sdb has 1000 bytes, and the image needs 5000000"),
]


@pytest.mark.parametrize(("facts", "what"), REFUSED, ids=[what for _, what in REFUSED])
def test_a_disk_that_must_not_be_overwritten_is_refused(facts: dict[str, Any], what: str) -> None:
    (disk,) = listed(device("sdb", **facts))
    refusal = disk.refusal(5_000_000)
    assert refusal is not None
    assert refusal.what == what
    assert refusal.exit_code == 2


def test_a_free_disk_is_not_refused_and_says_what_is_on_it() -> None:
    (disk,) = listed(device("sdb", serial=" 60A44C ", children=[part("sdb1", label="OLD", fstype="vfat")]))
    assert disk.refusal(5_000_000) is None
    assert str(disk) == "/dev/sdb  32.0 GB  M  serial 60A44C  usb  removable"
    assert str(disk.parts[0]) == "sdb1  32.0 GB  vfat  'OLD'"


def test_what_a_stick_says_about_itself_cannot_drive_a_terminal() -> None:
    (disk,) = listed(device("sdb", model="\x1b[2Jgood disk", children=[part("sdb1", label="\x1b]0;x\x07")]))
    assert "\x1b" not in f"{disk} {disk.parts[0]}"


def test_only_whole_disks_that_hold_something_are_listed() -> None:
    names = [d.name for d in listed(device("sr0", type="rom"), device("sdc", size=0), device("loop0", type="loop"))]
    assert names == ["loop0"]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"blockdevices": [{}]}', '{"blockdevices": [{"type": "disk", "size": "?"}]}']
)
def test_an_answer_that_cannot_be_read_is_an_error_with_a_way_out(text: str) -> None:
    with pytest.raises(disks.DisksUnknown) as caught:
        disks.parse(text)
    assert caught.value.exit_code == 3
    assert "FLASH.md" in caught.value.fix


def test_a_serial_number_names_its_disk() -> None:
    present = listed(device("sda", serial="A"), device("sdb", serial="B", **{"maj:min": "8:32"}))
    assert disks.choose(present, "B").name == "sdb"


def test_a_serial_number_that_two_disks_have_names_none() -> None:
    with pytest.raises(TargetUnusable, match="2 disks have the serial number A: /dev/sda, /dev/sdb"):
        disks.choose(listed(device("sda", serial="A"), device("sdb", serial="A")), "A")


def test_nothing_is_no_serial_number() -> None:
    with pytest.raises(TargetUnusable):
        disks.choose(listed(device("sda", serial="")), "")


def test_a_serial_number_that_is_nowhere_is_told_with_what_is_there() -> None:
    with pytest.raises(TargetUnusable) as caught:
        disks.choose(listed(device("sda", serial="A"), device("sdb", ro=True)), "C")
    assert caught.value.fix == "name one of /dev/sda (32.0 GB, A)"


@pytest.mark.parametrize("wanted", ["/dev/null", "/dev/no-such-disk", "/"])
def test_what_is_no_disk_is_refused(wanted: str) -> None:
    with pytest.raises(TargetUnusable):
        disks.choose(listed(device("sda")), wanted)


# -- into a file -------------------------------------------------------------------------------------------------------


def test_a_file_holds_the_unpacked_image_and_no_room_for_zeros(artifact: Artifact, tmp_path: Path) -> None:
    target = tmp_path / "lb1.img"
    done = flash.to_file(artifact, target, quiet)
    assert target.read_bytes() == CONTENT
    assert done.zero_bytes == 3 * MIB
    assert target.stat().st_blocks * 512 < 3 * MIB
    assert target.stat().st_mode & 0o777 == 0o644


def test_a_file_with_secrets_is_for_its_owner_only(artifact: Artifact, tmp_path: Path) -> None:
    holding = Artifact(artifact.folder, replace(artifact.record, secrets=("shop.pem",)))
    flash.to_file(holding, tmp_path / "lb1.img", quiet)
    assert (tmp_path / "lb1.img").stat().st_mode & 0o777 == 0o600


def test_a_file_that_was_not_finished_has_no_name(artifact: Artifact, tmp_path: Path) -> None:
    target = tmp_path / "lb1.img"
    target.write_bytes(b"old")

    def stop(what: str, done_bytes: int, total_bytes: int) -> None:
        if what == "reading back":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        flash.to_file(artifact, target, stop)
    assert target.read_bytes() == b"old"
    assert {p.name for p in tmp_path.iterdir()} == {"lb1.img", "images"}


def test_an_image_that_is_cut_off_is_not_written(artifact: Artifact, tmp_path: Path) -> None:
    image = artifact.folder / "x.img.gz"
    image.write_bytes(image.read_bytes()[:-700_000])
    with pytest.raises(DiskImageBroken):
        flash.to_file(artifact, tmp_path / "lb1.img", quiet)
    assert not (tmp_path / "lb1.img").exists()


def test_a_folder_and_a_missing_folder_are_named(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(TargetUnusable, match="is a folder"):
        flash.to_file(artifact, tmp_path, quiet)
    with pytest.raises(TargetUnusable, match="there is no folder"):
        flash.to_file(artifact, tmp_path / "none" / "x.img", quiet)


def test_links_pipes_and_files_of_a_build_are_not_overwritten(artifact: Artifact, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.img").symlink_to(tmp_path / "nowhere")
    (tmp_path / "images" / "record.json").write_text("{}")
    for name, words in (("pipe", "no plain file"), ("link.img", "is a link"), ("images/manifest", "holds a build")):
        with pytest.raises(TargetUnusable, match=words):
            flash.to_file(artifact, tmp_path / name, quiet)
    assert not (tmp_path / "nowhere").exists()


# -- onto a disk -------------------------------------------------------------------------------------------------------


def test_a_disk_holds_the_image_and_nothing_of_its_old_table_at_its_end(artifact: Artifact, stick: TargetDisk) -> None:
    done = flash.to_disk(artifact, stick, quiet)
    content = stick.path.read_bytes()
    assert content[: len(CONTENT)] == CONTENT
    assert content[-MIB:] == bytes(MIB)
    assert len(content) == 8 * MIB
    assert done.image_bytes == len(CONTENT)


def after_each(writes: int, write: Callable[..., None]) -> Callable[..., None]:
    """`write`, until it was called so often; then the power is gone."""
    left = iter(range(writes))

    def cut(*words: Any) -> None:
        if next(left, None) is None:
            raise SystemExit("power cut")
        write(*words)

    return cut


def test_wherever_the_power_goes_the_disk_starts_nothing_or_is_whole(
    artifact: Artifact, stick: TargetDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = flash._write
    finished = False
    ends: set[str] = set()
    for writes in range(60):
        stick.path.write_bytes(b"\xee" * 8 * MIB)
        monkeypatch.setattr(flash, "_write", after_each(writes, write))
        try:
            flash.to_disk(artifact, stick, quiet)
            finished = True
        except SystemExit:
            content = stick.path.read_bytes()
            ends.add("as before" if content == b"\xee" * 8 * MIB else "starts nothing")
            assert content == b"\xee" * 8 * MIB or content[:MIB] == bytes(MIB)
        if finished:
            break
    assert ends == {"as before", "starts nothing"}
    assert stick.path.read_bytes()[: len(CONTENT)] == CONTENT


def test_a_stick_that_lies_about_its_size_is_found_out_and_starts_nothing(
    artifact: Artifact, stick: TargetDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = flash._write
    monkeypatch.setattr(flash, "_write", lambda fd, piece, offset: offset > 2 * MIB or write(fd, piece, offset))
    with pytest.raises(flash.WriteFailed, match="does not hold what was written") as caught:
        flash.to_disk(artifact, stick, quiet)
    assert caught.value.exit_code == 3
    monkeypatch.setattr(flash, "_write", write)
    assert stick.path.read_bytes()[:MIB] == bytes(MIB)


def test_an_image_of_the_lab_does_not_come_onto_a_disk(artifact: Artifact, stick: TargetDisk) -> None:
    lab = Artifact(artifact.folder, replace(artifact.record, warning="a lab image"))
    with pytest.raises(flash.NotForDisks, match="a lab image"):
        flash.to_disk(lab, stick, quiet)
    assert stick.path.read_bytes() == b"\xee" * 8 * MIB


def test_a_disk_that_is_refused_is_not_even_opened(
    artifact: Artifact, stick: TargetDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash, "_open", lambda _: pytest.fail("it was opened"))
    with pytest.raises(TargetUnusable, match="is read-only"):
        flash.to_disk(artifact, replace(stick, read_only=True), quiet)


def test_a_disk_that_changed_places_is_not_written(artifact: Artifact, tmp_path: Path) -> None:
    """What was looked at was another device than what the path names now."""
    with pytest.raises(flash.DiskBusy, match="is another disk than a moment ago"):
        flash.to_disk(artifact, disk(Path("/dev/null")), quiet)


def test_a_device_without_disks_is_led_to_its_own_way(artifact: Artifact) -> None:
    (file,) = artifact.record.images
    flashed = Artifact(artifact.folder, replace(artifact.record, images=(replace(file, disk_bytes=None),)))
    with pytest.raises(flash.NothingToFlash, match="has no disk") as caught:
        flash.image_for_disk(flashed)
    assert "FLASH.md" not in caught.value.fix, "there is none beside an image that was rebuilt from a backup"
    assert f"gets {file.name}, as its page" in caught.value.fix
    update = replace(file, disk_bytes=None, name="up date.bin", kind="sysupgrade")
    both = Artifact(artifact.folder, replace(artifact.record, images=(*flashed.record.images, update)))
    with pytest.raises(flash.NothingToFlash) as caught:
        flash.image_for_disk(both)
    copy = caught.value.fix.partition("scp ")[2].partition(", and then")[0]
    assert shlex.split(copy) == ["-O", str(artifact.folder / "up date.bin"), "root@ADDRESS:/tmp/"]
    assert "sysupgrade -n /tmp/'up date.bin'" in caught.value.fix
    (artifact.folder / "FLASH.md").write_text("how to\n")
    with pytest.raises(flash.NothingToFlash) as caught:
        flash.image_for_disk(both)
    assert caught.value.fix == f"follow {artifact.folder / 'FLASH.md'}"
    other = Artifact(artifact.folder, replace(artifact.record, images=(replace(file, format="qcow2"),)))
    with pytest.raises(flash.NothingToFlash, match="no raw disk image"):
        flash.image_for_disk(other)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    """A real block device of 8 MiB; skipped where the system gives none."""
    (tmp_path / "backing").write_bytes(b"\xee" * 8 * MIB)
    done = subprocess.run(
        ["losetup", "--find", "--show", tmp_path / "backing"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no loop devices here: {done.stderr.strip()}")
    yield Path(done.stdout.strip())
    subprocess.run(["losetup", "--detach", done.stdout.strip()], check=False)


def test_a_real_block_device_is_written_and_read_back(artifact: Artifact, loop: Path) -> None:
    disk = disks.choose(disks.present(), str(loop))
    flash.to_disk(artifact, disk, quiet)
    assert loop.read_bytes()[: len(CONTENT)] == CONTENT


def test_the_kernel_is_asked_whether_a_device_is_free(artifact: Artifact, loop: Path) -> None:
    disk = disks.choose(disks.present(), str(loop))
    held = os.open(loop, os.O_RDWR | os.O_EXCL)
    try:
        with pytest.raises(flash.DiskBusy, match="is in use, the kernel says"):
            flash.to_disk(artifact, disk, quiet)
    finally:
        os.close(held)
    assert loop.read_bytes()[:MIB] == b"\xee" * MIB


# -- asked before ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("yes", "words"),
    [
        (None, "nobody is there to be asked"),
        ("yes", "'yes' is not '60A44C'; nothing was written"),
        ("", "'' is not '60A44C'"),
        ("60a44c", "'60a44c' is not '60A44C'"),
    ],
)
def test_a_disk_is_overwritten_only_by_its_own_name(
    yes: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(cli_flash.NotConfirmed, match=words):
        cli_flash._confirm_disk(disk(Path("/dev/sdb")), yes)


def test_a_disk_without_a_serial_number_is_called_by_its_name() -> None:
    cli_flash._confirm_disk(disk(Path("/dev/sdb"), serial=""), "sdb")
    with pytest.raises(cli_flash.NotConfirmed):
        cli_flash._confirm_disk(disk(Path("/dev/sdb"), serial=""), "")


def test_a_file_that_is_there_is_overwritten_only_by_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "lb1.img"
    cli_flash._confirm_file(path, None)
    path.write_bytes(b"")
    cli_flash._confirm_file(path, "lb1.img")
    with pytest.raises(cli_flash.NotConfirmed):
        cli_flash._confirm_file(path, "other.img")
