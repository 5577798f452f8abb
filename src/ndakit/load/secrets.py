"""Secrets: looked up by the name that a profile refers to, outside the files that the repository tracks.

A secret comes from the environment (`NDAKIT_SECRET_<PROFILE>__<NAME>`) or from a file
(`<workspace>/secrets/<profile>/<name>`). Its value is in no text, `repr`, log or record; who needs it asks for
`reveal()`. What a secret is used for is the asker's business.

`resolve` is the one door: it gives all secrets of a profile, or says all that are missing. `render` gets them beside
the profile. Where a secret decides something that is written down, its place is taken by a keyed hash (`HashKey`).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets as randomness
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from shlex import quote

from pydantic import BaseModel

from ndakit.core import process
from ndakit.core.errors import ErrorGroup, InputError, NdakitError
from ndakit.core.mistakes import KeyPath, dotted, show
from ndakit.core.workspace import Workspace
from ndakit.load.loaded import Loaded
from ndakit.model import Profile, SecretRef

SECRET_MAX = 256 * 1024
"""Bytes; larger than any key or certificate chain."""
_HASH_KEY_BYTES = 32
_MASKED_LEAST = 6
"""Shorter pieces of a secret stand in too many texts by chance to be masked."""


class SecretMissing(InputError):
    """A secret that a profile refers to is nowhere."""

    def __init__(self, profile: str, name: str, variable: str, path: Path, instead: str = "") -> None:
        folders = f"{quote(str(path.parent.parent))} {quote(str(path.parent))}"
        super().__init__(
            f"the secret '{show(name)}' of profile {profile} is nowhere",
            where=f"neither {variable} in the environment nor {path}",
            fix=f"write it: mkdir -p -m 700 {folders} && (umask 077; cat > {quote(str(path))})"
            + (f"; {instead}" if instead else ""),
        )


class SecretExposed(InputError):
    """A secret's file can be read by others, or is in the repository."""

    def __init__(self, what: str, path: Path, fix: str) -> None:
        super().__init__(what, where=str(path), fix=fix)


class SecretUnreadable(InputError):
    """A secret's file cannot be used."""

    def __init__(self, why: str, path: Path) -> None:
        super().__init__(
            f"the secret cannot be read: {why}", where=str(path), fix="put the secret into a file of yours"
        )


class Secret:
    """A secret's value; printing it shows where it came from, never what it is."""

    __slots__ = ("_value", "origin")

    def __init__(self, value: bytes, origin: str) -> None:
        self._value = value
        self.origin = origin

    def reveal(self) -> bytes:
        """The value itself. Whoever calls this keeps it out of texts, command lines, logs and records."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret(from {self.origin})"

    def __reduce__(self) -> str:
        raise TypeError("secrets are not pickled")


def variable(profile: str, name: str) -> str:
    """The environment variable of a secret; no two secrets share one.

    `shop-eu` and `tls.pem` give `NDAKIT_SECRET_SHOP_EU__TLS_DOT_PEM`. Where that could be read in two ways (capitals,
    `_`, two separators in a row, the word `dot`), a part of the hash of both is added.
    """
    plain = re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", profile) and re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", name)
    words = [given.upper().replace(".", "_DOT_").replace("-", "_") for given in (profile, name)]
    if not plain or "dot" in re.split(r"[.-]", name):
        words.append(hashlib.sha256(f"{profile}/{name}".encode()).hexdigest()[:12].upper())
    return f"NDAKIT_SECRET_{'__'.join(words)}"


class Secrets(Mapping[str, Secret]):
    """The secrets of one profile by their names. `real` is False if placeholders stand for them: what is rendered with
    those can be checked, and not built."""

    def __init__(self, values: Mapping[str, Secret], *, real: bool = True) -> None:
        self._values = dict(values)
        self.real = real

    def __getitem__(self, name: str) -> Secret:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Secrets({', '.join(self._values)})"

    def masked(self, text: str) -> str:
        """A text with `***` wherever a secret, or a line of one, stands in it."""
        for value in self._values.values():
            whole = value.reveal().decode("utf-8", errors="replace")
            for piece in (whole, *(line.strip() for line in whole.splitlines())):
                if len(piece) >= _MASKED_LEAST and not piece.startswith("-----"):
                    text = text.replace(piece, "***")
        return text

    def mask(self, error: NdakitError) -> NdakitError:
        """The error with masked words: what a checker quotes of a file can be a secret."""
        error.what, error.fix = self.masked(error.what), self.masked(error.fix)
        error.args = (error.what,)
        return error


NONE = Secrets({})
"""For a profile that names no secrets."""


def references(profile: Profile) -> dict[str, KeyPath]:
    """The secrets that a profile names, each with the first place that does, in the order of the profile."""
    places: dict[str, KeyPath] = {}

    def walk(value: object, path: KeyPath) -> None:
        if isinstance(value, SecretRef):
            places.setdefault(value.secret, path)
        elif isinstance(value, BaseModel):
            for key in type(value).model_fields:
                walk(getattr(value, key), (*path, key))
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, (*path, key))
        elif isinstance(value, tuple):
            for number, item in enumerate(value):
                walk(item, (*path, number))

    walk(profile, ())
    return places


def resolve(workspace: Workspace, loaded: Loaded, environment: Mapping[str, str] | None = None) -> Secrets:
    """All secrets of a profile.

    Raises what `look_up` raises; of several, an ErrorGroup: whoever has to write three is told of three.
    """
    values: dict[str, Secret] = {}
    errors: list[NdakitError] = []
    for name, place in references(loaded.profile).items():
        instead = f"or, to begin with, make one: ./inv certificate {loaded.called}" if "certificates" in place else ""
        try:
            reference = SecretRef(secret=name)
            values[name] = look_up(workspace, loaded.profile.name, reference, environment, instead=instead)
        except InputError as error:
            error.where = f"{error.where} ({dotted(place)})"
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else ErrorGroup(errors)
    return Secrets(values)


def placeholders(profile: Profile, make: Callable[[str, KeyPath], bytes]) -> Secrets:
    """Stand-ins for all secrets of a profile: `make` is asked for each, with its name and the place that names it."""
    values = {name: Secret(make(name, place), "a placeholder") for name, place in references(profile).items()}
    return Secrets(values, real=not values)


class HashKey:
    """Makes hashes of secrets that say nothing to whoever does not have the key: a short secret cannot be found by
    hashing guesses."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def digest(self, content: bytes) -> str:
        """HMAC-SHA-256 (RFC 2104), in hex."""
        return hmac.new(self._key, content, hashlib.sha256).hexdigest()

    def __repr__(self) -> str:
        return "HashKey"


