"""Where a balancer's files come from: a backup, a folder, or the balancer itself over a shell. Nothing is written.

A backup is what `sysupgrade -b` writes (a tar.gz of /etc and what /etc/sysupgrade.conf names), or a folder that
`./inv backup` wrote, if it is whole (operate/backups). Its files are read into memory and never unpacked; an archive
that would reach outside, or that grows without end, is refused whole. Links are never followed.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import stat
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import IO, Any

from ndakit.core.errors import InputError
from ndakit.core.mistakes import clean, show
from ndakit.node.shell import Shell
from ndakit.operate import backups, encryption
from ndakit.operate.backups import Backup, BackupBroken

ARCHIVE_BYTES_MAX = 64 << 20
"""What a backup may hold when it is unpacked: one of a balancer has less than a megabyte."""
FILE_BYTES_MAX = 4 << 20
MEMBERS_MAX = 20_000
PATH_MAX = 512

IPVS_RULES = "/etc/ipvsadm.rules"
"""Where what `ipvsadm-save` prints is kept; on OpenWrt nobody restores it by itself."""
PACKAGES = "/etc/backup/installed_packages.txt"
"""What `sysupgrade -b -k` adds: the packages, and whether each came with the image."""
RELEASE_FILES = ("/etc/openwrt_release", "/etc/os-release", "/usr/lib/os-release")
BOARD = "/etc/board.json"

_LOOSE = {
    "haproxy.cfg": "/etc/haproxy.cfg",
    "keepalived.conf": "/etc/keepalived/keepalived.conf",
    "sysctl.conf": "/etc/sysctl.conf",
    "authorized_keys": "/etc/dropbear/authorized_keys",
    "openwrt_release": "/etc/openwrt_release",
    "board.json": BOARD,
    "installed_packages.txt": PACKAGES,
    "packages.txt": PACKAGES,
    **dict.fromkeys(("ipvsadm-save", "ipvsadm.rules", "ipvsadm-save.txt", "ipvsadm"), IPVS_RULES),
    **{name: f"/etc/config/{name}" for name in ("network", "firewall", "system", "dropbear", "keepalived", "dhcp")},
}
"""A file that lies alone in a folder → where it lies on a balancer."""

_ASKED = (
    "etc/config etc/haproxy.cfg etc/haproxy etc/keepalived/*.conf etc/keepalived/*.sh etc/pound etc/stunnel "
    "etc/conntrackd etc/sysctl.conf etc/sysctl.d etc/dropbear/authorized_keys etc/firewall.user etc/nftables.d "
    "etc/rc.local etc/banner etc/sysupgrade.conf etc/openwrt_release etc/board.json etc/ndakit "
    "etc/modules.d/ndakit-ipvs usr/libexec/ndakit etc/init.d/ndakit-vips etc/init.d/conntrackd etc/init.d/stunnel "
    "etc/init.d/qemu-ga etc/init.d/vmtoolsd etc/ipvsadm.rules"
)
"""What is read of a running balancer: no password, no host key, no private key (their folder is left out)."""
_TAR = (
    f"cd / && set -- && for f in $(find {_ASKED} -type f 2>/dev/null | grep -v ^etc/ndakit/private/); "
    'do set -- "$@" "$f"; done; [ $# -gt 0 ] && tar czf - "$@"'
)
_SECRETS = "cd / && find etc/ndakit/private -type f 2>/dev/null | sed s,^,/,"
_IPVS = "command -v ipvsadm-save >/dev/null && ipvsadm-save -n; true"
_LIST = "opkg list-installed 2>/dev/null || apk list --installed --manifest 2>/dev/null; true"


class ImportSourceUnusable(InputError):
    """What is to be imported is not there, or is nothing that can be."""


class ImportArchiveUnsafe(InputError):
    """Something in a backup would reach outside of it, or would not end."""

    def __init__(self, archive: str, member: str, why: str) -> None:
        super().__init__(
            f"the backup is not read: {show(member)!r} in it {why}",
            where=archive,
            fix="make a new backup on the balancer (sysupgrade -b /tmp/backup.tar.gz), or unpack it yourself, look at "
            "it, and name the folder",
        )


class ImportArchiveBroken(InputError):
    """A backup that cannot be read to its end."""

    def __init__(self, archive: str, why: str) -> None:
        super().__init__(
            f"the backup cannot be read: {clean(why)[:200]}",
            where=archive,
            fix="copy it again; if it was cut off, make a new one: sysupgrade -b /tmp/backup.tar.gz",
        )


@dataclass
class NodeFiles:
    """The files of one balancer by their path there, and what is known of it besides."""

    source: str
    files: dict[str, bytes] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Paths that are there and were not read, with the reason."""
    record: dict[str, str] = field(default_factory=dict)
    """What a backup's record says beside the files: node, release, device."""

    def text(self, path: str) -> str | None:
        """A file as text, None if there is none; bytes that are no UTF-8 become U+FFFD."""
        content = self.files.get(path)
        return None if content is None else content.decode(errors="replace").replace("\r\n", "\n")

    @property
    def release_words(self) -> dict[str, str]:
        """/etc/openwrt_release and the like: NAME → value."""
        words: dict[str, str] = {}
        for path in RELEASE_FILES:
            for name, value in re.findall(r"^([A-Z_]+)=['\"]?(.*?)['\"]?$", self.text(path) or "", re.M):
                words.setdefault(name, value)
        return words


