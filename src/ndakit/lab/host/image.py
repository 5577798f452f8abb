"""What a lab host's machine boots: made by the lab's own script, once, and kept in the cache."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ndakit.core import process
from ndakit.core.errors import MachineError
from ndakit.machine.spec import Disk, Nic, VmSpec

MEMORY_MIB = 160
"""Enough for twenty hosts: with 128, thirteen hosts and a poller left 29 MiB available."""

# clearcpuid: several guests at once crash this kernel in cmpxchg16b under QEMU's emulation. The rest saves start time:
# the kernel's tests of its own ciphers take half a second of an emulated processor; so does asking ACPI for interrupts
# of cards that need none (MSI-X).
KERNEL_OPTIONS = "console=ttyS0 loglevel=4 nokaslr panic=3 clearcpuid=cx16 cryptomgr.notests acpi=noirq"

_BUILD_S = 900.0
_THREE_LINES = re.compile(r"^error: (.*?)\n  where: (.*?)\n  fix:   (.*)$", re.M | re.S)


class LabHostNotMade(MachineError):
    """This machine could not make what a lab host boots."""


@dataclass(frozen=True)
class LabImage:
    """Kernel, initramfs, root file system and kernel options of lab hosts.

    The root is never written and may be shared by many machines.
    """

    kernel: Path
    initrd: Path
    root: Path
    append: str = KERNEL_OPTIONS

    def machine(self, name: str, nics: Sequence[Nic], *, memory_mib: int = MEMORY_MIB) -> VmSpec:
        """The description of a machine of that name with these cards; `Vm.agent_path` is its control socket."""
        return VmSpec(
            name,
            memory_mib,
            disks=(Disk(self.root, read_only=True),),
            nics=tuple(nics),
            kernel=self.kernel,
            initrd=self.initrd,
            append=self.append,
            agent_serial=True,
        )


def build(lab: Path, cache: Path, *, tell: Callable[[str], None] = lambda text: None) -> LabImage:
    """What lab hosts boot, made of the sources in `lab` if it is not in `cache` yet (seconds; then at once).

    `tell` gets the lines of progress. Raises LabHostNotMade (no network, no space, …), process.ProcessFailed.
    """
    said: list[str] = []

    def line(text: str) -> None:
        said.append(text)
        if text.startswith("debian: "):
            tell(text.removeprefix("debian: "))

    argv: list[str | Path] = [sys.executable, lab / "host/build.py", "--cache", cache]
    done = process.run(argv, timeout_s=_BUILD_S, check=False, on_line=line)
    if done.returncode == 0:
        folder = Path(said[-1])
        return LabImage(folder / "kernel", folder / "initrd", folder / "root")
    if message := _THREE_LINES.search(done.stdout):
        what, where, fix = message.groups()
        raise LabHostNotMade(what, where=where, fix=fix.strip())
    raise process.ProcessFailed(done)
