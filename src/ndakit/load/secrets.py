"""Secrets: looked up by the name that a profile refers to, outside the files that the repository tracks.

A secret comes from the environment (`NDAKIT_SECRET_<PROFILE>__<NAME>`) or from a file
(`<workspace>/secrets/<profile>/<name>`). Its value is in no text, `repr`, log or record; who needs it asks for
`reveal()`. What a secret is used for is the asker's business.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from ndakit.core import process
from ndakit.core.errors import InputError
from ndakit.core.mistakes import show
from ndakit.core.workspace import Workspace
from ndakit.model import SecretRef

SECRET_MAX = 256 * 1024
"""Bytes; larger than any key or certificate chain."""


class SecretMissing(InputError):
    """A secret that a profile refers to is nowhere."""

    def __init__(self, profile: str, name: str, variable: str, path: Path) -> None:
        super().__init__(
            f"the secret '{show(name)}' of profile {profile} is nowhere",
            where=f"neither {variable} in the environment nor {path}",
            fix=f"write it: mkdir -p -m 700 {quote(str(path.parent))} && (umask 077; cat > {quote(str(path))})",
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


def look_up(
    workspace: Workspace, profile: str, reference: SecretRef, environment: Mapping[str, str] | None = None
) -> Secret:
    """The secret that a profile refers to; the environment (default: this process's) goes before the file.

    Raises SecretMissing, SecretExposed (readable by group or others, or tracked by git) or SecretUnreadable.
    """
    name = reference.secret
    key = variable(profile, name)
    given = (os.environ if environment is None else environment).get(key)
    path = workspace.root / "secrets" / profile / name
    if given is not None:
        return Secret(given.encode(errors="surrogateescape"), f"${key}")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise SecretMissing(profile, name, key, path) from None
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
        if _tracked(path):
            raise SecretExposed(
                "git tracks the secret, so it is in everyone's copy", path,
                f"git rm --cached {quote(str(path))}, add secrets/ to .gitignore, and change the secret: it is exposed",
            )  # fmt: skip
        value = source.read(SECRET_MAX + 1)
    if len(value) > SECRET_MAX:
        raise SecretUnreadable(f"it is larger than {SECRET_MAX // 1024} KiB", path)
    return Secret(value.removesuffix(b"\n") if value.count(b"\n") == 1 else value, str(path))


def _tracked(path: Path) -> bool:
    """True if git has the file in its index; without git nothing is tracked."""
    if process.find("git") is None:
        return False
    asked = process.run(
        ["git", "-C", path.parent, "ls-files", "--error-unmatch", "--", path.name], timeout_s=10, check=False
    )
    return asked.returncode == 0
