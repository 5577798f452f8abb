"""Virtual machines without booting one: command lines, disks, the accelerator probe, QEMUs that refuse."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ndakit.core import process
from ndakit.core.locks import WorkspaceBusy, hold
from ndakit.core.process import ToolMissing
from ndakit.machine import accelerator, disks
from ndakit.machine.accelerator import TCG, Accelerator, QemuTooOld, find_qemu, probe
from ndakit.machine.disks import EfiMissing, ImageDamaged, ImageMissing
from ndakit.machine.spec import (
    Disk,
    DiskFile,
    DiskFormat,
    EfiFirmware,
    MachineImpossible,
    Nic,
    Runtime,
    VmSpec,
    qemu_argv,
)
from ndakit.machine.vm import VmNotRunning, VmNotStarted, launch

KERNEL = Path("/boot/vmlinuz")


class Socket:
    """A cable whose ends nobody holds."""

    guest_path = Path("/run/sw/1.guest")
    switch_path = Path("/run/sw/1.switch")

    def carrier(self, up: bool) -> None:
        """Nobody is there to be told."""


def runtime(*files: DiskFile, efi: EfiFirmware | None = None) -> Runtime:
    return Runtime(
        qemu=Path("/usr/bin/qemu-system-x86_64"),
        disks=files,
        qmp_fd=7,
        console_fd=8,
        firmware_log=Path("/r/lb1.firmware.log"),
        agent_path=Path("/run/vm/agent"),
        efi=efi,
    )


def fake_qemu(folder: Path, body: str, *, version: str = "7.2.22 (Debian 1:7.2+dfsg-7)") -> str:
    """A program that is QEMU to us: tells its version, else does what `body` says."""
    path = folder / "qemu-fake"
    said = f"QEMU emulator version {version}"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{said}" && exit\n{body}\n')
    path.chmod(0o755)
    return str(path)


# -- the command line --------------------------------------------------------------------------------------------------


def test_the_command_line_of_a_balancer_from_its_disk() -> None:
    spec = VmSpec(
        name="lb1",
        memory_mib=256,
        disks=(Disk(Path("/images/lb1.img.gz")),),
        nics=(Nic("eth0", "52:54:00:00:00:01", Socket()), Nic("eth1", "52:54:00:00:00:02")),
    )
    argv = qemu_argv(spec, TCG, runtime(DiskFile(Path("/r/lb1-disk0.qcow2"), "qcow2", throw_away=True)))
    assert argv == [
        *("/usr/bin/qemu-system-x86_64", "-name", "lb1", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", "pc", "-accel", "tcg,tb-size=128", "-m", "256", "-smp", "1", "-rtc", "base=utc"),
        *("-chardev", "socket,id=qmp,fd=7", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", "socket,id=console,fd=8", "-serial", "chardev:console"),
        *("-chardev", "file,id=firmware,path=/r/lb1.firmware.log"),
        *("-device", "isa-debugcon,iobase=0x402,chardev=firmware"),
        *("-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"),
        *("-drive", "if=none,id=disk0,format=qcow2,file=/r/lb1-disk0.qcow2,cache=unsafe"),
        *("-device", "virtio-blk-pci,drive=disk0,bootindex=0"),
        "-netdev",
        "dgram,id=cable-eth0,local.type=unix,local.path=/run/sw/1.guest,remote.type=unix,remote.path=/run/sw/1.switch",
        *("-device", "virtio-net-pci,id=eth0,mac=52:54:00:00:00:01,romfile=,speed=1000,duplex=full,netdev=cable-eth0"),
        *("-device", "virtio-net-pci,id=eth1,mac=52:54:00:00:00:02,romfile=,speed=1000,duplex=full"),
    ]


def test_the_command_line_of_a_lab_host_with_kernel_agent_and_shared_root() -> None:
    spec = VmSpec(
        name="hosts",
        memory_mib=128,
        disks=(Disk(Path("/cache/a,b.squashfs"), read_only=True),),
        kernel=KERNEL,
        initrd=Path("/boot/initrd,1"),
        append="console=ttyS0 quiet",
        agent_serial=True,
    )
    kvm = Accelerator("kvm", "works")
    argv = qemu_argv(spec, kvm, runtime(DiskFile(Path("/cache/a,b.squashfs"), "raw", throw_away=False)))
    assert argv[argv.index("-accel") + 1] == "kvm"
    assert argv[argv.index("-drive") :] == [
        *("-drive", "if=none,id=disk0,format=raw,file=/cache/a,,b.squashfs,readonly=on"),
        *("-device", "virtio-blk-pci,drive=disk0"),
        *("-device", "virtio-serial-pci,id=ports"),
        *("-chardev", "socket,id=agent,path=/run/vm/agent,server=on,wait=off"),
        *("-device", "virtserialport,bus=ports.0,chardev=agent,name=ndakit.agent"),
        *("-kernel", "/boot/vmlinuz", "-initrd", "/boot/initrd,,1", "-append", "console=ttyS0 quiet"),
    ]


def test_the_command_line_with_efi_sata_and_ide() -> None:
    disks_ = tuple(Disk(Path("/d"), bus=bus) for bus in ("sata", "sata", "ide", "ide", "ide"))
    files = [DiskFile(Path(f"/r/{n}"), "qcow2", throw_away=True) for n in range(5)]
    spec = VmSpec("lb1", 256, disks_, firmware="efi", vga=True)
    argv = qemu_argv(spec, TCG, runtime(*files, efi=EfiFirmware(Path("/f/CODE.fd"), Path("/r/vars.fd"))))
    text = " ".join(argv)
    assert "-drive if=pflash,unit=0,format=raw,readonly=on,file=/f/CODE.fd" in text
    assert "-drive if=pflash,unit=1,format=raw,file=/r/vars.fd" in text
    assert "-device VGA" in text and text.count("ich9-ahci,id=sata") == 1
    assert [w for w in argv if w.startswith("ide-hd")] == [
        "ide-hd,bus=sata.0,drive=disk0,bootindex=0",
        "ide-hd,bus=sata.1,drive=disk1,bootindex=1",
        "ide-hd,bus=ide.0,unit=0,drive=disk2,bootindex=2",
        "ide-hd,bus=ide.0,unit=1,drive=disk3,bootindex=3",
        "ide-hd,bus=ide.1,unit=0,drive=disk4,bootindex=4",
    ]


GOOD_MAC = "52:54:00:00:00:01"


@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("its name", lambda: VmSpec("LB 1", 128, kernel=KERNEL)),
        ("its name", lambda: VmSpec("a,b", 128, kernel=KERNEL)),
        ("4 MiB", lambda: VmSpec("a", 4, kernel=KERNEL)),
        ("nothing to boot", lambda: VmSpec("a", 128)),
        ("without a kernel", lambda: VmSpec("a", 128, (Disk(Path("d")),), append="quiet")),
        ("together with EFI", lambda: VmSpec("a", 128, kernel=KERNEL, firmware="efi")),
        ("of one name", lambda: VmSpec("a", 128, nics=(Nic("e", GOOD_MAC), Nic("e", GOOD_MAC)), kernel=KERNEL)),
        ("network card name", lambda: VmSpec("a", 128, nics=(Nic("e,x", GOOD_MAC),), kernel=KERNEL)),
        ("MAC", lambda: VmSpec("a", 128, nics=(Nic("e", "53:54:00:00:00:01"),), kernel=KERNEL)),
        ("MAC", lambda: VmSpec("a", 128, nics=(Nic("e", "52:54:00"),), kernel=KERNEL)),
        ("read-only disk on sata", lambda: VmSpec("a", 128, (Disk(Path("d"), bus="sata", read_only=True),))),
    ],
)
def test_a_machine_that_cannot_be_is_refused(what: str, make: object) -> None:
    assert callable(make)
    with pytest.raises(MachineImpossible, match=what):
        make()


# -- disks -------------------------------------------------------------------------------------------------------------


def test_a_packed_image_is_unpacked_once_up_to_its_stream_s_end_with_holes(tmp_path: Path) -> None:
    content = b"begin" + bytes(5 << 20) + b"end" + bytes(3 << 20)
    packed = tmp_path / "lb1.img.gz"
    packed.write_bytes(gzip.compress(content) + b"metadata of OpenWrt behind the stream")
    raw = disks.unpack(packed, cache=tmp_path / "cache")
    assert raw.read_bytes() == content
    assert raw.stat().st_blocks * 512 < len(content) / 2
    before = raw.stat().st_ino
    assert disks.unpack(packed, cache=tmp_path / "cache").stat().st_ino == before
    packed.write_bytes(gzip.compress(content[:-1]))
    assert disks.unpack(packed, cache=tmp_path / "cache") != raw


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b[:40] + b"\xff" * 20 + b[60:]])
def test_a_damaged_image_is_an_error_and_leaves_nothing(tmp_path: Path, spoil: object) -> None:
    assert callable(spoil)
    packed = tmp_path / "lb1.img.gz"
    packed.write_bytes(spoil(gzip.compress(os.urandom(3 << 20))))
    with pytest.raises(ImageDamaged, match="damaged"):
        disks.unpack(packed, cache=tmp_path / "cache")
    assert [p for p in (tmp_path / "cache" / "disks").iterdir() if p.suffix != ".lock"] == []


def test_the_cache_of_unpacked_images_keeps_those_used_last(tmp_path: Path) -> None:
    kept = []
    for number in range(12):
        packed = tmp_path / f"{number}.gz"
        packed.write_bytes(gzip.compress(bytes([number]) * 1000))
        raw = disks.unpack(packed, cache=tmp_path)
        if number < 6:
            os.utime(raw, (number, number))
        kept.append(raw.exists())
    raws = list((tmp_path / "disks").glob("*.img"))
    assert len(raws) == 8 and all(kept)


@pytest.mark.parametrize("form", ["raw", "qcow2", "vmdk", "vdi", "vhdx"])
def test_a_machine_writes_to_a_layer_and_never_to_the_image(tmp_path: Path, form: DiskFormat) -> None:
    image = tmp_path / "image"
    process.run(["qemu-img", "create", "-q", "-f", form, image, "8M"], timeout_s=30)
    before = image.read_bytes()
    file = disks.prepare(Disk(image, form), tmp_path, "lb1-disk0")
    assert file == DiskFile(tmp_path / "lb1-disk0.qcow2", "qcow2", throw_away=True)
    assert file.path.stat().st_mode & 0o777 == 0o600, "it gets what the machine keeps secret"
    facts = json.loads(process.run(["qemu-img", "info", "--output=json", file.path], timeout_s=30).stdout)
    assert facts["virtual-size"] == 8 << 20 and facts["backing-filename-format"] == form
    assert image.read_bytes() == before
    assert disks.prepare(Disk(image, form, read_only=True), tmp_path, "x").path == image
    assert disks.prepare(Disk(image, form, snapshot=False), tmp_path, "x").path == image


def test_images_that_are_not_there_or_may_not_be_packed_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ImageMissing, match="does not exist"):
        disks.prepare(Disk(tmp_path / "none.img"), tmp_path, "x")
    packed = tmp_path / "a.qcow2"
    packed.write_bytes(gzip.compress(b"x"))
    with pytest.raises(ImageDamaged, match="only raw images may be packed"):
        disks.prepare(Disk(packed, "qcow2"), tmp_path, "x")
    with pytest.raises(ImageDamaged, match="do not keep their disk"):
        disks.prepare(Disk(packed, snapshot=False), tmp_path, "x")


def test_missing_efi_firmware_is_an_error_that_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(EfiMissing) as caught:
        disks.efi(tmp_path, "x", places=[("/nonexistent/CODE.fd", "/nonexistent/VARS.fd")])
    assert caught.value.exit_code == 3 and "apt-get install ovmf" in caught.value.fix


def test_each_machine_gets_its_own_efi_variables(tmp_path: Path) -> None:
    (tmp_path / "CODE").write_bytes(b"c")
    (tmp_path / "VARS").write_bytes(b"v")
    firmware = disks.efi(tmp_path, "lb1", places=[("/nonexistent", "x"), (f"{tmp_path}/CODE", f"{tmp_path}/VARS")])
    assert firmware == EfiFirmware(tmp_path / "CODE", tmp_path / "lb1-efivars.fd")
    assert firmware.variables.read_bytes() == b"v"


# -- QEMU and the accelerator ------------------------------------------------------------------------------------------


def test_qemu_that_is_missing_is_an_error_that_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(ToolMissing) as caught:
        launch(VmSpec("a", 64, kernel=KERNEL), tmp_path, TCG, program="qemu-nonexistent")
    assert caught.value.exit_code == 3 and "apt-get install qemu-system-x86" in caught.value.fix


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", (7, 2)),
        ("8.2.2 (Debian 1:8.2.2+ds-0ubuntu1.10)", (8, 2)),
        ("10.0.2 (Debian 1:10.0.2+ds-2+deb13u1)", (10, 0)),
        ("9.2.50 (v9.2.0-100-g123)", (9, 2)),
    ],
)
def test_versions_of_qemu_are_understood(tmp_path: Path, said: str, version: tuple[int, int]) -> None:
    qemu = find_qemu(fake_qemu(tmp_path, "", version=said))
    assert (qemu.version, qemu.text) == (version, said)


def test_an_old_qemu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QemuTooOld, match=r"5\.2\.0 .*is too old: 7\.2"):
        find_qemu(fake_qemu(tmp_path, "", version="5.2.0 (Debian 1:5.2+dfsg-11)"))


def probe_with(tmp_path: Path, body: str, *, time_limit_s: float = 2.0) -> Accelerator:
    device = tmp_path / "kvm"
    if not device.exists():  # another change time is another device
        device.touch()
    program = fake_qemu(tmp_path, f"echo run >>{tmp_path}/runs\n{body}")
    return probe(program=program, device=device, memory=tmp_path / "memory.json", time_limit_s=time_limit_s)


def runs(tmp_path: Path) -> int:
    return len((tmp_path / "runs").read_text().splitlines())


def test_kvm_that_boots_something_is_used_and_remembered(tmp_path: Path) -> None:
    for _ in range(2):
        assert probe_with(tmp_path, "exit 67").name == "kvm"
    assert runs(tmp_path) == 1


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("echo 'KVM internal error. Suberror: 1' >&2; exec sleep 60", "KVM internal error"),
        ("exec sleep 60", "did not run to its end within 0.3 s"),
        ("echo 'qemu: error: failed to initialize kvm: Device or resource busy'; exit 1", "Device or resource busy"),
        ("exit 35", "exit code 35"),
    ],
)
def test_kvm_that_does_not_work_falls_back_to_tcg_with_the_reason_and_is_not_tried_again(
    tmp_path: Path, body: str, why: str
) -> None:
    for _ in range(2):
        accelerator = probe_with(tmp_path, body, time_limit_s=0.3)
        assert (
            accelerator.name == "tcg" and why in accelerator.reason and "exists but does not work" in accelerator.reason
        )
    assert runs(tmp_path) == 1


def test_a_failure_is_tried_again_after_a_day_another_kvm_at_once_and_nonsense_is_ignored(tmp_path: Path) -> None:
    memory = tmp_path / "memory.json"
    assert probe_with(tmp_path, "exit 1").name == "tcg"
    kept = json.loads(memory.read_text())
    memory.write_text(json.dumps(kept | {"when": time.time() - 25 * 3600}))
    assert probe_with(tmp_path, "exit 67").name == "kvm"
    memory.write_text(json.dumps(kept | {"key": "another machine"}))
    assert probe_with(tmp_path, "exit 67").name == "kvm"
    for nonsense in ("", "[]", '{"key": 1}', "\0"):
        memory.write_text(nonsense)
        assert probe_with(tmp_path, "exit 67").name == "kvm"
    assert runs(tmp_path) == 7


def test_no_kvm_or_no_permission_means_tcg_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = fake_qemu(tmp_path, "exit 67")
    assert "does not exist" in probe(program=program, device=tmp_path / "kvm").reason
    (tmp_path / "kvm").touch()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "kvm" and access(path, mode))
    accelerator = probe(program=program, device=tmp_path / "kvm", memory=tmp_path / "m")
    assert accelerator.name == "tcg" and "adduser USER kvm" in accelerator.reason


def test_kvm_that_fails_a_guest_later_is_not_trusted_again(tmp_path: Path) -> None:
    assert probe_with(tmp_path, "exit 67").name == "kvm"
    accelerator.distrust_kvm(
        "lb1 stopped", program=f"{tmp_path}/qemu-fake", device=tmp_path / "kvm", memory=tmp_path / "memory.json"
    )
    fallback = probe_with(tmp_path, "exit 67")
    assert fallback.name == "tcg" and "failed a guest: lb1 stopped" in fallback.reason


def test_a_qemu_that_refuses_its_arguments_shows_its_words_command_and_exit_code(tmp_path: Path) -> None:
    program = fake_qemu(tmp_path, "echo 'qemu: -m 64: cannot set up guest memory' >&2; exit 1")
    with pytest.raises(VmNotStarted) as caught:
        launch(VmSpec("lb1", 64, kernel=KERNEL), tmp_path / "run", TCG, program=program)
    text = caught.value.text()
    assert "QEMU ended with exit code 1" in text and "| qemu: -m 64: cannot set up guest memory" in text
    assert "-name lb1 -nodefaults" in text and caught.value.exit_code == 5


def test_a_qemu_that_does_not_answer_is_an_error_and_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ndakit.machine.vm._START_S", 0.3)
    program = fake_qemu(tmp_path, f"echo $$ >{tmp_path}/pid; exec sleep 60")
    with pytest.raises(VmNotStarted, match="QEMU did not answer"):
        launch(VmSpec("lb1", 64, kernel=KERNEL), tmp_path / "run", TCG, program=program)
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_the_same_machine_cannot_run_twice_from_one_folder(tmp_path: Path) -> None:
    with hold(tmp_path / "lb1.lock"), pytest.raises(WorkspaceBusy):
        launch(VmSpec("lb1", 64, kernel=KERNEL), tmp_path, TCG, program=fake_qemu(tmp_path, ""))


def test_a_machine_that_was_never_started_says_so(tmp_path: Path) -> None:
    from ndakit.machine.vm import Vm

    machine = Vm(VmSpec("lb1", 64, kernel=KERNEL), tmp_path, TCG)
    assert not machine.alive and machine.status() == "off"
    with pytest.raises(VmNotRunning, match="not running"):
        machine.freeze()
    with pytest.raises(ValueError, match="without agent_serial"):
        _ = machine.agent_path


def test_a_child_dies_with_us_even_if_we_are_killed_and_even_before_it_could_arrange_that(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom ndakit.core import process\n"
        "c = process.spawn(['sleep', '60'], log=Path(sys.argv[1]))\nprint(c.pid, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    wait_gone(pid)
    orphan = subprocess.run(["/bin/sh", "-c", process._IF_PARENT_LIVES, "1", "echo", "started"], capture_output=True)
    assert orphan.stdout == b"" and orphan.returncode != 0


def wait_gone(pid: int) -> None:
    """Wait until a process is gone (a zombie that nobody has collected yet is gone as well)."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} is still there")
