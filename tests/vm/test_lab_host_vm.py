"""Lab hosts in real virtual machines on a switch: two machines, two segments, many hosts, faults of known length."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import lab_hosts
from ndakit.core import locks, process, workspace
from ndakit.core.deadline import Deadline
from ndakit.lab import host as lab_host
from ndakit.lab.host import Host, HostInterface, HostSpec, LabHostLost, LabHosts, Polled
from ndakit.lab.switch import Switch, SwitchPort
from ndakit.machine import accelerator, saved
from ndakit.machine.spec import Nic, VmSpec
from ndakit.machine.vm import Vm, launch
from places import ROOT

pytestmark = pytest.mark.timed

BOOT_S = 120.0
V4, V6 = "192.0.2.1", "2001:db8::1"


@dataclass
class Machine:
    """A running machine, its hosts and its ports."""

    vm: Vm
    hosts: LabHosts
    ports: dict[str, SwitchPort]


@dataclass
class Net:
    """Two machines on two segments."""

    one: Machine
    two: Machine
    switch: Switch


def start(number: int, switch: Switch, image: lab_host.LabImage, folder: Path) -> tuple[Vm, dict[str, SwitchPort]]:
    name = f"lab{number}"
    ports = {segment: switch.port(segment, f"{name}-{segment}") for segment in ("lan", "wan")}
    nics = [Nic(segment, mac(number, segment), port) for segment, port in ports.items()]
    return launch(image.machine(name, nics), folder, accelerator.probe()), ports


def mac(number: int, segment: str) -> str:
    return f"52:54:00:00:{number:02x}:{'01' if segment == 'lan' else '02'}"


def connect(number: int, vm: Vm) -> LabHosts:
    segments = {segment: mac(number, segment) for segment in ("lan", "wan")}
    return LabHosts.connect(vm.agent_path, segments=segments, timeout_s=BOOT_S)


@pytest.fixture(scope="module")
def image() -> lab_host.LabImage:
    return lab_host.image.build(ROOT / "lab", workspace.cache() / "lab")


@pytest.fixture(scope="module")
def net(image: lab_host.LabImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    folder = tmp_path_factory.mktemp("net")
    with Switch() as switch:
        one, ports_one = start(1, switch, image, folder)
        with one:
            two, ports_two = start(2, switch, image, folder)
            with two, connect(1, one) as hosts_one, connect(2, two) as hosts_two:
                hosts_one.add(lab_hosts.spec("web", 1)).web(80)
                hosts_one.add(lab_hosts.spec("far", 1, segment="wan", gateways=("198.51.100.254", "2001:db8:1::254")))
                hosts_two.add(lab_hosts.spec("client", 2))
                yield Net(Machine(one, hosts_one, ports_one), Machine(two, hosts_two, ports_two), switch)


@pytest.fixture
def client(net: Net) -> Host:
    return net.two.hosts.hosts["client"]


@pytest.mark.parametrize(("at", "own"), [(V4, "192.0.2.2"), (f"[{V6}]", "2001:db8::2")])
def test_a_client_in_one_machine_is_served_by_a_host_in_the_other(client: Host, at: str, own: str) -> None:
    answer = client.get(f"http://{at}/")
    assert (answer.status, answer.server, answer.seen["client"]) == (200, "web", own)
    load = client.load(f"http://{at}/", 100, at_once=4)
    assert dict(load.share) == {"web": 100}
    assert client.ping(at.strip("[]"), count=5).ok


def test_a_router_joins_the_two_segments(net: Net) -> None:
    net.one.hosts.hosts["far"].web(80)
    cards = (
        HostInterface("lan", "02:00:00:00:01:01", ("192.0.2.254/24", "2001:db8::254/64")),
        HostInterface("wan", "02:00:00:00:01:02", ("198.51.100.254/24", "2001:db8:1::254/64")),
    )
    net.two.hosts.add(HostSpec("router", cards, forwarding=True))
    near = net.one.hosts.add(lab_hosts.spec("near", 3, gateways=("192.0.2.254", "2001:db8::254")))
    assert near.get("http://198.51.100.1/").seen["client"] == "192.0.2.3"
    assert near.get("http://[2001:db8:1::1]/").seen["client"] == "2001:db8::3"
    net.two.hosts.hosts["router"].link(up=False, index=1)
    assert not near.get("http://198.51.100.1/", timeout_s=0.5).ok


def test_tagged_hosts_of_two_machines_reach_each_other_and_nobody_else(net: Net, client: Host) -> None:
    first = net.one.hosts.add(lab_hosts.spec("tagged-1", 31, vlan=10))
    net.two.hosts.add(lab_hosts.spec("tagged-2", 32, vlan=10))
    net.two.hosts.add(lab_hosts.spec("other-tag", 33, vlan=11))
    assert first.ping("192.0.2.32").ok and first.ping("2001:db8::32").ok
    assert not first.ping("192.0.2.33", timeout_s=0.3).ok
    assert not first.ping("192.0.2.2", timeout_s=0.3).ok


def polled_during(client: Host, url: str, fault: Iterator[None], *, interval_s: float = 0.02) -> Polled:
    """Poll, and run the fault's begin and end once answers come."""
    with client.poller(url, interval_s=interval_s) as poller:
        poller.wait_until(lambda p: p.answers_in_a_row() >= 10, Deadline(20, "answers"))
        next(fault)
        poller.wait_until(lambda p: p.answers_in_a_row() >= 10 and p.errors.total() > 0, Deadline(20, "answers again"))
    return poller.read()


