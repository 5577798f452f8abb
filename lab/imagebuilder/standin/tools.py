"""Run the build tools out of unpacked Debian packages, so that this machine needs none of them and versions are fixed.

Owns how such a program is started (through its own loader and libraries). What a tool is asked to do belongs to the
module that needs it.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import debian

_PACKAGES = (
    "squashfs-tools", "mtools", "e2fsprogs", "kmod", "grub-pc-bin", "grub-efi-amd64-bin", "grub-common",
)  # fmt: skip
_LOADER = "lib64/ld-linux-x86-64.so.2"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"


class ToolFailed(Exception):
    """A build tool ended with a failure; the text is what it said."""


class Tools:
    """The build tools of one cache folder."""

    def __init__(self, cache: Path, packages: Sequence[str] = _PACKAGES, name: str = "tools") -> None:
        """Get the tools (downloaded once). Raises debian.LabError, also on a machine that cannot run them."""
        if platform.machine() != "x86_64":
            raise debian.LabError(
                f"the lab's build tools are amd64 programs; this machine is {platform.machine()}",
                where="this machine",
                fix="build lab images on an amd64 machine, or use a real ImageBuilder",
            )
        self.root = debian.root(cache, packages, name=name)

    def run(
        self, program: str, *argv: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> str:
        """Run `program` (a path inside the root, `path:name` to give it another name); its standard output."""
        path, _, name = program.partition(":")
        root = self.root
        words = [
            str(root / _LOADER), "--library-path", str(root / _LIBRARIES),
            "--argv0", name or Path(path).name, str(root / path), *map(str, argv),
        ]  # fmt: skip
        fixed = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC", "HOME": "/nonexistent"}
        done = self._run(words, {**fixed, **(env or {})}, cwd)
        if done.returncode != 0:
            raise ToolFailed(f"{name or Path(path).name}: {(done.stderr + done.stdout).strip()[-2000:]}")
        return done.stdout

    @staticmethod
    def _run(words: Sequence[str], env: Mapping[str, str], cwd: Path | None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
