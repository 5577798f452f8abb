"""Fetching an ImageBuilder: from a signed mirror into the cache, and everything that a mirror can do wrong."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import re
import shutil
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import mirror
from ndakit.core.errors import InputError, NdakitError
from ndakit.core.events import Event, Progress, Warned
from ndakit.core.release import Release
from ndakit.imagebuilder.fetch import archive, errors, mirrors, trust
from ndakit.imagebuilder.fetch import fetch as fetching
from ndakit.imagebuilder.fetch.fetch import Fetched
from places import ROOT

RELEASE = Release.parse("24.10.8")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("os.sync", lambda: None)  # this machine's disks are shared; what it is for needs a power cut


class Place:
    """A mirror with one good release, its key in a workspace's folder, and a cache."""

    def __init__(self, server: mirror.Server, folder: Path, name: str) -> None:
        self.server = server
        self.files = server.files
        self.folder = folder
        self.keys = server.files.key.into(folder / "keys")
        self.archive = name
        self.events: list[Event] = []

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.files.content[self.archive]).hexdigest()

    @property
    def base(self) -> Path:
        return self.folder / "cache/ndakit/openwrt/imagebuilders/24.10.8-x86-64"

    def fetch(self, **more: object) -> Fetched:
        words: dict[str, object] = {"mirrors": [self.server.url], "keys": [self.keys], "limits": mirror.QUICK}
        return fetching.fetch(
            RELEASE, "x86/64", events=self.events.append, **(words | more)  # type: ignore[arg-type]  # a test's choice
        )  # fmt: skip

    def refused(self, kind: type[NdakitError], **more: object) -> NdakitError:
        """The error, after which nothing is in the cache that could pass for an ImageBuilder."""
        with pytest.raises(kind) as caught:
            self.fetch(**more)
        self.nothing_good()
        assert "\n  fix:   " in caught.value.text()
        return caught.value

    def nothing_good(self) -> None:
        assert list(self.base.glob("*/unpacked")) == []
        assert list(self.base.glob("*/verified.json")) == []
        assert list(self.base.rglob("Makefile")) == []
        with pytest.raises(errors.OfflineMissing):
            self.fetch(offline=True)

    def asked(self) -> list[str]:
        return [Path(path).name for path, _ in self.server.asked]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    files = mirror.Files(mirror.TestKey())
    name = files.add()
    with mirror.running(mirror.Server(files)) as server:
        yield Place(server, tmp_path, name)


# -- all is well -------------------------------------------------------------------------------------------------------


def test_a_signed_imagebuilder_is_downloaded_verified_and_unpacked(place: Place) -> None:
    fetched = place.fetch()
    assert (fetched.folder / "Makefile").is_file()
    assert fetched.folder.name == "openwrt-imagebuilder-24.10.8-x86-64.Linux-x86_64"
    assert (fetched.archive, fetched.sha256) == (Path(place.archive).name, place.sha256)
    assert fetched.verified_by == "usign key 0123456789abcdef (a test key)"
    assert fetched.fresh
    assert place.asked() == ["sha256sums", "sha256sums.sig", fetched.archive]
    assert [e for e in place.events if isinstance(e, Progress)][-1].done_bytes == len(
        place.files.content[place.archive]
    )
    facts = json.loads((place.base / fetched.sha256[:16] / "verified.json").read_text())
    assert facts["verified_by"] == fetched.verified_by
    assert facts["pinned"] is False
    assert list(place.base.glob("*.partial*")) == []
    assert list((place.base / ".scratch").iterdir()) == []


def test_what_is_in_the_cache_needs_no_network(place: Place) -> None:
    first = place.fetch()
    place.server.asked.clear()
    again = place.fetch()
    assert (again.folder, again.fresh) == (first.folder, False)
    assert place.fetch(offline=True).folder == first.folder
    assert place.server.asked == []


def test_the_unpacked_folder_keeps_times_and_exec_bits(place: Place) -> None:
    fetched = place.fetch()
    assert (fetched.folder / "staging_dir/host/bin/awk").readlink() == Path("/usr/bin/gawk")
    assert (fetched.folder / "Makefile").stat().st_mode & 0o777 == 0o644
    assert time.time() - (fetched.folder / "Makefile").stat().st_mtime < 3600


