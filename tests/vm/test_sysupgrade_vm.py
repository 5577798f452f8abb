"""A lab image writes another one over itself, as OpenWrt's sysupgrade does on a PC."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

from fake_pair import FakePair
from labrig import OVERLAYS
from ndakit.core.deadline import Deadline, DeadlineExceeded
from ndakit.core.errors import VerifyError
from ndakit.core.files import file_sha256
from ndakit.core.workspace import Workspace, cache
from ndakit.image import disk
from ndakit.image.artifacts import Artifact
from ndakit.lab.boot import wait_complete
from ndakit.load import load
from ndakit.machine.accelerator import TCG
from ndakit.machine.spec import Disk, Nic, VmSpec
from ndakit.machine.vm import Vm, launch
from ndakit.node import status
from ndakit.node.errors import ConnectionLost, NodeSilent
from ndakit.node.shell import Command, Ran
from ndakit.operate import upgrade_checks
from ndakit.operate.upgrade import Order, Upgrade, Ways
from places import DATA, LAB
from records import record

PACKAGES = "keepalived ip-full -dnsmasq -odhcpd-ipv6only -odhcp6c -ppp -ppp-mod-pppoe"
BOOT_S = 180.0
CHANGED_BY_HAND = "echo mine >/etc/rc.local; echo mine >/root/mine; uci set system.@system[0].hostname=mine; uci commit"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Images for BIOS of one box: the old one, a new one, and a new one with a smaller root partition."""
    top = tmp_path_factory.mktemp("images")
    folder = top / "ib"
    words: list[str | Path] = [sys.executable, "-B", LAB / "imagebuilder/instantiate.py", "--release", "24.10.8"]
    words += ["--target", "x86/64", "--cache", cache() / "lab", "--into", folder]
    subprocess.run(words, check=True, capture_output=True)
    config = re.sub(r"CONFIG_(TARGET_ROOTFS_(EXT4FS|TARGZ)|GRUB_EFI_IMAGES)=y\n", "", (folder / ".config").read_text())
    (folder / ".config").write_text(config.replace('TIMEOUT="1"', 'TIMEOUT="0"'))
    made = {}
    for name, mib in (("old", 104), ("new", 104), ("smaller", 96)):
        files, out = top / f"files-{name}", top / name
        shutil.copytree(OVERLAYS / "fw4-lb1", files, symlinks=True)
        (files / "etc/config/system").write_text(f"config system\n\toption hostname '{name}'\n")
        (files / "usr/share/marker").parent.mkdir(parents=True, exist_ok=True)
        (files / "usr/share/marker").write_text(f"{name}\n")
        (files / "usr/share/ndakit").mkdir()
        facts = {"id": name, "profile": "standalone", "node": "lb"}
        (files / "usr/share/ndakit/image.json").write_text(json.dumps(facts))
        subprocess.run(
            ["make", "-C", str(folder), "image", f"PACKAGES={PACKAGES}", f"FILES={files}", f"BIN_DIR={out}",
             f"ROOTFS_PARTSIZE={mib}"],
            check=True, capture_output=True, env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        made[name] = next(out.glob("*squashfs-combined.img.gz"))
    return made


@pytest.fixture(scope="module")
def box(images: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    """A running box with the old image; the packed new ones are its further disks."""
    top = tmp_path_factory.mktemp("vm")
    disks = [Disk(images["old"])]
    for name in ("new", "smaller"):
        whole = top / f"{name}.bin"
        # Behind an empty sector: what begins like gzip would be unpacked for the machine, which would start from it.
        data = bytes(512) + images[name].read_bytes()
        whole.write_bytes(data + bytes(-len(data) % (1 << 20)))
        disks.append(Disk(whole, read_only=True))
    spec = VmSpec("balancer", 256, tuple(disks), (Nic("eth0", "52:54:00:00:ab:00"),), firmware="bios")
    with launch(spec, top, TCG) as vm:
        yield _ready(vm)


def _ready(vm: Vm) -> Vm:
    vm.console.activate(Deadline(BOOT_S, "the root shell"))
    wait_complete(vm.console, Deadline(BOOT_S, "the end of the boot"))
    return vm


def _upgraded(vm: Vm, options: str, disk: str) -> str:
    """Write the image of a disk over the system, and wait for the next one; what the upgrade said."""
    vm.console.run(f"tail -c +513 {disk} >/tmp/new.img.gz")
    vm.console.run(f"(sleep 1; sysupgrade {options} /tmp/new.img.gz) >/dev/console 2>&1 &")
    vm.console.forget()
    vm.console.wait_for("Linux version", Deadline(BOOT_S, "the next boot"))
    said = vm.console.text.rpartition("Commencing upgrade")
    _ready(vm)
    return said[1] + said[2]


def _told(vm: Vm, command: str) -> str:
    return vm.console.run(command).stdout.strip()


def test_what_is_no_image_is_refused(box: Vm) -> None:
    said = box.console.run(
        "head -c 100000 /dev/urandom >/tmp/x; sysupgrade -T /tmp/x; echo $?; gzip </etc/passwd >/tmp/y.gz; "
        "sysupgrade -n /tmp/y.gz; echo $?; sysupgrade /tmp/none; echo $?"
    )
    assert said.stdout.splitlines() == ["1", "1", "1"]
    assert said.stderr.count("Invalid image type") == 2
    assert "Image file '/tmp/none' not found." in said.stderr


def test_a_changed_table_is_told_beforehand(box: Vm) -> None:
    box.console.run("tail -c +513 /dev/vdb >/tmp/new.img.gz; tail -c +513 /dev/vdc >/tmp/smaller.img.gz")
    same = box.console.run("sysupgrade -T /tmp/new.img.gz")
    assert (same.rc, same.stderr) == (0, "")
    other = box.console.run("sysupgrade -T /tmp/smaller.img.gz; rm /tmp/smaller.img.gz")
    assert other.rc == 0
    assert "Partition layout has changed. Full image will be written." in other.stderr


class ByConsole:
    """A shell on the box (node.shell.Shell, as far as an upgrade uses it); an image comes from the box's own disk."""

    name = "standalone lb"

    def __init__(self, vm: Vm, disk: str) -> None:
        self.vm = vm
        self.disk = disk

    def __enter__(self) -> Self:
        try:
            self.vm.console.activate(Deadline(15.0, "the root shell"))
        except (DeadlineExceeded, VerifyError) as cause:
            raise NodeSilent(self.name, str(cause), 15.0) from cause
        return self

    def __exit__(self, *details: object) -> None:
        """The console stays."""

    def run(self, command: Command, timeout_s: float = 30.0, *, output_max_bytes: int = 1 << 20) -> Ran:
        try:
            return self.vm.console.run(command, timeout_s, output_max_bytes=output_max_bytes)
        except VerifyError as cause:
            self.vm.console.forget()
            raise ConnectionLost(self.name, command, begun=True, look="") from cause

    def put_file(self, source: Path, path: str, **more: object) -> None:
        size, digest = source.stat().st_size, file_sha256(source)
        told = self.run(f"tail -c +513 {self.disk} | head -c {size} >{path}; sha256sum {path}", 120.0)
        assert told.stdout.startswith(digest)


def test_the_disk_that_it_started_from_is_measured(box: Vm, images: dict[str, Path]) -> None:
    """Of three disks; what does not fit onto it is refused."""
    disk_bytes = sum(map(len, disk.unpacked(images["old"])))
    measured = upgrade_checks.facts(ByConsole(box, "/dev/vdb")).disk_bytes  # type: ignore[arg-type]
    assert measured is not None
    assert disk_bytes <= measured < disk_bytes + (1 << 20)


def test_without_the_configuration_the_new_image_is_all_there_is_but_host_keys(
    box: Vm, images: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `./inv flash --upgrade` does it."""
    profile = load.load(Workspace(DATA), "standalone").profile
    key = "dropbearkey -y -f /etc/dropbear/dropbear_ed25519_host_key | grep Fingerprint"
    before = _told(box, key)
    assert before.startswith("Fingerprint: SHA256:")
    box.console.run(CHANGED_BY_HAND)
    packed = images["new"]
    disk_bytes = sum(map(len, disk.unpacked(packed)))
    file = replace(record(packed).images[0], disk_bytes=disk_bytes)
    made = record(
        packed, images=(file,), id="new", profile="standalone", node="lb", hostname="old", revision="r0-ndakit-lab"
    )
    well = FakePair(profile).boxes["lb"].status()
    monkeypatch.setattr(status, "ask", lambda shell, profile, node, address: well)
    said: list[str] = []
    ways = Ways(
        lambda node: ByConsole(box, "/dev/vdb"),  # type: ignore[arg-type,return-value]  # as much of a shell as is used
        save=lambda shell: "none", confirm=lambda ready: None, tell=said.append,
    )  # fmt: skip
    done = Upgrade(Order(profile, "lb", Artifact(packed.parent, made)), ways).run()
    assert (done.was, done.now, done.notes) == ("old", "new", ())
    wait_complete(box.console, Deadline(BOOT_S, "the end of the boot"))
    log = box.console.text.rpartition("Commencing upgrade")[2]
    for words in ("Writing image to /dev/vda1", "Writing image to /dev/vda2", "Writing new UUID"):
        assert words in log
    told = _told(box, "cat /usr/share/marker /proc/sys/kernel/hostname; cat /root/mine; grep mine /etc/rc.local")
    assert told == "new\nnew"
    assert _told(box, key) == before


def test_kept_configuration_wins_over_the_new_image(box: Vm) -> None:
    """The trap: what was kept is unpacked over what the new image brings."""
    box.console.run(CHANGED_BY_HAND)
    said = _upgraded(box, "", "/dev/vdc")
    assert "Writing image to" not in said
    assert "- config restore -" in _told(box, "dmesg")
    assert (
        _told(box, "cat /usr/share/marker /proc/sys/kernel/hostname; cat /etc/rc.local /root/mine")
        == "smaller\nmine\nmine"
    )
    assert _told(box, "cat /proc/partitions | awk '$4 == \"vda2\" { print $3 / 1024 }'") == "96"


def test_a_restored_configuration_is_restored_once(box: Vm) -> None:
    assert (
        _told(box, ". /lib/upgrade/platform.sh; mount_boot /dev/vda; ls /tmp/boot; umount_boot; ls /").count(
            "sysupgrade"
        )
        == 0
    )


def test_a_power_cut_while_it_is_written_leaves_no_half(box: Vm) -> None:
    """The old system, the new one, or one that starts nothing and says so."""
    box.console.run("tail -c +513 /dev/vdb >/tmp/new.img.gz; sync")
    box.console.run("(sleep 1; sysupgrade -n /tmp/new.img.gz) >/dev/console 2>&1 &")
    box.console.forget()
    box.console.wait_for(re.compile("Performing system upgrade"), Deadline(BOOT_S, "the writing"))
    time.sleep(1.5)
    box.reset()
    box.console.forget()
    ended = box.console.wait_for(
        re.compile("lab: cannot start|error: .*\\n|Please press Enter"), Deadline(BOOT_S, "the start")
    )
    if ended[0].startswith("Please"):
        _ready(box)
        assert _told(box, "cat /usr/share/marker") in ("smaller", "new")
        assert box.console.run("find /rom -type f -exec cat {} + >/dev/null", 120).stderr == ""
    else:  # the way back: its disk is written at another machine
        box.power_off()
        box.power_on()
        _ready(box)
        assert _told(box, "cat /usr/share/marker") == "old"
