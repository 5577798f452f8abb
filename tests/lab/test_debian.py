"""The lab's private apt and its roots, against a mirror made here and served from a folder (no network)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "lab/debian.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lab_debian", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


debian = _load()


def _deb(folder: Path, name: str, depends: str = "") -> Path:
    """A tiny package with one file, /usr/share/<name>/here."""
    tree = folder / f"tree-{name}"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / f"usr/share/{name}").mkdir(parents=True)
    (tree / f"usr/share/{name}/here").write_text(name)
    control = f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: x\n"
    (tree / "DEBIAN/control").write_text(control + (f"Depends: {depends}\n" if depends else ""))
    target = folder / f"{name}_1_all.deb"
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
    monkeypatch.setattr(debian, "_run", lambda *_: listed)
    with pytest.raises(debian.LabError, match="NDAKIT_DEBIAN_MIRROR"):
        debian.mirror()


def test_the_mirror_is_the_machines_own_and_not_its_security_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NDAKIT_DEBIAN_MIRROR", raising=False)
    lines = "http://m.example/debian-security/ bookworm-security\nhttp://m.example/debian/ bookworm\n"
    monkeypatch.setattr(debian, "_run", lambda *_: subprocess.CompletedProcess([], 0, lines, ""))
    assert debian.mirror() == "http://m.example/debian"