def test_an_xz_archive_of_an_older_release_is_unpacked_too(place: Place) -> None:
    place.files.add("23.05.6", suffix=".tar.xz")
    fetched = fetching.fetch(
        Release.parse("23.05.6"), "x86/64", mirrors=[place.server.url], keys=[place.keys], limits=mirror.QUICK
    )
    assert fetched.archive.endswith(".tar.xz")
    assert (fetched.folder / "Makefile").is_file()


def test_a_target_whose_archive_has_no_subtarget_in_its_name_is_found(place: Place) -> None:
    stem = "openwrt-imagebuilder-22.03.7-kirkwood.Linux-x86_64"
    place.files.add("22.03.7", "kirkwood/generic", ".tar.xz", stem)
    fetched = fetching.fetch(
        Release.parse("22.03.7"), "kirkwood/generic", mirrors=[place.server.url], keys=[place.keys], limits=mirror.QUICK
    )
    assert fetched.folder.name == stem


def test_a_folder_is_a_mirror(place: Place, tmp_path: Path) -> None:
    root = place.files.write(tmp_path / "Spiegel für alle")
    fetched = place.fetch(mirrors=[root.as_uri()])
    assert (fetched.folder / "Makefile").is_file()
    assert place.server.asked == []


def test_a_cache_path_with_spaces_and_umlauts_works(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "Zwischen speicher für ÄÖÜ"))
    fetched = place.fetch()
    assert "für ÄÖÜ" in str(fetched.folder)
    assert (fetched.folder / "Makefile").is_file()


def test_mirrors_come_from_the_option_then_the_environment_then_openwrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NDAKIT_MIRROR", raising=False)
    assert fetching.mirrors_from(None) == ("https://downloads.openwrt.org",)
    monkeypatch.setenv("NDAKIT_MIRROR", "http://a.example/openwrt/ file:///mnt")
    assert fetching.mirrors_from(None) == ("http://a.example/openwrt", "file:///mnt")
    assert fetching.mirrors_from("http://b.example") == ("http://b.example",)


@pytest.mark.parametrize(
    "text", ["ftp://a.example", "a.example", "http://", "file://host/x", "http://a.example/?q=1", "http://a:b:c/"]
)
def test_what_is_no_address_of_a_mirror_is_refused(text: str) -> None:
    with pytest.raises(mirrors.MirrorUnusable, match="--mirror https://"):
        fetching.mirrors_from(text)


def test_a_password_in_a_mirrors_address_is_told_and_kept_nowhere(place: Place) -> None:
    secret = place.server.url.replace("http://", "http://me:hush-hush@")
    place.fetch(mirrors=[secret])
    said = "".join(map(str, place.events)) + "".join(p.read_text() for p in place.base.glob("*/verified.json"))
    assert "hush-hush" not in said
    place.server.faults["sha256sums"] = mirror.status(500)
    with pytest.raises(mirrors.MirrorRefuses) as caught:
        fetching.fetch(Release.parse("24.10.7"), "x86/64", mirrors=[secret], limits=mirror.QUICK)
    assert "hush-hush" not in caught.value.text()


# -- signatures --------------------------------------------------------------------------------------------------------


def test_without_any_signature_nothing_is_downloaded(place: Place) -> None:
    del place.files.content[f"{place.files.folder()}/sha256sums.sig"]
    error = place.refused(trust.SignatureMissing)
    assert "--checksum SHA256" in error.fix
    assert Path(place.archive).name not in place.asked()


def test_a_list_changed_after_signing_is_refused(place: Place) -> None:
    path = f"{place.files.folder()}/sha256sums"
    place.files.content[path] = place.files.content[path].replace(b"img.gz", b"img.xz")
    error = place.refused(trust.SignatureWrong)
    assert "0123456789abcdef" in error.what


def test_a_signature_by_an_unknown_key_is_refused_and_named(place: Place) -> None:
    place.files.key = mirror.TestKey("fedcba9876543210")
    place.files.add()
    error = place.refused(trust.SignatureUntrusted)
    assert "fedcba9876543210" in error.what
    assert "keys/" in error.fix