@pytest.mark.alone
@pytest.mark.parametrize("url", [f"http://{V4}/", f"http://[{V6}]/", f"icmp://{V4}"])
@pytest.mark.parametrize("interval_s", [0.02, 0.005])
def test_a_cut_cable_is_measured_within_the_resolution(net: Net, client: Host, url: str, interval_s: float) -> None:
    times: list[float] = []

    def fault() -> Iterator[None]:
        times.append(time.monotonic())
        net.switch.cut(net.one.ports["lan"])
        time.sleep(0.7)
        net.switch.heal(net.one.ports["lan"])
        times.append(time.monotonic())
        yield

    result = polled_during(client, url, fault(), interval_s=interval_s)
    outage_ms = 1000 * (times[1] - times[0])
    gap = result.longest_gap
    assert gap is not None
    print(f"{url} every {1000 * interval_s:g} ms: outage {outage_ms:.1f}, gap {gap.length_ms:.1f}, "  # noqa: T201  # figure
          f"resolution {result.resolution_ms:.1f}, late {result.late_ms:.1f} ms")  # fmt: skip
    # The kernel resends a lost ARP or ND request every 20 ms here, which adds to an answer's time.
    assert outage_ms - 5 <= gap.length_ms <= outage_ms + result.resolution_ms + 25
    assert gap.at_least_ms <= outage_ms + 25


@pytest.mark.alone
def test_a_frozen_machine_is_measured_within_the_resolution(net: Net, client: Host) -> None:
    times: list[float] = []

    def fault() -> Iterator[None]:
        net.one.vm.freeze()
        times.append(time.monotonic())
        time.sleep(1.0)
        times.append(time.monotonic())
        net.one.vm.thaw()
        yield

    clock = net.two.hosts.clock()
    result = polled_during(client, f"http://{V4}/", fault())
    gap = result.longest_gap
    assert gap is not None and gap.end_ms is not None
    frozen_ms = 1000 * (times[1] - times[0])
    assert frozen_ms <= gap.length_ms <= frozen_ms + result.resolution_ms + 50
    # Seen on our clock, it began and ended when it did.
    assert gap.begin_ms == pytest.approx(clock.theirs_ms(times[0]), abs=result.resolution_ms + clock.error_ms + 25)
    assert gap.end_ms == pytest.approx(clock.theirs_ms(times[1]), abs=result.resolution_ms + clock.error_ms + 50)


@pytest.mark.alone
def test_the_machine_s_clock_runs_as_ours(net: Net) -> None:
    before, started_s = net.two.hosts.clock(), time.monotonic()
    time.sleep(3)
    after, took_s = net.two.hosts.clock(), time.monotonic() - started_s
    drift_ms = abs(after.offset_ms - before.offset_ms)
    assert drift_ms <= took_s * 1.0 + before.error_ms + after.error_ms  # 1 ms per second


@pytest.fixture(scope="module")
def key(net: Net) -> str:
    """A private key in OpenSSH's form; its public half opens the SSH servers of `sshd`."""
    host = net.one.hosts.hosts["web"]
    host.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/run/user-key"], timeout_s=30)
    script = """mkdir -p -m 700 /run/keys && cat /run/user-key.pub >/run/keys/authorized_keys &&
        dropbearkey -t ed25519 -f /run/host-key >/dev/null 2>&1"""
    host.run(["sh", "-c", script], timeout_s=30)
    return host.run(["cat", "/run/user-key"]).stdout


def sshd(net: Net, port: int, *options: str) -> None:
    words = (
        f"dropbear -r /run/host-key -D /run/keys -E -p {port} -P /run/dropbear-{port} {' '.join(options)} 2>/dev/null"
    )
    net.one.hosts.hosts["web"].run(["sh", "-c", words], timeout_s=30)


