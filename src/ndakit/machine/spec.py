"""What a virtual machine is made of, and the QEMU command line for it.

Pure: values in, a list of words out, so that a golden test can hold every word. Owns `Disk`, `Nic`, `VmSpec` and
`qemu_argv`; making the files and running the command is the business of `disks` and `vm`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from ndakit.core.errors import InputError
from ndakit.machine.accelerator import Accelerator, Architecture

DiskFormat = Literal["raw", "qcow2", "vmdk", "vdi", "vhdx"]
Bus = Literal["virtio", "sata", "ide"]
NicModel = Literal["virtio-net-pci", "e1000", "e1000e", "vmxnet3", "rtl8139"]

SPEED_MBPS = 1000
"""What a virtio card says of its speed, in Mbit/s: a word only, nothing is slower for it."""
AGENT_PORT = "ndakit.agent"  # name of the virtio-serial port, in the guest /sys/class/virtio-ports/*/name

_NAME = re.compile(r"[a-z][a-z0-9-]{0,47}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


class MachineImpossible(InputError):
    """A description of a virtual machine contradicts itself."""

    def __init__(self, machine: str, what: str, fix: str) -> None:
        super().__init__(f"virtual machine {machine}: {what}", where="its description (VmSpec)", fix=fix)


class Cable(Protocol):
    """What a NIC is plugged into: two paths of unix datagram sockets, such as a `switch.Port`."""

    @property
    def guest_path(self) -> Path:
        """The socket that QEMU binds, and receives frames from."""

    @property
    def switch_path(self) -> Path:
        """The socket that QEMU sends frames to."""

    def carrier(self, up: bool) -> None:
        """Told when the machine's card has a link (True), or has none."""


@dataclass(frozen=True)
class Disk:
    """One disk.

    `path`: the image; one packed with gzip (raw only) is unpacked once and kept in the cache. `snapshot`: write to a
    throw-away layer, never to the image. `read_only`: no writing at all, no layer (virtio only; may be shared by many).
    """

    path: Path
    format: DiskFormat = "raw"
    bus: Bus = "virtio"
    snapshot: bool = True
    read_only: bool = False


@dataclass(frozen=True)
class Nic:
    """One network card: its name here, its MAC (lower case), and the cable in it (None: no link partner)."""

    name: str
    mac: str
    segment_port: Cable | None = None
    model: NicModel = "virtio-net-pci"


@dataclass(frozen=True)
class VmSpec:
    """A virtual machine with one CPU: a PC, or QEMU's virtual ARM board (`architecture`).

    `kernel`, `initrd`, `append`: boot these directly instead of the first disk. `agent_serial`: a virtio-serial port
    named AGENT_PORT, reachable through `Vm.agent_path` (for the lab's hosts; a machine under test gets none).
    `vga`: a graphics card, which a real machine has; nothing is shown.
    """

    name: str
    memory_mib: int
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    firmware: Literal["bios", "efi"] = "bios"
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    agent_serial: bool = False
    vga: bool = False
    architecture: Architecture = "x86_64"

    def __post_init__(self) -> None:
        def refuse(what: str, fix: str) -> None:
            raise MachineImpossible(self.name, what, fix)

        if not _NAME.fullmatch(self.name):
            refuse("its name is not usable", "lower-case letters, digits and -, a letter first, at most 48 characters")
        if self.memory_mib < 16:
            refuse(f"{self.memory_mib} MiB of memory", "give it 64 MiB or more")
        if self.kernel is None and not self.disks:
            refuse("nothing to boot", "give it a disk or a kernel")
        if self.kernel is None and (self.initrd is not None or self.append):
            refuse("initrd or kernel options without a kernel", "name the kernel as well")
        if self.kernel is not None and self.firmware == "efi":
            refuse("a kernel to boot directly together with EFI", "take firmware bios, or boot from a disk")
        if self.architecture not in get_args(Architecture):
            refuse(f"architecture {self.architecture!r}", f"one of {', '.join(get_args(Architecture))}")
        if self.architecture != "x86_64":
            if self.kernel is None and self.firmware == "bios":
                refuse("an ARM board with BIOS", "take firmware efi, or name a kernel to boot directly")
            if self.vga or any(disk.bus != "virtio" for disk in self.disks):
                refuse("a PC's devices on an ARM board", "take bus virtio, and no vga")
        names = [nic.name for nic in self.nics]
        if len(set(names)) < len(names):
            refuse("two network cards of one name", "names are unique in a machine")
        for nic in self.nics:
            if not _NAME.fullmatch(nic.name):
                refuse(f"network card name {nic.name!r}", "lower-case letters, digits and -, a letter first")
            if not _MAC.fullmatch(nic.mac) or int(nic.mac[:2], 16) & 1:
                refuse(f"MAC {nic.mac!r} of {nic.name}", "six lower-case bytes with colons, the first one even")
            if nic.model not in get_args(NicModel):
                refuse(f"network card model {nic.model!r}", f"one of {', '.join(get_args(NicModel))}")
        for disk in self.disks:
            if disk.format not in get_args(DiskFormat) or disk.bus not in get_args(Bus):
                refuse(f"disk format {disk.format!r} on bus {disk.bus!r}", "see DiskFormat and Bus")
            if disk.read_only and disk.bus != "virtio":
                refuse(f"a read-only disk on {disk.bus}", "take bus virtio: QEMU's ide-hd refuses them")


@dataclass(frozen=True)
class DiskFile:
    """A disk's file as QEMU opens it."""

    path: Path
    format: DiskFormat
    throw_away: bool


