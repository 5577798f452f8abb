"""A tree of files → a folder on disk, whole or not at all.

The new folder is made beside the old one, and the two change places in one step, so that a crash leaves the old tree or
the new one. Modes are those of the tree, whatever the umask. A folder that ndakit did not write is never touched: a
marker beside each folder (inside it would end up in the image) tells which ones it wrote.
What is in the files is render's business, whether it is right is lint's.
"""

from __future__ import annotations

import contextlib
import stat
from dataclasses import dataclass
from pathlib import Path

from ndakit.core.errors import InputError, MachineError
from ndakit.core.files import swap_folder, write_atomic
from ndakit.core.locks import scratch_folder
from ndakit.render.render import Tree

MODE_FOLDER, MODE_PRIVATE, MODE_NEW = 0o755, 0o700, 0o600
_SCRATCH = ".ndakit-scratch"


class OverlayForeign(InputError):
    """The folder holds something that ndakit did not write."""


class OverlayUnwritable(MachineError):
    """The folder cannot be written."""


@dataclass(frozen=True)
class Written:
    """What `write` did, in files: new or changed, as they were, gone."""

    written: int
    unchanged: int
    removed: int

    def __str__(self) -> str:
        return f"{self.written} written, {self.unchanged} unchanged, {self.removed} removed"


def write(tree: Tree, folder: Path, *, for_image: bool = False) -> Written:
    """Make `folder` hold exactly the tree. Does nothing if it does already.

    A tree that holds secrets gets a folder that its owner alone can enter (0700), unless it is `for_image`: an
    ImageBuilder gives the root of the image the folder's mode, so that such a folder has to lie in a private one.
    Raises OverlayForeign for a folder that ndakit did not write, OverlayUnwritable if the disk refuses.
    """
    if tree.placeholders:
        raise ValueError("a tree with placeholders for secrets is not written")
    folder = folder.absolute()
    top_mode = MODE_PRIVATE if tree.secrets and not for_image else MODE_FOLDER
    marker = folder.parent / f".{folder.name}.ndakit"
    _refuse_foreign(folder, marker)
    before = _read(folder)
    after = {path.lstrip("/"): (f.mode, f.content) for path, f in tree.items()}
    written = sum(before.get(path) != facts for path, facts in after.items())
    removed = len(before.keys() - after.keys())
    report = Written(written, len(after) - written, removed)
    if folder.is_dir() and not written and not removed and _folders_right(folder, after, top_mode):
        return report
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Before the swap: a crash in between must not leave a folder of ours that the next run takes for foreign.
        write_atomic(marker, f"{folder.name}/ beside this file is generated; ndakit replaces it\n".encode())
        base = folder.parent / _SCRATCH
        with scratch_folder(base, folder.name) as scratch:
            new = scratch / "new"
            _fill(new, after, top_mode)
            swap_folder(new, folder)
        with contextlib.suppress(OSError):
            base.rmdir()
    except OSError as cause:
        raise OverlayUnwritable(
            f"the overlay cannot be written: {cause.strerror}",
            where=str(cause.filename or folder),
            fix="make room on the disk, or make the folder writable; nothing was changed",
        ) from cause
    return report


def _refuse_foreign(folder: Path, marker: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OverlayForeign(
            "the overlay's place is taken by something that is not a folder",
            where=str(folder),
            fix="move it away, or choose another folder",
        )
    if folder.is_dir() and not marker.exists() and any(folder.iterdir()):
        raise OverlayForeign(
            "this folder was not written by ndakit, and would be replaced",
            where=str(folder),
            fix=f"choose an empty or new folder; if it may be replaced, remove it: rm -r {folder}",
        )


def _read(folder: Path) -> dict[str, tuple[int, bytes]]:
    """What is there: relative path → mode and content. Anything but a plain file counts as different."""
    files: dict[str, tuple[int, bytes]] = {}
    for path in folder.rglob("*") if folder.is_dir() else ():
        facts = path.lstat()
        if stat.S_ISREG(facts.st_mode):
            files[path.relative_to(folder).as_posix()] = (stat.S_IMODE(facts.st_mode), path.read_bytes())
        elif not stat.S_ISDIR(facts.st_mode):
            files[path.relative_to(folder).as_posix()] = (-1, b"")
    return files


def _folders(files: dict[str, tuple[int, bytes]]) -> set[str]:
    return {parent.as_posix() for path in files for parent in Path(path).parents}


def _folders_right(folder: Path, files: dict[str, tuple[int, bytes]], top_mode: int) -> bool:
    wanted = _folders(files) | {"."}
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_dir()} | {"."}
    modes = {p: stat.S_IMODE((folder / p).stat().st_mode) for p in there}
    return there == wanted and modes.pop(".") == top_mode and set(modes.values()) <= {MODE_FOLDER}


def _fill(folder: Path, files: dict[str, tuple[int, bytes]], top_mode: int) -> None:
    for name in sorted(_folders(files) | {"."}):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name).chmod(top_mode if name == "." else MODE_FOLDER)
    for path, (mode, content) in files.items():
        target = folder / path
        target.touch(mode=MODE_NEW, exist_ok=False)  # what holds a secret is never readable by others
        target.write_bytes(content)
        target.chmod(mode)
