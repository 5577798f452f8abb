"""Where a balancer's files come from: what is taken, and what is refused with which words."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shlex
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from ndakit.node.shell import Command, Ran, command_line
from ndakit.operate import backups
from ndakit.operate.backups import BackupBroken, BackupFile, BackupRecord, Differences
from ndakit.operate.import_ import sources
from ndakit.operate.import_.sources import ImportArchiveBroken, ImportArchiveUnsafe, ImportSourceUnusable

EMPTY, JUNK = gzip.compress(b""), gzip.compress(b"x" * 700)


def packed(*members: tuple[str, bytes | tarfile.TarInfo], compressed: bool = True) -> bytes:
    """A backup: names with their content, or members as they are."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz" if compressed else "w") as tar:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return target.getvalue()


def special(kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, link
    return info


def read(content: bytes) -> sources.NodeFiles:
    return sources.archive(io.BytesIO(content), "backup.tar.gz")


@pytest.mark.parametrize("compressed", [True, False])
def test_a_backup_of_sysupgrade_is_read(compressed: bool) -> None:
    files = read(packed(("etc/config/network", b"a\n"), ("./etc/haproxy.cfg", b"b\r\n"), compressed=compressed))
    assert files.files == {"/etc/config/network": b"a\n", "/etc/haproxy.cfg": b"b\r\n"}
    assert files.text("/etc/haproxy.cfg") == "b\n"


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (("../etc/passwd", b"x"), "leads out of it"),
        (("etc/../../x", b"x"), "leads out of it"),
        (("/etc/config/network", b"x"), "has an absolute name"),
        (("etc/console", special(tarfile.CHRTYPE)), "is a device"),
        (("etc/disk", special(tarfile.BLKTYPE)), "is a device"),
        (("etc/pipe", special(tarfile.FIFOTYPE)), "is a device or a special file"),
        (("etc/x", special(tarfile.LNKTYPE, "/etc/shadow")), "is another name of a file"),
        (("etc/con\nfig", b"x"), "has a name that no file of a balancer has"),
        (("etc/" + "a" * 600, b"x"), "has a name that no file of a balancer has"),
    ],
)
def test_what_would_reach_outside_is_refused_with_its_name(member: tuple[str, bytes], words: str) -> None:
    with pytest.raises(ImportArchiveUnsafe) as caught:
        read(packed(("etc/config/system", b"x"), member))
    assert words in caught.value.what


def test_a_file_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ImportArchiveUnsafe, match="is there twice"):
        read(packed(("etc/a", b"1"), ("etc/a", b"2")))


def test_a_link_is_told_and_not_followed() -> None:
    files = read(packed(("etc/a", b"1"), ("etc/haproxy.cfg", special(tarfile.SYMTYPE, "/etc/shadow"))))
    assert files.left_out == [("/etc/haproxy.cfg", "a link, which is not followed")]


def test_a_bomb_is_stopped_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "ARCHIVE_BYTES_MAX", 1 << 20)
    with pytest.raises(ImportArchiveUnsafe, match="unpacks to more than 1 MiB"):
        read(packed(("etc/a", bytes(3 << 20))))


def test_a_bomb_of_names_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MEMBERS_MAX", 10)
    with pytest.raises(ImportArchiveUnsafe, match="more than 10 files"):
        read(packed(*((f"etc/{n}", b"x") for n in range(20))))


def test_a_large_file_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FILE_BYTES_MAX", 1 << 20)
    files = read(packed(("etc/a", b"1"), ("etc/big", bytes((1 << 20) + 1))))
    assert files.left_out == [("/etc/big", "larger than 1 MiB")]


