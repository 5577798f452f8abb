"""Built images, found whole and brought to life one at a time: the console of a node in the user's terminal."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator

from ndakit.cli.profiles import nodes_of, read
from ndakit.core import terminal
from ndakit.core.workspace import Workspace
from ndakit.image.artifacts import images_of
from ndakit.machine import accelerator
from ndakit.machine.boot_image import boot_images, mac_of
from ndakit.machine.spec import Nic
from ndakit.machine.vm import launch

ESCAPE = b"\x1d"
"""Ctrl-], as telnet and virsh have it."""


def boot_node(workspace: Workspace, profile: str, node: str | None) -> None:
    """One node on a throw-away disk, its console in this terminal."""
    loaded = read(workspace, profile)
    name = nodes_of(loaded, node)[0]
    built = images_of(workspace, loaded, (name,))[name]
    nics = tuple(Nic(n, mac_of(loaded.profile.name, name, n)) for n in loaded.profile.cards)
    image = boot_images(loaded.profile, {name: built})[name]
    spec = image.machine(name, nics)
    run_dir = workspace.logs(f"boot-{loaded.profile.name}")
    chosen = accelerator.probe()
    terminal.note(f"booting {name} ({chosen.name}: {chosen.reason})")
    terminal.note("its cables are not plugged in, its disk is thrown away; Ctrl-] ends it")
    with launch(spec, run_dir, chosen) as machine, _raw_terminal():
        out = sys.stdout.buffer

        def show(data: bytes) -> None:
            out.write(data)
            out.flush()

        stop = machine.console.listen(show)
        try:
            while machine.alive:
                ready, _, _ = select.select([sys.stdin], [], [], 0.2)
                if not ready:
                    continue
                typed = os.read(sys.stdin.fileno(), 1024)
                if not typed or ESCAPE in typed:
                    break
                machine.console.send(typed)
        finally:
            stop()
    terminal.note(f"\n{name} is gone; its console's log: {machine.console_log}")


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the guest, if this is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
