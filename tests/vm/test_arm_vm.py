"""ARM: images of a Dockstar's profile and of an ARM machine with EFI in virtual machines, answering at their VIP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import debian
import pytest
from standin import debian_roots, families, resolve
from standin.targets import TARGETS
from standin.tools import Tools

from ndakit.build import pipeline
from ndakit.core.deadline import Deadline
from ndakit.core.workspace import Workspace, cache
from ndakit.image.artifacts import Artifact, folder_of, images_of
from ndakit.imagebuilder import sources
from ndakit.load import load
from ndakit.machine import accelerator, disks
from ndakit.machine.boot_image import boot_images
from ndakit.machine.spec import Nic
from ndakit.machine.vm import launch
from pairs import Pair, running
from places import ROOT

DOCKSTAR = """\
name: shelf
release: 24.10.8
device: dockstar
access:
  ssh_keys: {me: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me}
  sources: {office: 192.168.7.0/25}
networks: {lan: {nics: [eth0], subnet: 192.168.7.0/24, gateway: 192.168.7.1, dns: [192.168.7.1]}}
nodes: {box: {addresses: {lan: 192.168.7.11}}}
vips: {www: {network: lan, address: 192.168.7.10}}
pools:
  web:
    check: {type: http, interval_s: 0.5, timeout_s: 1, rise: 2, fall: 2}
    servers: {web1: 192.168.7.21, web2: 192.168.7.22}
services: {web: {vip: www, port: 80, protocol: http, pool: web}}
"""


@pytest.fixture(scope="module")
def dockstar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with running(tmp_path_factory.mktemp("shelf"), "shelf", DOCKSTAR) as pair:
        yield pair


CLAIMS = (
    *("identity/box", "addresses/box", "daemons/box", "ssh/box", "statistics/box", "vips/one-holder", "service/web"),
    *("client-address/web", "check/web", "quiet/box"),
)


@pytest.mark.parametrize("name", CLAIMS)
def test_a_dockstar_s_image_keeps_what_it_claims(dockstar: Pair, name: str) -> None:
    outcome = dockstar.outcome(name)
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


def test_it_runs_programs_for_armv5_in_the_memory_of_a_dockstar(dockstar: Pair) -> None:
    lab = dockstar.lab
    assert lab.machine("box").spec.memory_mib == 128
    assert lab.run("box", "uname -m").strip() == "armv7l"  # the board's CPU; what runs on it is for the older one:
    flags = lab.run("box", "hexdump -s 36 -n 4 -e '1/4 \"%08x\"' /usr/sbin/haproxy")
    assert flags.strip() == "05000200"  # EABI 5, soft float
    assert "arm_xscale" in lab.run("box", "cat /etc/openwrt_release")
    free = next(line for line in lab.run("box", "free").splitlines() if line.startswith("Mem:"))
    assert int(free.split()[-1]) > 20_000, f"KiB available: {free}"


def test_the_image_is_the_one_to_flash(dockstar: Pair) -> None:
    folder = folder_of(dockstar.workspace, "shelf", "box")
    record = Artifact.load(folder).record
    assert [i.kind for i in record.images] == ["factory", "sysupgrade"]
    assert all("kirkwood-generic-seagate_dockstar-squashfs" in i.name for i in record.images)
    assert record.target == "kirkwood/generic"


def test_the_same_inputs_give_the_same_two_files(dockstar: Pair, tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/shelf.yaml").write_text(DOCKSTAR)
    again = Workspace(tmp_path)
    loaded = load.load(again, "shelf")
    pipeline.build(again, loaded, (), sources.choose("lab", None, again, loaded.profile))
    folders = (folder_of(place, "shelf", "box") for place in (dockstar.workspace, again))
    first, second = ([(i.name, i.sha256) for i in Artifact.load(f).record.images] for f in folders)
    assert first == second


@pytest.mark.parametrize("target", ["armsr/armv8", "kirkwood/generic"])
def test_every_kernel_module_of_an_arm_target_exists(target: str) -> None:
    folder = cache() / "lab"
    kernel = debian_roots.kernel(folder, TARGETS[target], Tools(folder))
    feed = resolve.feed(ROOT / "lab/imagebuilder/packages.toml", families.family("24.10.8", target))
    kernel.closure(m for p in feed.values() for m in p.modules)


def test_an_image_for_arm_machines_starts_by_efi_and_haproxy_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The firmware is Debian's (qemu-efi-aarch64), taken out of its package: it is large, and no task needs it."""
    firmware = debian.root(cache() / "lab", ["qemu-efi-aarch64"], name="firmware") / "usr/share/AAVMF"
    places = ((str(firmware / "AAVMF_CODE.fd"), str(firmware / "AAVMF_VARS.fd")),)
    monkeypatch.setattr(disks, "_EFI", {**disks._EFI, "aarch64": ("qemu-efi-aarch64", places)})
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/shelf.yaml").write_text(DOCKSTAR.replace("device: dockstar", "device: armsr-armv8"))
    workspace = Workspace(tmp_path)
    loaded = load.load(workspace, "shelf")
    pipeline.build(workspace, loaded, (), sources.choose("lab", None, workspace, loaded.profile))
    image = boot_images(loaded.profile, images_of(workspace, loaded, ("box",)))["box"]
    assert (image.architecture, image.firmware, image.kernel) == ("aarch64", "efi", None)
    nics = (Nic("eth0", "52:54:00:00:07:01"),)
    with launch(image.machine("box", nics), workspace.logs("vm"), accelerator.TCG) as machine:
        machine.console.activate(Deadline(240, "the console", where=str(machine.console_log)))
        ask = "wget -O /dev/null http://192.168.7.10/ 2>&1"
        answered = Deadline(120, "HAProxy", where=str(machine.console_log))
        answered.wait_until(lambda: "HTTP/1.1 503" in machine.console.run(ask, 30).stdout, every_s=0.5)
        assert machine.console.run("uname -m", 30).stdout.strip() == "aarch64"
        assert machine.console.run("cat /tmp/lab-unsupported", 30).stdout == ""
        assert "aarch64_generic" in machine.console.run("cat /etc/openwrt_release", 30).stdout
