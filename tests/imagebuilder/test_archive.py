"""Unpacking: nothing in an archive reaches outside of its folder, whatever it is made of."""

from __future__ import annotations

import copy
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import mirror
from ndakit.core import process
from ndakit.imagebuilder.fetch import archive

TOP = "openwrt-imagebuilder"


@pytest.fixture(params=[".tar.xz", ".tar.zst"])
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644, content: bytes = b""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.mtime, info.size = kind, link, mode, 1_700_000_000, len(content)
    info.devmajor, info.devminor = 1, 3
    return info, content


def packed(folder: Path, *members: tuple[tarfile.TarInfo, bytes], suffix: str = ".tar.xz") -> Path:
    """An archive with these members, below a folder at the top; `/nowhere` in them becomes the test's own folder."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for template, content in (member(TOP, tarfile.DIRTYPE, mode=0o755), *members):
            info = copy.copy(template)
            info.name, info.linkname = (
                text.replace("/nowhere", str(folder)) for text in (template.name, template.linkname)
            )
            tar.addfile(info, io.BytesIO(content))
    path = folder / f"archive{suffix}"
    path.write_bytes(mirror.compressed(plain.getvalue(), suffix))
    return path


def unpacked(folder: Path, path: Path) -> Path:
    into = folder / "into"
    into.mkdir()
    return archive.unpack(path, into, folder / "log")


def test_files_links_modes_and_times_come_out_as_they_went_in(tmp_path: Path, suffix: str) -> None:
    path = packed(
        tmp_path,
        member(f"{TOP}/scripts", tarfile.DIRTYPE, mode=0o700),
        member(f"{TOP}/scripts/a.sh", mode=0o755, content=b"#!/bin/sh\n"),
        member(f"{TOP}/scripts/b.sh", tarfile.LNKTYPE, link=f"{TOP}/scripts/a.sh"),
        member(f"{TOP}/target/linux/x86/c.sh", tarfile.SYMTYPE, link="../../../scripts/a.sh"),
        member(f"{TOP}/staging_dir/host/bin/awk", tarfile.SYMTYPE, link="/usr/bin/gawk"),
        member(f"{TOP}/.config", content=b"A=y\n" * 100_000),
        suffix=suffix,
    )
    top = unpacked(tmp_path, path)
    assert top.name == TOP
    assert (top / "target/linux/x86/c.sh").read_bytes() == b"#!/bin/sh\n"
    assert (top / "scripts/a.sh").stat().st_mode & 0o7777 == 0o755
    assert (top / "scripts/b.sh").samefile(top / "scripts/a.sh")
    assert (top / ".config").stat().st_size == 400_000
    assert {(top / name).stat().st_mtime for name in ("", "scripts", ".config")} == {1_700_000_000}
    assert (top / "staging_dir/host/bin/awk").readlink() == Path("/usr/bin/gawk")


def test_setuid_and_write_for_others_do_not_survive(tmp_path: Path) -> None:
    path = packed(
        tmp_path, member(f"{TOP}/su", mode=0o6777, content=b"x"), member(f"{TOP}/d", tarfile.DIRTYPE, mode=0o1777)
    )
    top = unpacked(tmp_path, path)
    assert (top / "su").stat().st_mode & 0o7777 == 0o755
    assert (top / "d").stat().st_mode & 0o7777 == 0o755


def folder_at(mtime: str) -> tuple[tarfile.TarInfo, bytes]:
    info, content = member(f"{TOP}/folder", tarfile.DIRTYPE)
    info.mtime = 0
    info.pax_headers = {"mtime": mtime}
    return info, content


OUTSIDE = {
    "parent": [member(f"{TOP}/../../evil", content=b"x")],
    "parent-folder": [member(f"{TOP}/../../evil", tarfile.DIRTYPE)],
    "absolute": [member("/nowhere/evil", content=b"x")],
    "symlink-then-write": [
        member(f"{TOP}/staging_dir/host/out", tarfile.SYMTYPE, link="/nowhere/outside"),
        member(f"{TOP}/staging_dir/host/out/evil", content=b"x"),
    ],
    "inner-symlink-then-write": [
        member(f"{TOP}/d", tarfile.DIRTYPE),
        member(f"{TOP}/l", tarfile.SYMTYPE, link="d"),
        member(f"{TOP}/l/evil", content=b"x"),
    ],
    "symlink-replaced": [
        member(f"{TOP}/staging_dir/host/out", tarfile.SYMTYPE, link="/nowhere/evil"),
        member(f"{TOP}/staging_dir/host/out", content=b"x"),
    ],
    "folder-over-symlink": [
        member(f"{TOP}/staging_dir/host/out", tarfile.SYMTYPE, link="/nowhere/outside"),
        member(f"{TOP}/staging_dir/host/out", tarfile.DIRTYPE),
    ],
    "absolute-symlink": [member(f"{TOP}/etc", tarfile.SYMTYPE, link="/etc")],
    "symlink-outside": [member(f"{TOP}/a/b", tarfile.SYMTYPE, link="../../../evil")],
    "symlink-to-the-top's-parent": [member(f"{TOP}/a", tarfile.SYMTYPE, link="..")],
    "symlink-through-a-name": [member(f"{TOP}/a/b/c", tarfile.SYMTYPE, link="x/../../../../evil")],
    "hardlink-outside": [member(f"{TOP}/passwd", tarfile.LNKTYPE, link="/etc/passwd")],
    "hardlink-parent": [member(f"{TOP}/passwd", tarfile.LNKTYPE, link="../../etc/passwd")],
    "hardlink-to-symlink": [
        member(f"{TOP}/staging_dir/host/l", tarfile.SYMTYPE, link="/etc/passwd"),
        member(f"{TOP}/p", tarfile.LNKTYPE, link=f"{TOP}/staging_dir/host/l"),
    ],
    "character-device": [member(f"{TOP}/null", tarfile.CHRTYPE)],
    "block-device": [member(f"{TOP}/sda", tarfile.BLKTYPE)],
    "fifo": [member(f"{TOP}/pipe", tarfile.FIFOTYPE)],
    "twice": [member(f"{TOP}/a", content=b"1"), member(f"{TOP}/a", content=b"2")],
}


def timed(mtime: object) -> tuple[tarfile.TarInfo, bytes]:
    info, content = member(f"{TOP}/timed", content=b"x")
    info.mtime = 0
    info.pax_headers = {"mtime": str(mtime)}
    return info, content


STRANGE = {
    "time-nan": ([timed("nan")], "a time that no file has"),
    "time-inf": ([timed("inf")], "a time that no file has"),
    "time-minus-inf": ([timed("-inf")], "a time that no file has"),
    "time-1e300": ([timed("1e300")], "a time that no file has"),
    "time-before-1970": ([timed("-1e12")], "a time that no file has"),
    "folder-time-nan": ([folder_at("nan")], "a time that no file has"),
    "file-then-its-child": ([member(f"{TOP}/a", content=b"1"), member(f"{TOP}/a/b", content=b"2")], "lie in a file"),
    "file-then-a-folder-in-it": ([member(f"{TOP}/a"), member(f"{TOP}/a/b", tarfile.DIRTYPE)], "lie in a file"),
    "child-then-its-folder-as-a-file": ([member(f"{TOP}/a/b", content=b"2"), member(f"{TOP}/a")], "is there twice"),
    "child-then-its-folder-as-a-link": (
        [member(f"{TOP}/a/b", content=b"2"), member(f"{TOP}/a", tarfile.SYMTYPE, link="b")], "is there twice"),
    "name-of-300": ([member(f"{TOP}/{'a' * 300}")], "a name that no file has"),
    "folder-of-300": ([member(f"{TOP}/{'a' * 300}", tarfile.DIRTYPE)], "a name that no file has"),
    "path-of-5000": ([member(f"{TOP}/{'a/' * 2500}b")], "a name that no file has"),
    "link-of-5000": ([member(f"{TOP}/a", tarfile.SYMTYPE, link="a/" * 2500)], "a link to nowhere"),
    "link-name-of-300": ([member(f"{TOP}/a", tarfile.SYMTYPE, link="a" * 300)], "a link to nowhere"),
    "hard-link-of-5000": ([member(f"{TOP}/a", tarfile.LNKTYPE, link="a/" * 2500)], "a name that no file has"),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_a_member_that_no_file_system_takes_is_refused_in_words(name: str, tmp_path: Path) -> None:
    members, says = STRANGE[name]
    with pytest.raises(archive.ArchiveUnsafe) as caught:
        unpacked(tmp_path, packed(tmp_path, *members))
    assert says in caught.value.what
    assert len(caught.value.text()) < 1000


@pytest.mark.parametrize("headers", [{"size": "x"}, {"size": "9" * 5000}, {"size": "-5"}, {"GNU.sparse.map": "1,x"},
                                     {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, {"mtime": "x"}])  # fmt: skip
def test_headers_that_no_tar_has_are_refused_in_words_or_passed_over(headers: dict[str, str], tmp_path: Path) -> None:
    info, content = member(f"{TOP}/x", content=b"x" * 600)
    info.pax_headers = headers
    try:
        unpacked(tmp_path, packed(tmp_path, (info, content), member(f"{TOP}/y", content=b"y")))
    except (archive.ArchiveBroken, archive.ArchiveUnsafe) as error:
        assert len(error.text()) < 1000


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_member_that_would_reach_outside_or_is_no_plain_thing_is_refused(name: str, tmp_path: Path) -> None:
    path = packed(tmp_path, *OUTSIDE[name])
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(archive.ArchiveUnsafe) as caught:
        unpacked(tmp_path, path)
    assert caught.value.exit_code == 4
    assert "in it" in caught.value.what
    made = {p for p in tmp_path.rglob("*") if p.is_relative_to(tmp_path / "into")}
    assert set(tmp_path.rglob("*")) - made - {tmp_path / "into"} == before
    assert outside.stat().st_mode & 0o777 == 0o700
    assert not any(p.name == "evil" for p in made)


def test_a_refusal_ends_the_program_that_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[process.Child] = []
    spawn: Callable[..., process.Child] = process.spawn

    def noting(*args: object, **more: object) -> process.Child:
        started.append(spawn(*args, **more))
        return started[-1]

    monkeypatch.setattr(process, "spawn", noting)
    noise = os.urandom(4_000_000)
    members = [member(f"{TOP}/null", tarfile.CHRTYPE), member(f"{TOP}/noise", content=noise)]
    with pytest.raises(archive.ArchiveUnsafe):
        unpacked(tmp_path, packed(tmp_path, *members, suffix=".tar.zst"))
    assert [child.running for child in started] == [False]


@pytest.mark.parametrize("what", ["truncated", "flipped", "empty", "text"])
def test_an_archive_that_cannot_be_read_to_its_end_is_refused(what: str, suffix: str, tmp_path: Path) -> None:
    path = packed(tmp_path, member(f"{TOP}/noise", content=os.urandom(200_000)), suffix=suffix)
    content = bytearray(path.read_bytes())
    if what == "flipped":
        content[len(content) // 2] ^= 1
    broken = {"truncated": content[:-5000], "flipped": content, "empty": bytearray(), "text": bytearray(b"hello\n")}
    path.write_bytes(broken[what])
    with pytest.raises(archive.ArchiveBroken):
        unpacked(tmp_path, path)


def test_an_archive_without_one_folder_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path, member("beside", content=b"x"))
    with pytest.raises(archive.ArchiveBroken, match="one folder is expected in it, there is beside, openwrt"):
        unpacked(tmp_path, path)


def test_an_archive_that_would_fill_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 1_000_000)
    path = packed(tmp_path, member(f"{TOP}/zeros", content=bytes(1_000_001)))
    with pytest.raises(archive.ArchiveUnsafe, match="larger than any ImageBuilder"):
        unpacked(tmp_path, path)
    assert not (tmp_path / "into" / TOP / "zeros").exists()


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    with pytest.raises(archive.ArchiveUnsafe, match="larger"):
        unpacked(tmp_path, packed(tmp_path, *(member(f"{TOP}/{n}") for n in range(3))))


def test_without_zstd_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path, suffix=".tar.zst")
    monkeypatch.setattr(process, "find", lambda tool: None)
    with pytest.raises(process.ToolMissing, match="apt-get install zstd"):
        unpacked(tmp_path, path)