@dataclass(frozen=True)
class EfiFirmware:
    """UEFI: the code, shared and read-only, and this machine's own copy of the variables."""

    code: Path
    variables: Path


@dataclass(frozen=True)
class Runtime:
    """What is only known when a machine is started: files, sockets, the numbers of inherited file descriptors."""

    qemu: Path
    disks: tuple[DiskFile, ...]
    qmp_fd: int
    console_fd: int
    firmware_log: Path
    agent_path: Path | None = None
    efi: EfiFirmware | None = None
    incoming: bool = False
    """Wait for a state instead of starting."""


_MACHINES: Mapping[Architecture, tuple[str, ...]] = {
    "x86_64": ("-machine", "pc"),
    "arm": ("-machine", "virt,highmem=off", "-cpu", "cortex-a15"),
    "aarch64": ("-machine", "virt", "-cpu", "cortex-a57"),
}


def qemu_argv(spec: VmSpec, accelerator: Accelerator, runtime: Runtime) -> list[str]:
    """QEMU's command line (7.2 to 10) for a machine.

    No default devices, so that a guest has what its spec names and nothing else; one CPU, QEMU's default CPU model (two
    CPUs are slower under TCG, other models broke guests). A random number generator, or dropbear waits for entropy.
    ARM: the default board is none, its CPU must be named; 32-bit kernels do not reach what lies high in memory.
    """
    argv = [str(runtime.qemu), "-name", spec.name, "-nodefaults", "-no-user-config", "-display", "none"]
    argv += [
        *_MACHINES[spec.architecture],
        *accelerator.arguments(),
        "-m",
        str(spec.memory_mib),
        "-smp",
        "1",
        "-rtc",
        "base=utc",
    ]
    argv += ["-chardev", f"socket,id=qmp,fd={runtime.qmp_fd}", "-mon", "chardev=qmp,mode=control"]
    argv += ["-chardev", f"socket,id=console,fd={runtime.console_fd}", "-serial", "chardev:console"]
    if spec.architecture == "x86_64":  # SeaBIOS tells it why it boots nothing
        argv += ["-chardev", f"file,id=firmware,path={_escape(runtime.firmware_log)}"]
        argv += ["-device", "isa-debugcon,iobase=0x402,chardev=firmware"]
    argv += ["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"]
    if spec.vga:
        argv += ["-device", "VGA"]
    if runtime.efi is not None:
        code, variables = _escape(runtime.efi.code), _escape(runtime.efi.variables)
        argv += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"]
        argv += ["-drive", f"if=pflash,unit=1,format=raw,file={variables}"]
    argv += _disks(spec, runtime)
    for nic in spec.nics:
        argv += _nic(nic)
    if spec.agent_serial and runtime.agent_path is not None:
        path = _escape(runtime.agent_path)
        argv += ["-device", "virtio-serial-pci,id=ports"]
        argv += ["-chardev", f"socket,id=agent,path={path},server=on,wait=off"]
        argv += ["-device", f"virtserialport,bus=ports.0,chardev=agent,name={AGENT_PORT}"]
    if spec.kernel is not None:
        argv += ["-kernel", str(spec.kernel)]
        if spec.initrd is not None:
            argv += ["-initrd", _escape(spec.initrd)]  # QEMU splits several initrds at commas
        if spec.append:
            argv += ["-append", spec.append]
    if runtime.incoming:
        argv += ["-incoming", "defer"]
    return argv


def _disks(spec: VmSpec, runtime: Runtime) -> list[str]:
    """Controllers and disks; the first disk is the one to boot from."""
    argv: list[str] = []
    sata = [n for n, disk in enumerate(spec.disks) if disk.bus == "sata"]
    ide = [n for n, disk in enumerate(spec.disks) if disk.bus == "ide"]
    if sata:
        argv += ["-device", "ich9-ahci,id=sata"]
    for n, (disk, file) in enumerate(zip(spec.disks, runtime.disks, strict=True)):
        drive = f"if=none,id=disk{n},format={file.format},file={_escape(file.path)}"
        drive += ",readonly=on" if disk.read_only else ""
        drive += ",cache=unsafe" if file.throw_away else ""
        if disk.bus == "virtio":
            device = "virtio-blk-pci"
        elif disk.bus == "sata":
            device = f"ide-hd,bus=sata.{sata.index(n)}"
        else:
            device = f"ide-hd,bus=ide.{ide.index(n) // 2},unit={ide.index(n) % 2}"
        order = "" if spec.kernel is not None else f",bootindex={n}"
        argv += ["-drive", drive, "-device", f"{device},drive=disk{n}{order}"]
    return argv


def _nic(nic: Nic) -> list[str]:
    """A card without boot ROM (nobody boots over the network here), and its cable."""
    device = f"{nic.model},id={nic.name},mac={nic.mac},romfile="
    if nic.model == "virtio-net-pci":
        # Else the card states neither, and Linux's bonding takes it for too slow to be in a bundle (802.3ad).
        device += f",speed={SPEED_MBPS},duplex=full"
    if nic.segment_port is None:
        return ["-device", device]
    ours, theirs = _escape(nic.segment_port.guest_path), _escape(nic.segment_port.switch_path)
    cable = f"dgram,id=cable-{nic.name},local.type=unix,local.path={ours},remote.type=unix,remote.path={theirs}"
    return ["-netdev", cable, "-device", f"{device},netdev=cable-{nic.name}"]


def _escape(path: Path) -> str:
    """A path inside an option of QEMU: a comma is doubled."""
    return str(path).replace(",", ",,")
