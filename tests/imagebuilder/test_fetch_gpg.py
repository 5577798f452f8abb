"""GPG signatures of checksum lists, made and verified by the real gpg."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mirror
from ndakit.core import process
from ndakit.core.release import Release
from ndakit.imagebuilder.fetch import gpg as fetch_gpg
from ndakit.imagebuilder.fetch import trust

LISTING = b"00 *openwrt-imagebuilder\n"


class Signer:
    """A GPG key in a keyring of its own."""

    def __init__(self, home: Path, made: str = "20200101T000000", lives: str = "0") -> None:
        self.home = home
        self.home.mkdir(mode=0o700)
        words = [
            "--passphrase",
            "",
            "--quick-generate-key",
            "Test Builds <builds@example.org>",
            "ed25519",
            "sign",
            lives,
        ]
        self.gpg("--faked-system-time", made, *words)
        listed = self.gpg("--with-colons", "--list-keys").decode()
        self.fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr"))

    def gpg(self, *words: str, message: bytes | None = None) -> bytes:
        argv = ["gpg", "--homedir", str(self.home), "--batch", "--quiet", *words]
        return subprocess.run(argv, input=message, capture_output=True, check=True, timeout=60).stdout

    def sign(self, message: bytes, when: str = "20200102T000000") -> bytes:
        return self.gpg("--faked-system-time", when, "--armor", "--detach-sign", message=message)

    def key_file(self, path: Path) -> Path:
        path.write_bytes(self.gpg("--armor", "--export"))
        return path

    def stop(self) -> None:
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=False, timeout=30)


@pytest.fixture(scope="module")
def signers() -> Iterator[Callable[..., Signer]]:
    """Makes signers; their agents end with the module. The path is short because their sockets lie there."""
    base = Path(tempfile.mkdtemp(prefix="nda", dir="/tmp"))
    made: dict[str, Signer] = {}

    def signer(name: str = "a", **more: str) -> Signer:
        if name not in made:
            made[name] = Signer(base / name, **more)
        return made[name]

    yield signer
    for one in made.values():
        one.stop()
    shutil.rmtree(base)


@pytest.fixture(autouse=True)
def no_own_keyring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir(mode=0o700)
    monkeypatch.setenv("GNUPGHOME", str(tmp_path / "home"))


def keys(*files: Path, fingerprints: tuple[str, ...] = ()) -> trust.TrustedKeys:
    return trust.TrustedKeys({}, files, frozenset(fingerprints))


def only(signature: bytes) -> Callable[[str], bytes | None]:
    return lambda name: signature if name.endswith(".asc") else None


def test_a_signature_by_a_key_of_the_workspace_vouches(signers: Callable[..., Signer], tmp_path: Path) -> None:
    one = signers()
    signer = trust.verify(LISTING, only(one.sign(LISTING)), keys(one.key_file(tmp_path / "k.asc")), "here")
    assert signer == f"GPG key {one.fingerprint}"


def test_a_known_fingerprint_vouches_by_the_users_own_keyring(
    signers: Callable[..., Signer], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = signers()
    monkeypatch.setenv("GNUPGHOME", str(one.home))
    before = sorted(p.name for p in one.home.iterdir())
    signer = trust.verify(LISTING, only(one.sign(LISTING)), keys(fingerprints=(one.fingerprint,)), "here")
    assert signer == f"GPG key {one.fingerprint}"
    assert set(before) >= {p.name for p in one.home.iterdir()} - {"trustdb.gpg"}


def test_a_key_of_the_users_keyring_that_nobody_named_vouches_for_nothing(
    signers: Callable[..., Signer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = signers(), signers("b")
    monkeypatch.setenv("GNUPGHOME", str(other.home))
    believed = keys(one.key_file(tmp_path / "k.asc"))
    with pytest.raises(trust.SignatureUntrusted, match="which is not known here"):
        trust.verify(LISTING, only(other.sign(LISTING)), believed, "here")


def test_a_changed_list_is_refused(signers: Callable[..., Signer], tmp_path: Path) -> None:
    one = signers()
    believed = keys(one.key_file(tmp_path / "k.asc"))
    with pytest.raises(trust.SignatureWrong, match="is wrong"):
        trust.verify(LISTING + b"x", only(one.sign(LISTING)), believed, "here")


def test_what_is_no_gpg_signature_is_refused(signers: Callable[..., Signer], tmp_path: Path) -> None:
    believed = keys(signers().key_file(tmp_path / "k.asc"))
    with pytest.raises(trust.SignatureUntrusted, match="gpg finds no signature"):
        trust.verify(LISTING, only(b"-----BEGIN rubbish\n"), believed, "here")


def test_a_key_that_has_expired_since_still_vouches_for_what_it_signed(
    signers: Callable[..., Signer], tmp_path: Path
) -> None:
    old = signers("old", lives="20210101T000000")
    believed = keys(old.key_file(tmp_path / "k.asc"))
    assert trust.verify(LISTING, only(old.sign(LISTING)), believed, "here").startswith("GPG key")


def test_a_signature_from_the_future_is_good_on_a_machine_whose_clock_is_behind(
    signers: Callable[..., Signer], tmp_path: Path
) -> None:
    late = signers("late", made="20900101T000000")
    believed = keys(late.key_file(tmp_path / "k.asc"))
    assert trust.verify(LISTING, only(late.sign(LISTING, "20900102T000000")), believed, "here").startswith("GPG key")


def test_gpg_is_asked_where_the_usign_key_is_not_known(signers: Callable[..., Signer], tmp_path: Path) -> None:
    one = signers()
    both = {"sha256sums.sig": mirror.TestKey().sign(LISTING), "sha256sums.asc": one.sign(LISTING)}
    assert trust.verify(LISTING, both.get, keys(one.key_file(tmp_path / "k.asc")), "here").startswith("GPG key")


def test_without_gpg_the_message_says_that_it_would_help(
    signers: Callable[..., Signer], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = signers().sign(LISTING)
    monkeypatch.setattr(process, "find", lambda tool: None)
    with pytest.raises(trust.SignatureUntrusted, match="gpg is not installed"):
        trust.verify(LISTING, only(made), keys(), "here")


def test_the_key_to_import_is_named_for_a_release_signed_by_gpg_alone(signers: Callable[..., Signer]) -> None:
    believed = trust.keys_for(Release.parse("25.12.5"))
    with pytest.raises(trust.SignatureUntrusted, match="gpg --import FILE") as caught:
        trust.verify(LISTING, only(signers().sign(LISTING)), believed, "here")
    assert "8A8BC12F46B836C0F9CDB36F1D53D1877742E911" in caught.value.fix


def test_a_revoked_key_vouches_for_nothing() -> None:
    said = "[GNUPG:] REVKEYSIG 0123456789ABCDEF Test\n[GNUPG:] VALIDSIG A 2020 1 0 4 0 22 10 00 A\n"
    verdict = fetch_gpg.verdict(said, {"A"})
    assert (verdict.signer, verdict.why) == (None, "the GPG signature by 0123456789ABCDEF is by a revoked key")


def test_a_good_signature_by_somebody_else_vouches_for_nothing() -> None:
    verdict = fetch_gpg.verdict("[GNUPG:] VALIDSIG B 2020 1 0 4 0 22 10 00 B\n", {"A"})
    assert (verdict.signer, verdict.why) == (None, "it is signed by the GPG key B, which is not known here")


def test_nothing_of_ours_is_left_running(signers: Callable[..., Signer], tmp_path: Path) -> None:
    one = signers()
    fetch_gpg.verify(LISTING, one.sign(LISTING), [one.key_file(tmp_path / "k.asc")], ())
    agents = [
        p for p in Path("/proc").glob("[0-9]*/cmdline") if b"ndakit" in (read := content(p)) and b"gpg-agent" in read
    ]
    assert agents == []
    assert {p.name for p in (tmp_path / "home").iterdir()} <= {"trustdb.gpg"}


def content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
