"""How this machine can run virtual machines: which QEMU it has, and whether KVM really works or only seems to be there.

/dev/kvm can exist and still not run a guest ("KVM internal error": nested or emulated virtualisation), so the answer
comes from booting something tiny. It is remembered until QEMU, the kernel or the device changes. Starting machines is
the business of `vm`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ndakit.core import json_text, locks, process, workspace
from ndakit.core.errors import MachineError
from ndakit.core.files import write_atomic

Architecture = Literal["x86_64", "arm", "aarch64"]
"""What a machine's CPU is: as QEMU calls it."""

QEMU = "qemu-system-x86_64"
PROGRAMS: Mapping[Architecture, str] = {"x86_64": QEMU, "arm": "qemu-system-arm", "aarch64": "qemu-system-aarch64"}
_PACKAGE = "qemu-system-x86"
_ARM_PACKAGE = "qemu-system-arm"
_OLDEST = (7, 2)  # -netdev dgram, which the lab's switch speaks, came with 7.2
_DEBUG_EXIT_PORT = 0xF4
_WORKED = 67  # isa-debug-exit ends QEMU with (value << 1) | 1; the boot sector writes 0x21 when all went well
_TROUBLE = re.compile(r"KVM internal error|emulation failure|error: .*|failed to initialize .*|Could not access KVM.*")
_FORGET_FAILURE_S = 24 * 3600.0

# A boot sector that does what kernels do and half-working KVMs fail at: it enters long mode (paging, EFER), uses SSE2,
# uses BMI2 if the CPU announces it (kernels unpack themselves with it), and counts to 20 million, which tells real
# virtualisation from an emulated one that is slower than TCG. Then it writes 0x21 (0x11: wrong result) to port 0xf4.
_BOOT_CODE = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007cfcbf0010b90018f3abc70600100320c70600200330c706003083000f0116d87c66b8200600000f22e066b800"
    "1000000f22d866b9800000c00f320d00010f3066b8030000800f22c0ea597c0800b8100000008ed048c7c04242000066480f6ec0660fd4c0"
    "66480f7ec34881fb84840000753931c00fa283f8077223b80700000031c90fa20fbae3087314b904000000ba01000000c4e271f7c283f810"
    "750db9002d3101ffc975fcb021eb02b011e6f4f40f1f40000000000000000000ffff0000009aaf00ffff00000092cf001700c07c"
)


class QemuTooOld(MachineError):
    """The installed QEMU lacks what the lab needs."""

    def __init__(self, path: Path, text: str, package: str) -> None:
        super().__init__(
            f"QEMU {text} is too old: {_OLDEST[0]}.{_OLDEST[1]} or newer is needed",
            where=str(path),
            fix=f"install {package} of Debian 12, Ubuntu 24.04 or newer",
        )


@dataclass(frozen=True)
class Qemu:
    """The QEMU of this machine; `text` is its version as it says it."""

    path: Path
    version: tuple[int, int]
    text: str


@dataclass(frozen=True)
class Accelerator:
    """What runs the guests' code: `kvm` (hardware) or `tcg` (QEMU's translator), and why this one, in words."""

    name: Literal["kvm", "tcg"]
    reason: str

    def arguments(self) -> list[str]:
        """QEMU's options for it.

        TCG's buffer for translated code (in MiB) is kept small: its default grows to 1 GiB for each machine. But a boot
        translates some 400 MiB, and whenever the buffer is full, all of it is thrown away and what is in use is made
        anew: with 64 MiB six times, which took a tenth of a boot's processor time.
        """
        return ["-accel", "kvm" if self.name == "kvm" else "tcg,tb-size=128"]


TCG = Accelerator("tcg", "asked for")


def suited(best: Accelerator, architecture: Architecture) -> Accelerator:
    """The accelerator for a machine of an architecture: `best`, or TCG where it is another than this machine's."""
    return best if architecture == "x86_64" else Accelerator("tcg", f"{architecture} is not this machine's CPU")


def find_qemu(program: str = QEMU) -> Qemu:
    """The QEMU of this machine. Raises ToolMissing or QemuTooOld."""
    package = _ARM_PACKAGE if program in (PROGRAMS["arm"], PROGRAMS["aarch64"]) else _PACKAGE
    path = process.require(program, package=package, reason="to boot virtual machines")
    said = process.run([path, "--version"], timeout_s=20).stdout
    match = re.search(r"version (\d+)\.(\d+)\S*(?: \([^)\n]*\))?", said)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    text = match[0].removeprefix("version ") if match else said.strip()[:60] or "of unknown version"
    if version < _OLDEST:
        raise QemuTooOld(path, text, package)
    return Qemu(path, version, text)


