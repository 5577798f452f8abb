"""Real QEMU, real kernels: boots, consoles, wires, faults, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndakit.core import process
from ndakit.core.deadline import Deadline
from ndakit.lab.switch import Switch, SwitchPort
from ndakit.machine.accelerator import TCG, find_qemu, probe
from ndakit.machine.console_errors import ConsoleClosed, ConsoleSilent, GuestPanicked
from ndakit.machine.qmp import MonitorRefused
from ndakit.machine.spec import Bus, Disk, DiskFormat, Nic, VmSpec
from ndakit.machine.vm import Vm, VmNotRunning, VmNotStarted, launch
from ndakit.node.errors import CommandTimeout
from ndakit.node.shell import host_over
from places import SUPPORT
from vm_guest import APPEND, guest

BOOT_S = 120.0


def machine(name: str, *options: str, port: SwitchPort | None = None, disks: tuple[Disk, ...] = ()) -> VmSpec:
    """A test guest, with one card if there is a port; `options` go to its kernel's command line."""
    made, number = guest(), sum(name.encode()) % 250
    nics = (Nic("eth0", f"52:54:00:00:00:{number:02x}", port),) if port else ()
    return VmSpec(
        name, 96, disks, nics, kernel=made.kernel, initrd=made.initrd, append=" ".join((APPEND, *options)),
        agent_serial="guest.agent" in options,
    )  # fmt: skip


def ready(vm: Vm) -> Vm:
    vm.console.activate(Deadline(BOOT_S, f"the shell of {vm.spec.name}"))
    return vm


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    with launch(machine("one", "guest.chatter", "guest.agent"), tmp_path_factory.mktemp("one"), TCG) as vm:
        yield ready(vm)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Switch, Vm, Vm]]:
    """Two machines on one segment: each test leaves them running, thawed and connected."""
    folder = tmp_path_factory.mktemp("pair")
    with Switch() as switch, contextlib.ExitStack() as stack:
        vms = [
            stack.enter_context(
                launch(machine(name, f"guest.addr0=10.0.0.{n}/24", port=switch.port("lan", name)), folder, TCG)
            )
            for n, name in ((1, "left"), (2, "right"))
        ]
        yield switch, ready(vms[0]), ready(vms[1])


def pings(vm: Vm, address: str = "10.0.0.2", count: int = 1) -> bool:
    return vm.console.run(f"ping -c {count} -W 1 {address}").rc == 0


def wait_gone(pid: int) -> None:
    """Wait until a process is gone (a zombie that nobody has collected yet is gone as well)."""
    for _ in range(250):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} is still there")


# -- the console of a guest whose kernel talks all the time ------------------------------------------------------------


def test_commands_work_in_busybox_ash_while_the_kernel_talks(one: Vm) -> None:
    for number in range(20):
        ran = one.console.run(f"seq 1 {number}; echo err >&2; exit {number}")
        expected = "".join(f"{n}\n" for n in range(1, number + 1))
        assert (ran.rc, ran.stdout, ran.stderr) == (number, expected, "err\n")
    assert "chatter" in one.console.text


def test_long_commands_and_binary_files_cross_a_busy_console_whole(one: Vm) -> None:
    text = "".join(random.Random(3).choices("abcdefghij '\"$`\\äö€", k=10000))
    quoted = "'" + text.replace("'", "'\\''") + "'"
    assert one.console.run(f"printf %s {quoted}", 60).stdout == text
    assert one.console.run("head -c 65536 /dev/urandom >/tmp/random").rc == 0
    data = one.console.get("/tmp/random", timeout_s=60)
    assert len(data) == 65536
    assert one.console.run("md5sum </tmp/random").stdout.split()[0] == hashlib.md5(data).hexdigest()


def test_a_hanging_command_is_killed_with_its_children(one: Vm) -> None:
    with pytest.raises(CommandTimeout):
        one.console.run("sleep 7777 & sleep 8888", timeout_s=2)
    assert one.console.run("ps | grep -c '[s]leep [78]'").stdout.strip() == "0"


