"""What `check` says about packages, and what `packages` shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import feeds
from imagebuilder_fakes import PROFILE, workspace_folder
from ndakit.cli import packages, profiles
from ndakit.core.workspace import Workspace
from ndakit.load import load


@pytest.fixture(autouse=True)
def no_daemons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache: no daemon is asked, so that only packages are checked here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def workspace(root: Path, wishes: str) -> Workspace:
    text = PROFILE.replace("rootfs_mib: 64", f"rootfs_mib: 64, packages: {{{wishes}}}")
    return Workspace(workspace_folder(root, text))


def check(place: Workspace) -> int:
    return profiles.check_profile(place, "bakery", as_json=True, daemons=False)


def test_check_names_a_package_that_the_release_lacks_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(workspace(tmp_path, "varnish: add")) == 2
    (error,) = json.loads(capsys.readouterr().out)["errors"]
    assert (error["code"], error["line"], error["key"]) == ("package-lacking", 3, "image.packages.varnish")


def test_check_warns_of_a_program_that_has_to_be_built_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = workspace(tmp_path, "pound: add")
    assert check(place) == 0  # the lab has it: all else can be tried
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    (warning,) = [w for w in warnings if w["code"].startswith("package")]
    assert (warning["code"], warning["where"]["line"]) == ("package-not-built", 3)
    (row,) = [r for r in packages.rows(place, load.load(place, "bakery")) if r["package"] == "pound"]
    assert row["source"] == "not here yet: docs/pound.md"


def test_check_names_what_is_wrong_with_a_package_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = workspace(tmp_path, "clock: add, varnish: add")
    feeds.folder(tmp_path / "packages", "clock", ("PKG_LICENSE:=", "PKG_SOURCE:=x\nPKG_LICENSE:="))
    assert check(place) == 2
    codes = {error["code"] for error in json.loads(capsys.readouterr().out)["errors"]}
    assert codes == {"package-unusable", "package-lacking"}


def test_check_is_content_with_a_package_of_the_workspace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = workspace(tmp_path, "clock: add")
    feeds.folder(tmp_path / "packages", "clock")
    assert check(place) == 0
    assert json.loads(capsys.readouterr().out)["ok"]


def test_every_package_is_shown_with_where_it_comes_from_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = workspace(tmp_path, "clock: add, ppp: add, kmod-usb2: remove")
    feeds.folder(tmp_path / "packages", "clock", ("+busybox", "+gears"))
    feeds.folder(tmp_path / "packages", "gears")
    loaded = load.load(place, "bakery")
    rows = {row["package"]: row for row in packages.rows(place, loaded)}
    assert rows["clock"]["source"] == "packages/clock"
    assert (rows["gears"]["version"], rows["gears"]["why"]) == ("1.2-r3", "needed by clock")
    assert (rows["ppp"]["change"], rows["dnsmasq"]["change"], rows["kmod-usb2"]["change"]) == (
        "add",
        "remove",
        "remove",
    )
    assert all(row["why"] for row in rows.values())
    packages.show(place, loaded, as_json=True)
    assert json.loads(capsys.readouterr().out) == packages.rows(place, loaded)
    packages.show(place, loaded, as_json=False)
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in shown if line.startswith("clock")] == [
        ["clock", "add", "packages/clock", "1.2-r3"]
    ]