def test_ssh_shows_banner_and_methods_and_lets_a_key_in(net: Net, client: Host, key: str) -> None:
    sshd(net, 22, "-s")
    for address in (V4, V6):
        probe = client.ssh_probe(address, timeout_s=20)
        assert probe.banner.startswith("SSH-2.0-dropbear")
        assert probe.methods == ("publickey",)
        assert not probe.open_door
        ran = client.ssh_run(
            address, key, ["sh", "-c", 'echo "it\'s $SSH_CONNECTION"; cat; exit 7'], stdin=b"in", timeout_s=30
        )
        assert ran.returncode == 7
        assert ran.stdout.startswith("it's ") and ran.stdout.endswith("in")
    assert client.run(["sh", "-c", "ls /run /tmp | grep -c key-"], check=False).stdout == "0\n"


def test_ssh_with_passwords_or_a_wrong_key_is_told_from_it(net: Net, client: Host, key: str) -> None:
    sshd(net, 2222)
    assert client.ssh_probe(V4, 2222, timeout_s=20).methods == ("publickey", "password")
    client.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/run/other-key"], timeout_s=30)
    ran = client.ssh_run(V4, client.run(["cat", "/run/other-key"]).stdout, ["true"], port=2222, timeout_s=30)
    assert ran.returncode == 255
    assert "Permission denied" in ran.stderr


def test_no_ssh_server_is_a_result(client: Host, key: str) -> None:
    probe = client.ssh_probe(V4, 2022)
    assert (probe.banner, probe.methods) == ("", ())
    assert "refused" in probe.error
    assert client.ssh_run(V4, key, ["true"], port=2022).returncode == 255


def test_ten_hosts_with_a_poller_fit_into_one_machine(net: Net) -> None:
    hosts = [net.two.hosts.add(lab_hosts.spec(f"host-{n}", n, segment="wan")) for n in range(50, 60)]
    hosts[0].web(80)
    with hosts[1].poller("http://198.51.100.50/") as poller:
        poller.wait_until(lambda p: p.answers_in_a_row() > 10, Deadline(20, "answers"))
    free = hosts[2].run(["sh", "-c", "sed -n 's/MemAvailable: *//p' /proc/meminfo"]).stdout
    print("available with 13 hosts:", free)  # noqa: T201  # a figure
    assert int(free.split()[0]) > 20_000


def test_a_machine_that_ends_is_noticed(image: lab_host.LabImage, tmp_path: Path) -> None:
    with Switch() as switch:
        vm, _ = start(3, switch, image, tmp_path)
        with vm, connect(3, vm) as hosts:
            host = hosts.add(lab_hosts.spec("web", 9))
            vm.power_off()
            with pytest.raises(LabHostLost):
                host.run(["true"])


# -- from a state that was kept ---------------------------------------------------------------------------------------


def card(number: int, address: str) -> HostInterface:
    return HostInterface("lan", f"02:00:00:00:02:{number:02x}", (f"{address}/24", f"2001:db8::{number}/64"))


def mac_of_card(number: int) -> str:
    return f"52:54:00:00:0a:{number:02x}"