def test_another_key_under_a_known_id_is_refused(place: Place) -> None:
    place.files.key = mirror.TestKey(place.files.key.key_id)
    place.files.add()
    place.refused(trust.SignatureWrong)


@pytest.mark.parametrize(
    "text", [b"", b"no signature\n", b"untrusted comment: x\n====\n", b"untrusted comment: x\nRWQ=\n"]
)
def test_what_is_no_signature_is_refused(text: bytes, place: Place) -> None:
    place.files.content[f"{place.files.folder()}/sha256sums.sig"] = text
    place.refused(trust.SignatureWrong)


def test_a_key_for_one_branch_vouches_for_no_other(place: Place, tmp_path: Path) -> None:
    place.keys = tmp_path / "bound"
    place.files.key.into(place.keys / "23.05")
    place.refused(trust.SignatureUntrusted)
    place.files.key.into(place.keys / "24.10")
    assert place.fetch().fresh


def test_a_broken_key_file_is_named(place: Place) -> None:
    (place.keys / "0000000000000000").write_text(place.files.key.public())
    with pytest.raises(trust.KeyBroken, match="inside is the key 0123456789abcdef"):
        place.fetch()


def test_every_key_that_ships_is_whole_and_bound_to_a_branch() -> None:
    for branch in ("18.06.9", "19.07.10", "21.02.7", "22.03.7", "24.10.8"):
        keys = trust.keys_for(Release.parse(branch))
        assert len(keys.usign) == 1, branch
    assert trust.keys_for(Release.parse("24.10.8")).usign.keys() == {"d310c6f2833e97f7"}
    latest = trust.keys_for(Release.parse("25.12.5"))
    assert not latest.usign
    assert latest.gpg_fingerprints == {"8A8BC12F46B836C0F9CDB36F1D53D1877742E911"}


# -- a pinned checksum -------------------------------------------------------------------------------------------------


def test_a_pinned_checksum_needs_no_signature(place: Place) -> None:
    del place.files.content[f"{place.files.folder()}/sha256sums.sig"]
    fetched = place.fetch(checksum=place.sha256.upper())
    assert fetched.verified_by == "the checksum that was pinned by hand"


def test_what_was_pinned_by_hand_serves_only_whoever_pins_it(place: Place) -> None:
    place.fetch(checksum=place.sha256)
    with pytest.raises(errors.OfflineMissing, match=f"--checksum {place.sha256}"):
        place.fetch(offline=True)
    assert place.fetch(offline=True, checksum=place.sha256).sha256 == place.sha256
    place.server.asked.clear()
    assert place.fetch().verified_by.startswith("usign key")
    assert place.asked() == ["sha256sums", "sha256sums.sig"]  # the archive itself is there


def test_a_spoilt_entry_of_the_cache_is_made_again(place: Place) -> None:
    fetched = place.fetch()
    for text in ("", "[]", '{"format": 99}'):
        (place.base / fetched.sha256[:16] / "verified.json").write_text(text)
        with pytest.raises(errors.OfflineMissing):
            place.fetch(offline=True)
        assert place.fetch().folder == fetched.folder


def test_another_pinned_checksum_is_refused_before_the_download(place: Place) -> None:
    error = place.refused(errors.ChecksumWrong, checksum="0" * 64)
    assert "0" * 64 in error.what
    assert Path(place.archive).name not in place.asked()


def test_what_is_no_checksum_is_refused(place: Place) -> None:
    place.refused(errors.ChecksumMalformed, checksum="abc")


# -- archives ----------------------------------------------------------------------------------------------------------