def read(place: str) -> NodeFiles:
    """The files of a backup, a folder or a file here. Raises ImportSourceUnusable, BackupBroken, ImportArchiveUnsafe,
    ImportArchiveBroken, and OSError for what the system refuses."""
    path = Path(place)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        if path.name in _LOOSE:
            return NodeFiles(place, {_LOOSE[path.name]: _bounded(path)})
        with path.open("rb") as content:
            return archive(content, place)
    raise ImportSourceUnusable(
        f"there is no file or folder '{show(place)}'",
        where=place,
        fix="name a backup (sysupgrade -b), a folder with etc/ in it, or a balancer's address",
    )


def archive(content: IO[bytes], name: str) -> NodeFiles:
    """The files of a tar archive, gzipped or not. Raises ImportArchiveUnsafe and ImportArchiveBroken."""
    result = NodeFiles(name)
    taken: set[str] = set()
    try:
        begin = content.read(2)
        rest: IO[bytes] = io.BufferedReader(_Rejoined(begin, content))  # type: ignore[type-var]  # a raw stream
        plain: Any = gzip.GzipFile(fileobj=rest) if begin == b"\x1f\x8b" else rest
        bounded = _Bounded(plain, name)
        with tarfile.open(fileobj=bounded, mode="r|") as tar:  # type: ignore[call-overload]
            for count, member in enumerate(tar, 1):
                if count > MEMBERS_MAX:
                    raise ImportArchiveUnsafe(name, member.name, f"is where it gets more than {MEMBERS_MAX} files")
                path = _inside(name, member)
                if member.isdir() or path == "/":
                    continue
                if member.issym():
                    result.left_out.append((path, "a link, which is not followed"))
                    continue
                if not member.isreg():
                    what = "another name of a file (a hard link)" if member.islnk() else "a device or a special file"
                    raise ImportArchiveUnsafe(name, member.name, f"is {what}")
                if path in taken:
                    raise ImportArchiveUnsafe(name, member.name, "is there twice")
                taken.add(path)
                if member.size > FILE_BYTES_MAX:
                    result.left_out.append((path, f"larger than {FILE_BYTES_MAX >> 20} MiB"))
                    continue
                stream = tar.extractfile(member)
                result.files[path] = stream.read() if stream is not None else b""
        while bounded.read(1 << 16):
            pass  # what follows the end of the tar, so that gzip gets to its own end and checks it
    except (
        tarfile.TarError,
        EOFError,
        ValueError,
        OverflowError,
        RecursionError,
        zlib.error,
        gzip.BadGzipFile,
    ) as cause:
        # ValueError and its kin: what tarfile raises for numbers, texts and headers that no tar has.
        raise ImportArchiveBroken(name, str(cause) or type(cause).__name__) from cause
    if not result.files:
        raise ImportArchiveBroken(name, "there is no file in it")
    return result


def over_shell(shell: Shell, name: str) -> NodeFiles:
    """The files of a running balancer, by commands that change nothing there. Raises what the shell raises."""
    ran = shell.run(_TAR, output_max_bytes=ARCHIVE_BYTES_MAX)
    if not ran.stdout_bytes:
        raise ImportArchiveBroken(name, ran.stderr.strip() or "tar on the balancer printed nothing")
    result = archive(io.BytesIO(ran.stdout_bytes), name)
    for path in shell.run(_SECRETS).stdout.split("\n"):
        if path.startswith("/etc/ndakit/private/") and path.isprintable():
            result.left_out.append((path, "a secret, which is not read over the network"))
    rules = shell.run(_IPVS).stdout_bytes
    if rules.strip():
        result.files[IPVS_RULES] = rules
    packages = shell.run(_LIST).stdout_bytes
    if packages.strip():
        result.files[PACKAGES] = packages
    return result


def _inside(name: str, member: tarfile.TarInfo) -> str:
    """A member's path on the balancer. Raises ImportArchiveUnsafe."""
    if member.name.startswith("/"):
        raise ImportArchiveUnsafe(name, member.name, "has an absolute name")
    parts = PurePosixPath(member.name).parts
    if ".." in parts:
        raise ImportArchiveUnsafe(name, member.name, "leads out of it (..)")
    path = "/" + "/".join(p for p in parts if p != ".")
    if len(path) > PATH_MAX or any(ord(c) < 32 or ord(c) == 127 for c in path):
        raise ImportArchiveUnsafe(name, member.name, "has a name that no file of a balancer has")
    return path


