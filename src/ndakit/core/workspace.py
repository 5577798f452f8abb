"""Where everything lives: the only module that knows paths of a workspace and of the per-user cache.

A workspace is a folder with `profiles/`; templates of the workspace are searched before the ones that ship with ndakit.
Nothing assumes that the workspace is the clone.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from ndakit.core.errors import InputError, MachineError
from ndakit.core.files import make_folder
from ndakit.core.locks import hold, scratch_folder

_SHIPPED = Path(__file__).resolve().parents[3]
_WRITING = "build"
EXAMPLES = frozenset({"apache-pair", "bakery", "far-tun", "iis-tproxy", "mirror-dr", "rtmp-tproxy", "shop-nat"})
"""The profiles that ship with ndakit."""


class WorkspaceMissing(InputError):
    """There is no workspace here."""

    def __init__(self, root: Path) -> None:
        super().__init__(
            "no workspace here: a workspace is a folder with profiles/",
            where=str(root),
            fix="change into the clone, or make the folder: mkdir profiles, and put a NAME.yaml into it",
        )


class FolderGone(MachineError):
    """The current folder was removed under the feet of whoever works in it."""

    def __init__(self) -> None:
        super().__init__(
            "the current folder is no longer there",
            where=f"PWD={os.environ.get('PWD', '')}",
            fix="change into a folder that is there, such as your clone: cd FOLDER",
        )


class RuntimeFolderUnsafe(MachineError):
    """The folder for sockets belongs to somebody else, or others may write there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            "the folder for the sockets of virtual machines is not private",
            where=str(folder),
            fix=f"remove it (rm -r {folder}), or set XDG_RUNTIME_DIR to a folder of your own",
        )


class CacheUnsafe(MachineError):
    """Somebody else can put programs into the cache, or could have done so."""

    def __init__(self, place: Path, why: str, fix: str) -> None:
        super().__init__(f"the cache is not used: {why}", where=str(place), fix=fix)


class CacheUnusable(MachineError):
    """There can be no cache where this user's is said to be."""

    def __init__(self, place: Path, why: str) -> None:
        super().__init__(
            f"the cache cannot be made: {why}",
            where=str(place),
            fix="set XDG_CACHE_HOME to a folder that you can write",
        )


