"""`./inv flash --upgrade`: an image over the system of a running node, with what happens meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

from ndakit.cli.flash import confirm, current_build, one_node
from ndakit.cli.nodes import NOT_WELL, Connections, SshOptions
from ndakit.core import terminal
from ndakit.core.errors import NdakitError
from ndakit.core.workspace import Workspace
from ndakit.load import load
from ndakit.load.loaded import Loaded
from ndakit.node.errors import NodeRefused, NodeSilent
from ndakit.node.shell import Shell
from ndakit.node.ssh import Ssh
from ndakit.operate import backup
from ndakit.operate.backup import Wanted
from ndakit.operate.upgrade import Order, Upgrade, Upgraded, UpgradeOutlook, Ways
from ndakit.operate.upgrade_checks import RunsAlready


@dataclass(frozen=True)
class UpgradeOptions:
    """What the user wants."""

    yes: str | None = None
    """The node's name, where nobody is to be asked."""
    keep: bool = False
    again: bool = False
    as_built: bool = False
    as_json: bool = False


def flash_running(place: Workspace, name: str, node: str | None, way: SshOptions, options: UpgradeOptions) -> int:
    """Write a node's image over its running system; 0 if all is well afterwards, else NOT_WELL.

    Raises what `operate.upgrade` raises, NodeNotNamed, ImageOutdated, NotConfirmed, and what connecting raises.
    """
    loaded = load.load(place, name)  # its warnings were told when it was built
    node = one_node(loaded, node)
    artifact = current_build(place, loaded, node, as_built=options.as_built)
    terminal.note(
        f"image: {artifact.record.hostname}, OpenWrt {artifact.record.release}, id {artifact.id[:12]}, for "
        f"{artifact.record.target}"
    )

    def ask(ready: UpgradeOutlook) -> None:
        for line in ready.notes:
            terminal.note(f"note: {line}")
        others = [one for one in loaded.profile.nodes if one != node]
        role = "no other node serves meanwhile" if not others else (
            f"it is master, and gives its VIPs to {' or '.join(others)}" if ready.masters else "it is not master"
        )  # fmt: skip
        terminal.note(f"node:  {ready.box.hostname}, OpenWrt {ready.box.release}, {_image(ready.box.image_id)}; {role}")
        question = f"Nothing was changed yet. Type {node} to write the image over its system: "
        confirm(node, options.yes, question, f"{loaded.profile.name} {node}", f"./inv status {loaded.called}")

    with _reached(place, loaded, node, way) as open_node:
        ways = Ways(
            open_node,
            save=_saved(place, loaded, node),
            confirm=ask,
            tell=lambda text: terminal.note(f"{node}: {text}"),
            progress=_Copying(),
        )
        work = Upgrade(Order(loaded.profile, node, artifact, options.keep, options.again), ways)
        try:
            done = work.run()
        except RunsAlready as already:
            _show(loaded, node, Upgraded(artifact.id, artifact.id), already, as_json=options.as_json)
            return 0
        except (NdakitError, KeyboardInterrupt):
            terminal.note(f"how it is now: {work.state}")
            raise
    _show(loaded, node, done, None, as_json=options.as_json)
    return NOT_WELL if done.trouble else 0


@contextlib.contextmanager
def _reached(
    place: Workspace, loaded: Loaded, node: str, way: SshOptions
) -> Iterator[Callable[[str], contextlib.AbstractContextManager[Shell]]]:
    """Opens shells on the nodes. What the user says of the way (an address, a host key) belongs to the one node; once
    it has its new image, its address is the profile's again."""
    by_profile = replace(way, address=None, accept_host_key=None)
    with (
        Connections(place, loaded, way, (node,)) as first,
        Connections(place, loaded, replace(way, accept_host_key=None), (node,)) as named,
        Connections(place, loaded, by_profile, tuple(loaded.profile.nodes)) as others,
    ):
        been_there = False

        def open_node(name: str) -> contextlib.AbstractContextManager[Shell]:
            nonlocal been_there
            if name != node:
                return others.open(name)
            try:
                shell = (named if been_there else first).open_asking(name)
            except (NodeSilent, NodeRefused):
                if way.address is None or not been_there:
                    raise
                return others.open(name)
            been_there = True
            return shell

        yield open_node


def _saved(place: Workspace, loaded: Loaded, node: str) -> Callable[[Shell], str]:
    """Makes a backup as `./inv backup` does; the folder where it lies."""
    profile = loaded.profile

    def save(shell: Shell) -> str:
        assert isinstance(shell, Ssh)
        wanted = Wanted(
            profile.name, node, shell.target.where, shell.target.address,
            tuple(f"{key.kind} {key.fingerprint}" for key in shell.pins.read()), profile.hostname(node),
            str(profile.release),
        )  # fmt: skip
        return str(backup.take(shell, wanted, place.backups, known=backup.at_hand(place, loaded, node)).folder)

    return save


def _image(image_id: str) -> str:
    return f"image {image_id[:12]}" if image_id else "an image that does not say its id"


class _Copying:
    """How far the copying is."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic()
        self._line: terminal.ProgressLine | None = None

    def __call__(self, done_bytes: int, total_bytes: int | None) -> None:
        if self._line is None:
            self._begun_s, self._line = time.monotonic(), terminal.ProgressLine(terminal.note)
        self._line(done_bytes, total_bytes, took_s=time.monotonic() - self._begun_s)


def _show(loaded: Loaded, node: str, done: Upgraded, already: RunsAlready | None, *, as_json: bool) -> None:
    if as_json:
        facts = asdict(done) | {"steps": [{"step": name, "seconds": round(took_s, 1)} for name, took_s in done.steps]}
        head = {"profile": loaded.profile.name, "node": node, "written": already is None, "well": not done.trouble}
        terminal.show_json(head | facts)
        return
    if already is not None:
        terminal.say(f"{already.what}. {already.fix[0].upper()}{already.fix[1:]}")
        return
    terminal.say(terminal.table([(name, terminal.seconds(took_s)) for name, took_s in done.steps]))
    well = "all is well" if not done.trouble else "NOT WELL"
    terminal.say(f"{node} runs image {done.now[:12]} (before: {done.was[:12] or 'unknown'}); {well}")
    for line in done.trouble:
        terminal.say(f"  {line}")
    if done.backup:
        terminal.say(f"backup made before: {done.backup}")
    if done.trouble:
        terminal.say(f"look again in a minute: ./inv status {loaded.called}")
