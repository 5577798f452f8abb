"""A pair of balancers that know what an upgrade types, with a clock that only waiting moves."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ndakit.image.artifacts import Artifact, ImageFile
from ndakit.model import Profile
from ndakit.node.control import ServerLine
from ndakit.node.errors import ConnectionLost, NodeSilent
from ndakit.node.shell import Command, Ran, command_line
from ndakit.node.status import NodeStatus, daemons_of
from ndakit.operate.upgrade import Order, Upgrade, UpgradeOutlook, Waits, Ways
from records import record

NEW, OLD = "n" * 64, "o" * 64
INSTANCES = ("wan-main", "lan-main")
UP = ServerLine("apache", "web1", "haproxy apache", "up", 1, 0)


def build(folder: Path, profile: Profile, node: str = "lb1") -> Artifact:
    """A build of a node by OpenWrt's ImageBuilder."""
    path = folder / "new.img.gz"
    path.write_bytes(b"image" * 1000)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    file = ImageFile(path.name, "combined", "squashfs", path.stat().st_size, digest, disk_bytes=1 << 27)
    made = record(
        path, images=(file,), id=NEW, profile=profile.name, node=node, hostname=profile.hostname(node),
        release="24.10.8", target="x86/64", device="generic", warning=None, revision="r1",
    )  # fmt: skip
    return Artifact(folder, made)


@dataclass
class FakeBox:
    """A balancer that knows the commands of an upgrade. `life`: what it is at the moment."""

    node: str
    profile: Profile
    world: FakePair
    image: str = OLD
    image_of: str = ""
    hostname: str = ""
    release: str = "24.10.8"
    target: str = "x86/64"
    tmp_kib: int = 900_000
    memory_kib: int = 900_000
    disk_sectors: str = "2097152"
    mounts: str = ""
    boot_kib: int = 0
    state: str = "BACKUP"
    keepalived: bool = True
    started_s: float = -5000.0
    silent_until_s: float = -1.0
    tells: dict[str, Ran] = field(default_factory=dict)
    """Answers by the beginning of a command."""
    commands: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.profile.name} {self.node}"

    def run(self, command: Command, timeout_s: float = 30.0, *, output_max_bytes: int = 0) -> Ran:
        line = command_line(command)
        self.commands.append(line)
        if self.world.clock_s < self.silent_until_s:
            raise ConnectionLost(self.name, line, begun=False, look="")
        self.world.happens(self, line)
        for begin, ran in self.tells.items():
            if line.startswith(begin):
                return ran
        if line.startswith("sysupgrade") and "-T" not in line and "-b" not in line:
            self.world.write(self)
        if line.startswith("/etc/init.d/keepalived"):
            self.keepalived = line.endswith("start")
            self.world.elect()
        return Ran(0, self._says(line).encode(), b"")

    def _says(self, line: str) -> str:
        names = f'"profile": "{self.profile.name}", "node": "{self.node}"'
        instances = {"keepalived": {"instances": {"i": {"running": self.keepalived, "pid": 7}}}}
        answers = {
            r"cat /etc/openwrt_release": f"DISTRIB_RELEASE='{self.release}'\nDISTRIB_TARGET='{self.target}'\n"
            "DISTRIB_REVISION='r1'\n",
            r"cat /usr/share/ndakit/image.json": self.image_of or f'{{"id": "{self.image}", {names}}}',
            r"cat /proc/sys/kernel/hostname": self.hostname or self.profile.hostname(self.node),
            r"df -k /tmp": f"{self.tmp_kib}\n",
            r"grep -q ' /boot '": f"{self.boot_kib}\n" if self.boot_kib else "",
            r"part=": f"{self.disk_sectors}\n",
            r"cat /proc/meminfo": f"MemTotal:  1 kB\nMemAvailable:  {self.memory_kib} kB\n",
            r"cat /proc/uptime": f"{self.world.clock_s - self.started_s:.2f} 1.0\n",
            r"ubus call service list": json.dumps(instances),
            r"sed -n .*keepalived.data": "".join(
                f" VRRP Instance = {name}\n   State = {self.state}\n" for name in INSTANCES if self.keepalived
            ),
            r"sysupgrade -b - \| wc": "2000\n",
        }
        return next((text for pattern, text in answers.items() if re.match(pattern, line)), "")

    def put_file(self, source: Path, path: str, **more: Any) -> None:
        self.commands.append(f"put {path}")
        self.world.happens(self, f"put {path}")
        self.files[path] = source.read_bytes()

    def status(self) -> NodeStatus:
        master = self.state == "MASTER" and self.keepalived
        return NodeStatus(
            node=self.node, address="", hostname=self.hostname or self.profile.hostname(self.node),
            release=self.release, image=self.image, image_of="", uptime_s=1, load=(0.0,), memory_available_kib=1,
            memory_kib=1, clock_offset_s=0.0, vrrp=dict.fromkeys(INSTANCES, self.state) if self.keepalived else {},
            vips=tuple(self.profile.vips) if master else (),
            daemons={name: self.keepalived or name != "keepalived" for name in daemons_of(self.profile)},
            servers=(UP,), errors=(),
        )  # fmt: skip


class FakePair:
    """Two boxes, a clock that only waiting moves, and what a test lets happen at a command."""

    def __init__(self, profile: Profile) -> None:
        self.clock_s = 1000.0
        self.boxes = {name: FakeBox(name, profile, self) for name in profile.nodes}
        next(iter(self.boxes.values())).state = "MASTER"
        self.writes: Callable[[FakeBox], None] = self.well_written
        self.happens: Callable[[FakeBox, str], None] = lambda box, line: None
        self.opens: Callable[[FakeBox], None] = lambda box: None
        self.talk: list[str] = []
        self.saved: list[str] = []

    def elect(self) -> None:
        taking_part = [box for box in self.boxes.values() if box.keepalived and self.clock_s >= box.silent_until_s]
        for box in self.boxes.values():
            box.state = "MASTER" if taking_part and box is taking_part[0] else "BACKUP"

    def write(self, box: FakeBox) -> None:
        self.writes(box)
        raise ConnectionLost(box.name, "sysupgrade", begun=True, look="")

    def well_written(self, box: FakeBox) -> None:
        box.silent_until_s, box.started_s = self.clock_s + 60, self.clock_s + 40
        box.image, box.keepalived, box.files = NEW, True, {}

    def sleep(self, seconds: float) -> None:
        self.clock_s += seconds
        if all(self.clock_s >= box.silent_until_s for box in self.boxes.values()):
            self.elect()

    @contextlib.contextmanager
    def open_node(self, name: str) -> Iterator[FakeBox]:
        box = self.boxes[name]
        self.opens(box)
        if self.clock_s < box.silent_until_s:
            raise NodeSilent(box.name, "timed out", 10)
        yield box

    def upgrade(self, order: Order, confirm: Callable[[UpgradeOutlook], None] = lambda ready: None) -> Upgrade:
        def save(shell: Any) -> str:
            self.saved.append(shell.node)
            return "backups/x"

        ways = Ways(
            self.open_node, save=save, confirm=confirm, tell=self.talk.append, clock_s=lambda: self.clock_s,  # type: ignore[arg-type]  # as much of a shell as is used
            sleep=self.sleep,
        )  # fmt: skip
        return Upgrade(order, ways, Waits())
