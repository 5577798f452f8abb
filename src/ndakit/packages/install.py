"""The `install` part of a package's Makefile: which of its commands are understood, and the files they make.

Commands: $(INSTALL_DIR), $(INSTALL_BIN), $(INSTALL_DATA), $(INSTALL_CONF), $(CP), $(LN), with the modes that OpenWrt's
`rules.mk` gives them. Owner is root and there are no times, so that a checkout's umask and clock decide nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ndakit.core import exposure

_MODES = {"INSTALL_BIN": 0o755, "INSTALL_DATA": 0o644, "INSTALL_CONF": 0o600}
_LEFT_OUT = re.compile(r"CVS|\.svn|\.git|\.#.*|.*~")
"""What OpenWrt's package build removes from every package, and what git leaves in folders."""

_LOST = ("tmp", "var", "boot", "CONTROL")
"""Folders that do not reach an image (openwrt/openwrt `include/rootfs.mk`), and the one opkg keeps for itself."""


class NotUnderstood(Exception):
    """A line that is wrong, or beyond what is understood; `fix` is what to do."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.fix = fix


@dataclass(frozen=True)
class PackageMember:
    """A file, folder or symbolic link of a package. `target` is a link's."""

    kind: Literal["file", "dir", "link"]
    mode: int
    content: bytes = b""
    target: str = ""


def put(members: dict[str, PackageMember], path: str, content: bytes, mode: int) -> None:
    """Add a file, with the folders above it."""
    for parent in [*Path(path).parents][-2::-1]:
        members.setdefault(parent.as_posix(), PackageMember("dir", 0o755))
    members[path] = PackageMember("file", mode, content)


