"""`./inv certificate`: certificates to begin with, for the services of a profile whose own are not there yet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from ndakit.cli.profiles import read
from ndakit.core import terminal
from ndakit.core.errors import InputError
from ndakit.core.files import write_atomic
from ndakit.core.workspace import Workspace
from ndakit.load import certificates, secrets
from ndakit.load.load import Loaded

DAYS_MAX = 825
"""Apple's systems take no certificate for longer, whoever signed it."""


class NoCertificates(InputError):
    """The profile names no certificates."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(
            f"no service of profile '{loaded.profile.name}' has TLS",
            where=str(loaded.path),
            fix="add to a service: tls: {certificates: [{secret: NAME.pem}]}",
        )


class DaysOutOfRange(InputError):
    """`--days` makes no certificate that is of use."""

    def __init__(self, days: int) -> None:
        super().__init__(
            f"{days} days make no certificate that is of use", where="--days", fix=f"choose from 1 to {DAYS_MAX}"
        )


def make(workspace: Workspace, profile: str, days: int) -> None:
    """Make a certificate that signs itself for each secret that is missing; what is there stays as it is.

    Raises NoCertificates, DaysOutOfRange, and what reading a secret raises.
    """
    if not 1 <= days <= DAYS_MAX:
        raise DaysOutOfRange(days)
    loaded = read(workspace, profile)
    wanted = certificates.wanted(loaded.profile)
    if not wanted:
        raise NoCertificates(loaded)
    now = datetime.now(UTC)
    for reference in wanted:
        path = secrets.path_of(workspace, loaded.profile.name, reference.secret)
        try:
            secrets.look_up(workspace, loaded.profile.name, reference)
        except secrets.SecretMissing:
            names = certificates.names_wanted(loaded.profile, reference.secret)
            _write(path, certificates.make_self_signed(names, now - timedelta(hours=1), days))
            terminal.say(f"{path}: made for {', '.join(names)}; it signs itself, so that browsers warn of it")
        else:
            terminal.say(f"{reference.secret}: is there already, nothing was changed")


def _write(path: Path, content: bytes) -> None:
    for folder in (path.parent.parent, path.parent):  # `parents` would make the upper one for a whole group
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, content, mode=0o600)