class _Rejoined(io.RawIOBase):
    """A stream with the bytes that were read of it put back before it."""

    def __init__(self, begin: bytes, rest: IO[bytes]) -> None:
        self._begin = begin
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        piece = self._begin[: len(buffer)] if self._begin else self._rest.read(len(buffer))
        self._begin = self._begin[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)


class _Bounded:
    """What is unpacked, up to its limit."""

    def __init__(self, content: IO[bytes], name: str) -> None:
        self._content = content
        self._name = name
        self._left = ARCHIVE_BYTES_MAX

    def read(self, size: int = -1) -> bytes:
        piece = self._content.read(size if 0 <= size <= self._left else self._left + 1)
        self._left -= len(piece)
        if self._left < 0:
            raise ImportArchiveUnsafe(self._name, "the archive", f"unpacks to more than {ARCHIVE_BYTES_MAX >> 20} MiB")
        return piece


def _folder(folder: Path) -> NodeFiles:
    if _looks_like_backup(folder):
        return _backup(_opened(folder))
    if any(_looks_like_backup(child) for child in folder.iterdir()):
        whole = backups.whole(folder)
        if not whole:
            raise ImportSourceUnusable(
                "there is no whole backup in this folder",
                where=str(folder),
                fix="./inv backups says what is wrong with each; name another one, or another folder of backups",
            )
        return _backup(whole[-1])
    base = folder if (folder / "etc").is_dir() else None
    result = NodeFiles(str(folder))
    total = 0
    for path in sorted(_walk(base or folder)):
        inside = path.relative_to(base or folder).as_posix()
        name = f"/{inside}" if base is not None else _LOOSE.get(inside, f"/{inside}")
        facts = path.lstat()
        if stat.S_ISLNK(facts.st_mode):
            result.left_out.append((name, "a link, which is not followed"))
        elif not stat.S_ISREG(facts.st_mode):
            result.left_out.append((name, "not a file"))
        elif facts.st_size > FILE_BYTES_MAX:
            result.left_out.append((name, f"larger than {FILE_BYTES_MAX >> 20} MiB"))
        else:
            try:
                result.files[name] = _bounded(path)
            except PermissionError:
                result.left_out.append((name, "you may not read it"))
                continue
            total += facts.st_size
            if total > ARCHIVE_BYTES_MAX or len(result.files) > MEMBERS_MAX:
                raise ImportSourceUnusable(
                    "the folder holds more than a balancer's configuration",
                    where=str(folder),
                    fix="name the folder in which its etc/ lies",
                )
    if not result.files:
        raise ImportSourceUnusable(
            "there is nothing to import in this folder",
            where=str(folder),
            fix="name a folder with etc/ in it, or with haproxy.cfg, keepalived.conf and the like",
        )
    return result


def _walk(folder: Path) -> Iterable[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not (Path(parent) / name).is_symlink()]
        yield from (Path(parent) / name for name in names)


def _looks_like_backup(folder: Path) -> bool:
    names = (backups.RECORD, backups.CONFIG, f"{backups.CONFIG}{encryption.SUFFIX}")
    return any(os.path.lexists(folder / name) for name in names)


def _opened(folder: Path) -> Backup:
    """A backup, whole. Raises BackupBroken."""
    try:
        return backups.load(folder)
    except BackupBroken as broken:
        fix = "name another one: ./inv backups lists them"
        if (config := folder / backups.CONFIG).is_file():
            fix += f"; or, if you trust it as it is, its archive alone: {quote(str(config))}"
        raise BackupBroken(folder, broken.why, fix) from None


def _backup(backup: Backup) -> NodeFiles:
    """What `./inv backup` wrote: the archive, the list of packages, the record. Raises ImportSourceUnusable for an
    encrypted one."""
    saved = backup.file(backups.CONFIG)
    assert saved is not None  # a whole one has it
    if saved.suffix == encryption.SUFFIX:
        raise ImportSourceUnusable(
            "this backup is encrypted",
            where=str(saved),
            fix="decrypt it, and name the file: age -d -i KEY -o config.tar.gz config.tar.gz.age",
        )
    with saved.open("rb") as content:
        result = archive(content, str(saved))
    packages = backup.file(backups.PACKAGES)
    if packages is not None and packages.suffix != encryption.SUFFIX and PACKAGES not in result.files:
        result.files[PACKAGES] = _bounded(packages)
    result.record = {key: value for key, value in asdict(backup.record).items() if isinstance(value, str)}
    return result


def _bounded(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as content:
        return content.read(FILE_BYTES_MAX + 1)[:FILE_BYTES_MAX]
