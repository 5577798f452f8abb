"""What is kept of an ImageBuilder between builds: answers that do not change, and roots with their packages installed.

Owns the folder of one ImageBuilder in the user's cache, named by its fingerprint: whatever is in it holds for exactly
this material. A kept root is one archive beside a note with its hash. The note is written last and read first, and an
archive that is not what its note says counts as absent, so that a killed run, a full disk or a damaged file cost time
and nothing else. Nothing here is needed: without the folder the same images come out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ndakit.core import json_text, process
from ndakit.core.files import file_sha256, write_atomic
from ndakit.core.locks import stale
from ndakit.core.workspace import cache

REMOTE_AGE_S = 4 * 3600.0
"""How long a root made of a feed on the network is used again: as long as apk itself trusts its list of packages
(apk-tools, --cache-max-age)."""

_FOLDER = "imagebuilders"
_NAME_LENGTH = 32
_FORMAT = 1
_KEPT_ROOTS = 12
_ORPHAN_S = 3600.0
_TAR_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class KeptRoot:
    """An installed root: the archive, and where in the ImageBuilder it belongs (relative)."""

    archive: Path
    place: str


class Memory:
    """What is kept of the ImageBuilder with this fingerprint."""

    def __init__(self, fingerprint: str, *, base: Path | None = None) -> None:
        self._base = base or cache() / _FOLDER
        self._folder = self._base / fingerprint[:_NAME_LENGTH]

    def recall(self, name: str) -> str:
        """An answer that was kept, or nothing."""
        with contextlib.suppress(OSError, ValueError):
            return (self._folder / f"{name}.txt").read_text()
        return ""

    def remember(self, name: str, text: str) -> None:
        """Keep an answer; a cache that cannot be written costs time, nothing else."""
        with contextlib.suppress(OSError):
            write_atomic(self._folder / f"{name}.txt", text.encode())

    def root(self, key: str) -> KeptRoot | None:
        """A kept root, if it is whole and not too old. One that is not is removed."""
        note = self._folder / f"{key}.json"
        try:
            facts = json_text.read(note)
            name, place = str(facts["archive"]), str(facts["place"])
            if not re.fullmatch(rf"{key}-[0-9a-f]{{16}}\.tar", name) or not re.fullmatch(r"(/?[\w.+-]+)+", place):
                raise ValueError("not as it is written")
            archive, limit_s = self._folder / name, float(facts["limit_s"])
            age_s = time.time() - float(facts["made_s"])
            whole = facts["format"] == _FORMAT and file_sha256(archive) == facts["sha256"]
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            self._forget(note)
            return None
        if not whole or (limit_s and not 0 <= age_s <= limit_s) or Path(place).is_absolute() or ".." in place:
            self._forget(note)
            archive.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(note)  # in use now
        return KeptRoot(archive, place)

    def keep_root(self, key: str, imagebuilder: Path, place: str, *, remote: bool) -> None:
        """Keep the root at `place` of an ImageBuilder. `remote`: its packages may have come from the network."""
        with contextlib.suppress(OSError, process.ProcessFailed):
            self._folder.mkdir(parents=True, exist_ok=True)
            fd, name = tempfile.mkstemp(prefix=f".{key}.", suffix=".partial", dir=self._folder)
            os.close(fd)
            partial = Path(name)
            try:
                _tar("-cf", partial, imagebuilder / place, ".")
                sha256 = file_sha256(partial)
                archive = self._folder / f"{key}-{sha256[:16]}.tar"
                partial.replace(archive)
            finally:
                partial.unlink(missing_ok=True)
            facts = {"format": _FORMAT, "archive": archive.name, "sha256": sha256, "place": place}
            facts |= {"made_s": time.time(), "limit_s": REMOTE_AGE_S if remote else 0}
            write_atomic(self._folder / f"{key}.json", json.dumps(facts, indent=1).encode())
            self._prune()

    def _forget(self, note: Path) -> None:
        with contextlib.suppress(OSError):
            note.unlink(missing_ok=True)

    def _prune(self) -> None:
        """Leave the roots that were used last, and no archive that no note names."""
        for note in stale(self._base.glob("*/*.json"), keep=_KEPT_ROOTS, idle_s=0):
            self._forget(note)
        named: set[str] = set()
        for note in self._base.glob("*/*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                named.add(str(json_text.read(note)["archive"]))
        left = [*self._base.glob("*/*.tar"), *self._base.glob("*/.*.partial")]
        for file in stale((f for f in left if f.name not in named), keep=0, idle_s=_ORPHAN_S):
            file.unlink(missing_ok=True)


def folder_of(fingerprint: str) -> Path:
    """Where the memory of an ImageBuilder lies in this user's cache; it may be deleted when nothing runs."""
    return cache() / _FOLDER / fingerprint[:_NAME_LENGTH]


def unpack(kept: KeptRoot, imagebuilder: Path) -> bool:
    """Put a kept root into a working copy; False, and nothing is left of it, if that did not work."""
    root = imagebuilder / kept.place
    with contextlib.suppress(OSError, process.ProcessFailed):
        root.mkdir(parents=True)
        _tar("-xpf", kept.archive, root)
        return True
    shutil.rmtree(root, ignore_errors=True)
    return False


def key(device: str, packages: str, settings: Sequence[str] = ()) -> str:
    """The name of a root: everything that decides what is installed, besides the ImageBuilder itself.

    Settings of file systems, sizes and boot loaders do not: they are read when the image is made.
    """
    return hashlib.sha256(json.dumps([_FORMAT, device, packages, *settings]).encode()).hexdigest()[:32]


def has_remote_feeds(imagebuilder: Path) -> bool:
    """True if an ImageBuilder installs from the network: what it finds there can be newer the next time."""
    for name in ("repositories.conf", "repositories"):
        with contextlib.suppress(OSError):
            text = (imagebuilder / name).read_text(errors="replace")
            if re.search(r"^(?!\s*#).*\b(?:https?|ftp)://", text, re.MULTILINE):
                return True
    return False


def _tar(mode: str, archive: Path, folder: Path, *names: str) -> None:
    """Run tar on a root: modes, links and times to the nanosecond, names in one order."""
    more = ("--sort=name", "--format=posix") if mode.startswith("-c") else ()
    argv = ["tar", "-C", folder, *more, "--numeric-owner", mode, archive, *names]
    process.run(argv, timeout_s=_TAR_TIMEOUT_S)
