"""Built images on disk: the record, what is noticed about changed files, and that nothing half-made looks finished."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ndakit.core.files import file_sha256, swap_folder
from ndakit.image import artifacts
from ndakit.image.artifacts import Artifact, ImageChanged, ImageNotBuilt, RecordBroken
from places import SUPPORT
from records import record


def stored(folder: Path, content: bytes = b"disk", beside: dict[str, str] | None = None, **changes: object) -> Artifact:
    scratch = folder / "scratch" / os.urandom(4).hex()
    scratch.mkdir(parents=True)
    image = scratch / "x.img.gz"
    image.write_bytes(content)
    return artifacts.store(record(image, **changes), [image], folder / "images/bakery/lb1", scratch, beside)


def test_what_was_stored_is_read_back_and_verifies(tmp_path: Path) -> None:
    made = stored(tmp_path)
    again = Artifact.load(tmp_path / "images/bakery/lb1")
    assert again.record == made.record
    assert again.image.read_bytes() == b"disk"
    assert again.verify() == []
    assert sorted(p.name for p in again.folder.iterdir()) == ["SHA256SUMS", "manifest", "record.json", "x.img.gz"]


def test_sha256sums_covers_every_file_and_sha256sum_agrees(tmp_path: Path) -> None:
    folder = stored(tmp_path, beside={"FLASH.md": "how to\n"}).folder
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    names = ("FLASH.md", "manifest", "record.json", "x.img.gz")
    assert lines == [f"{file_sha256(folder / name)}  {name}" for name in names]
    assert {p.name for p in folder.iterdir()} == {*names, "SHA256SUMS"}
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.count(": OK") == 4


@pytest.mark.parametrize("name", ["manifest", "record.json", "FLASH.md", "SHA256SUMS"])
def test_a_small_file_that_was_changed_or_lost_is_reported(name: str, tmp_path: Path) -> None:
    made = stored(tmp_path, beside={"FLASH.md": "how to\n"})
    assert made.suspicious() == []
    path = made.folder / name
    text = path.read_text()
    path.write_text(text.replace("0", "1") + "\n")
    assert made.suspicious()
    path.write_text(text)
    assert made.suspicious() == []
    path.unlink()
    assert [Path(e.where).name for e in made.suspicious()] == [name]


def test_a_new_image_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    stored(tmp_path, b"old")
    (tmp_path / "images/bakery/lb1/left-behind").write_text("x")
    assert stored(tmp_path, b"new").image.read_bytes() == b"new"
    assert not (tmp_path / "images/bakery/lb1/left-behind").exists()
    assert [p.name for p in (tmp_path / "images/bakery").iterdir()] == ["lb1"]


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        folder = stored(tmp_path).folder
    finally:
        os.umask(before)
    assert {oct(p.stat().st_mode & 0o777) for p in folder.iterdir()} == {"0o644"}
    assert folder.stat().st_mode & 0o777 == 0o755


def test_the_id_is_of_the_inputs_alone(tmp_path: Path) -> None:
    inputs = {"b": 1, "a": {"y": "ü", "x": True}}
    assert artifacts.identity(inputs) == artifacts.identity(dict(reversed(inputs.items())))
    assert artifacts.identity(inputs) != artifacts.identity(inputs | {"b": 2})
    one, other = stored(tmp_path), stored(tmp_path, b"other", built_at="2027", elapsed_s=9.0)
    assert one.id == other.id


def test_no_image_yet_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(ImageNotBuilt, match=r"no image of bakery's node lb1 yet(.|\n)*inv build bakery"):
        Artifact.load(tmp_path / "bakery/lb1")


@pytest.mark.parametrize("text", ["", "{half", "[]", "{}", '{"format": 99}'])
def test_an_unusable_record_is_an_error_not_an_image(text: str, tmp_path: Path) -> None:
    folder = stored(tmp_path).folder
    (folder / "record.json").write_text(text)
    with pytest.raises(RecordBroken):
        Artifact.load(folder)


def test_a_record_with_a_key_missing_is_broken(tmp_path: Path) -> None:
    path = stored(tmp_path).folder / "record.json"
    data = json.loads(path.read_text())
    del data["inputs"]
    path.write_text(json.dumps(data))
    with pytest.raises(RecordBroken, match="incomplete"):
        Artifact.load(path.parent)


@pytest.mark.parametrize("harm", ["truncated", "changed", "gone", "touched"])
def test_a_harmed_image_is_reported_and_a_touched_one_is_not(harm: str, tmp_path: Path) -> None:
    made = stored(tmp_path)
    if harm == "truncated":
        made.image.write_bytes(b"di")
    elif harm == "changed":
        made.image.write_bytes(b"disc")
    elif harm == "gone":
        made.image.unlink()
    else:
        os.utime(made.image)
    expected = [] if harm == "touched" else [ImageChanged]
    assert [type(e) for e in made.suspicious()] == expected
    assert [type(e) for e in made.verify()] == expected


def test_a_change_that_keeps_size_and_time_is_found_by_the_full_verification(tmp_path: Path) -> None:
    made = stored(tmp_path)
    facts = made.image.stat()
    made.image.write_bytes(b"disc")
    os.utime(made.image, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert made.suspicious() == []
    assert [type(e) for e in made.verify()] == [ImageChanged]


def test_a_crash_while_storing_leaves_the_old_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path, b"old")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ndakit.image.artifacts.swap_folder", crash)
    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path, b"new")
    assert Artifact.load(tmp_path / "images/bakery/lb1").verify() == []
    assert (tmp_path / "images/bakery/lb1/x.img.gz").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["FLASH.md", "manifest", "record.json", "SHA256SUMS"])
def test_a_full_disk_at_any_file_leaves_the_old_image(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = {"FLASH.md": "how to\n"}
    stored(tmp_path, b"old", beside)
    write = Path.write_text

    def full(path: Path, *args: str) -> int:
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            stored(tmp_path, b"new", beside)
    again = Artifact.load(tmp_path / "images/bakery/lb1")
    assert (again.verify(), again.image.read_bytes()) == ([], b"old")
    assert stored(tmp_path, b"new", beside).verify() == []


def test_an_image_reaches_another_disk_whole_past_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def swap(new: Path, folder: Path) -> None:
        if new.parent != folder.parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(new))
        swap_folder(new, folder)

    monkeypatch.setattr("ndakit.image.artifacts.swap_folder", swap)
    (tmp_path / "images/bakery/.lb1.partial").mkdir(parents=True)
    (tmp_path / "images/bakery/.lb1.partial/half").write_text("left by a killed run")
    made = stored(tmp_path)
    assert made.verify() == []
    assert sorted(p.name for p in made.folder.iterdir()) == ["SHA256SUMS", "manifest", "record.json", "x.img.gz"]
    assert [p.name for p in (tmp_path / "images/bakery").iterdir()] == ["lb1"]
    assert stored(tmp_path, b"new").image.read_bytes() == b"new"
    assert [p.name for p in (tmp_path / "images/bakery").iterdir()] == ["lb1"]


def test_images_may_be_a_bind_mount_of_the_same_disk(tmp_path: Path) -> None:
    """rename(2) refuses to cross a mount point even where both sides are one disk."""
    for name in ("ws/images", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path; from test_artifacts import stored;"
        "print([stored(Path(sys.argv[1]), text).verify() for text in (b'old', b'new')])"
    )
    inner = 'mount --bind "$1" "$2" && exec "$3" -c "$4" "$5" "$6" "$7" "$8"'
    words = [tmp_path / "elsewhere", tmp_path / "ws/images", sys.executable, code, tmp_path / "ws"]
    words += [Path(__file__).parent, SUPPORT, Path(artifacts.__file__).parents[2]]
    argv = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inner, "sh", *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    if "unshare:" in done.stderr:
        pytest.skip(f"no mounts for users here: {done.stderr.strip()}")
    assert (done.stdout, done.returncode) == ("[[], []]\n", 0), done.stderr
    assert (tmp_path / "elsewhere/bakery/lb1/x.img.gz").read_bytes() == b"new"


SPOILT: dict[str, object] = {
    "nested": "[" * 100_000,
    "nested objects": '{"format": ' * 100_000,
    "a list": "[]",
    "nothing": "",
    "no object": '"text"',
    "NaN": '{"format": NaN}',
    "a number of 5000 digits": f'{{"format": {"9" * 5000}}}',
    "not UTF-8": "\udcff",
    "no images": {"images": []},
    "images that are text": {"images": "x"},
    "an image without a name": {"images": [{}]},
    "an image elsewhere": {"name": "../../etc/passwd"},
    "an image with an absolute path": {"name": "/etc/passwd"},
    "an image that is the folder": {"name": ".."},
    "an image with NUL in its name": {"name": "a\0b"},
    "an image with too long a name": {"name": "a" * 300},
    "a size that is text": {"size_bytes": "many"},
    "inputs that are a list": {"inputs": []},
    "packages with numbers": {"packages": {"a": 1}},
    "a key too many": {"more": 1},
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_record_from_elsewhere_is_told_to_be_broken_and_nothing_else(what: str, tmp_path: Path) -> None:
    built = stored(tmp_path)
    path = built.folder / "record.json"
    change = SPOILT[what]
    if isinstance(change, dict):
        data = json.loads(path.read_text())
        (data["images"][0] if change.keys() <= {"name", "size_bytes"} else data).update(change)
        change = json.dumps(data)
    path.write_bytes(str(change).encode(errors="surrogateescape"))
    with pytest.raises(artifacts.RecordBroken) as caught:
        Artifact.load(built.folder)
    assert caught.value.text().count("\n") == 2
    assert len(caught.value.text()) < 1000


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a" * 300, "a\0b", "..", ""])
def test_a_list_of_sums_names_files_beside_it_only(name: str, tmp_path: Path) -> None:
    built = stored(tmp_path)
    with (built.folder / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  {name}\n")
    (error,) = built.verify()
    assert "which is no file beside it" in error.what
