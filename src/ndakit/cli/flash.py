"""`./inv flash`: an image onto a disk or a stick, or unpacked into a file; asked twice, read back."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ndakit.build import plan
from ndakit.cli.profiles import nodes_of
from ndakit.core import terminal
from ndakit.core.errors import ErrorGroup, InputError
from ndakit.core.workspace import Workspace
from ndakit.image.artifacts import RECORD, Artifact, images_of
from ndakit.load import load
from ndakit.load.loaded import Loaded
from ndakit.operate import disks, flash
from ndakit.operate.disks import TargetDisk, TargetUnusable

_MIB = 1024 * 1024
_FILES = (".img", ".raw", ".bin")


class NodeNotNamed(InputError):
    """A pair has several images, and only one fits onto a disk."""


class ImageOutdated(InputError):
    """The image is not what the profile says now."""


class FlashOptionsWrong(InputError):
    """Options of `flash` that do not go together."""


class NotConfirmed(InputError):
    """Nobody said that what is there may be overwritten."""


def refuse_mixed(*, upgrade: bool, to: str | None, only_with_upgrade: Mapping[str, object]) -> None:
    """Raises FlashOptionsWrong for options of one way to a box with those of the other."""
    if upgrade and to is not None:
        raise FlashOptionsWrong(
            "a disk and a running box at once",
            where="--to, --upgrade",
            fix="leave one out: --to writes a disk of this machine, --upgrade the one that the node runs from",
        )
    given = [option for option, value in only_with_upgrade.items() if value]
    if not upgrade and given:
        raise FlashOptionsWrong(
            f"{', '.join(given)} {'belongs' if len(given) == 1 else 'belong'} to --upgrade",
            where=given[0],
            fix="add --upgrade for the running node, or leave it out for a disk",
        )


def show_disks(*, as_json: bool) -> None:
    """The disks of this machine, and which of them cannot be overwritten, with the reason."""
    present = disks.present()
    if as_json:
        terminal.show_json([_facts(disk) for disk in present])
        return
    rows = [
        (str(d.path), disks.size(d.size_bytes), d.model or "-", d.serial or "-", d.bus or d.kind, _state(d))
        for d in present
    ]
    terminal.say(terminal.table(rows, header=("disk", "size", "model", "serial", "by", "can be overwritten")))


def flash_node(
    workspace: Workspace,
    name: str,
    node: str | None,
    to: str | None,
    yes: str | None,
    *,
    as_built: bool,
    as_json: bool,
) -> None:
    """Write a node's image to what `to` names, after it was shown and confirmed (`yes`: by its serial number or name).

    With `as_built` also an image that is not what the profile says now. Raises NodeNotNamed, ImageOutdated,
    TargetUnusable, NotConfirmed, and what `operate.flash`, rendering and reading the image raise.
    """
    if (Path(name) / RECORD).is_file():
        if node is not None or as_built:
            raise NodeNotNamed(
                "a folder holds one image, which is taken as it is", where="--node, --as-built", fix="leave them out"
            )
        artifact = built_folder(Path(name))
        _write(artifact, _target(to, f"./inv flash {name}"), yes, as_json=as_json)
        return
    loaded = load.load(workspace, name)  # its warnings were told when it was built
    node = one_node(loaded, node)
    artifact = current_build(workspace, loaded, node, as_built=as_built)
    _write(artifact, _target(to, f"./inv flash {loaded.called} --node {node}"), yes, as_json=as_json)


def built_folder(folder: Path) -> Artifact:
    """A build in a folder of its own, such as one made from a backup, whole and unchanged. Raises RecordBroken,
    ImageChanged."""
    artifact = Artifact.load(folder)
    if errors := artifact.verify():
        raise errors[0] if len(errors) == 1 else ErrorGroup(errors)
    return artifact


def _write(artifact: Artifact, target: TargetDisk | Path, yes: str | None, *, as_json: bool) -> None:
    """Show what is to be overwritten, have it confirmed, and write."""
    image = flash.image_for_disk(artifact)
    if isinstance(target, TargetDisk) and (refusal := target.refusal(image.disk_bytes or 0)) is not None:
        raise refusal
    terminal.note(f"image:  {artifact.folder / image.name}")
    terminal.note(f"        {artifact.record.hostname}, OpenWrt {artifact.record.release}, id {artifact.id[:12]}, "
                  f"{disks.size(image.disk_bytes or 0)}")  # fmt: skip
    if isinstance(target, TargetDisk):
        _confirm_disk(target, yes)
        done = flash.to_disk(artifact, target, _Shown(terminal.note))
    else:
        _confirm_file(target, yes)
        done = flash.to_file(artifact, target, _Shown(terminal.note))
    _tell(done, artifact, isinstance(target, TargetDisk), as_json=as_json)


def one_node(loaded: Loaded, node: str | None) -> str:
    """The node that is meant. Raises NodeNotNamed if there are several and none is named."""
    nodes = nodes_of(loaded, node)
    if len(nodes) != 1:
        raise NodeNotNamed(
            f"{loaded.profile.name} has the nodes {', '.join(nodes)}, and each has an image of its own",
            where="--node",
            fix=f"name the one that is to be overwritten: --node {nodes[0]}",
        )
    return nodes[0]


def current_build(workspace: Workspace, loaded: Loaded, node: str, *, as_built: bool) -> Artifact:
    """A node's build, which is what its profile says now, unless it is wanted as it is. Raises ImageOutdated, and what
    rendering and reading the image raise."""
    artifact = images_of(workspace, loaded, [node])[node]
    if not as_built and (reasons := plan.outdated(workspace, loaded, node, artifact.record)):
        raise ImageOutdated(
            f"the image of {node} is not what the profile says now: {'; '.join(reasons)}",
            where=str(artifact.folder),
            fix=f"build it first: ./inv build {loaded.called} --node {node} --builder {artifact.record.builder}; "
            "if the older image is the right one: --as-built",
        )
    return artifact


def _target(to: str | None, command: str) -> TargetDisk | Path:
    """The disk or the file that is meant; `command` is what was typed so far. Raises TargetUnusable."""
    if not to:
        raise TargetUnusable(
            "it is not said which disk is to be overwritten",
            where="--to",
            fix=f"look at ./inv disks, then: {command} --to DISK "
            "(its path or serial number; or a file: --to ./NAME.img)",
        )
    path = Path(to)
    if to.startswith("/dev/") or (path.exists() and path.is_block_device()):
        return disks.choose(disks.present(), to)
    if "/" in to or path.suffix in _FILES:
        flash.usable_file(path)
        return path
    try:
        return disks.choose(disks.present(), to)
    except TargetUnusable as unusable:
        fix = f"{unusable.fix}. A file is named by its path: --to ./{to}"
        raise TargetUnusable(unusable.what, where=unusable.where, fix=fix) from None


def _confirm_disk(disk: TargetDisk, yes: str | None) -> None:
    terminal.note(f"disk:   {disk}")
    for part in disk.parts:
        terminal.note(f"        {part}")
    if not disk.parts:
        terminal.note(f"        {disk.filesystem or 'no partitions'}")
    what = "serial number" if disk.serial else "name"
    confirm(disk.called, yes, f"Everything on it will be lost. Type its {what} to overwrite it: ", str(disk))


def _confirm_file(path: Path, yes: str | None) -> None:
    if os.path.lexists(path):
        confirm(path.name, yes, f"{path} is there already. Type {path.name} to overwrite it: ", str(path))


def confirm(called: str, yes: str | None, question: str, where: str, look: str = "./inv disks") -> None:
    """Raises NotConfirmed unless `yes`, or what a person types, is what the target is called."""
    if yes is None and sys.stdin is not None and sys.stdin.isatty():
        yes = terminal.ask(question).strip()
    if yes is None:
        what = "nobody is there to be asked whether this may be overwritten"
        raise NotConfirmed(what, where=where, fix=f"if it may: --yes {called}")
    if yes != called:
        what = f"it was not confirmed: '{yes}' is not '{called}'; nothing was written"
        raise NotConfirmed(what, where=where, fix=f"look which one this is ({look}), and run it again")


def _state(disk: TargetDisk) -> str:
    refusal = disk.refusal(0)
    return "yes" if refusal is None else f"no: {refusal.what}"


def _facts(disk: TargetDisk) -> dict[str, Any]:
    refusal = disk.refusal(0)
    return {
        "path": str(disk.path),
        "size_bytes": disk.size_bytes,
        "model": disk.model,
        "serial": disk.serial,
        "called": disk.called,
        "removable": disk.removable,
        "parts": [str(part) for part in disk.parts],
        "refused": refusal.what if refusal else None,
    }


def _tell(done: flash.Flashed, artifact: Artifact, on_disk: bool, *, as_json: bool) -> None:
    record = artifact.record
    if as_json:
        terminal.show_json(
            {
                "profile": record.profile, "node": record.node, "id": artifact.id, "image": str(done.image),
                "target": str(done.target), "bytes": done.image_bytes, "zero_bytes": done.zero_bytes,
                "sha256": done.sha256, "write_s": round(done.write_s, 2), "read_s": round(done.read_s, 2),
            }
        )  # fmt: skip
        return
    terminal.say(f"{done.target}: {record.hostname}, image {artifact.id[:12]}, written in {_at(done, done.write_s)}")
    terminal.say(f"read back and the same in {_at(done, done.read_s)}; SHA-256 of these bytes {done.sha256}")
    if record.warning:
        terminal.say(f"not for a real machine: {record.warning}")
    if on_disk:
        terminal.say(f"it can be unplugged; when {record.hostname} has started: ./inv status {record.profile}")


def _at(done: flash.Flashed, took_s: float) -> str:
    return f"{terminal.seconds(took_s)} ({done.image_bytes / _MIB / max(took_s, 0.001):.0f} MiB/s)"


class _Shown:
    """How far writing and reading back are, with the speed."""

    def __init__(self, to: Callable[[str], None]) -> None:
        self._to = to
        self._what = ""

    def __call__(self, what: str, done_bytes: int, total_bytes: int) -> None:
        if what != self._what:
            self._what, self._begun_s = what, time.monotonic()
            self._line = terminal.ProgressLine(self._to)
            self._to(f"{what} {total_bytes / _MIB:.0f} MiB")
        self._line(done_bytes, total_bytes, took_s=time.monotonic() - self._begun_s)
