"""Whose signature under a release's sha256sums is believed, and whether it is there.

Owns the keys (those that ship in `keys/`, each bound to its branch, and those of a workspace) and the order of
asking: usign first, GPG where no known usign key signed. Fails closed. Formats are in `usign` and `gpg`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ndakit.core.errors import BuildError, InputError
from ndakit.core.release import Release
from ndakit.imagebuilder.fetch import gpg as fetch_gpg
from ndakit.imagebuilder.fetch import usign

SHIPPED = Path(__file__).parent / "keys"
FINGERPRINTS = "gpg-fingerprints"
LISTING = "sha256sums"


class KeyBroken(InputError):
    """A file among the public keys cannot be read as one."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"this is not a public key of usign: {why}",
            where=str(path),
            fix="put the key there as its owner publishes it, named by its id, or remove it; GPG keys end with .asc",
        )


class VerificationFailed(BuildError):
    """Base of the ways in which a download turns out not to be vouched for."""


class SignatureMissing(VerificationFailed):
    """The list of checksums has no signature beside it."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"there is no signature of {LISTING} ({LISTING}.sig or {LISTING}.asc), so nothing vouches for the archive",
            where=where,
            fix=f"use another mirror (--mirror URL), or {_PIN}",
        )


class SignatureWrong(VerificationFailed):
    """The signature is not one of this list: somebody changed one of the two."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(
            f"the signature of {LISTING} does not fit: {why}",
            where=where,
            fix=f"do not use this mirror; take another (--mirror URL), or {_PIN}",
        )


class SignatureUntrusted(VerificationFailed):
    """The list is signed by somebody whose key is not known for this release."""

    def __init__(self, where: str, why: str, fix: str) -> None:
        super().__init__(
            f"nobody who is trusted for this release signed {LISTING}: {why}", where=where, fix=f"{fix}; or {_PIN}"
        )


_KEYRING = "gpg/ of https://github.com/openwrt/keyring"
_PIN = "get the archive's SHA-256 from a source you trust and pin it: --checksum SHA256"


@dataclass(frozen=True)
class TrustedKeys:
    """Who is trusted for one release: usign keys by id, files with GPG keys, fingerprints of GPG keys."""

    usign: Mapping[str, usign.PublicKey]
    gpg_files: tuple[Path, ...]
    gpg_fingerprints: frozenset[str]


def keys_for(release: Release, folders: Sequence[Path] = ()) -> TrustedKeys:
    """The keys that ship for this release's branch, and those of further folders.

    In a folder lie usign keys (named by their id) and GPG keys (`.asc`) for every release; what lies in a subfolder
    named by a branch, such as `24.10/`, is for that branch alone. Raises KeyBroken.
    """
    branch = f"{release.year:02}.{release.month:02}"
    known: dict[str, usign.PublicKey] = {}
    gpg_files: list[Path] = []
    for folder in (SHIPPED / branch, *(place for own in folders for place in (own, own / branch))):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if not path.is_file() or path.name.startswith((".", "README")):
                continue
            if path.suffix == ".asc":
                gpg_files.append(path)
                continue
            key = _read(path)
            known[key.key_id] = key
    lines = [line.split("#")[0].split() for line in (SHIPPED / FINGERPRINTS).read_text().splitlines()]
    prints = frozenset(words[0] for words in lines if words and branch in words[1:])
    return TrustedKeys(known, tuple(gpg_files), prints)


def _read(path: Path) -> usign.PublicKey:
    try:
        key = usign.public_key(path.read_text(errors="replace"))
    except ValueError as cause:
        raise KeyBroken(path, str(cause)) from None
    if len(path.name) == 16 and path.name != key.key_id:
        raise KeyBroken(path, f"inside is the key {key.key_id}")
    return key


def verify(listing: bytes, fetch: Callable[[str], bytes | None], keys: TrustedKeys, where: str) -> str:
    """Who vouches for this list of checksums, in words.

    `fetch` brings a file that lies beside the list, None if there is none. Raises SignatureMissing, SignatureWrong,
    SignatureUntrusted.
    """
    why: list[str] = []
    text = fetch(f"{LISTING}.sig")
    if text is not None:
        try:
            made = usign.signature(text.decode("ascii", "replace"))
        except ValueError as cause:
            raise SignatureWrong(f"{where}/{LISTING}.sig", str(cause)) from None
        key = keys.usign.get(made.key_id)
        if key is not None:
            if not usign.signed_by(listing, made, key):
                raise SignatureWrong(f"{where}/{LISTING}.sig", f"the key {key.key_id} ({key.comment}) made another one")
            return f"usign key {key.key_id} ({key.comment})"
        why.append(f"it is signed by the usign key {made.key_id}, which is not known for it")
    text = fetch(f"{LISTING}.asc")
    if text is None and not why:
        raise SignatureMissing(where)
    if text is not None:
        if not fetch_gpg.available():
            why.append("there is a GPG signature, and gpg is not installed")
        else:
            checked = fetch_gpg.verify(listing, text, keys.gpg_files, keys.gpg_fingerprints)
            if checked.signer is not None:
                return f"GPG key {checked.signer}"
            if "is wrong" in checked.why:
                raise SignatureWrong(f"{where}/{LISTING}.asc", checked.why)
            why.append(checked.why)
    raise SignatureUntrusted(where, "; ".join(why), _advice(keys, gpg=text is not None))


def _advice(keys: TrustedKeys, *, gpg: bool) -> str:
    """What makes the signer known."""
    put = (
        "check the key at https://openwrt.org/docs/guide-user/security/signatures and put it into the workspace's keys/"
    )
    if gpg and keys.gpg_fingerprints:
        prints = " or ".join(sorted(keys.gpg_fingerprints))
        return f"{put}, or into your keyring (gpg --import FILE): the GPG key {prints}, from {_KEYRING}"
    return put
