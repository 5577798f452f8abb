"""Where everything lives: the only module that knows paths of a workspace and of the per-user cache.

A workspace is a folder with `profiles/`; templates of the workspace are searched before the ones that ship with ndakit.
Nothing assumes that the workspace is the clone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from ndakit.core import json_text, process
from ndakit.core.errors import InputError, MachineError

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


class WorkspaceBusy(MachineError):
    """Another run holds the lock for longer than we wait."""

    def __init__(self, lock: Path, holder: str, waited_s: float) -> None:
        super().__init__(
            f"another run is at work here ({holder}); waited {waited_s:g} s",
            where=str(lock),
            fix="wait until it has ended, or end that process; the lock goes away with it",
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


class PlaceTaken(MachineError):
    """Where a file or folder of ours belongs is something else."""

    def __init__(self, what: str, place: Path, cause: OSError) -> None:
        super().__init__(
            f"{what} cannot be made: {cause.strerror or cause}",
            where=str(place),
            fix=f"move away what is there: mv {shlex.quote(str(place))} {shlex.quote(f'{place}.old')}",
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


def own_bytes(path: Path) -> bytes:
    """The content of a file that this user alone can have written: code is read by this.

    Raises OSError; PermissionError too for a link, for no plain file, for another user's, and for one that others may
    write.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as source:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "others can have written it", str(path))
        return source.read()


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


@contextlib.contextmanager
def hold(
    path: Path, *, shared: bool = False, wait_s: float = 1800.0, on_wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold a lock file, alone or (`shared`) beside others who share it.

    The kernel drops the lock when its holder dies, however it dies (flock(2)). While it cannot be had, `on_wait` is
    told once who has it (of several who share it, the last who came). Raises WorkspaceBusy after `wait_s`, PlaceTaken,
    and OSError for what the disk refuses.
    """
    fd = _lock_file(path)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        started_s = time.monotonic()
        told = False
        while True:
            if _locked(fd, kind):
                if _is_still(path, fd):
                    break
                removed, fd = fd, _lock_file(path)  # by its last holder: whoever comes now locks another file
                os.close(removed)
                continue
            holder = _holder(path)
            if on_wait is not None and not told:
                on_wait(f"waiting for {holder}, which is at work here")
                told = True
            process.go_on()
            if time.monotonic() - started_s >= wait_s:
                raise WorkspaceBusy(path, holder, wait_s)
            time.sleep(0.1)
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps({"pid": os.getpid(), "since": int(time.time())}).encode(), 0)
        yield
    finally:
        os.close(fd)


def _lock_file(path: Path) -> int:
    make_folder(path.parent)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        return fd
    except OSError as cause:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise PlaceTaken("the lock file", path, cause) from cause
        raise


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises PlaceTaken where something else is, and OSError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        for place in (*reversed(folder.parents), folder):
            if place.is_symlink() and not place.exists():
                raise PlaceTaken("a folder", place, cause) from cause
            if place.exists() and not place.is_dir():
                raise PlaceTaken("a folder", place, cause) from cause
        raise


def _locked(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_still(path: Path, fd: int) -> bool:
    """True if the open file is the one that the path names."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def stale(entries: Iterable[Path], *, keep: int, idle_s: float) -> list[Path]:
    """The entries of a cache to give up: all but the `keep` used last, if nobody has used them for `idle_s`.

    An entry's time of modification says when it was last used. Other runs give up entries at the same time: one that
    vanishes meanwhile is passed over.
    """
    used: list[tuple[float, Path]] = []
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):
            used.append((entry.lstat().st_mtime, entry))
    now = time.time()
    return [entry for last, entry in sorted(used, reverse=True)[keep:] if now - last > idle_s]


def give_up(entry: Path, lock: Path, remove: Callable[[], None], *, idle_s: float) -> None:
    """Remove an entry of a cache and its lock file, unless somebody holds the lock or has used the entry meanwhile."""
    with contextlib.suppress(OSError, WorkspaceBusy, PlaceTaken), hold(lock, wait_s=0):
        if stale([entry], keep=0, idle_s=idle_s):
            remove()
            lock.unlink()


def _holder(path: Path) -> str:
    """Who wrote itself into the lock file, in words."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        pid = int(json_text.read(path)["pid"])
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return f"process {pid}, {command.strip()[:120]}"
    return "another process"


@contextlib.contextmanager
def scratch_folder(base: Path, purpose: str) -> Iterator[Path]:
    """A private folder under `base`, locked while in use and gone afterwards; unlocked leftovers are removed first."""
    make_folder(base)
    sweep(base)
    folder = Path(tempfile.mkdtemp(prefix=f"{purpose}-{os.getpid()}-", dir=base))
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)


def sweep(base: Path) -> int:
    """Remove the scratch folders under `base` whose owner is gone; their number. Young ones (10 s) are left alone."""
    removed = 0
    for folder in base.iterdir() if base.is_dir() else ():
        with contextlib.suppress(OSError):
            if not folder.is_dir() or time.time() - folder.stat().st_mtime < 10:
                continue
            fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
            finally:
                os.close(fd)
    return removed


def write_atomic(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old or the new content, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as sink:
            sink.write(content)
            sink.flush()
            os.fsync(sink.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def swap_folder(new: Path, folder: Path) -> None:
    """Put the folder `new` in the place of `folder` in one step; the old one ends up in the place of `new`.

    Both lie on one file system. Where that cannot exchange names (renameat2(2), RENAME_EXCHANGE) it takes two steps.
    """
    if not folder.is_symlink() and not folder.exists():
        new.rename(folder)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if libc.renameat2(at_cwd, os.fsencode(new), at_cwd, os.fsencode(folder), exchange) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        raise OSError(code, os.strerror(code), str(folder))
    old = new.parent / f"{new.name}.old"
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    old.rename(new)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
