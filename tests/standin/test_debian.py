"""The lab's private apt and its roots, against a mirror made here and served from a folder (no network)."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import debian
import pytest

from places import LAB

SCRIPT = LAB / "debian.py"


def _deb(folder: Path, name: str, depends: str = "", *, version: str = "1") -> Path:
    """A tiny package with one file, /usr/share/<name>/here."""
    tree = folder / f"tree-{name}"
    (tree / "DEBIAN").mkdir(parents=True, exist_ok=True)
    (tree / f"usr/share/{name}").mkdir(parents=True)
    (tree / f"usr/share/{name}/here").write_text(name)
    control = (
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: x\n"
    )
    (tree / "DEBIAN/control").write_text(control + (f"Depends: {depends}\n" if depends else ""))
    target = folder / f"{name}_{version}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, target], check=True, capture_output=True)
    return target


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache whose downloads are made by hand: apt itself is replaced by a table of closures."""
    folder = tmp_path / "cache"
    (folder / "debs").mkdir(parents=True)
    for name, depends in (("alpha", "beta"), ("beta", "")):
        _deb(tmp_path, name, depends).rename(folder / f"debs/{name}_1_all.deb")
    known = {"alpha": ["alpha", "beta"], "beta": ["beta"]}

    def download(cache: Path, wanted: list[str], arch: str, say: object) -> list[Path]:
        names = sorted({n for w in wanted for n in known[w]})
        return [cache / f"debs/{n}_1_all.deb" for n in names]

    monkeypatch.setattr(debian, "_download", download)
    return folder


def _offline(*_: object) -> list[Path]:
    raise AssertionError("the network was asked for something that is already here")


def test_the_same_request_again_is_answered_without_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = debian.closure(cache, ["alpha"])
    monkeypatch.setattr(debian, "_download", _offline)
    assert debian.closure(cache, ["alpha", "alpha"]) == first
    assert [p.name for p in first] == ["alpha_1_all.deb", "beta_1_all.deb"]


