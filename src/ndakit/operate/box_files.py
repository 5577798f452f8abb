"""What a backup asks of a box: who it is, its packages, its configuration, its image's own files, what differs.

Owns the commands, which need nothing but what OpenWrt has since 18.06 (BusyBox: tar, cmp, sha256sum, find), and
the reading of their answers. Files come as streams; nobody may send for ever, or next to nothing for long.

Facts: docs/facts.md, Upgrades; openwrt/openwrt package/base-files/files/sbin/sysupgrade; opkg's status file; apk-tools,
apk-db-installed.5.
"""

from __future__ import annotations

import io
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from ndakit.build import recipe
from ndakit.build.recipe import ImageRecipe
from ndakit.core import json_text
from ndakit.node import files
from ndakit.node.errors import CommandTimeout, NodeError, RemoteFileFailed, block
from ndakit.node.facts import RECIPE, facts_of
from ndakit.node.shell import RUN_TIMEOUT_S, Command, Ran, Shell

_SPOOLED = 1 << 20
_WITHOUT_LIST = ("17.", "18.")
"""How the numbers of releases begin whose sysupgrade makes no list of packages."""
_SPACE_KIB = 512
"""sysupgrade writes lists to /tmp, and says nothing if they are cut off there."""
MADE_BY_SYSTEM = re.compile(
    r"/etc/dropbear/dropbear_\w+_host_key(\.new)?(\.pub)?"
    r"|/etc/backup/installed_packages\.txt"
    r"|/etc/uci-defaults/10_disable_services"
    r"|/etc/urandom\.seed"
    r"|/etc/uhttpd\.(crt|key)"
)
"""Kept files that OpenWrt makes itself: dropbear's keys (newer ones with public halves) and uhttpd's at the first
start, random numbers, and what `sysupgrade -b -k` puts into the archive."""
_STATE = re.compile(
    r"/(usr/lib/opkg|lib/apk|etc/apk|tmp|var|usr/share/ndakit)/|/\.|/work/|/etc/board\.json$|/root/\.ash_history$"
    r"|/etc/(passwd|group|shadow|resolv\.conf|mtab|TZ|localtime|fw_env\.config)-?$"
)
"""What programs of the base system write where an upgrade does not keep it."""


class SendingShell(Shell, Protocol):
    """A shell that can stream as well (node/ssh)."""

    def stream(
        self,
        command: Command,
        *,
        timeout_s: float,
        sink: Callable[[bytes], None],
        source: Callable[[int], bytes] | None = None,
        watch: Callable[[], None] = lambda: None,
    ) -> tuple[int, bytes]:
        """Run a command with this input, and give its output to `sink` as it comes; its exit code and stderr."""
        ...


@dataclass(frozen=True)
class Patience:
    """How long a box may take for one archive, and how slow it may be: bytes in any `window_s` seconds."""

    total_s: float = 1800.0
    window_s: float = 60.0
    least_bytes: int = 4096


class BoxTooSlow(NodeError):
    """The box sends next to nothing, or needs too long."""

    def __init__(self, where: str, what: str, said: str) -> None:
        super().__init__(
            f"the box answers too slowly: {said}, while {what} was read; nothing of it is kept",
            where=where,
            fix="look at the line and at the box's load (./inv status, uptime), and run it again; for a line that is "
            "slow always: --timeout-s 7200, which bears any speed for so long",
        )


class BoxFull(NodeError):
    """The box has no room for what sysupgrade writes on the way."""

    def __init__(self, where: str, said: str) -> None:
        super().__init__(
            f"the box has no {_SPACE_KIB} KiB left in /tmp, which its sysupgrade needs to make a backup{block(said)}",
            where=where,
            fix="look there what fills it (df -h /tmp; du -a /tmp | sort -n | tail) and remove it, then run it again",
        )


class BackupFailedThere(NodeError):
    """The box's own sysupgrade does not make a backup."""

    def __init__(self, where: str, rc: int, said: str) -> None:
        super().__init__(
            f"the box's sysupgrade made no backup (exit code {rc}):{block(said) or ' it said nothing'}",
            where=where,
            fix="run it there by hand: sysupgrade -b /tmp/backup.tar.gz; a box without sysupgrade is no OpenWrt",
        )


class ConfigIncomplete(NodeError):
    """The archive lacks files that the box's own list names."""

    def __init__(self, where: str, names: Sequence[str]) -> None:
        super().__init__(
            f"the box's archive lacks files that it should keep: {', '.join(names[:5])}"
            + (f" and {len(names) - 5} more" if len(names) > 5 else ""),
            where=where,
            fix="run it again; if they are lacking again, look whether they can be read there (a damaged file system)",
        )


