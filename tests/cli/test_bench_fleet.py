"""The figure of many customers, with a fake ImageBuilder in the lab's place."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagebuilder_fakes import PROFILE, fake, workspace_folder
from ndakit.cli.bench import fleet
from ndakit.cli.bench.figures import Figure
from ndakit.core.errors import NdakitError
from ndakit.core.workspace import Workspace
from ndakit.imagebuilder import sources

pytestmark = pytest.mark.images

ONE_NODE = PROFILE.replace("  lb2: {addresses: {lan: 192.168.0.12}}\n", "")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = fake(tmp_path / "ib")
    monkeypatch.setattr(sources, "choose", lambda *_: sources.OpenWrtBuilder(folder))
    return Workspace.at(workspace_folder(tmp_path / "ws", ONE_NODE))


def test_one_after_the_other_is_compared_with_two_at_a_time(workspace: Workspace) -> None:
    figures: list[Figure] = []
    fleet.bench(workspace, "bakery", figures.append, customers=2, rounds=1)
    (figure,) = figures
    assert figure.limit == 62.5
    assert 10 < figure.value < 1000
    assert figure.note.startswith("2 pairs: ")
    assert (workspace.images / "bakery-02/lb1/record.json").is_file()


def test_a_customer_that_cannot_be_built_ends_the_measurement(workspace: Workspace) -> None:
    path = workspace.profiles / "bakery.yaml"
    path.write_text(path.read_text().replace("rootfs_mib: 64", "rootfs_mib: 64, packages: {nosuch: add}"))
    with pytest.raises(NdakitError, match="nosuch"):
        fleet.bench(workspace, "bakery", lambda _: None, customers=2, rounds=1)