@dataclass(frozen=True)
class Workspace:
    """The folders of one workspace (`root`) and of the shipped material (`shipped`)."""

    root: Path
    shipped: Path = _SHIPPED

    @classmethod
    def at(cls, root: Path | None = None) -> Workspace:
        """The workspace at `root`, or at the current folder. Raises WorkspaceMissing."""
        try:
            folder = (root or Path.cwd()).resolve()
        except FileNotFoundError:
            raise FolderGone from None
        if not (folder / "profiles").is_dir():
            raise WorkspaceMissing(folder)
        return cls(folder)

    @property
    def profiles(self) -> Path:
        """One YAML file per balancer pair."""
        return self.root / "profiles"

    @property
    def examples(self) -> frozenset[str]:
        """Profiles here that are shipped examples: their addresses are nobody's."""
        return EXAMPLES if self.root == self.shipped else frozenset()

    @property
    def templates(self) -> tuple[Path, ...]:
        """Template folders in search order: the workspace's own, then the shipped ones."""
        own, shipped = self.root / "templates", self.shipped / "templates"
        return (own, shipped) if own != shipped and own.is_dir() else (shipped,)

    @property
    def packages(self) -> tuple[Path, ...]:
        """Folders with OpenWrt packages in search order: the workspace's own, then the shipped one."""
        own, shipped = self.root / "packages", self.shipped / "packages"
        return (own, shipped) if own != shipped else (own,)

    @property
    def keys(self) -> Path:
        """Public keys that this workspace believes besides the shipped ones, under the checksums of ImageBuilders."""
        return self.root / "keys"

    @property
    def known_hosts(self) -> Path:
        """The pinned SSH host keys of running balancers, `known_hosts/<profile>/<node>`; public, to be shared."""
        return self.root / "known_hosts"

    @property
    def backups(self) -> Path:
        """Backups of running balancers, `backups/<profile>/<node>/<UTC time>/`; for their owner alone."""
        return self.root / "backups"

    @property
    def rebuilt(self) -> Path:
        """Images made from backups, `rebuilt/<profile>/<node>/`."""
        return self.root / "rebuilt"

    @property
    def overlays(self) -> Path:
        """Rendered trees, `overlays/<profile>/<node>/`."""
        return self.root / "overlays"

    @property
    def images(self) -> Path:
        """Built images with their records, `images/<profile>/<node>/`."""
        return self.root / "images"

    @property
    def lab(self) -> Path:
        """The stand-in ImageBuilder and the lab's guests (shipped material)."""
        return self.shipped / "lab"

    @property
    def state(self) -> Path:
        """Locks, logs and scratch folders of runs in this workspace; may be deleted when nothing runs."""
        return self.root / ".ndakit"

    def logs(self, run: str) -> Path:
        """The folder for the logs of one kind of run; made if missing."""
        folder = self.state / "log" / run
        make_folder(folder)
        return folder

    @contextlib.contextmanager
    def lock(
        self, name: str, *, wait_s: float = 1800.0, on_wait: Callable[[str], None] | None = None
    ) -> Iterator[None]:
        """Hold the named lock of this workspace; see `hold`."""
        with hold(self.state / "lock" / name, wait_s=wait_s, on_wait=on_wait):
            yield

    @contextlib.contextmanager
    def alone(self, *, wait_s: float = 1800.0, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
        """Hold all of overlays and images: no profile is rendered or built meanwhile. See `hold`."""
        with self.lock(_WRITING, wait_s=wait_s, on_wait=on_wait):
            yield

    @contextlib.contextmanager
    def writing(
        self, profile: str, *, wait_s: float = 1800.0, on_wait: Callable[[str], None] | None = None
    ) -> Iterator[None]:
        """Hold one profile's overlays and images; other profiles can be written at the same time. See `hold`."""
        with (
            hold(self.state / "lock" / _WRITING, shared=True, wait_s=wait_s, on_wait=on_wait),
            self.lock(f"{_WRITING}-{profile}", wait_s=wait_s, on_wait=on_wait),
        ):
            yield

    @contextlib.contextmanager
    def scratch(self, purpose: str) -> Iterator[Path]:
        """A private folder that is gone afterwards; folders that killed runs left are removed on the way."""
        base = self.state / "scratch"
        with scratch_folder(base, purpose) as folder:
            yield folder


def cache() -> Path:
    """The per-user cache, shared by all workspaces: downloads, the lab's base systems, what this machine can do.

    Programs of it are run, so that it is this user's alone (0700): raises CacheUnsafe where others can write, or could
    until now, and CacheUnusable where no folder can be.
    """
    folder = platformdirs.user_cache_path("ndakit")
    try:
        for missing in [parent for parent in (folder, *folder.parents) if not parent.exists()][::-1]:
            missing.mkdir(mode=0o700, exist_ok=True)
        facts = folder.stat()
        if not stat.S_ISDIR(facts.st_mode):
            raise CacheUnusable(folder, "something that is no folder is there")
        _refuse_unsafe(folder.resolve(), facts)
        if facts.st_mode & 0o077:
            with contextlib.suppress(OSError):  # where nobody can write, nobody has to be kept from it
                folder.chmod(0o700)
    except (OSError, RuntimeError) as cause:
        raise CacheUnusable(folder, getattr(cause, "strerror", None) or str(cause)) from cause
    return folder


def _refuse_unsafe(folder: Path, facts: os.stat_result) -> None:
    """Raise CacheUnsafe if others can write into the folder, or put another one in its place."""
    elsewhere = "set XDG_CACHE_HOME to a folder of your own"
    if facts.st_uid != os.geteuid():
        raise CacheUnsafe(folder, "the folder belongs to another user", elsewhere)
    if facts.st_mode & 0o022:
        why = f"others may write there (its mode is {stat.S_IMODE(facts.st_mode):04o}), and what they put there is run"
        raise CacheUnsafe(folder, why, f"remove it, it can be made again: rm -r {shlex.quote(str(folder))}")
    for parent in folder.parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            why = f"everybody may write into {parent} (its mode is {stat.S_IMODE(mode):04o}), and so replace it"
            raise CacheUnsafe(folder, why, f"chmod o-w {shlex.quote(str(parent))}, or {elsewhere}")


def runtime() -> Path:
    """A private folder with a short path, for sockets: a unix socket's path may have 107 bytes (unix(7)).

    Under XDG_RUNTIME_DIR where that is usable and short, else under /tmp. Make folders in it with `scratch_folder`.
    Raises RuntimeFolderUnsafe when somebody else could write there.
    """
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if given and len(os.fsencode(given)) <= 40 and os.access(given, os.W_OK | os.X_OK):
        folder = Path(given) / "ndakit"
    else:
        folder = Path("/tmp") / f"ndakit-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        facts = folder.lstat()
    except OSError:
        raise RuntimeFolderUnsafe(folder) from None
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise RuntimeFolderUnsafe(folder)
    return folder
