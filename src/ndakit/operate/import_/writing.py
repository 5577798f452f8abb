"""The imported profile on disk: whole or not at all, and never over something that is there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from ndakit.core.errors import InputError
from ndakit.core.names import is_name
from ndakit.core.workspace import Workspace
from ndakit.load import secrets
from ndakit.operate.import_ import haproxy_tls
from ndakit.operate.import_.refine import Imported


class ImportTargetTaken(InputError):
    """A file of that name is there already."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            "there is such a file already, and an import overwrites nothing",
            where=str(path),
            fix="take another name (--as NAME), or move the file away",
        )


class ImportNameWrong(InputError):
    """`--as` is missing, or says no name that a profile can have."""


def path_for(workspace: Workspace, name: str | None) -> Path:
    """Where the profile will be. Raises ImportNameWrong and ImportTargetTaken."""
    if not name or not is_name(name):
        what = f"'{name[:60]}' is no name for a profile" if name else "it is not said what the profile is to be called"
        raise ImportNameWrong(
            what, where="--as", fix="lower-case letters, digits and '-', beginning with a letter: --as shop"
        )
    for path in (workspace.profiles / f"{name}.yaml", workspace.profiles / f"{name}.yml"):
        if os.path.lexists(path):
            raise ImportTargetTaken(path)
    return workspace.profiles / f"{name}.yaml"


def write(workspace: Workspace, result: Imported) -> list[Path]:
    """Write the files beside the profile, the secrets that were found, and at last the profile; what was written.

    If one of them is there already, or the disk refuses one, none of them stays. Raises ImportTargetTaken and OSError.
    """
    name = result.draft.name
    main = path_for(workspace, name)
    planned = [(main.parent / beside, content, 0o644) for beside, content in sorted(result.draft.attachments.items())]
    for secret, content in sorted(result.draft.secrets.items()):
        place = secrets.path_of(workspace, name, secret)
        if content is not None and haproxy_tls.complete(content) and not os.path.lexists(place):
            for folder in (place.parent.parent, place.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            planned.append((place, content, 0o600))
    planned.append((main, result.text.encode(), 0o644))
    done: list[Path] = []
    try:
        for path, content, mode in planned:
            _new_file(path, content, mode)
            done.append(path)
    except BaseException:
        for path in done:
            with contextlib.suppress(OSError):
                path.unlink()
        raise
    return done


def _new_file(path: Path, content: bytes, mode: int) -> None:
    """A file that is there whole or not at all, and only if there was none (link(2) refuses a name that is taken)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as sink:
            sink.write(content)
            sink.flush()
            os.fsync(sink.fileno())
        Path(temporary).chmod(mode)
        os.link(temporary, path)
    except FileExistsError:
        raise ImportTargetTaken(path) from None
    finally:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