@dataclass(frozen=True)
class Identity:
    """Who a box says it is. `image`: id, profile and node of its image; empty for an image that does not say."""

    hostname: str
    release: str
    target: str
    board: str
    description: str
    image: Mapping[str, str]
    recipe: bytes
    """Empty if the image carries none."""
    made_of: ImageRecipe | None
    """The same, read."""
    rom: bool
    """True if the image's own files are still there below /rom (squashfs)."""


class BoxFiles:
    """Asks one box. `where` is the place for errors."""

    def __init__(self, shell: SendingShell, where: str, patience: Patience, spool_in: Path) -> None:
        self._shell = shell
        self._where = where
        self._limits = patience
        self._spool_in = spool_in

    def identity(self) -> Identity:
        """Who the box is. Raises what `Shell.run` raises, OutputNotUnderstood, RecipeBroken."""
        facts = facts_of(self._shell)
        release = facts.release()
        rom = self._asked(["test", "-f", f"/rom{RECIPE}"], check=False).rc == 0
        there = self._asked(["cat", f"/rom{RECIPE}" if rom else RECIPE], check=False)
        made_of = recipe.parse(there.stdout_bytes, f"{self._where}, {RECIPE}") if there.rc == 0 else None
        return Identity(
            hostname=facts.hostname(),
            release=release.get("DISTRIB_RELEASE", ""),
            target=release.get("DISTRIB_TARGET", ""),
            board=facts.text("cat /tmp/sysinfo/board_name").strip(),
            description=release.get("DISTRIB_DESCRIPTION", ""),
            image=facts.image() if made_of is None else json_text.mapping(made_of.label),
            recipe=there.stdout_bytes if there.rc == 0 else b"",
            made_of=made_of,
            rom=rom,
        )

    def packages(self) -> dict[str, str]:
        """The installed packages with their versions; empty if the box has neither opkg's nor apk's list."""
        for path, parse in (("/usr/lib/opkg/status", parse_opkg), ("/lib/apk/db/installed", parse_apk)):
            told = self._asked(["cat", path], check=False)
            if told.rc == 0:
                return parse(told.stdout)
        return {}

    def room(self) -> None:
        """Raises BoxFull if /tmp there is full."""
        script = (
            't=$(mktemp /tmp/.ndakit.XXXXXX) || exit 1; dd if=/dev/zero of="$t" bs=1024 count="$1"; r=$?; rm -f "$t"; '
            "exit $r"
        )
        tried = self._asked(["sh", "-c", script, "room", str(_SPACE_KIB)], check=False)
        if tried.rc != 0:
            raise BoxFull(self._where, self._asked(["df", "-h", "/tmp"], check=False).stdout or tried.stderr)

    def kept(self) -> set[str]:
        """The files that an upgrade keeps, as the box's sysupgrade lists them."""
        told = self._asked(["sysupgrade", "-l"], timeout_s=120)
        return {line for line in told.stdout.splitlines() if line.startswith("/")}

    @contextmanager
    def config(self, release: str) -> Iterator[IO[bytes]]:
        """The box's own backup (`sysupgrade -b -`, with the list of packages where its release makes one)."""
        # -k came with 19.07; an option that it does not know ends the script.
        options = ["-q"] if release.startswith(_WITHOUT_LIST) else ["-q", "-k"]
        with self._spooled(["sysupgrade", *options, "-b", "-"], "its configuration") as (spool, rc, stderr):
            if files.disk_is_full(stderr):
                raise BoxFull(self._where, stderr)
            if rc != 0 or not spool.read(1):
                raise BackupFailedThere(self._where, rc, stderr)
            spool.seek(0)
            yield spool

    @contextmanager
    def own(self, names: Iterable[str], root: str = "") -> Iterator[IO[bytes]]:
        """A tar of these files, of those that are there; `root` may be /rom."""
        script = (
            'cd "$1/" || exit 1; shift; while IFS= read -r f; do [ -e "$f" ] || [ -L "$f" ] && set -- "$@" "$f"; done; '
            '[ $# -eq 0 ] || tar -cf - "$@"'
        )
        with self._spooled(
            ["sh", "-c", script, "own", root], "the image's own files", _lines_of(n.lstrip("/") for n in names)
        ) as (spool, rc, stderr):
            if rc != 0:
                raise RemoteFileFailed("read", f"{root}/", self._where, stderr)
            if not spool.read(1):
                spool.write(bytes(1024))  # an archive of nothing
            yield spool

    def same_as_rom(self, paths: Iterable[str]) -> set[str]:
        """Which of these files are as the image has them. Only where `Identity.rom`."""
        script = (
            'while IFS= read -r f; do if [ -L "$f" ]; then [ "$(readlink "$f")" = "$(readlink "/rom$f")" ]; '
            'else cmp -s "$f" "/rom$f"; fi && printf "%s\\n" "$f"; done; true'
        )
        return set(self._lines(["sh", "-c", script], paths))

    def written(self) -> list[str]:
        """Files that were written since the image was made, but for those of packages and of the base system itself.
        Only where `Identity.rom`."""
        script = (
            "cd /overlay/upper && find . -type f -o -type l; "
            "for l in usr/lib/opkg/info/*.list lib/apk/packages/*.list; do "
            '[ -f "$l" ] && sed -e "s,^/*,P /," "$l"; done; true'
        )
        lines = self._asked(["sh", "-c", script], timeout_s=120).stdout.splitlines()
        packaged = {line[2:] for line in lines if line.startswith("P ")}
        written = [line[1:] for line in lines if line.startswith("./")]
        return sorted(
            p for p in written if p not in packaged and not _STATE.match(p) and not MADE_BY_SYSTEM.fullmatch(p)
        )

    # -- how -----------------------------------------------------------------------------------------------------------

    def _asked(self, command: Command, *, check: bool = True, timeout_s: float = RUN_TIMEOUT_S) -> Ran:
        ran = self._shell.run(command, timeout_s)
        if check and ran.rc != 0:
            raise BackupFailedThere(self._where, ran.rc, ran.stderr)
        return ran

    def _lines(self, command: Command, paths: Iterable[str]) -> list[str]:
        """What a command says that gets these paths, one a line."""
        said = bytearray()
        self._shell.stream(command, timeout_s=self._limits.total_s, sink=said.extend, source=_lines_of(paths))
        return said.decode(errors="replace").splitlines()

    @contextmanager
    def _spooled(
        self, command: Command, what: str, source: Callable[[int], bytes] | None = None
    ) -> Iterator[tuple[IO[bytes], int, str]]:
        """A command's output in a file without a name, which is gone however this program ends; its exit code and
        stderr."""
        pace = _Pace(self._limits, self._where, what)
        with tempfile.TemporaryFile(dir=self._spool_in) as spool:

            def keep(piece: bytes) -> None:
                spool.write(piece)
                pace.came(len(piece))

            try:
                rc, stderr = self._shell.stream(
                    command, timeout_s=self._limits.total_s, sink=keep, source=source, watch=pace.watch
                )
            except CommandTimeout as late:
                words = f"it had sent {pace.total_bytes} bytes in {self._limits.total_s:g} s"
                raise BoxTooSlow(self._where, what, words) from late
            spool.seek(0)
            yield spool, rc, stderr.decode(errors="replace")