@pytest.fixture(scope="module")
def kept(image: lab_host.LabImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a machine that had booted, with one of its cards plugged in."""
    folder = tmp_path_factory.mktemp("kept")
    with Switch() as switch, launch(alike(1, switch, image, ("lan",)), folder, accelerator.TCG) as vm:
        LabHosts.connect(vm.agent_path, segments={}, timeout_s=BOOT_S).close()
        place = saved.place(vm.spec, accelerator.TCG, cache=folder)
        assert place is not None
        assert saved.keep(vm, place)
        assert vm.status() == "running", "it goes on itself"
        LabHosts.connect(vm.agent_path, segments={}).close()
    return place


def alike(number: int, switch: Switch, image: lab_host.LabImage, segments: tuple[str, ...]) -> VmSpec:
    """Machines that differ in their names and cables only."""
    ports = [switch.port(segment, f"kept{number}-{segment}") for segment in segments]
    nics = [Nic(f"seg{i}", mac_of_card(i), ports[i] if i < len(ports) else None) for i in range(3)]
    return image.machine(f"kept{number}", nics)


def test_machines_from_a_state_are_as_good_as_booted_ones(image: lab_host.LabImage, kept: Path, tmp_path: Path) -> None:
    segments = {"wan": mac_of_card(0), "lan": mac_of_card(1)}
    drawn: list[str] = []
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(Switch())
        hosts = []
        for number in (1, 2):
            spec = alike(number, switch, image, ("wan", "lan"))
            vm = stack.enter_context(launch(spec, tmp_path, accelerator.TCG, state=kept))
            assert vm.resumed
            connected = stack.enter_context(LabHosts.connect(vm.agent_path, segments=segments))
            connected.resumed()
            hosts.append(connected.add(HostSpec(f"h{number}", (card(number, f"192.0.2.{number}"),))))
            # The wall clock is ours, and the two draw other random numbers, although they were one machine.
            words = "date +%s.%N; od -An -N16 -tx1 /dev/urandom"
            clock, numbers = hosts[-1].run(["sh", "-c", words]).stdout.split("\n", 1)
            assert abs(float(clock) - time.time()) < 5
            drawn.append(numbers)
        assert drawn[0] != drawn[1]
        hosts[0].web(80)
        for at in ("192.0.2.1", "[2001:db8::1]"):
            assert dict(hosts[1].load(f"http://{at}/", 50, at_once=4).share) == {"h1": 50}


def test_a_state_that_qemu_does_not_take_is_removed_and_the_machine_boots(
    image: lab_host.LabImage, kept: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.state"
    broken.write_bytes(kept.read_bytes()[: kept.stat().st_size // 2])
    with Switch() as switch:
        spec = alike(3, switch, image, ("lan",))
        with launch(spec, tmp_path, accelerator.TCG, state=broken) as vm:
            assert not vm.resumed and not broken.exists()
            LabHosts.connect(vm.agent_path, segments={}, timeout_s=BOOT_S).close()


def test_a_machine_that_is_switched_on_again_boots(image: lab_host.LabImage, kept: Path, tmp_path: Path) -> None:
    with Switch() as switch, launch(alike(4, switch, image, ()), tmp_path, accelerator.TCG, state=kept) as vm:
        assert vm.resumed and b"ready" not in vm.console_log.read_bytes()
        vm.power_off()
        vm.power_on()
        assert not vm.resumed
        LabHosts.connect(vm.agent_path, segments={}, timeout_s=BOOT_S).close()
        assert b"lab host: ready for its control port" in vm.console_log.read_bytes()


# -- making the image -------------------------------------------------------------------------------------------------


def build_command(cache: Path) -> list[str | Path]:
    return [sys.executable, ROOT / "lab/host/build.py", "--cache", cache]


def copied_cache(image: lab_host.LabImage, folder: Path) -> Path:
    """A cache with the downloads of the real one (as hard links) and nothing made of them."""
    real = image.root.parents[2]
    for name in ("debs", "requests"):
        shutil.copytree(real / name, folder / name, copy_function=os.link)
    return folder


def test_the_same_inputs_give_the_same_bytes_and_a_killed_build_leaves_no_finished_one(
    image: lab_host.LabImage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with locks.scratch_folder(image.root.parents[2] / "scratch", "same") as folder:
        cache = copied_cache(image, folder)
        made = cache / "lab-hosts"
        child = process.spawn(build_command(cache), log=tmp_path_factory.mktemp("log") / "log")
        Deadline(120, "the build").wait_until(lambda: bool(list(made.glob("*.partial"))), every_s=0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
        assert [p.name for p in made.iterdir() if p.suffix != ".partial"] == ["lock"]
        old = os.umask(0o077)
        try:
            again = lab_host.image.build(ROOT / "lab", cache)
        finally:
            os.umask(old)
        assert not list(made.glob("*.partial"))
        for name in ("kernel", "initrd", "root"):
            assert (again.root.parent / name).read_bytes() == (image.root.parent / name).read_bytes()


def test_a_full_disk_is_told_in_three_lines(image: lab_host.LabImage) -> None:
    cache = image.root.parents[2]
    script = 'mount -t tmpfs -o size=1m tmpfs "$1/lab-hosts" && shift && exec "$@"'
    words = ["unshare", "-Urm", "sh", "-c", script, "sh", cache, *build_command(cache)]
    done = process.run(words, timeout_s=60, check=False)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-3].startswith("error: there is no room")
    assert "free some space" in done.stderr.splitlines()[-1]


def test_a_machine_without_its_root_file_system_says_so_and_ends(image: lab_host.LabImage, tmp_path: Path) -> None:
    spec = replace(image.machine("bare", ()), disks=())
    with launch(spec, tmp_path, accelerator.probe()) as vm:
        assert vm.wait_gone(60)
    assert "lab host: there is no disk /dev/vda" in vm.console_log.read_text(errors="replace")


def test_a_machine_boots_in_seconds(image: lab_host.LabImage, tmp_path: Path) -> None:
    started_s = time.monotonic()
    with Switch() as switch:
        vm, _ = start(4, switch, image, tmp_path)
        with vm, connect(4, vm):
            took_s = time.monotonic() - started_s
    print(f"up after {took_s:.1f} s")  # noqa: T201  # a figure
    assert took_s < 30