def test_commands_leave_no_processes_behind(one: Vm) -> None:
    def lasting() -> set[str]:
        """The numbers of the programs that stay: the guest's own loops start short ones all the time, and the kernel
        its threads, which are in brackets."""
        samples = []
        for _ in range(4):
            lines = one.console.run("ps").stdout.splitlines()
            samples.append({line.split()[0] for line in lines if "[" not in line})
            time.sleep(0.3)
        return set.intersection(*samples)

    before = lasting()
    for _ in range(5):
        one.console.run("true")
    assert lasting() <= before
    one.console.run("sleep 30 >/dev/null 2>&1 &")  # what is left behind on purpose is seen
    assert len(lasting() - before) == 1


def test_commands_work_while_a_program_writes_to_the_console_as_well(tmp_path: Path) -> None:
    with launch(machine("one", "guest.babble"), tmp_path, TCG) as vm:
        for lines in (0, 40, 80, 120, 200, 280):
            assert ready(vm).console.run(f"seq 1 {lines}; exit 7").stdout.count("\n") == lines
        assert vm.console.text.count("babble") > 4


def test_testinfra_works_over_a_real_console(one: Vm) -> None:
    host = host_over(one.console)
    assert host.check_output("hostname") == "guest"
    assert host.file("/etc/profile").contains("PS1")
    assert host.run("exit 9").rc == 9


def test_the_log_has_the_console_from_its_first_byte(one: Vm) -> None:
    text = one.console_log.read_bytes().decode(errors="replace")
    assert "Linux version" in text[:400] and "Please press Enter" in text
    assert text[:10000] == one.console.text[:10000]


