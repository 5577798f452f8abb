"""Who made a detached OpenPGP signature, asked of the `gpg` program: for releases that have no usable usign key.

Owns the runs of gpg in a throw-away home, so that the user's keyring is only read and this machine's clock decides
nothing. Which fingerprints are believed is the business of `trust`. Status lines: GnuPG `doc/DETAILS`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ndakit.core import process
from ndakit.core.locks import scratch_folder
from ndakit.core.workspace import runtime

_TIMEOUT_S = 60.0
_QUIET = ("--batch", "--no-tty", "--no-autostart", "--status-fd", "1")


@dataclass(frozen=True)
class GpgVerdict:
    """`signer` is the primary key's fingerprint if a believed key signed; else `why` says what was found."""

    signer: str | None
    why: str = ""


def available() -> bool:
    """True if gpg is installed."""
    return process.find("gpg") is not None


def verify(message: bytes, made: bytes, key_files: Sequence[Path], fingerprints: Collection[str]) -> GpgVerdict:
    """Ask gpg who signed `message`.

    Believed are the keys in `key_files` (armoured or not), and those of the user's own keyring whose primary
    fingerprint is in `fingerprints` (40 hex digits, upper case). A key that has expired still vouches for what it
    signed before.
    """
    with scratch_folder(runtime(), "gpg") as home:
        home.chmod(0o700)
        believed = set(fingerprints)
        for path in key_files:
            believed |= _imported(home, path)
        if fingerprints:
            own = {"GNUPGHOME": os.environ["GNUPGHOME"]} if "GNUPGHOME" in os.environ else {}
            argv = ["gpg", *_QUIET[:3], "--armor", "--export", *sorted(fingerprints)]
            exported = process.run(argv, timeout_s=_TIMEOUT_S, check=False, env=own).stdout
            if exported:
                (home / "own.asc").write_text(exported)
                _imported(home, home / "own.asc")
        (home / "message").write_bytes(message)
        (home / "message.asc").write_bytes(made)
        argv = ["gpg", "--homedir", str(home), *_QUIET, "--trust-model", "always", "--ignore-time-conflict"]
        argv += ["--no-auto-key-retrieve", "--verify", str(home / "message.asc"), str(home / "message")]
        return verdict(process.run(argv, timeout_s=_TIMEOUT_S, check=False).stdout, believed)


def _imported(home: Path, path: Path) -> set[str]:
    """Import a file of public keys; the primary fingerprints that came in."""
    argv = ["gpg", "--homedir", str(home), *_QUIET, "--ignore-time-conflict", "--import", str(path)]
    done = process.run(argv, timeout_s=_TIMEOUT_S, check=False)
    return {words[3].upper() for words in _status(done.stdout) if words[1] == "IMPORT_OK" and len(words) > 3}


def verdict(output: str, believed: Collection[str]) -> GpgVerdict:
    """Read the status lines: VALIDSIG names the primary key last, whether or not that key has expired."""
    signers: list[str] = []
    unknown: list[str] = []
    for words in _status(output):
        if words[1] in ("BADSIG", "REVKEYSIG", "EXPSIG"):
            meaning = {"BADSIG": "is wrong", "REVKEYSIG": "is by a revoked key", "EXPSIG": "has expired"}[words[1]]
            return GpgVerdict(None, f"the GPG signature by {words[2]} {meaning}")
        if words[1] == "VALIDSIG":
            signers.append(words[-1].upper())
        if words[1] == "NO_PUBKEY":
            unknown.append(words[2])
    for signer in signers:
        if signer in believed:
            return GpgVerdict(signer)
    if signers or unknown:
        return GpgVerdict(None, f"it is signed by the GPG key {(signers or unknown)[0]}, which is not known here")
    return GpgVerdict(None, "gpg finds no signature in it")


def _status(output: str) -> list[list[str]]:
    """The words of each status line, the keyword and at least one more; others say nothing."""
    lines = [line.split() for line in output.splitlines() if line.startswith("[GNUPG:] ")]
    return [words for words in lines if len(words) > 2]