def test_a_corrupted_archive_is_refused_and_thrown_away(place: Place) -> None:
    content = bytearray(place.files.content[place.archive])
    content[len(content) // 2] ^= 1
    place.server.faults[".tar.zst"] = mirror.other(bytes(content))
    place.refused(errors.ChecksumWrong)
    assert list(place.base.glob("*.partial*")) == []


def test_a_truncated_archive_is_refused(place: Place) -> None:
    place.server.faults[".tar.zst"] = mirror.other(place.files.content[place.archive][:-1000])
    place.refused(errors.ChecksumWrong)


def test_a_swapped_archive_is_refused(place: Place) -> None:
    other = place.files.add("24.10.7")
    place.server.faults["24.10.8-x86-64.Linux-x86_64.tar.zst"] = mirror.other(place.files.content[other])
    place.refused(errors.ChecksumWrong)


def test_the_signed_list_of_another_target_is_refused(place: Place) -> None:
    place.files.add("24.10.8", "x86/generic")
    for name in ("sha256sums", "sha256sums.sig"):
        content = place.files.content[f"{place.files.folder(target='x86/generic')}/{name}"]
        place.files.content[f"{place.files.folder()}/{name}"] = content
    error = place.refused(errors.ListingForeign)
    assert "x86-generic" in error.what


@pytest.mark.parametrize(
    ("release", "target", "says"), [("24.10.7", "x86/64", "release 24.10.7"), ("24.10.8", "x86/generic", "x86/generic")]
)
def test_an_archive_renamed_to_what_was_asked_for_is_refused(
    release: str, target: str, says: str, place: Place
) -> None:
    stem = f"openwrt-imagebuilder-{release}-{target.replace('/', '-')}.Linux-x86_64"
    content = mirror.imagebuilder(stem, release, target, ".tar.zst")
    place.files.put(Path(place.archive).name, content)
    error = place.refused(errors.ArchiveForeign)
    assert says in error.what


def test_a_signed_archive_of_something_else_is_refused(place: Place, tmp_path: Path) -> None:
    (tmp_path / "sdk/include").mkdir(parents=True)
    place.files.put(Path(place.archive).name, mirror.packed(tmp_path / "sdk", ".tar.zst"))
    error = place.refused(errors.NoImageBuilder)
    assert "there is no Makefile" in error.what


def test_a_signed_archive_that_is_no_archive_is_refused(place: Place) -> None:
    place.files.put(Path(place.archive).name, b"not zstd at all")
    error = place.refused(archive.ArchiveBroken)
    assert "unsupported format" in error.what


def test_a_list_without_an_imagebuilder_says_so(place: Place) -> None:
    place.files.list(place.files.folder(), {"openwrt-sdk-24.10.8-x86-64.tar.zst": "0" * 64})
    place.refused(errors.ListingWithout)


def test_an_archive_of_the_cache_is_hashed_again_before_it_is_unpacked(place: Place) -> None:
    fetched = place.fetch()
    path = fetched.folder.parents[1] / fetched.archive
    shutil.rmtree(fetched.folder.parent)
    place.server.asked.clear()
    assert place.fetch().folder == fetched.folder  # from the archive in the cache
    assert place.server.asked == []
    shutil.rmtree(fetched.folder.parent)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(errors.OfflineMissing):
        place.fetch(offline=True)
    assert any(isinstance(e, Warned) and "has changed" in e.text for e in place.events)
    assert place.fetch().fresh


# -- mirrors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sha256sums", ".tar.zst"])
@pytest.mark.parametrize(
    "fault", [mirror.silent, mirror.stops(50), mirror.trickles], ids=["silent", "stops", "trickles"]
)
def test_a_mirror_that_hangs_is_left(name: str, fault: mirror.Fault, place: Place) -> None:
    place.server.faults[name] = fault
    started_s = time.monotonic()
    error = place.refused(mirrors.MirrorHangs, limits=mirror.HASTY)
    assert time.monotonic() - started_s < 30
    slow = fault is mirror.trickles and name == "sha256sums"
    assert ("was not there whole after 2 s" if slow else "next to nothing came for 0.25 s") in error.what


def test_a_mirror_that_redirects_in_a_circle_is_left(place: Place) -> None:
    place.server.faults["sha256sums"] = lambda handler, _: handler.redirect(handler.path)
    place.refused(mirrors.MirrorRedirects)


def test_a_redirect_to_a_file_of_this_machine_is_refused(place: Place) -> None:
    place.server.faults["sha256sums"] = lambda handler, _: handler.redirect("file:///etc/passwd")
    place.refused(mirrors.MirrorRedirects)


def test_a_redirect_to_another_http_address_is_followed(place: Place) -> None:
    url = place.server.url

    def elsewhere(handler: mirror.Handler, content: bytes) -> None:
        place.server.files.content["/moved"] = content
        handler.redirect(f"{url}/moved")

    place.server.faults[".tar.zst"] = elsewhere
    assert place.fetch().fresh


@pytest.mark.parametrize("code", [500, 503, 403])
def test_an_answer_that_is_an_error_is_told(code: int, place: Place) -> None:
    place.server.faults["sha256sums"] = mirror.status(code)
    error = place.refused(mirrors.MirrorRefuses)
    assert str(code) in error.what


@pytest.mark.parametrize("name", ["sha256sums", "sha256sums.sig", ".tar.zst"])
def test_a_web_page_with_200_is_no_file(name: str, place: Place) -> None:
    place.server.faults[name] = mirror.page
    error = place.refused(mirrors.WrongAnswer)
    assert "web page" in error.what
    assert "login" in error.fix


def test_a_mirror_that_lacks_the_archive_says_404(place: Place) -> None:
    place.server.faults[".tar.zst"] = mirror.status(404)
    place.refused(mirrors.NotThere)


def test_a_wrong_length_is_refused(place: Place) -> None:
    def short(handler: mirror.Handler, content: bytes) -> None:
        handler.serve(content, length=len(content) + 10)

    place.server.faults[".tar.zst"] = short
    error = place.refused(mirrors.WrongAnswer)
    assert "length" in error.what


def test_a_list_without_end_is_refused(place: Place) -> None:
    place.server.faults["sha256sums"] = mirror.other(b"x" * (5 * 1024 * 1024))
    place.refused(mirrors.WrongAnswer)


def test_a_mirror_that_is_down_is_an_error_of_the_machine(place: Place) -> None:
    error = place.refused(mirrors.MirrorUnreachable, mirrors=["http://127.0.0.1:1"])
    assert "refused" in error.what
    assert error.exit_code == 3


def test_the_next_mirror_is_tried_with_a_warning(place: Place) -> None:
    fetched = place.fetch(mirrors=["http://127.0.0.1:1", place.server.url])
    assert fetched.fresh
    assert any(isinstance(e, Warned) and "127.0.0.1:1" in e.text for e in place.events)


def test_the_archive_comes_from_the_next_mirror_if_the_first_has_a_bad_one(place: Place) -> None:
    with mirror.running(mirror.Server(place.files)) as bad:
        bad.faults[".tar.zst"] = mirror.other(b"rubbish")
        assert place.fetch(mirrors=[bad.url, place.server.url]).sha256 == place.sha256


def test_several_useless_mirrors_are_all_named(place: Place) -> None:
    place.server.faults["sha256sums"] = mirror.status(500)
    error = place.refused(errors.MirrorsFailed, mirrors=["http://127.0.0.1:1", place.server.url])
    assert "127.0.0.1:1" in error.what
    assert "500" in error.what


# -- broken off and taken up again -------------------------------------------------------------------------------------


def test_a_connection_that_breaks_off_is_taken_up_where_it_ended(place: Place) -> None:
    place.server.faults[".tar.zst"] = mirror.breaks_off(100_000, 150_000, 50_000)
    assert place.fetch().sha256 == place.sha256
    ranges = [wanted for path, wanted in place.server.asked if path == place.archive]
    assert ranges == ["", "bytes=100000-", "bytes=250000-", "bytes=300000-"]


def test_the_next_run_goes_on_where_a_failed_one_ended(place: Place) -> None:
    place.server.faults[".tar.zst"] = mirror.breaks_off(100_000, 0, 0, 0)
    with pytest.raises(mirrors.MirrorUnreachable):
        place.fetch()
    place.server.faults.clear()
    place.server.asked.clear()
    assert place.fetch().sha256 == place.sha256
    assert (place.archive, "bytes=100000-") in place.server.asked


def test_a_mirror_that_cannot_resume_sends_all_of_it_again(place: Place) -> None:
    def whole(handler: mirror.Handler, content: bytes) -> None:
        del handler.headers["Range"]
        handler.serve(content)

    place.base.mkdir(parents=True)
    (place.base / f"{place.sha256[:16]}.partial").write_bytes(place.files.content[place.archive][:100_000])
    place.server.faults[".tar.zst"] = whole
    assert place.fetch().sha256 == place.sha256
    assert [wanted for path, wanted in place.server.asked if path == place.archive] == ["bytes=100000-"]


def test_a_left_over_part_of_another_file_costs_a_second_download_and_nothing_else(place: Place) -> None:
    place.base.mkdir(parents=True)
    (place.base / f"{place.sha256[:16]}.partial").write_bytes(b"of something else" * 1000)
    assert place.fetch().sha256 == place.sha256


def test_a_left_over_part_that_is_too_long_is_thrown_away(place: Place) -> None:
    place.base.mkdir(parents=True)
    (place.base / f"{place.sha256[:16]}.partial").write_bytes(b"x" * (len(place.files.content[place.archive]) + 9))
    assert place.fetch().sha256 == place.sha256


def test_a_finished_download_without_its_entry_is_not_downloaded_again(place: Place) -> None:
    place.base.mkdir(parents=True)
    (place.base / f"{place.sha256[:16]}.partial").write_bytes(place.files.content[place.archive])
    assert place.fetch().sha256 == place.sha256
    assert Path(place.archive).name not in place.asked()


# -- what does not exist -----------------------------------------------------------------------------------------------


def test_a_release_that_does_not_exist_names_the_newest_of_its_branch(place: Place) -> None:
    with pytest.raises(errors.ReleaseMissing, match=r"write 24\.10\.8, the newest release of its branch") as caught:
        fetching.fetch(Release.parse("24.10.9"), "x86/64", mirrors=[place.server.url], limits=mirror.QUICK)
    assert isinstance(caught.value, InputError)


def test_a_branch_that_does_not_exist_names_near_ones(place: Place) -> None:
    with pytest.raises(errors.ReleaseMissing, match=r"such as .*24\.10"):
        fetching.fetch(Release.parse("24.11.0"), "x86/64", mirrors=[place.server.url], limits=mirror.QUICK)


def test_a_target_that_the_release_does_not_have_names_near_ones(place: Place) -> None:
    with pytest.raises(errors.TargetMissing, match="choose a device of x86/64, x86/generic"):
        fetching.fetch(RELEASE, "x86/65", mirrors=[place.server.url], limits=mirror.QUICK)


def test_offline_says_what_is_missing_and_asks_nobody(place: Place) -> None:
    error = place.refused(errors.OfflineMissing, offline=True)
    assert "24.10.8 for x86/64" in error.what
    assert "./inv fetch --release 24.10.8" in error.fix
    assert place.server.asked == []


# -- the clock ---------------------------------------------------------------------------------------------------------


def test_a_wrong_clock_changes_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1.0)
    assert place.fetch().fresh


