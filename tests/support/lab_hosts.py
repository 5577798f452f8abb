"""Lab hosts without a virtual machine, for quick tests: the same program, in network namespaces of this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ndakit.core import process
from ndakit.lab.host import HostInterface, HostSpec, LabHosts
from places import ROOT

SEGMENTS = {"lan": "52:54:00:00:00:01", "wan": "52:54:00:00:00:02"}
_SETUP = """
mount -t sysfs sysfs /sys || exit 1
for n in 1 2; do
    ip link add seg$n address 52:54:00:00:00:0$n type veth peer name far$n || exit 1
    ip link set seg$n up; ip link set far$n up
done
"$0" -m guest --listen "$1"
"""


@contextmanager
def running(folder: Path) -> Iterator[Path]:
    """The program of a lab host with two segments; its control socket."""
    socket = folder / "control"
    namespaces = ["unshare", "-nmp", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        namespaces.append("-Ur")
    child = process.spawn(
        [*namespaces, "sh", "-c", _SETUP, sys.executable, socket], log=folder / "log", cwd=ROOT / "lab/host"
    )
    try:
        yield socket
    finally:
        child.stop()
        assert "Traceback" not in (folder / "log").read_text()


@contextmanager
def lab(folder: Path) -> Iterator[LabHosts]:
    """A connection to such hosts."""
    with running(folder) as socket, LabHosts.connect(socket, segments=SEGMENTS, timeout_s=60) as hosts:
        yield hosts


def spec(name: str, number: int, *, segment: str = "lan", vlan: int | None = None, **more: object) -> HostSpec:
    """A host: 192.0.2.NUMBER and 2001:db8::NUMBER on lan, 198.51.100.NUMBER and 2001:db8:1::NUMBER on wan."""
    v4, v6 = ("192.0.2", "2001:db8:") if segment == "lan" else ("198.51.100", "2001:db8:1:")
    card = HostInterface(segment, f"02:00:00:00:00:{number:02x}", (f"{v4}.{number}/24", f"{v6}:{number}/64"), vlan)
    return HostSpec(name, (card,), **more)  # type: ignore[arg-type]  # the fields of HostSpec as they are
