"""Verifying what is not built yet, and what is said when this machine was too busy, without any machine."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from ndakit.cli import verify
from ndakit.cli.verify import NodeNotBuilt
from ndakit.cli.verify_progress import Show
from ndakit.core.deadline import DeadlineExceeded
from ndakit.core.workspace import Workspace
from ndakit.image import artifacts
from ndakit.lab import host
from ndakit.lab.network import LabNetwork
from ndakit.lab.pace import Pace
from ndakit.load import load
from ndakit.load.loaded import Loaded
from ndakit.verify.claims import Claim
from places import ROOT
from records import record


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "profiles").mkdir()
    shutil.copy(ROOT / "profiles/bakery.yaml", tmp_path / "profiles")
    return Workspace(tmp_path)


class Builds(list[tuple[str, ...]]):
    """Which nodes each call built, and how a built image looks afterwards."""

    def __call__(
        self, workspace: Workspace, loaded: Loaded, nodes: Sequence[str], options: Any, *, as_json: bool
    ) -> None:
        assert options.kind == "lab"
        self.append(tuple(nodes))
        for node in nodes:
            stored(workspace, node)


def stored(workspace: Workspace, node: str, builder: str = "lab") -> None:
    """An image of a node of the bakery, as a builder leaves it."""
    scratch = workspace.root / f"scratch-{node}"
    scratch.mkdir()
    (scratch / "x.img.gz").write_bytes(b"disk")
    made = record(scratch / "x.img.gz", node=node, builder=builder)
    artifacts.store(made, [scratch / "x.img.gz"], workspace.images / "bakery" / node, scratch)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    made = Builds()
    monkeypatch.setattr(verify, "build_loaded", made)
    return made


def test_verify_without_images_builds_them_with_the_lab_first_in_one_call(workspace: Workspace, builds: Builds) -> None:
    """Of two calls each would tell the warnings of the profile's certificates."""
    built = verify._built(workspace, load.load(workspace, "bakery"))
    assert builds == [("lb1", "lb2")]
    assert sorted(built) == ["lb1", "lb2"]


def test_verify_builds_only_what_is_missing(workspace: Workspace, builds: Builds) -> None:
    stored(workspace, "lb2")
    verify._built(workspace, load.load(workspace, "bakery"))
    assert builds == [("lb1",)]


def test_verify_of_a_profile_given_by_its_path_builds_it_too(workspace: Workspace, builds: Builds) -> None:
    path = str(workspace.root / "profiles/bakery.yaml")
    assert sorted(verify._built(workspace, load.load(workspace, path))) == ["lb1", "lb2"]
    assert builds == [("lb1", "lb2")]


def test_an_image_of_the_lab_is_not_put_beside_images_to_flash(workspace: Workspace, builds: Builds) -> None:
    stored(workspace, "lb1", builder="openwrt")
    path = str(workspace.root / "profiles/bakery.yaml")
    with pytest.raises(NodeNotBuilt, match="the other nodes' images are not the lab's") as caught:
        verify._built(workspace, load.load(workspace, path))
    assert caught.value.fix == f"build it as the others: ./inv build {path} --node lb2 --builder openwrt"
    assert builds == []


# -- a lab that does not come up ---------------------------------------------------------------------------------------


class Late:
    """A lab that did not come up in time, on a machine of which others had so much."""

    def __init__(self, others_share: float) -> None:
        self.pace = self
        self._pace = Pace(240.0, "lb1", 1.0, 0.9, others_share=others_share)

    def since(self, moment_s: float) -> Pace:
        return self._pace

    def __enter__(self) -> LabNetwork:
        raise DeadlineExceeded("waited 240 s for lb1's console, in vain", where="lb1.console.log", fix="look")

    def __exit__(self, *_: object) -> None:
        raise AssertionError("it was never entered")


@pytest.mark.parametrize(
    ("others_share", "state", "code"),
    [(0.7, "too busy", "machine-too-busy"), (0.05, "not tried", "deadline-exceeded")],
)
def test_a_lab_that_does_not_start_blames_the_machine_only_if_others_had_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, others_share: float, state: str, code: str
) -> None:
    monkeypatch.setattr(verify, "LabNetwork", lambda *words, **more: Late(others_share))
    monkeypatch.setattr(verify, "boot_images", lambda profile, built: {})
    monkeypatch.setattr(host.image, "build", lambda *words, **more: None)
    show = Show(tell=lambda text: None, claim=lambda event: None)
    claim = Claim("a/x", "a is so", cast(Any, None))
    verdicts, pace, error = verify._judge(
        workspace, load.load(workspace, "bakery"), {}, [claim], workspace.root, None, None, show
    )
    assert error is not None
    assert (verdicts[0].state, error.code, error.exit_code) == (state, code, 5)
    assert "waited 240 s for lb1's console" in error.what
    assert pace.others_share == others_share
