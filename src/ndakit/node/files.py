"""Files to and from a balancer by its shell: OpenWrt has no sftp-server, so that `cat` carries them, with a checksum.

The scripts use nothing but what BusyBox has in every OpenWrt release since 18.06 (sha256sum and mktemp are in all).
`ssh` streams a file through one command; a console, which cannot give a command an input, sends it in parts.
"""

from __future__ import annotations

import hashlib
import re
from typing import IO

from ndakit.node.errors import ChecksumMismatch, RemoteDiskFull, RemoteFileFailed, folder_of
from ndakit.node.shell import Progress, Ran, Shell, command_line

PART_BYTES = 8192
"""Each byte of a part takes five characters in the command; Linux takes arguments of 128 KiB (MAX_ARG_STRLEN)."""

MISMATCH = 9
"""The exit code of the scripts below when the checksum is another one."""

_FINISH = """
set -- "$1" "$2" "$3" "$4" $(sha256sum <"$4")
[ "$5" = "$3" ] || { rm -f "$4"; echo "SHA-256 $5" >&2; exit 9; }
chmod "$2" "$4" && mv -f "$4" "$1" && sync"""

# A name with a dot in front: no folder of scripts (/etc/hotplug.d, /etc/rc.d) takes it for one of its own.
_BEGIN = """[ ! -d "$1" ] || { echo "$1: it is a folder" >&2; exit 1; }
case $1 in */*) d=${1%/*}/;; *) d=./;; esac
[ -d "$d" ] || { echo "there is no folder $d" >&2; exit 1; }
t=$(mktemp "$d.ndakit.XXXXXX") || exit 1"""

_PUT = (
    _BEGIN
    + """
trap 'rm -f "$t"' EXIT
trap 'exit 1' HUP INT TERM
trap '' PIPE
cat >"$t" || exit 1
set -- "$1" "$2" "$3" "$t\""""
    + _FINISH
)

_THERE = """[ -e "$1" ] || { echo "there is no such file" >&2; exit 1; }
"""
_GET = f"""{_THERE}cat <"$1" && set -- $(sha256sum <"$1") && echo "SHA-256 $1" >&2"""


def put_command(path: str, mode: int, sha256: str) -> list[str]:
    """The command that makes its stdin a file, as Shell.put promises it; its exit code is MISMATCH for another
    checksum."""
    return ["sh", "-c", _PUT, "put", path, f"{mode:o}", sha256]


def begin_command(path: str) -> list[str]:
    """The command that makes an empty file beside `path` and prints its name, for those who cannot give a stdin."""
    return ["sh", "-c", f'{_BEGIN}\nprintf %s "$t"', "begin", path]


def append_command(part: bytes, temporary: str) -> list[str]:
    """The command that appends some bytes to such a file."""
    return ["sh", "-c", 'printf %b "$1" >>"$2"', "append", "".join(f"\\0{byte:03o}" for byte in part), temporary]


def finish_command(path: str, mode: int, sha256: str, temporary: str) -> list[str]:
    """The command that puts such a file into its place if its checksum is right, and removes it if not."""
    script = f"trap 'rm -f \"$4\"' EXIT{_FINISH}"
    return ["sh", "-c", script, "finish", path, f"{mode:o}", sha256, temporary]


def get_command(path: str) -> list[str]:
    """The command that prints a file, and then its checksum on stderr (`checksum_told`)."""
    return ["sh", "-c", _GET, "get", path]


def checksum_told(stderr: bytes) -> str:
    """The SHA-256 that one of these commands told on stderr; empty if none."""
    told = re.findall(rb"^SHA-256 ([0-9a-f]{64})$", stderr, re.M)
    return told[-1].decode() if told else ""


def sha256(content: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def disk_is_full(stderr: str) -> bool:
    """True if a command says that there was no space (errno(3): ENOSPC, EDQUOT)."""
    return "No space left on device" in stderr or "Disk quota exceeded" in stderr


def check_put(shell: Shell, path: str, size: int, wanted: str, ran: Ran, where: str) -> None:
    """Raise RemoteDiskFull, ChecksumMismatch or RemoteFileFailed if a file was not put."""
    if ran.rc == 0:
        return
    if disk_is_full(ran.stderr):
        raise RemoteDiskFull(path, size, where, shell.run(command_line(["df", "-h", folder_of(path)])).stdout)
    actual = checksum_told(ran.stderr_bytes)
    if ran.rc == MISMATCH and actual:
        raise ChecksumMismatch(path, where, wanted=wanted, actual=actual)
    raise RemoteFileFailed("written", path, where, ran.stderr)


def check_got(path: str, rc: int, stderr: bytes, digest: str, where: str) -> None:
    """Raise RemoteFileFailed or ChecksumMismatch if a file was not got whole."""
    if rc != 0:
        raise RemoteFileFailed("read", path, where, stderr.decode(errors="replace"))
    if (wanted := checksum_told(stderr)) != digest:
        raise ChecksumMismatch(path, where, wanted=wanted, actual=digest)


def get(shell: Shell, path: str, max_bytes: int, timeout_s: float, where: str) -> bytes:
    """Shell.get by one command."""
    ran = shell.run(get_command(path), timeout_s, output_max_bytes=max_bytes)
    check_got(path, ran.rc, ran.stderr_bytes, sha256(ran.stdout_bytes), where)
    return ran.stdout_bytes


def size_bytes(shell: Shell, path: str, where: str) -> int:
    """How large a file is. Raises RemoteFileFailed."""
    ran = shell.run(["sh", "-c", f'{_THERE}wc -c <"$1"', "size", path])
    if ran.rc != 0 or not ran.stdout.strip().isdigit():
        raise RemoteFileFailed("read", path, where, ran.stderr)
    return int(ran.stdout)


def put_in_parts(
    shell: Shell,
    source: IO[bytes],
    path: str,
    mode: int,
    timeout_s: float,
    where: str,
    progress: Progress | None = None,
) -> None:
    """Shell.put by many commands, for a shell that cannot give a command an input. `timeout_s` is each command's."""
    begun = shell.run(begin_command(path), timeout_s)
    check_put(shell, path, 0, "", begun, where)
    temporary, digest, size = begun.stdout, hashlib.sha256(), 0
    try:
        while part := source.read(PART_BYTES):
            size += len(part)
            digest.update(part)
            check_put(shell, path, size, "", shell.run(append_command(part, temporary), timeout_s), where)
            if progress is not None:
                progress(size, None)
        wanted = digest.hexdigest()
        check_put(shell, path, size, wanted, shell.run(finish_command(path, mode, wanted, temporary), timeout_s), where)
    except (RemoteDiskFull, RemoteFileFailed):
        shell.run(command_line(["rm", "-f", temporary]))
        raise