def test_the_agent_s_port_is_a_stream_socket_of_its_own_that_can_be_opened_again(one: Vm) -> None:
    for word in ("one", "two"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire:
            wire.settimeout(10)
            wire.connect(str(one.agent_path))
            wire.sendall(f"{word}\n".encode())
            assert wire.recv(100) == f"agent: {word}\n".encode()


# -- wires and faults --------------------------------------------------------------------------------------------------


def test_two_machines_see_each_other_and_every_fault_does_what_it_says(pair: tuple[Switch, Vm, Vm]) -> None:
    switch, left, right = pair
    a, b = switch.ports("lan")
    assert pings(left)
    switch.cut(b)
    assert not pings(left)
    switch.heal(b)
    assert pings(left)
    switch.block(a, b)
    assert not pings(left)
    switch.unblock(a, b)
    switch.delay(b, 150)
    took = re.search(r"time=([\d.]+) ms", left.console.run("ping -c 1 -W 2 10.0.0.2").stdout)
    assert took is not None and 150 <= float(took[1]) < 400
    switch.delay(b, 0)
    left.set_link("eth0", up=False)
    assert left.console.run("cat /sys/class/net/eth0/carrier").stdout == "0\n"
    assert not pings(right, "10.0.0.1")
    left.set_link("eth0", up=True)
    Deadline(10, "the carrier").wait_until(lambda: pings(left))
    with pytest.raises(MonitorRefused, match="eth7"):
        left.set_link("eth7", up=False)
    counters = switch.counters(a)
    assert counters.in_frames and counters.out_frames and counters.drops.get("error", 0) == 0


def test_a_frozen_machine_is_silent_and_goes_on_after_thawing(pair: tuple[Switch, Vm, Vm]) -> None:
    _, left, right = pair
    begun_s = time.monotonic()
    right.freeze()
    assert right.status() == "paused" and not pings(left)
    assert right.wait_event("STOP", Deadline(5, "STOP"), after_s=begun_s).time_s >= begun_s
    right.thaw()
    assert right.status() == "running" and pings(left) and right.console.run("echo on").stdout == "on\n"


def test_a_machine_without_power_is_gone_at_once_and_can_be_switched_on_again(pair: tuple[Switch, Vm, Vm]) -> None:
    _, left, right = pair
    pid = right.pid
    begun_s = time.monotonic()
    right.power_off()
    assert time.monotonic() - begun_s < 1.0
    wait_gone(pid)
    assert not right.alive and right.status() == "off" and not pings(left)
    with pytest.raises(VmNotRunning):
        right.freeze()
    with pytest.raises(ConsoleClosed):
        right.console.send(b"x")
    right.power_on()
    assert right.pid != pid
    ready(right)
    Deadline(10, "the machine that came back").wait_until(lambda: pings(left))


def test_500_kb_cross_the_switch_unharmed(pair: tuple[Switch, Vm, Vm]) -> None:
    switch, left, right = pair
    dropped = [Counter(switch.counters(port).drops) for port in switch.ports()]
    right.console.run("head -c 500000 /dev/urandom >/tmp/x; httpd -p 5000 -h /tmp")
    checksum = left.console.run("wget -q -O /tmp/x http://10.0.0.2:5000/x; md5sum </tmp/x", 60).stdout
    assert checksum == right.console.run("md5sum </tmp/x").stdout
    now = [Counter(switch.counters(port).drops) for port in switch.ports()]
    assert all(set(after - before) <= {"absent"} for before, after in zip(dropped, now, strict=True)), (dropped, now)


# -- buttons -----------------------------------------------------------------------------------------------------------


def test_reset_power_button_and_the_guest_s_own_poweroff(tmp_path: Path) -> None:
    with launch(machine("one"), tmp_path, TCG) as vm:
        ready(vm).console.run("touch /tmp/mark")
        vm.reset()
        assert not vm.console.active
        assert ready(vm).console.run("ls /tmp/mark").rc != 0
        vm.powerdown()
        assert vm.wait_gone(30) and vm.facts() == "switched off"
        assert "SHUTDOWN" in {event.name for event in vm.events}
        vm.power_on()
        ready(vm).console.send(b"")
        with pytest.raises(ConsoleClosed, match="switched off"):
            vm.console.run("poweroff -f; sleep 60")
        assert vm.wait_gone(10)


# -- disks -------------------------------------------------------------------------------------------------------------


def image_of(tmp_path: Path, form: DiskFormat) -> Path:
    """A small image with known first words; a raw one packed, with something behind its stream as OpenWrt has it."""
    raw, image = tmp_path / "raw", tmp_path / "disk.img.gz"
    raw.write_bytes(b"this is the disk" + bytes(1 << 20))
    if form == "raw":
        image.write_bytes(gzip.compress(raw.read_bytes()) + b"trailer")
    else:
        process.run(["qemu-img", "convert", "-f", "raw", "-O", form, raw, image], timeout_s=30)
    return image


@pytest.mark.parametrize(
    ("form", "bus", "device"),
    [("raw", "sata", "sda"), ("qcow2", "ide", "sda"), ("vmdk", "virtio", "vda")],
)
def test_a_guest_sees_its_disk(tmp_path: Path, form: DiskFormat, bus: Bus, device: str) -> None:
    disk = Disk(image_of(tmp_path, form), form, bus)
    with launch(machine("one", f"guest.disk={device}", disks=(disk,)), tmp_path, TCG, cache=tmp_path / "c") as vm:
        vm.console.wait_for("DISK this is the disk", Deadline(BOOT_S, "the disk's first words"))


def test_what_a_guest_writes_lasts_as_long_as_its_machine(tmp_path: Path) -> None:
    image = image_of(tmp_path, "raw")
    before = image.read_bytes()
    spec = machine("one", "guest.disk=vda", disks=(Disk(image),))
    with launch(spec, tmp_path / "run", TCG, cache=tmp_path / "cache") as vm:
        ready(vm).console.run("printf changed >/dev/vda; sync")
        vm.power_off()
        vm.power_on()  # the same machine
        vm.console.wait_for("DISK changed", Deadline(BOOT_S, "what was written"))
    assert image.read_bytes() == before
    assert [p.suffix for p in (tmp_path / "run").iterdir() if p.suffix not in (".log", ".lock")] == []
    with launch(spec, tmp_path / "run", TCG, cache=tmp_path / "cache") as vm:
        vm.console.wait_for("DISK this is the disk", Deadline(BOOT_S, "the disk's first words"))


# Writes "BOOTED\n" to the first serial port, then halts: mov si,msg; lodsb; test al,al; jz; mov dx,0x3f8; out dx,al.
BOOT_SECTOR = bytes.fromhex("31c08ed8be157cac84c07406baf803eeebf5f4ebfd") + b"BOOTED\n\0"


def test_a_disk_boots_by_bios(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(BOOT_SECTOR.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    for bus in ("virtio", "sata", "ide"):
        spec = VmSpec("one", 32, (Disk(image, bus=bus),), vga=bus == "sata")
        with launch(spec, tmp_path / "run", TCG) as vm:
            vm.console.wait_for("BOOTED", Deadline(30, "the boot sector"))


def test_a_disk_boots_by_efi(tmp_path: Path) -> None:
    made, image = guest(), tmp_path / "disk.img"
    image.write_bytes(bytes(64 << 20))
    script = f"fs0:\\vmlinuz.efi initrd=\\initrd {APPEND}\r\n"
    (tmp_path / "startup.nsh").write_text(script)
    process.run(["mformat", "-i", image, "-F", "::"], timeout_s=30)
    for source, name in ((made.kernel, "vmlinuz.efi"), (made.initrd, "initrd"), (tmp_path / "startup.nsh", "")):
        process.run(["mcopy", "-i", image, source, f"::{name or source.name}"], timeout_s=30)
    spec = VmSpec("one", 192, (Disk(image),), firmware="efi")
    with launch(spec, tmp_path / "run", TCG) as vm:
        assert ready(vm).console.run("ls -d /sys/firmware/efi").rc == 0


# -- when it goes wrong ------------------------------------------------------------------------------------------------


def test_a_panic_at_boot_is_told_at_once(tmp_path: Path) -> None:
    with launch(machine("one", "guest.panic"), tmp_path, TCG) as vm:
        with pytest.raises(GuestPanicked, match="sysrq triggered crash") as caught:
            vm.console.activate(Deadline(BOOT_S, "the shell"))
        assert str(vm.console_log) in caught.value.where


def test_a_console_that_opens_no_shell_is_told_with_its_last_lines(tmp_path: Path) -> None:
    with (
        launch(machine("one", "guest.silent"), tmp_path, TCG) as vm,
        pytest.raises(ConsoleSilent, match=r"waited 6 s(.|\n)*\|") as caught,
    ):
        vm.console.activate(Deadline(6, "the shell"))
    assert "QEMU running, tcg" in caught.value.where


def test_a_disk_that_does_not_boot_is_told_with_the_firmware_s_words(tmp_path: Path) -> None:
    (tmp_path / "empty.img").write_bytes(bytes(1 << 20))
    with (
        launch(VmSpec("one", 32, (Disk(tmp_path / "empty.img"),)), tmp_path, TCG) as vm,
        pytest.raises(ConsoleSilent, match="it has shown nothing at all") as caught,
    ):
        vm.console.activate(Deadline(4, "the shell"))
    assert "the firmware found nothing to boot from" in caught.value.where


def test_a_qemu_that_is_killed_is_told_with_the_signal(tmp_path: Path) -> None:
    with launch(machine("one"), tmp_path, TCG) as vm:
        threading.Timer(0.5, lambda: os.kill(vm.pid, signal.SIGKILL)).start()
        with pytest.raises(ConsoleClosed, match="was ended by SIGKILL"):
            vm.console.activate(Deadline(BOOT_S, "the shell"))


def test_the_real_qemu_s_refusal_is_shown(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"no kernel")
    with pytest.raises(VmNotStarted, match=r"exit code 1\n(.|\n)*\| .*kernel") as caught:
        launch(VmSpec("one", 64, kernel=tmp_path / "kernel"), tmp_path / "run", TCG)
    assert "-kernel" in caught.value.where


def test_the_probe_s_answer_boots_a_machine_here(tmp_path: Path) -> None:
    accelerator = probe(memory=tmp_path / "memory.json")
    assert accelerator.reason
    with launch(machine("one"), tmp_path, accelerator) as vm:
        assert ready(vm).console.run("echo up").stdout == "up\n"


def test_the_boot_sector_of_the_probe_runs_to_its_end_under_tcg() -> None:
    from ndakit.machine.accelerator import _try

    assert _try(find_qemu(), TCG, 20.0) is None


# -- nothing is left behind --------------------------------------------------------------------------------------------

CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from vm_guest import APPEND, guest
from ndakit.machine.accelerator import TCG
from ndakit.lab.switch import Switch
from ndakit.machine.vm import launch
from ndakit.machine.spec import Nic, VmSpec
made = guest()
with Switch() as switch:
    nic = Nic("eth0", "52:54:00:00:00:01", switch.port("lan", "a"))
    spec = VmSpec("one", 64, nics=(nic,), kernel=made.kernel, initrd=made.initrd, append=APPEND, agent_serial=True)
    print("starting", flush=True)
    with launch(spec, Path(sys.argv[2]), TCG) as vm:
        print(vm.pid, vm.agent_path.parent, switch.ports()[0].guest_path.parent, flush=True)
        time.sleep(60)
"""


def start_child(run_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(SUPPORT), str(run_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def machines_from(run_dir: Path) -> list[int]:
    """The processes that have the folder on their command line, without the child of the test."""
    numbers = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes()
            if str(run_dir).encode() in words and b"-nodefaults" in words:
                numbers.append(int(path.parent.name))
    return numbers


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_machine_outlives_us_and_a_later_run_works(tmp_path: Path, number: signal.Signals) -> None:
    child = start_child(tmp_path)
    assert child.stdout is not None
    assert child.stdout.readline() == "starting\n"
    pid, *folders = child.stdout.readline().split()
    assert Path(f"/proc/{pid}").exists()
    child.send_signal(number)
    child.wait(20)
    child.stdout.close()
    wait_gone(int(pid))
    if number == signal.SIGINT:  # an ordinary end: nothing at all is left
        assert not any(Path(folder).exists() for folder in folders)
    for folder in folders:
        if Path(folder).exists():
            os.utime(folder, (time.time() - 60, time.time() - 60))
    with launch(machine("one", "guest.agent"), tmp_path, TCG) as vm:  # the same name and folder
        assert ready(vm).console.run("echo up").stdout == "up\n"
        assert not any(Path(folder).exists() for folder in folders)


def test_no_machine_outlives_us_whenever_we_are_killed(tmp_path: Path) -> None:
    for milliseconds in range(0, 160, 8):
        child = start_child(tmp_path)
        assert child.stdout is not None
        assert child.stdout.readline() == "starting\n"
        time.sleep(milliseconds / 1000)
        child.kill()
        child.wait()
        child.stdout.close()
        time.sleep(0.15)
        for pid in machines_from(tmp_path):
            wait_gone(pid)


def test_two_labs_run_at_once(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        vms = []
        for lab in ("a", "b"):
            switch = stack.enter_context(Switch())
            spec = machine("one", "guest.addr0=10.0.0.1/24", port=switch.port("lan", "one"))
            vms.append(stack.enter_context(launch(spec, tmp_path / lab, TCG)))
        for lab, vm in zip("ab", vms, strict=True):
            assert ready(vm).console.run(f"echo {lab}").stdout == f"{lab}\n"


def test_machines_started_from_a_thread_live_on_when_that_ends(tmp_path: Path) -> None:
    started: list[Vm] = []
    thread = threading.Thread(target=lambda: started.append(launch(machine("one"), tmp_path, TCG)))
    thread.start()
    thread.join()
    with started[0] as vm:
        assert ready(vm).console.run("echo alive").stdout == "alive\n"


def test_many_machines_boot_together(tmp_path: Path) -> None:
    names = [f"m{n}" for n in range(4)]
    with Switch() as switch, contextlib.ExitStack() as stack:
        vms = [
            stack.enter_context(
                launch(machine(m, f"guest.addr0=10.0.0.{n}/24", port=switch.port("lan", m)), tmp_path, TCG)
            )
            for n, m in enumerate(names, 1)
        ]
        for vm in vms:
            ready(vm)
        assert all(pings(vms[0], f"10.0.0.{n}") for n in range(2, 5))


def test_the_clock_of_events_is_ours(one: Vm) -> None:
    before_s = time.monotonic()
    one.freeze()
    one.thaw()
    event = one.wait_event("RESUME", Deadline(5, "RESUME"), after_s=before_s)
    assert before_s < event.time_s <= time.monotonic()
