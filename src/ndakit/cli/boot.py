"""Built images, found whole and brought to life one at a time: the console of a node in the user's terminal."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator, Mapping, Sequence

from ndakit.cli.profiles import nodes_of, read
from ndakit.core import terminal
from ndakit.core.errors import ErrorGroup
from ndakit.core.workspace import Workspace
from ndakit.image import artifacts
from ndakit.image.artifacts import Artifact
from ndakit.lab.plan import BootImage, cards, mac_of
from ndakit.load.load import Loaded
from ndakit.machine import accelerator, flash_boot
from ndakit.machine.accelerator import Architecture
from ndakit.machine.spec import Bus, DiskFormat, Nic
from ndakit.machine.vm import launch
from ndakit.model import Profile
from ndakit.model.host import Platform

_FORMATS: Mapping[str, DiskFormat] = {"img": "raw", "qcow2": "qcow2", "vmdk": "vmdk", "vdi": "vdi", "vhdx": "vhdx"}
# The controllers that `companions` gives the machines of these platforms; Hyper-V's and Xen's own are not in QEMU.
_BUSES: Mapping[Platform, Bus] = {
    "bare": "virtio",
    "kvm": "virtio",
    "vmware": "sata",
    "hyperv": "ide",
    "virtualbox": "sata",
    "xen": "ide",
}
# Targets that are no PCs: the CPU of QEMU's board for them, and its memory in MiB (a Dockstar has 128; the lab's own
# initramfs and overlay take some of the rest).
_BOARDS: Mapping[str, tuple[Architecture, int]] = {
    "armsr/armv8": ("aarch64", 256),
    "armsr/armv7": ("arm", 256),
    "kirkwood/generic": ("arm", 128),
}

ESCAPE = b"\x1d"
"""Ctrl-], as telnet and virsh have it."""


def images_of(workspace: Workspace, loaded: Loaded, nodes: Sequence[str]) -> dict[str, Artifact]:
    """The built images, whole and unchanged. Raises ImageNotBuilt, RecordBroken, ImageChanged."""
    name = loaded.profile.name
    found = {node: Artifact.load(artifacts.folder_of(workspace, name, node), loaded.called) for node in nodes}
    errors = [error for artifact in found.values() for error in artifact.verify()]
    if errors:
        raise ErrorGroup(errors)
    return found


def boot_images(profile: Profile, built: dict[str, Artifact]) -> dict[str, BootImage]:
    """How each node is booted: the first disk of image.formats, on its platform's kind of controller.

    An efi image boots both ways, so the last node takes EFI and the others BIOS; the EFI of virtual machines has 64
    bits, so images of 32 bits are all booted by BIOS.
    """
    if profile.target in _BOARDS:
        return {n: _board_image(profile.target, a) for n, a in built.items()}
    last = tuple(built)[-1]
    efi = profile.image.firmware == "efi" and profile.target == "x86/64"
    bus = _BUSES[profile.platform]
    return {
        n: BootImage(a.image, "efi" if efi and n == last else "bios", _FORMATS[a.first.format], bus)
        for n, a in built.items()
    }


def _board_image(target: str, built: Artifact) -> BootImage:
    """How an image for ARM is booted: by EFI, or, one for flash, taken apart. Raises NotBootable."""
    architecture, memory_mib = _BOARDS[target]
    if target.startswith("armsr/"):
        format_ = _FORMATS[built.first.format]
        return BootImage(built.image, "efi", format_, architecture=architecture, memory_mib=memory_mib)
    files = flash_boot.take_apart(built.image)
    return BootImage(
        files.disk, "bios", architecture=architecture, memory_mib=memory_mib, kernel=files.kernel, initrd=files.initrd,
        append=flash_boot.KERNEL_OPTIONS,
    )  # fmt: skip


def boot_node(workspace: Workspace, profile: str, node: str | None) -> None:
    """One node on a throw-away disk, its console in this terminal."""
    loaded = read(workspace, profile)
    name = nodes_of(loaded, node)[0]
    built = images_of(workspace, loaded, (name,))[name]
    nics = tuple(Nic(n, mac_of(loaded.profile.name, name, n)) for n in cards(loaded.profile))
    image = boot_images(loaded.profile, {name: built})[name]
    spec = image.machine(name, nics)
    run_dir = workspace.logs(f"boot-{loaded.profile.name}")
    chosen = accelerator.probe()
    terminal.note(f"booting {name} ({chosen.name}: {chosen.reason})")
    terminal.note("its cables are not plugged in, its disk is thrown away; Ctrl-] ends it")
    with launch(spec, run_dir, chosen) as machine, _raw_terminal():
        out = sys.stdout.buffer

        def show(data: bytes) -> None:
            out.write(data)
            out.flush()

        stop = machine.console.listen(show)
        try:
            while machine.alive:
                ready, _, _ = select.select([sys.stdin], [], [], 0.2)
                if not ready:
                    continue
                typed = os.read(sys.stdin.fileno(), 1024)
                if not typed or ESCAPE in typed:
                    break
                machine.console.send(typed)
        finally:
            stop()
    terminal.note(f"\n{name} is gone; its console's log: {machine.console_log}")


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the guest, if this is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