def hash_key(workspace: Workspace) -> HashKey:
    """The key of a workspace; made on first use, for its owner alone. Raises SecretExposed, SecretUnreadable, OSError.

    Without the file a new key is made, and images that hold secrets are built once more.
    """
    path = workspace.state / "private" / "hash.key"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        fd, name = tempfile.mkstemp(dir=path.parent)  # 0600
        try:
            with os.fdopen(fd, "wb") as sink:
                sink.write(randomness.token_bytes(_HASH_KEY_BYTES))
            with contextlib.suppress(FileExistsError):  # another run was quicker: its key counts
                os.link(name, path)
        finally:
            os.unlink(name)  # noqa: PTH108  # mkstemp gives a string
    key = _read(path)
    if len(key) != _HASH_KEY_BYTES:
        raise SecretUnreadable(f"it has {len(key)} bytes instead of {_HASH_KEY_BYTES}; remove it", path)
    return HashKey(key)


def path_of(workspace: Workspace, profile: str, name: str) -> Path:
    """Where the file of a secret belongs."""
    return workspace.root / "secrets" / profile / name


def look_up(
    workspace: Workspace,
    profile: str,
    reference: SecretRef,
    environment: Mapping[str, str] | None = None,
    *,
    instead: str = "",
) -> Secret:
    """The secret that a profile refers to; the environment (default: this process's) goes before the file.

    `instead` is what else one can do where it is missing. Raises SecretMissing, SecretExposed (readable by group or
    others, in a folder that they can change, or tracked by git) or SecretUnreadable.
    """
    name = reference.secret
    key = variable(profile, name)
    given = (os.environ if environment is None else environment).get(key)
    path = path_of(workspace, profile, name)
    if given is not None:
        return Secret(given.encode(errors="surrogateescape"), f"${key}")
    try:
        value = _read(path)
    except (FileNotFoundError, NotADirectoryError):
        raise SecretMissing(profile, name, key, path, instead) from None
    for folder in (path.parent, path.parent.parent):
        _guarded(folder)
    if _tracked(path):
        raise SecretExposed(
            "git tracks the secret, so it is in everyone's copy", path,
            f"git rm --cached {quote(str(path))}, add secrets/ to .gitignore, and change the secret: it is exposed",
        )  # fmt: skip
    return Secret(value.removesuffix(b"\n") if value.count(b"\n") == 1 else value, str(path))


def _read(path: Path) -> bytes:
    """A file that its owner alone can read. Raises SecretExposed, SecretUnreadable; FileNotFoundError and
    NotADirectoryError if it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as cause:
        raise SecretUnreadable(cause.strerror or "unknown reason", path) from None
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode):
        os.close(fd)
        raise SecretUnreadable("it is not a file", path)
    with os.fdopen(fd, "rb") as source:
        if facts.st_mode & 0o077:
            raise SecretExposed(
                f"others can read the secret (its mode is {stat.S_IMODE(facts.st_mode):04o})",
                path,
                f"chmod 600 {quote(str(path))}",
            )
        value = source.read(SECRET_MAX + 1)
    if len(value) > SECRET_MAX:
        raise SecretUnreadable(f"it is larger than {SECRET_MAX // 1024} KiB", path)
    return value


def _guarded(folder: Path) -> None:
    """Raises SecretExposed if others than its owner can put another file in the place of one in a folder."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o022:
        raise SecretExposed(
            f"others can replace the secrets in this folder (its mode is {mode:04o})",
            folder,
            f"chmod go-w {quote(str(folder))}",
        )


def _tracked(path: Path) -> bool:
    """True if git has the file in its index; without git nothing is tracked."""
    if process.find("git") is None:
        return False
    asked = process.run(
        ["git", "-C", path.parent, "ls-files", "--error-unmatch", "--", path.name], timeout_s=10, check=False
    )
    return asked.returncode == 0
