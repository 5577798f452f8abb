"""Debian packages unpacked into a root that works under chroot, with what their maintainer scripts would have made."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from debian_base import LabError, require

_USR_MERGE = ("bin", "sbin", "lib", "lib64")
_USERS = (
    "root:x:0:0:root:/root:/bin/sh",
    "daemon:x:1:1:daemon:/var:/usr/sbin/nologin",
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin",
)
_GROUPS = ("root:x:0:", "daemon:x:1:", "adm:x:4:", "tty:x:5:", "disk:x:6:", "shadow:x:42:", "nogroup:x:65534:")
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "console")
# What a maintainer script would have linked (update-alternatives), where our callers need it; and a shell, which
# nothing depends on because it is essential on an installed system.
_ALTERNATIVES = {
    "usr/bin/sh": "busybox",
    "usr/sbin/iptables": "iptables-nft",
    "usr/sbin/iptables-save": "iptables-nft-save",
    "usr/sbin/iptables-restore": "iptables-nft-restore",
    "usr/sbin/ip6tables": "ip6tables-nft",
    "usr/sbin/ip6tables-save": "ip6tables-nft-save",
    "usr/sbin/ip6tables-restore": "ip6tables-nft-restore",
}


def unpack(debs: Sequence[Path], into: Path) -> None:
    """Unpack the packages and make by hand what their maintainer scripts would have made."""
    (into / "usr").mkdir()
    for name in _USR_MERGE:
        (into / "usr" / name).mkdir()
        (into / name).symlink_to(f"usr/{name}")
    for deb in debs:
        if trouble := _extract(deb, into):
            if "No space left" in trouble:
                raise OSError(errno.ENOSPC, "No space left on device")
            deb.unlink(missing_ok=True)
            raise LabError(
                f"a package could not be unpacked: {trouble[-200:]}",
                where=str(deb),
                fix="it was removed from the cache; run it again to download it anew",
            )
    for folder in ("dev/pts", "dev/shm", "etc", "proc", "sys", "run", "root", "tmp", "var/tmp", "mnt"):
        (into / folder).mkdir(parents=True, exist_ok=True)
    for sticky in ("tmp", "var/tmp", "dev/shm"):
        (into / sticky).chmod(0o1777)
    for device in _DEVICES:
        (into / "dev" / device).touch()
    for name, lines in {"passwd": _USERS, "group": _GROUPS, "hosts": ("127.0.0.1 localhost", "::1 localhost")}.items():
        (into / "etc" / name).write_text("\n".join(lines) + "\n")
    for place, target in _ALTERNATIVES.items():
        link = into / place
        if (link.parent / target).exists() and not link.exists() and not link.is_symlink():
            link.symlink_to(target)


def _extract(deb: Path, into: Path) -> str:
    """Unpack one package; what went wrong, or nothing.

    Not by `dpkg-deb --extract`: packages up to Debian 12 bring folders named /bin and /lib, and that puts them in the
    place of the links to /usr.
    """
    require("dpkg-deb", "dpkg")
    require("tar", "tar")
    unpack = [
        "tar",
        "--extract",
        "--keep-directory-symlink",
        "--preserve-permissions",
        "--no-same-owner",
        "-C",
        str(into),
    ]
    with (
        subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(deb)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as reading,
        subprocess.Popen(
            unpack,
            stdin=reading.stdout,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
        ) as writing,
    ):
        assert reading.stdout is not None and reading.stderr is not None
        reading.stdout.close()  # tar has it; so dpkg-deb notices if tar ends
        said = writing.communicate()[1] + reading.stderr.read()
    if writing.returncode == 0 and reading.returncode == 0:
        return ""
    return said.decode(errors="replace").strip() or f"exit codes {reading.returncode} and {writing.returncode}"
