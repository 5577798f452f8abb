"""`./inv upgrade PROFILE --release R`: what another release changes is told, and nothing is edited."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import goldens
from ndakit.cli import release_change as cli
from ndakit.cli.tasks import namespace
from ndakit.core import terminal
from ndakit.core.workspace import Workspace
from ndakit.load import load
from ndakit.operate.release_change import ReleaseUnknown, compare

SHIPPED = ("apache-pair", "bakery", "far-tun", "iis-tproxy", "mirror-dr", "rtmp-tproxy", "shop-nat")


@pytest.fixture
def place() -> Workspace:
    return Workspace(goldens.ROOT)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_profiles_can_have_the_newest_release(place: Workspace, name: str) -> None:
    change = compare(place, name, "25.12.5")
    assert change.errors == ()
    facts = {what: (old, new) for what, old, new in change.facts}
    assert facts["packages"] == ("opkg", "apk")
    assert facts["HAProxy"] == ("3.0", "3.2")
    banner = next(one for one in change.files["lb1"] if one.path == "/etc/banner")
    assert "-" in banner.diff
    assert "25.12.5" in banner.diff


def test_the_same_release_changes_nothing(place: Workspace) -> None:
    change = compare(place, "apache-pair", "24.10.8")
    assert (change.facts, change.packages_added, change.packages_removed, change.errors) == ((), {}, {}, ())
    assert not any(change.files.values())


def test_keys_that_a_release_refuses_come_with_their_places_and_a_way_out(
    place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (goldens.ROOT / "profiles/shop-nat.yaml").read_bytes()
    assert cli.show(place, "shop-nat", "18.06.9", diff=False, as_json=False) == 2
    out, err = capsys.readouterr()
    assert "files: not rendered" in out
    assert "services.shop.topology (against profiles/shop-nat.yaml" in err
    assert "write topology: proxy, or use release 19.07.10 or later" in err
    assert "kmod-nf-ipvs" in out  # known although the profile cannot be planned for that release
    assert (goldens.ROOT / "profiles/shop-nat.yaml").read_bytes() == before


def test_a_package_that_is_called_otherwise_says_how(tmp_path: Path) -> None:
    place = _workspace(tmp_path, "22.03.7", "image: {packages: {auc: add}}\n")
    change = compare(place, "shop", "24.10.8")
    assert "owut" in "".join(error.text() for error in change.errors)


def test_files_that_differ_are_counted_and_shown(place: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.show(place, "mirror-dr", "23.05.6", diff=True, as_json=False) == 0
    out, _ = capsys.readouterr()
    assert "+1 -1" in out
    assert "--- /etc/banner (now)" in out
    assert "Nothing was edited. Write release: 23.05.6 into the profile" in out


def test_as_json(place: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.show(place, "apache-pair", "19.07.10", diff=False, as_json=True) == 2
    told = json.loads(capsys.readouterr().out)
    assert (told["before"], told["after"], told["files"]) == ("24.10.8", "19.07.10", {})
    assert {error["key"] for error in told["errors"]} == {"image.firmware", "access.ssh_keys.admin"}
    cli.show(place, "apache-pair", "25.12.5", diff=False, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert {"path", "kind", "added", "removed"} == set(told["files"]["lb1"][0])


def test_an_inherited_release_is_replaced_as_well(tmp_path: Path) -> None:
    place = _workspace(tmp_path, "24.10.8", "")
    profiles = tmp_path / "profiles"
    base = (profiles / "shop.yaml").read_text()
    (profiles / "_base.yaml").write_text("release: 23.05.6\n")
    (profiles / "shop.yaml").write_text("extends: [_base]\n" + base.replace("release: 24.10.8\n", ""))
    change = compare(place, "shop", "25.12.5")
    assert (str(change.before), str(change.after), change.errors) == ("23.05.6", "25.12.5", ())


@pytest.mark.parametrize("release", ["newest", "24.10", "17.01.0", "24.10.8; rm", ""])
def test_what_is_no_release_is_refused(place: Workspace, release: str) -> None:
    with pytest.raises(ReleaseUnknown):
        compare(place, "apache-pair", release)


def test_a_release_that_there_is_not_is_doubted_by_the_profile(place: Workspace) -> None:
    change = compare(place, "mirror-dr", "22.03.9")
    assert any("22.03.7" in warning.text() for warning in change.warnings)


@pytest.mark.parametrize("release", ["99.99.1", "26.05.0", "22.03.9"])
def test_an_unknown_release_is_said_first_as_a_profile_with_it_is_told(
    tmp_path: Path, release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = _workspace(tmp_path, "24.10.8", "")
    said: list[str] = []
    monkeypatch.setattr(terminal, "note", said.append)
    monkeypatch.setattr(terminal, "say", said.append)
    cli.show(place, "shop", release, diff=False, as_json=False)
    profile = tmp_path / "profiles/shop.yaml"
    profile.write_text(profile.read_text().replace("24.10.8", release))
    (warning,) = [one for one in load.load(place, "shop").warnings if one.code == "release-unknown"]
    assert warning.what in said[0]
    assert warning.fix in said[0]
    assert sum(warning.what in one for one in said) == 1
    assert not any(f"Write release: {release}" in one for one in said)


@pytest.mark.parametrize("release", ["24.10.8", "24.10.99", "25.12.5"])
def test_a_known_release_is_not_doubted(place: Workspace, release: str) -> None:
    assert not [one for one in compare(place, "mirror-dr", release).warnings if one.code == "release-unknown"]


@pytest.mark.parametrize("words", [("upgrade", "shop-nat"), ("drain", "shop-nat")])
def test_an_option_that_a_task_cannot_do_without_is_asked_for(words: tuple[str, ...]) -> None:
    argv = [sys.executable, "-m", "ndakit", *words]
    done = subprocess.run(argv, cwd=goldens.ROOT, text=True, capture_output=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "error: it is not said which " in done.stderr
    assert "Traceback" not in done.stderr


def test_every_task_can_be_called_without_its_options() -> None:
    """Invoke hands None to an option without a default, whatever its type is."""
    for one in namespace.tasks.values():
        parameters = list(inspect.signature(one.body).parameters.values())[1:]
        needed = {p.name for p in parameters if p.default is inspect.Parameter.empty}
        assert needed <= set(one.positional or ()), one.name


def test_no_secret_is_read(tmp_path: Path) -> None:
    """They need not even be on this machine."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/tls-old.yaml").write_text((goldens.DATA / "valid/tls-old.yaml").read_text())
    change = compare(Workspace(tmp_path), "tls-old", "25.12.5")
    assert change.errors == ()
    assert not any("PRIVATE KEY" in one.diff for one in change.files["lb1"])


def _workspace(folder: Path, release: str, more: str) -> Workspace:
    (folder / "profiles").mkdir()
    example = (goldens.ROOT / "profiles/bakery.yaml").read_text()
    text = "".join(line for line in example.splitlines(keepends=True) if not line.startswith(("name:", "release:")))
    (folder / "profiles/shop.yaml").write_text(f"name: shop\nrelease: {release}\n{more}{text}")
    return Workspace(folder)