def _lines_of(words: Iterable[str]) -> Callable[[int], bytes]:
    """What a command reads: these words, sorted, one a line."""
    return io.BytesIO("".join(f"{word}\n" for word in sorted(words)).encode()).read


class _Pace:
    """Ends a transfer of which less than the least came within the last window."""

    def __init__(self, patience: Patience, where: str, what: str) -> None:
        self._limits = patience
        self._where = where
        self._what = what
        self._window_begun_s = time.monotonic()
        self._window_bytes = 0
        self.total_bytes = 0

    def came(self, size: int) -> None:
        self._window_bytes += size
        self.total_bytes += size
        self.watch()

    def watch(self) -> None:
        took_s = time.monotonic() - self._window_begun_s
        if took_s < self._limits.window_s:
            return
        if self._window_bytes < self._limits.least_bytes:
            words = f"{self._window_bytes} bytes in the last {took_s:.0f} s, {self.total_bytes} in all"
            raise BoxTooSlow(self._where, self._what, words)
        self._window_begun_s, self._window_bytes = time.monotonic(), 0


def parse_opkg(text: str) -> dict[str, str]:
    """Name → version of what opkg's status file says is installed."""
    versions: dict[str, str] = {}
    for part in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Status): (.*)$", part, re.M))
        if fields.get("Package") and fields.get("Status", "").endswith(" installed"):
            versions[fields["Package"]] = fields.get("Version", "")
    return versions


def parse_apk(text: str) -> dict[str, str]:
    """Name → version of apk's list of installed packages."""
    versions: dict[str, str] = {}
    for part in text.split("\n\n"):
        fields = dict(re.findall(r"^([PV]):(.*)$", part, re.M))
        if fields.get("P"):
            versions[fields["P"]] = fields.get("V", "")
    return versions


def added_by_mark(text: str) -> tuple[str, ...]:
    """The packages that /etc/backup/installed_packages.txt says were added to the image."""
    return tuple(sorted(line.split("\t")[0] for line in text.splitlines() if line.endswith("\toverlay")))
