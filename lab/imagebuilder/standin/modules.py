"""Kernel modules of an image: what they depend on, where they lie, the tables modprobe reads.

Debian's modules are compressed and come without tables (depmod runs at installation there); here they are stored plain,
because the file system is compressed anyway and the guest should not unpack xz under emulation.
"""

from __future__ import annotations

import lzma
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from .tools import Tools


class NoSuchModule(Exception):
    """A module in packages.toml that the kernel does not have."""


class Kernel:
    """The kernel in an unpacked Debian root."""

    def __init__(self, root: Path, tools: Tools) -> None:
        """Find the kernel in `root`, and make the table of dependencies once (beside the root)."""
        self.image = next((root / "boot").glob("vmlinuz-*"))
        self.version = self.image.name.removeprefix("vmlinuz-")
        self._tools = tools
        self._folder = root / "usr/lib/modules" / self.version
        self._tables = root.with_name(root.name + ".depmod")
        if not self._tables.is_dir():
            # Each process makes its own, and the first that is ready gives its name to it: several may begin at once.
            partial = Path(tempfile.mkdtemp(prefix=f"{root.name}.depmod.", dir=root.parent))
            try:
                self._depmod(root, partial)
                partial.rename(self._tables)
            except OSError:
                if not self._tables.is_dir():
                    raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        listed = self._tables / "lib/modules" / self.version / "modules.dep"
        self._needs: dict[str, list[str]] = {}
        self._path: dict[str, str] = {}
        for line in listed.read_text().splitlines():
            path, _, needs = line.partition(":")
            self._path[_name(path)] = path
            self._needs[_name(path)] = [_name(n) for n in needs.split()]
        self._builtin = {_name(line) for line in (self._folder / "modules.builtin").read_text().split()}

    def closure(self, names: Iterable[str]) -> list[str]:
        """The modules and all they need, without those built in; needed ones first. Raises NoSuchModule."""
        ordered: dict[str, None] = {}
        for name in (n.replace("-", "_") for n in names):
            if name in self._builtin:
                continue
            if name not in self._path:
                raise NoSuchModule(f"kernel {self.version} has no module {name}")
            # modules.dep lists dependencies so that the last one must be loaded first.
            for one in [*reversed(self._needs[name]), name]:
                ordered.setdefault(one)
        return list(ordered)

    def install(self, names: Iterable[str], root: Path) -> None:
        """Put the modules and what they need into `root`/lib/modules, with fresh tables."""
        target = root / "lib/modules" / self.version
        for name in self.closure(names):
            source = self._folder / self._path[name]
            place = target / self._path[name].removesuffix(".xz")
            place.parent.mkdir(parents=True, exist_ok=True)
            data = source.read_bytes()
            place.write_bytes(lzma.decompress(data) if source.suffix == ".xz" else data)
        for table in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._folder / table, target / table)
        self._tools.run("usr/bin/kmod:depmod", "-b", root, self.version)
        for made in target.glob("modules.*"):
            # Text tables are enough for busybox; those of the whole kernel's built-in modules are large and unused.
            if made.suffix == ".bin" or made.name in ("modules.builtin.modinfo", "modules.order"):
                made.unlink()

    def _depmod(self, root: Path, into: Path) -> None:
        tables = into / "lib/modules"
        tables.mkdir(parents=True)
        # depmod -o writes elsewhere; -b finds the modules below lib/modules (here a link to usr/lib).
        self._tools.run("usr/bin/kmod:depmod", "-b", root, "-o", into, self.version)


def _name(path: str) -> str:
    return re.sub(r"\.ko(\.xz)?$", "", path.rsplit("/", 1)[-1]).replace("-", "_")
