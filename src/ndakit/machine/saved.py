"""Where the states of machines that have booted are kept, so that others like them go on from there.

For machines that write no disk and of which many are alike, as the lab's own. A state fits one QEMU, one set of devices
and one set of files; whatever of it changes leads to another place. A machine's name and its cables are no part of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from ndakit.core import locks, workspace
from ndakit.machine.accelerator import Accelerator, find_qemu
from ndakit.machine.spec import VmSpec
from ndakit.machine.vm import Vm

KEPT = 6
UNUSED_S = 3600.0
"""More states than `KEPT` (some 100 MiB each) are given up when nobody has used them for so long."""


def place(spec: VmSpec, accelerator: Accelerator, *, cache: Path | None = None) -> Path | None:
    """Where the state of such a machine is kept, or would be. None for one that cannot be kept: it writes a disk, or
    its processor is the real one (KVM), with which it boots at once. Raises ToolMissing, QemuTooOld."""
    if accelerator.name != "tcg" or spec.firmware != "bios" or not all(disk.read_only for disk in spec.disks):
        return None
    qemu = find_qemu()
    files = [file for file in (spec.kernel, spec.initrd, *(disk.path for disk in spec.disks)) if file is not None]
    facts = (
        str(qemu.path), qemu.text, accelerator.arguments(),
        replace(spec, name="any", nics=tuple(replace(nic, segment_port=None) for nic in spec.nics)),
        [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files],
    )  # fmt: skip
    name = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return (cache or workspace.cache()) / "machines" / f"{name}.state"


def keep(machine: Vm, where: Path) -> bool:
    """Keep a running machine's state, beside others; False if that does not work, which harms nobody."""
    where.parent.mkdir(parents=True, exist_ok=True)
    with locks.scratch_folder(where.parent / "scratch", "state") as folder:
        if not machine.save_state(folder / where.name):
            return False
        (folder / where.name).replace(where)
    for old in locks.stale(where.parent.glob("*.state"), keep=KEPT, idle_s=UNUSED_S):
        old.unlink(missing_ok=True)
    return True