def test_a_backup_that_was_cut_off_says_so() -> None:
    whole = packed(("etc/config/network", os.urandom(50_000)))
    for end in (1, 2, 10, 1000, len(whole) // 2, len(whole) - 9):
        with pytest.raises(ImportArchiveBroken):
            read(whole[:end])


@pytest.mark.parametrize("content", [b"", b"not a tar", EMPTY, JUNK, b"\x1f\x8bx"], ids=range(5))
def test_what_is_no_backup_says_so(content: bytes) -> None:
    with pytest.raises(ImportArchiveBroken):
        read(content)


def test_a_folder_with_etc_is_read_without_its_links(tmp_path: Path) -> None:
    (tmp_path / "etc/config").mkdir(parents=True)
    (tmp_path / "etc/config/network").write_text("x\n")
    (tmp_path / "etc/haproxy.cfg").symlink_to("/etc/shadow")
    (tmp_path / "etc/away").symlink_to("/")
    os.mkfifo(tmp_path / "etc/pipe")
    files = sources.read(str(tmp_path))
    assert files.files == {"/etc/config/network": b"x\n"}
    assert dict(files.left_out) == {
        "/etc/haproxy.cfg": "a link, which is not followed",
        "/etc/pipe": "not a file",
    }


def test_loose_files_are_known_by_their_names(tmp_path: Path) -> None:
    for name in ("haproxy.cfg", "keepalived.conf", "network", "ipvsadm-save"):
        (tmp_path / name).write_text("x\n")
    assert sorted(sources.read(str(tmp_path)).files) == [
        "/etc/config/network",
        "/etc/haproxy.cfg",
        "/etc/ipvsadm.rules",
        "/etc/keepalived/keepalived.conf",
    ]
    assert list(sources.read(str(tmp_path / "haproxy.cfg")).files) == ["/etc/haproxy.cfg"]


def saved(folder: Path, hostname: bytes, **record: object) -> Path:
    """A backup as `./inv backup` leaves it."""
    folder.mkdir(parents=True)
    suffix = ".age" if record.get("recipients") else ""
    (folder / f"config.tar.gz{suffix}").write_bytes(packed(("etc/hostname", hostname)))
    (folder / f"packages.txt{suffix}").write_text("base-files\n")
    files = tuple(
        BackupFile(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.iterdir())
    )
    told = BackupRecord(
        profile="shop", node="lb1", taken_at="2026-11-30T01:00:00+00:00", ndakit="1", address="", hostname="",
        release="24.10.8", target="x86/64", board="", description="", host_keys=(), image_id="", image_of="",
        builder="", fingerprint="", images={}, original="none", not_original=(), differences=Differences(),
        recipients=(), files=files,
    )  # fmt: skip
    (folder / "backup.json").write_text(replace(told, **record).text())  # type: ignore[arg-type]
    return folder


def test_a_backup_of_ndakit_is_read_with_its_packages_and_record(tmp_path: Path) -> None:
    for moment in ("20261130T010000Z", "20261130T020000Z"):
        saved(tmp_path / "lb1" / moment, moment.encode())
    for place in (tmp_path / "lb1" / "20261130T020000Z", tmp_path / "lb1"):  # of several the newest
        files = sources.read(str(place))
        assert files.text("/etc/hostname") == "20261130T020000Z"
        assert files.text(sources.PACKAGES) == "base-files\n"
        assert (files.record["node"], files.record["release"]) == ("lb1", "24.10.8")


def test_a_damaged_backup_is_refused_as_backups_and_rebuild_refuse_it(tmp_path: Path) -> None:
    """The one that is whole is taken, and the archive alone by who names it."""
    node = tmp_path / "lb 1"
    for name, harm in {
        "20261130T010000Z": lambda f: (f / "config.tar.gz").write_bytes(packed(("etc/hostname", b"other"))),
        "20261130T020000Z": lambda f: (f / "backup.json").unlink(),
        "20261130T030000Z": lambda f: (f / "backup.json").write_text("["),
        "20261130T040000Z": lambda f: (f / "packages.txt").unlink(),
    }.items():
        harm(saved(node / name, b"damaged"))  # type: ignore[no-untyped-call]
        with pytest.raises(BackupBroken) as loaded:
            backups.load(node / name)
        with pytest.raises(BackupBroken) as refused:
            sources.read(str(node / name))
        assert refused.value.what == loaded.value.what
        (alone,) = shlex.split(refused.value.fix.partition("its archive alone: ")[2])
        assert sources.read(alone).text("/etc/hostname") in ("damaged", "other")
    with pytest.raises(ImportSourceUnusable, match="no whole backup in this folder"):
        sources.read(str(node))
    saved(node / "20261129T010000Z", b"whole")
    assert sources.read(str(node)).text("/etc/hostname") == "whole"


def test_an_encrypted_backup_says_how_to_read_it(tmp_path: Path) -> None:
    saved(tmp_path / "lb1", b"x", recipients=("age1x",))
    with pytest.raises(ImportSourceUnusable, match="encrypted"):
        sources.read(str(tmp_path / "lb1"))


def test_nothing_there_says_so(tmp_path: Path) -> None:
    for place in (tmp_path / "no", tmp_path):
        with pytest.raises(ImportSourceUnusable):
            sources.read(str(place))


class LocalShell:
    """A shell whose root is a folder."""

    name = "box"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commands: list[str] = []

    def run(self, command: Command, timeout_s: float = 30.0, *, output_max_bytes: int = 1 << 24) -> Ran:
        line = command_line(command)
        self.commands.append(line)
        done = subprocess.run(["sh", "-c", line.replace("cd / ", f"cd {self.root} ")], capture_output=True, check=False)
        return Ran(done.returncode, done.stdout, done.stderr)


def test_a_running_balancer_is_read_without_its_secrets_and_without_a_change(tmp_path: Path) -> None:
    for path in (
        "etc/config/network",
        "etc/haproxy.cfg",
        "etc/shadow",
        "etc/ndakit/private/shop.pem",
        "etc/ndakit/sorry-web.http",
        "etc/dropbear/authorized_keys",
        "etc/dropbear/dropbear_host_key",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"{path}\n")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    shell = LocalShell(tmp_path)
    files = sources.over_shell(shell, "192.0.2.11")  # type: ignore[arg-type]  # it has what is used
    assert sorted(p for p in files.files if p != sources.PACKAGES) == [
        "/etc/config/network",
        "/etc/dropbear/authorized_keys",
        "/etc/haproxy.cfg",
        "/etc/ndakit/sorry-web.http",
    ]
    assert files.left_out == [("/etc/ndakit/private/shop.pem", "a secret, which is not read over the network")]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert not [c for c in shell.commands if ">" in c.replace(">/dev/null", "").replace("2>/dev/null", "")]


def test_a_balancer_without_anything_says_so(tmp_path: Path) -> None:
    with pytest.raises(ImportArchiveBroken):
        sources.over_shell(LocalShell(tmp_path), "192.0.2.11")  # type: ignore[arg-type]  # it has what is used
