"""Packages of packages/ in images of the lab, of both package managers: in the manifest and in the root."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

import feeds
from imagebuilder_fakes import PROFILE, workspace_folder
from ndakit.build import pipeline, plan
from ndakit.core.workspace import Workspace
from ndakit.imagebuilder import failures, sources
from ndakit.load import load

pytestmark = pytest.mark.images

WISH = "rootfs_mib: 128, formats: [img, rootfs], packages: {clock: add}"
Parts = tuple[Workspace, load.Loaded, sources.Builder]


def parts(root: Path) -> Parts:
    workspace = Workspace.at(root)
    loaded = load.load(workspace, "bakery")
    return workspace, loaded, sources.choose("lab", None, workspace, loaded.profile)


def build(root: Path) -> pipeline.BuildResult:
    workspace, loaded, builder = parts(root)
    (result,) = pipeline.build(workspace, loaded, ["lb1"], builder)
    return result


@pytest.mark.parametrize(("release", "version"), [("23.05.5", "1.2-3"), ("25.12.5", "1.2-r3")])
def test_a_package_folder_comes_into_the_image(release: str, version: str, tmp_path: Path) -> None:
    text = PROFILE.replace("24.10.8", release).replace("rootfs_mib: 64", WISH)
    root = workspace_folder(tmp_path / "ws", text)
    feeds.folder(root / "packages", "clock")
    artifact = build(root).artifact
    assert artifact.record.packages["clock"] == version
    (archive,) = [artifact.folder / i.name for i in artifact.record.images if i.name.endswith(".tar.gz")]
    with tarfile.open(archive) as rootfs:
        members = {m.name.removeprefix("./"): m for m in rootfs}
    assert f"{members['usr/bin/tell'].mode:o}" == "755"
    assert members["usr/bin/say"].linkname == "tell"
    assert f"{members['etc/clock.conf'].mode:o}" == "600"
    assert members["etc/rc.d/S99clock"].linkname == "../init.d/clock"
    workspace, loaded, builder = parts(root)
    assert plan.plan(workspace, loaded, ["lb1"], builder)[0].up_to_date
    (root / "packages/clock/files/tell").write_text("#!/bin/sh\ndate -u\n")
    assert plan.plan(workspace, loaded, ["lb1"], builder)[0].reasons == ("package clock of packages/ changed",)


@pytest.mark.parametrize("release", ["24.10.8", "25.12.5"])
def test_a_dependency_that_nobody_has_is_named(release: str, tmp_path: Path) -> None:
    text = PROFILE.replace("24.10.8", release).replace("rootfs_mib: 64", WISH)
    root = workspace_folder(tmp_path / "ws", text)
    feeds.folder(root / "packages", "clock", ("+busybox", "+busybox +spring"))
    with pytest.raises(failures.DependenciesMissing, match="clock needs spring"):
        build(root)
