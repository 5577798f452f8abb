"""./inv clean: remove what can be made again."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ndakit.core import terminal
from ndakit.core.errors import NdakitError
from ndakit.core.workspace import Workspace
from ndakit.load import load

if TYPE_CHECKING:
    pass


def clean_workspace(workspace: Workspace, *, cache: bool, gone: bool) -> None:
    """Remove what can be made again, or only what is `gone` from the profiles; refuses while another run is at work."""
    from ndakit.core.workspace import cache as cache_folder

    with workspace.alone(wait_s=0):
        for entry in left_over(workspace) if gone else _made(workspace):
            _remove(entry)
        for name in () if gone else ("log", "scratch"):
            _remove(workspace.state / name)
        if cache:
            _remove(cache_folder())


def _made(workspace: Workspace) -> list[Path]:
    """Everything in overlays and images, and images made from backups."""
    folders = [base for base in (workspace.overlays, workspace.images, workspace.rebuilt) if base.is_dir()]
    return [entry for base in folders for entry in sorted(base.iterdir()) if entry.name != "README.md"]


def left_over(workspace: Workspace) -> list[Path]:
    """Overlays and images of profiles that are no longer there, and of nodes that left theirs.

    What belongs to a profile that cannot be read now is left out: its nodes are not known.
    """
    profiles = load.names(workspace)
    folders: list[Path] = []
    for entry in _made(workspace):
        if not entry.is_dir() or entry.parent == workspace.rebuilt:  # of no profile's making
            continue
        if entry.name not in profiles:
            folders.append(entry)
            continue
        with contextlib.suppress(NdakitError):
            nodes = load.load(workspace, entry.name).profile.nodes
            folders += [one for one in sorted(entry.iterdir()) if one.is_dir() and one.name not in nodes]
    return folders


def _remove(path: Path) -> None:
    if not path.exists():
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    terminal.say(f"removed {path}")