def certificate(folder: Path, *, first: datetime.datetime, last: datetime.datetime) -> Path:
    """A certificate for 127.0.0.1 that signs itself, with its key."""
    import ipaddress

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(first)
        .not_valid_after(last)
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "tls.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


@pytest.mark.parametrize(("from_year", "to_year", "says"), [(2001, 2002, "expired"), (2101, 2102, "not yet valid")])
def test_a_certificate_outside_of_its_time_speaks_of_the_clock(
    from_year: int, to_year: int, says: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utc = datetime.UTC
    first, last = datetime.datetime(from_year, 1, 1, tzinfo=utc), datetime.datetime(to_year, 1, 1, tzinfo=utc)
    pem = certificate(tmp_path, first=first, last=last)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pem))
    secure = mirror.Server(place.files)
    secure.socket = context.wrap_socket(secure.socket, server_side=True)
    with mirror.running(secure):
        error = place.refused(mirrors.TlsFailed, mirrors=[secure.url.replace("http:", "https:")])
    assert says in error.what
    assert "set this machine's clock (it says 20" in error.fix
    assert "--mirror http://downloads.openwrt.org" in error.fix


def test_base64_of_the_wrong_length_is_no_key() -> None:
    from ndakit.imagebuilder.fetch import usign

    text = f"untrusted comment: x\n{base64.b64encode(b'Ed' + bytes(39)).decode()}\n"
    with pytest.raises(ValueError, match="42 bytes"):
        usign.public_key(text)


def test_every_test_that_the_fault_table_names_exists() -> None:
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", (ROOT / "docs/imagebuilder.md").read_text()))
    have = {name for path in ROOT.glob("tests/*/test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    assert len(named) > 30
    assert named <= have