def test_a_download_that_was_cut_short_is_not_taken_for_whole(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = debian.closure(cache, ["beta"])
    first[0].write_bytes(first[0].read_bytes()[:100])
    monkeypatch.setattr(debian, "_download", _offline)
    with pytest.raises(AssertionError, match="network was asked"):
        debian.closure(cache, ["beta"])


def test_a_root_has_the_packages_files_and_what_chroot_needs(cache: Path) -> None:
    root = debian.root(cache, ["alpha"], name="tiny")
    assert root.name.startswith("tiny-")
    assert (root / "usr/share/alpha/here").read_text() == "alpha"
    assert (root / "usr/share/beta/here").is_file()
    assert (root / "bin").readlink() == Path("usr/bin")
    assert (root / "etc/passwd").read_text().startswith("root:x:0:0:")
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert (root / "dev/null").is_file()
    assert debian.root(cache, ["alpha"], name="tiny") == root


def test_a_package_that_brings_the_old_folders_lands_behind_the_links(cache: Path, tmp_path: Path) -> None:
    """Debian 12's iproute2 brings /sbin/bridge."""
    old = tmp_path / "tree-gamma/sbin/old"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    _deb(tmp_path, "gamma").rename(cache / "debs/beta_1_all.deb")
    root = debian.root(cache, ["beta"])
    assert (root / "sbin").readlink() == Path("usr/sbin")
    assert (root / "usr/sbin/old").read_text() == "old"


def test_a_killed_unpacking_is_swept_and_does_not_trip_the_next(cache: Path) -> None:
    left = cache / "roots/tiny-0.abc.partial"
    left.mkdir(parents=True)
    root = debian.root(cache, ["beta"], name="tiny")
    assert not left.exists()
    assert [p.name for p in (cache / "roots").iterdir()] == [root.name]


def test_a_broken_package_is_named_and_removed_from_the_cache(cache: Path) -> None:
    debs = debian.closure(cache, ["beta"])
    debs[0].write_bytes(b"x" * debs[0].stat().st_size)
    with pytest.raises(debian.LabError, match="could not be unpacked"):
        debian.root(cache, ["beta"])
    assert not debs[0].exists()
    assert not any((cache / "roots").iterdir())


def _cli(tmp_path: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {"PATH": os.environ["PATH"], "LC_ALL": "C", **env}
    return subprocess.run([sys.executable, SCRIPT, *argv], env=clean, capture_output=True, text=True, check=False)


def test_an_unreachable_mirror_is_exit_3_with_what_where_fix(tmp_path: Path) -> None:
    nowhere = (tmp_path / "no-mirror").as_uri()
    done = _cli(tmp_path, "closure", "--cache", str(tmp_path / "c"), "busybox", NDAKIT_DEBIAN_MIRROR=nowhere)
    assert done.returncode == 3
    assert done.stdout == ""
    said = [line for line in done.stderr.splitlines() if not line.startswith("debian: ")]
    assert len(said) == 3
    assert said[0].startswith("error: apt could not get the packages")
    assert said[1] == f"  where: suite trixie at {nowhere}"
    assert said[2].startswith("  fix:   ")


def test_a_missing_tool_is_exit_3_and_names_its_package(tmp_path: Path) -> None:
    done = _cli(tmp_path, "closure", "--cache", str(tmp_path / "c"), "busybox", PATH=str(tmp_path))
    assert done.returncode == 3
    assert "apt-get is needed" in done.stderr
    assert "apt-get install apt" in done.stderr


def test_a_cache_that_cannot_be_written_is_exit_3(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = _cli(tmp_path, "closure", "--cache", str(tmp_path / "file/c"), "x", NDAKIT_DEBIAN_MIRROR="file:///x")
    assert done.returncode == 3
    assert "cannot be written" in done.stderr


def test_a_machine_without_debian_sources_is_told_how_to_name_a_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NDAKIT_DEBIAN_MIRROR", raising=False)
    listed = subprocess.CompletedProcess([], 0, "http://mirror.example/ubuntu/ noble\n", "")
    monkeypatch.setattr(debian, "run", lambda *_: listed)
    with pytest.raises(debian.LabError, match="NDAKIT_DEBIAN_MIRROR"):
        debian.mirror()


def test_the_mirror_is_the_machines_own_and_not_its_security_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NDAKIT_DEBIAN_MIRROR", raising=False)
    lines = "http://m.example/debian-security/ bookworm-security\nhttp://m.example/debian/ bookworm\n"
    monkeypatch.setattr(debian, "run", lambda *_: subprocess.CompletedProcess([], 0, lines, ""))
    assert debian.mirror() == "http://m.example/debian"


ARCHITECTURE = "armel"


@pytest.fixture
def mirror_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A signing key of the test's own, known to the lab's apt as Debian's would be: gpg's folder."""
    home = tmp_path / "gpg"
    home.mkdir(mode=0o700)
    keyring = str(tmp_path / "keyring.gpg")
    gpg: list[str] = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--passphrase", ""]
    subprocess.run([*gpg, "--quick-generate-key", "mirror@example.org", "ed25519", "sign"], check=True)
    subprocess.run([*gpg, "--output", keyring, "--export"], check=True)
    monkeypatch.setattr(debian, "_KEYRINGS", (keyring,))
    yield str(home)
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True)


def _suite(mirror: Path, gpg_home: str, suite: str, packages: dict[str, str]) -> None:
    """A signed suite whose index names `packages` (name to dependencies), all of version `suite`, and holds them."""
    pool, lists = mirror / "pool", mirror / f"dists/{suite}/main/binary-{ARCHITECTURE}"
    pool.mkdir(parents=True, exist_ok=True)
    lists.mkdir(parents=True)
    stanzas = []
    for name, depends in packages.items():
        deb = _deb(mirror / f"build-{suite}", name, depends, version=f"1+{suite}")
        deb = deb.rename(pool / deb.name)
        control = subprocess.run(["dpkg-deb", "--field", deb], check=True, capture_output=True, text=True).stdout
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        stanzas.append(f"{control}Filename: pool/{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n")
    plain = "\n".join(stanzas).encode()
    indexes = {"Packages": plain, "Packages.gz": gzip.compress(plain, mtime=0)}
    (lists / "Packages.gz").write_bytes(indexes["Packages.gz"])
    sums = "".join(
        f" {hashlib.sha256(content).hexdigest()} {len(content)} main/binary-{ARCHITECTURE}/{name}\n"
        for name, content in indexes.items()
    )
    release = mirror / f"dists/{suite}/Release"
    release.write_text(
        f"Codename: {suite}\nSuite: {suite}\nComponents: main\nArchitectures: {ARCHITECTURE}\n"
        f"Date: Sun, 29 Nov 2026 10:00:00 UTC\nSHA256:\n{sums}"
    )
    signed = release.with_name("InRelease")
    sign = ["gpg", "--homedir", gpg_home, "--batch", "--quiet", "--clearsign", "--output", str(signed), str(release)]
    subprocess.run(sign, check=True)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the test's output is for its own findings."""


@pytest.fixture
def two_suites(tmp_path: Path, mirror_keys: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a mirror that serves both suites over HTTP, where alpha needs beta; nothing is missing yet."""
    folder = tmp_path / "mirror"
    for suite in ("trixie", "bookworm"):
        _suite(folder, mirror_keys, suite, {"alpha": "beta", "beta": "", "gamma": ""})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    monkeypatch.setenv("NDAKIT_DEBIAN_MIRROR", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield folder
    server.shutdown()
    server.server_close()
    serving.join()


def test_the_newest_suite_is_taken_where_the_mirror_holds_it(tmp_path: Path, two_suites: Path) -> None:
    debs = debian.closure(tmp_path / "c", ["alpha"], arch=ARCHITECTURE)
    assert [p.name for p in debs] == ["alpha_1+trixie_all.deb", "beta_1+trixie_all.deb"]


def test_a_file_that_the_mirror_lacks_leads_to_the_older_suite_and_is_told(tmp_path: Path, two_suites: Path) -> None:
    (two_suites / "pool/beta_1+trixie_all.deb").unlink()
    said: list[str] = []
    debs = debian.closure(tmp_path / "c", ["alpha"], arch=ARCHITECTURE, say=said.append)
    assert [p.name for p in debs] == ["alpha_1+bookworm_all.deb", "beta_1+bookworm_all.deb"]
    assert "the mirror lacks files that it names in trixie for armel: beta_1+trixie_all.deb" in said
    assert "taking bookworm for armel instead; ./inv clean --cache forgets that" in said


def test_one_image_is_of_one_suite_after_the_mirror_is_whole_again(tmp_path: Path, two_suites: Path) -> None:
    missing = two_suites / "pool/beta_1+trixie_all.deb"
    whole = missing.read_bytes()
    missing.unlink()
    first = debian.closure(tmp_path / "c", ["alpha"], arch=ARCHITECTURE)
    missing.write_bytes(whole)
    assert [p.name for p in debian.closure(tmp_path / "c", ["gamma"], arch=ARCHITECTURE)] == [
        "gamma_1+bookworm_all.deb"
    ]
    assert debian.closure(tmp_path / "c", ["alpha"], arch=ARCHITECTURE) == first
    elsewhere = debian.closure(tmp_path / "new-cache", ["gamma"], arch=ARCHITECTURE)
    assert [p.name for p in elsewhere] == ["gamma_1+trixie_all.deb"]


def test_a_mirror_that_moved_on_since_the_lists_were_fetched_is_asked_for_new_lists(
    tmp_path: Path, two_suites: Path, mirror_keys: str
) -> None:
    debian.closure(tmp_path / "c", ["gamma"], arch=ARCHITECTURE)
    (two_suites / "pool/beta_1+trixie_all.deb").rename(two_suites / "pool/beta_2+trixie_all.deb")
    shutil.rmtree(two_suites / "dists/trixie")
    shutil.rmtree(two_suites / "build-trixie")
    _suite(two_suites, mirror_keys, "trixie", {"alpha": "", "delta": ""})
    later = time.time() + 60  # HTTP's times are whole seconds
    os.utime(two_suites / "dists/trixie/InRelease", (later, later))
    debs = debian.closure(tmp_path / "c", ["alpha"], arch=ARCHITECTURE)
    assert [p.name for p in debs] == ["alpha_1+trixie_all.deb"]


def test_a_mirror_that_lacks_it_in_every_suite_is_named_with_the_files(tmp_path: Path, two_suites: Path) -> None:
    for deb in (two_suites / "pool").glob("beta_*"):
        deb.unlink()
    with pytest.raises(debian.FilesMissing) as failure:
        debian.closure(tmp_path / "c", ["alpha"], arch=ARCHITECTURE)
    assert str(failure.value).splitlines() == [
        "the mirror names packages that it does not hold: beta_1+bookworm_all.deb",
        f"  where: suite bookworm at {os.environ['NDAKIT_DEBIAN_MIRROR']}",
        "  fix:   the mirror is being updated: try again in some hours, or name another one in NDAKIT_DEBIAN_MIRROR",
    ]


def test_a_package_that_does_not_exist_is_no_reason_for_an_older_suite(tmp_path: Path, two_suites: Path) -> None:
    with pytest.raises(debian.NoSuchPackage, match="no such Debian package: omega\n  where: suite trixie"):
        debian.closure(tmp_path / "c", ["omega"], arch=ARCHITECTURE)


def test_the_environment_chooses_the_suites(tmp_path: Path, two_suites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NDAKIT_DEBIAN_SUITES", "bookworm")
    assert [p.name for p in debian.closure(tmp_path / "c", ["gamma"], arch=ARCHITECTURE)] == [
        "gamma_1+bookworm_all.deb"
    ]