def logical(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The lines of a block with continued ones joined, without blank ones and comments; each with its distance."""
    joined, start = "", 0
    for offset, raw in enumerate(lines, 1):
        if not joined:
            start = offset
        joined += raw[:-1] + " " if raw.endswith("\\") else raw
        if raw.endswith("\\"):
            continue
        line, joined = joined.strip(), ""
        if line and not line.startswith("#"):
            yield start, line


class Install:
    """Runs the lines of an install block on nothing but a table of members."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.members: dict[str, PackageMember] = {}

    def run(self, line: str) -> None:
        """Do one line. Raises NotUnderstood."""
        statement = re.fullmatch(r"@?\$\((INSTALL_DIR|INSTALL_BIN|INSTALL_DATA|INSTALL_CONF|CP|LN)\)\s+(.+)", line)
        if not statement or re.search(r"[;&|<>`\"'\\{}]", statement[2]):
            raise NotUnderstood(
                f"this is more than ndakit understands: {line[:80]}",
                "use $(INSTALL_DIR), $(INSTALL_BIN), $(INSTALL_DATA), $(INSTALL_CONF), $(CP) and $(LN) only; "
                "or build it in OpenWrt's SDK, and put the .ipk or .apk into packages/ instead of this folder",
            )
        command, words = statement[1], statement[2].split()
        if command == "INSTALL_DIR":
            for word in words:
                self._make_folder(self._target(word))
            return
        if len(words) < 2:
            raise NotUnderstood(f"$({command}) needs something and a place for it", "write both: ./files/x $(1)/y")
        *sources, last = words
        place = self._target(last)
        if command == "LN":
            if len(sources) != 1 or "$" in sources[0]:
                raise NotUnderstood("$(LN) makes one link", "write: $(LN) TARGET $(1)/LINK")
            self._add(self._inside(place, last, Path(sources[0]).name), PackageMember("link", 0o777, target=sources[0]))
            return
        found_sources = [path for word in sources for path in self._sources(word)]
        if len(found_sources) > 1 and not self._is_folder(place):
            raise NotUnderstood(f"several files go to {last}, which is no folder", f"add $(INSTALL_DIR) {last} before")
        for source in found_sources:
            to = self._inside(place, last, source.name)
            if command == "CP":
                self._copy(source, to)
            elif source.is_file():
                self._add(to, self._file(source, _MODES[command]))
            else:
                raise NotUnderstood(f"{source.name} is no file", "use $(CP) for folders")

    def _target(self, word: str) -> str:
        match = re.fullmatch(r"\$\(1\)((?:/[\w.+@-]+)*)/?", word)
        if not match or ".." in match[1].split("/"):
            raise NotUnderstood(f"'{word}' is no place in the package", "write it as $(1)/usr/bin/name")
        path = match[1].lstrip("/")
        if path.partition("/")[0] in _LOST:
            raise NotUnderstood(
                f"/{path} would not be in the image: the ImageBuilder empties /tmp, which is /var, and /boot",
                "put it elsewhere, and let a service copy it at its start",
            )
        return path

    def _is_folder(self, path: str) -> bool:
        return not path or (path in self.members and self.members[path].kind == "dir")

    def _inside(self, place: str, word: str, name: str) -> str:
        """Where something lands: in the folder `place` under its own name, or at `place` itself."""
        if self._is_folder(place):
            return f"{place}/{name}".lstrip("/")
        if word.endswith("/"):
            raise NotUnderstood(f"there is no folder {word} yet", f"add $(INSTALL_DIR) {word.rstrip('/')} before")
        return place

    def _make_folder(self, path: str) -> None:
        for part in [*[p.as_posix() for p in Path(path).parents][-2::-1], *([path] if path else [])]:
            if self.members.setdefault(part, PackageMember("dir", 0o755)).kind != "dir":
                raise NotUnderstood(f"/{part} is a file and a folder at once", "give one of them another name")

    def _add(self, path: str, member: PackageMember) -> None:
        parent = Path(path).parent.as_posix()
        if parent != "." and not self._is_folder(parent):
            raise NotUnderstood(f"there is no folder $(1)/{parent} yet", f"add $(INSTALL_DIR) $(1)/{parent} before")
        if path in self.members and self.members[path].kind == "dir":
            raise NotUnderstood(f"/{path} is a file and a folder at once", "give one of them another name")
        self.members[path] = member

    def _sources(self, word: str) -> list[Path]:
        """The files of the package's folder that a word names; `*` only in its last part."""
        plain = word.removeprefix("./")
        if not re.fullmatch(r"[\w.+@-]+(/[\w.+@-]+)*(/\*?[\w.+@-]*\*?|/)?", plain) or ".." in plain.split("/"):
            raise NotUnderstood(f"'{word}' is no file of this folder", "write it as ./files/name")
        paths = sorted(self._folder.glob(plain.rstrip("/"))) if "*" in plain else [self._folder / plain]
        paths = [p for p in paths if not _LEFT_OUT.fullmatch(p.name)]
        base = self._folder.resolve()
        if not paths or any(not p.resolve().is_relative_to(base) or not p.exists() for p in paths):
            raise NotUnderstood(f"there is no {word} in this folder", "correct the name, or add the file")
        return paths

    def _copy(self, source: Path, to: str) -> None:
        """Copy as `cp -fpR` does, with modes reduced to what git keeps: executable or not."""
        if source.is_symlink():
            self._add(to, PackageMember("link", 0o777, target=source.readlink().as_posix()))
        elif source.is_dir():
            self._make_folder(to)
            for entry in sorted(source.iterdir()):
                if not _LEFT_OUT.fullmatch(entry.name):
                    self._copy(entry, f"{to}/{entry.name}")
        elif source.is_file():
            self._add(to, self._file(source, 0o755 if source.stat().st_mode & 0o111 else 0o644))
        else:
            raise NotUnderstood(f"{source.name} is neither a file, nor a folder, nor a link", "take it away")

    def _file(self, source: Path, mode: int) -> PackageMember:
        """A file of the package's folder. Raises NotUnderstood for one that only the image would show to others."""
        own_mode = source.stat().st_mode
        if mode & 0o004 and not own_mode & 0o111:  # a program is no secret, and its mode is what git keeps of it
            try:
                exposure.refuse_mode(own_mode, self._folder / "Makefile")
            except exposure.KeptFromOthers as cause:
                raise NotUnderstood(
                    f"{source.name} {cause}, and could be in the image",
                    f"use $(INSTALL_CONF); or, if everybody may see it: chmod o+r {source.name}",
                ) from None
        content = source.read_bytes()
        if mode & 0o004 and exposure.private_key(content, program=True):
            raise NotUnderstood(
                f"{source.name} holds a private key, and could be in the image",
                "use $(INSTALL_CONF), so that only root reads it on the node (whoever has the image can read it)",
            )
        return PackageMember("file", mode, content)
