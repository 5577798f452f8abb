"""A box that is a folder: the files of an image with BusyBox and the lab's sysupgrade, asked through chroot.

`Box` makes the folder, `TreeShell` is a shell on it without a connection. An SSH server that leads into the folder is
`way_in`. Only root can chroot: who is not skips.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ndakit.build import pipeline, recipe
from ndakit.build import plan as build_plan
from ndakit.core import process
from ndakit.core.workspace import Workspace
from ndakit.imagebuilder import sources
from ndakit.load.load import Loaded
from ndakit.node import files
from ndakit.node.errors import CommandTimeout
from ndakit.node.shell import FILE_TIMEOUT_S, OUTPUT_MAX_BYTES, RUN_TIMEOUT_S, Command, Progress, Ran, command_line
from ndakit.render import overlay
from places import LAB
from ssh_servers import NOT_IN_OPENWRT

EPOCH_S = 1767467544
PACKAGES = {"base-files": "1", "busybox": "1.36.1", "dropbear": "2024.86", "haproxy": "3.0.8", "keepalived": "2.3.1"}


@dataclass
class Box:
    """A running box's root. `rom`: its image's own files are there as well, as on squashfs."""

    root: Path
    rom: bool
    packages: dict[str, str] = field(default_factory=lambda: dict(PACKAGES))

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Change a file by hand, as somebody logged in there would."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)
        if self.rom:
            upper = self.root / "overlay/upper" / path.lstrip("/")
            upper.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(target, upper)

    def program(self, path: str, script: str) -> None:
        """A program of the box in another form."""
        target = self.root / path.lstrip("/")
        target.unlink(missing_ok=True)
        target.write_text(f"#!/bin/sh\n{script}\n")
        target.chmod(0o755)

    def set_packages(self, packages: Mapping[str, str]) -> None:
        """What opkg says is installed."""
        text = "".join(f"Package: {n}\nVersion: {v}\nStatus: install user installed\n\n" for n, v in packages.items())
        (self.root / "usr/lib/opkg").mkdir(parents=True, exist_ok=True)
        (self.root / "usr/lib/opkg/status").write_text(text)
        (self.root / "usr/lib/lab").mkdir(parents=True, exist_ok=True)
        (self.root / "usr/lib/lab/installed").write_text("".join(f"{name}\n" for name in packages))
        self.packages = dict(packages)


def make(
    root: Path, workspace: Workspace, loaded: Loaded, node: str, *, rom: bool = True, carries_recipe: bool = True
) -> Box:
    """A box that runs the image of a node, just booted: host keys are made, nothing was changed by hand."""
    if os.geteuid() != 0:
        pytest.skip("chroot needs root")
    root.mkdir(parents=True)
    shutil.copytree(LAB / "base/packages/base-files", root, dirs_exist_ok=True, symlinks=True)
    for path in (*(root / "sbin").iterdir(), *(root / "bin").iterdir()):
        path.chmod(0o755)
    for name in (
        "dev",
        "proc",
        "tmp",
        "rom",
        "overlay/upper",
        "etc/dropbear",
        "etc/config",
        "bin",
        "usr/bin",
        "usr/lib/lab",
    ):
        (root / name).mkdir(parents=True, exist_ok=True)
    _busybox(root)
    builder = sources.choose("lab", None, workspace, loaded.profile)
    (planned,) = build_plan.plan(workspace, loaded, (node,), builder)
    laid = root.parent / f"{root.name}-files"
    overlay.write(planned.tree, laid, for_image=True)
    if carries_recipe:
        pipeline.put_facts(laid, recipe.of(loaded, node, planned.inputs, planned.tree, planned.image_id))
    shutil.copytree(laid, root, dirs_exist_ok=True)
    (root / "etc/openwrt_release").write_text(
        f"DISTRIB_ID='OpenWrt'\nDISTRIB_RELEASE='{loaded.profile.release}'\nDISTRIB_TARGET='{loaded.profile.target}'\n"
        f"DISTRIB_DESCRIPTION='OpenWrt {loaded.profile.release}'\n"
    )
    branch = loaded.profile.release.branch
    (root / "usr/lib/lab/family").write_text(f"number={branch[0] * 100 + branch[1]}\n")
    box = Box(root, rom)
    box.set_packages(PACKAGES)
    (root / "usr/lib/lab/conffiles").write_text("")
    _node(root, loaded.profile.hostname(node))
    for path in root.rglob("*"):
        os.utime(path, (EPOCH_S, EPOCH_S), follow_symlinks=False)
    if rom:
        shutil.copytree(root, root.parent / f"{root.name}-rom", symlinks=True, ignore=shutil.ignore_patterns("proc"))
        (root / "rom").rmdir()
        (root.parent / f"{root.name}-rom").rename(root / "rom")
    box.write("/etc/dropbear/dropbear_ed25519_host_key", "made at the first start\n", 0o600)
    box.write("/etc/dropbear/dropbear_ed25519_host_key.new.pub", "ssh-ed25519 AAAA\n")
    return box


def _busybox(root: Path) -> None:
    busybox = shutil.which("busybox")
    assert busybox
    shutil.copy(busybox, root / "bin/busybox")
    libraries = subprocess.run(["ldd", busybox], capture_output=True, text=True, check=False).stdout
    for word in libraries.split():  # none for Debian's static one
        if word.startswith("/"):
            (root / word.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, root / word.lstrip("/"))
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if applet not in NOT_IN_OPENWRT | {"busybox"} and not (root / "bin" / applet).exists():
            (root / "bin" / applet).symlink_to("busybox")


def _node(root: Path, hostname: str) -> None:
    """What the kernel of a box says, as plain files: there is no /proc below a chroot."""
    (root / "proc/sys/kernel").mkdir(parents=True)
    (root / "proc/sys/kernel/hostname").write_text(f"{hostname}\n")
    (root / "dev/null").touch()
    (root / "tmp/sysinfo").mkdir()
    (root / "tmp/sysinfo/board_name").write_text("qemu-standard-pc\n")
    (root / "dev/zero").write_bytes(bytes(1 << 20))


class TreeShell:
    """root's shell in a box's folder (`shell.Shell`, with `stream`)."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self.name = "shop lb1"
        self.asked: list[str] = []

    def run(
        self, command: Command, timeout_s: float = RUN_TIMEOUT_S, *, output_max_bytes: int = OUTPUT_MAX_BYTES
    ) -> Ran:
        said = bytearray()
        rc, stderr = self.stream(command, timeout_s=timeout_s, sink=said.extend)
        return Ran(rc, bytes(said), stderr)

    def stream(
        self,
        command: Command,
        *,
        timeout_s: float,
        sink: Callable[[bytes], None],
        source: Callable[[int], bytes] | None = None,
        watch: Callable[[], None] = lambda: None,
    ) -> tuple[int, bytes]:
        complaints = bytearray()
        line = command_line(command)
        self.asked.append(line)
        argv = [
            "chroot",
            str(self._box.root),
            "/bin/busybox",
            "env",
            "-i",
            "PATH=/sbin:/bin:/usr/bin",
            "sh",
            "-c",
            line,
        ]
        try:
            rc = process.stream(
                argv, timeout_s=timeout_s, source=source, on_stdout=sink, on_stderr=complaints.extend, watch=watch
            )
        except process.ProcessTimeout:
            raise CommandTimeout(self.name, command, timeout_s, "the box", "") from None
        return rc, bytes(complaints)

    def put(self, content: bytes, path: str, *, mode: int = 0o644, timeout_s: float = FILE_TIMEOUT_S) -> None:
        raise AssertionError("a backup writes nothing there")

    def get(self, path: str, *, max_bytes: int = OUTPUT_MAX_BYTES, timeout_s: float = FILE_TIMEOUT_S) -> bytes:
        return files.get(self, path, max_bytes, timeout_s, "the box")

    def put_file(
        self,
        source: Path,
        path: str,
        *,
        mode: int = 0o644,
        timeout_s: float = FILE_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> None:
        raise AssertionError("a backup writes nothing there")

    def get_file(
        self, path: str, target: Path, *, timeout_s: float = FILE_TIMEOUT_S, progress: Progress | None = None
    ) -> None:
        target.write_bytes(self.get(path))


def state_of(root: Path) -> dict[str, str]:
    """Every file below a folder with mode and hash: to see that nothing was written there."""
    files_there = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            files_there[str(path.relative_to(root))] = (
                f"{path.stat().st_mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"
            )
    return files_there


def settled(check: Callable[[], bool], within_s: float = 10.0) -> bool:
    """Wait until something is so."""
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        if check():
            return True
        time.sleep(0.02)
    return check()