def probe(
    *,
    program: str = QEMU,
    device: Path = Path("/dev/kvm"),
    memory: Path | None = None,
    time_limit_s: float = 5.0,
) -> Accelerator:
    """The accelerator to use here: KVM if it can really boot something within `time_limit_s`, else TCG.

    The answer is remembered in `memory` (default: accelerator.json in the per-user cache) for this QEMU, this kernel
    and this `device`; that KVM failed is believed for a day. Raises ToolMissing, QemuTooOld, and MachineError when
    QEMU cannot be started at all.
    """
    qemu = find_qemu(program)
    try:
        facts = device.stat()
    except OSError:
        return Accelerator("tcg", f"{device} does not exist: this machine offers no hardware virtualisation")
    if not os.access(device, os.R_OK | os.W_OK):
        return Accelerator("tcg", f"no permission for {device} (adduser USER kvm, then log in again)")
    memory = memory or workspace.cache() / "accelerator.json"
    key = _key(qemu, facts)
    remembered = _recall(memory, key)
    if remembered is not None:
        return remembered
    with locks.hold(memory.with_suffix(".lock"), wait_s=4 * time_limit_s + 10):
        remembered = _recall(memory, key)  # another run may have found out while we waited
        if remembered is not None:
            return remembered
        trouble = _try(qemu, Accelerator("kvm", "tried"), time_limit_s)
        if trouble is None:
            usable = Accelerator("kvm", f"{device} works")
        else:
            usable = Accelerator("tcg", f"{device} exists but does not work: {trouble}")
        _remember(memory, key, usable)
    return usable


def distrust_kvm(why: str, *, program: str = QEMU, device: Path = Path("/dev/kvm"), memory: Path | None = None) -> None:
    """Remember that KVM passed the probe but failed a real guest, so that the next run uses TCG."""
    qemu = find_qemu(program)
    with contextlib.suppress(OSError):
        key = _key(qemu, device.stat())
        fallback = Accelerator("tcg", f"{device} exists but failed a guest: {why}")
        _remember(memory or workspace.cache() / "accelerator.json", key, fallback)


def _key(qemu: Qemu, device: os.stat_result) -> str:
    """What an answer holds for: the device node is made anew at each boot and by each change of its permissions."""
    kernel = f"{platform.release()} {platform.version()}"
    return f"{qemu.path} {qemu.text}; {kernel}; {device.st_rdev} {device.st_ctime_ns}"


def _try(qemu: Qemu, accelerator: Accelerator, time_limit_s: float) -> str | None:
    """Boot the boot sector; None if it ran to its end, else what went wrong."""
    with locks.scratch_folder(workspace.runtime(), "probe") as folder:
        disk = folder / "boot.img"
        disk.write_bytes(_BOOT_CODE.ljust(510, b"\0") + b"\x55\xaa")
        log = folder / "log"
        child = process.spawn(
            [
                *(qemu.path, "-nodefaults", "-no-user-config", "-display", "none", "-m", "16"),
                *accelerator.arguments(),
                *("-drive", "file=boot.img,format=raw,if=none,id=boot"),
                *("-device", "ide-hd,drive=boot"),
                *("-device", f"isa-debug-exit,iobase={_DEBUG_EXIT_PORT:#x},iosize=1"),
            ],
            log=log,
            cwd=folder,
        )
        try:
            end_s = time.monotonic() + time_limit_s
            while child.wait(0.05) is None:
                said = _TROUBLE.search(log.read_text(errors="replace"))
                if said:
                    return f"QEMU says '{said[0].strip()[:120]}'"
                if time.monotonic() > end_s:
                    return f"a boot sector did not run to its end within {time_limit_s:g} s"
            if child.returncode == _WORKED:
                return None
            said = _TROUBLE.search(log.read_text(errors="replace"))
            return f"QEMU says '{said[0].strip()[:120]}'" if said else f"QEMU {process.ending(child.stop())}"
        finally:
            child.stop()


def _recall(memory: Path, key: str) -> Accelerator | None:
    """The remembered answer, unless it is about something else, too old, or unreadable."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
        kept = json_text.read(memory)
        failed_long_ago = kept["name"] == "tcg" and not 0 <= time.time() - kept["when"] < _FORGET_FAILURE_S
        if kept["key"] == key and kept["name"] in ("kvm", "tcg") and not failed_long_ago:
            return Accelerator(kept["name"], str(kept["reason"]))
    return None


def _remember(memory: Path, key: str, answer: Accelerator) -> None:
    """Keep the answer; a cache that cannot be written costs a second, nothing else."""
    facts = {"key": key, "name": answer.name, "reason": answer.reason, "when": int(time.time())}
    with contextlib.suppress(OSError):
        write_atomic(memory, json.dumps(facts, indent=2).encode() + b"\n")
