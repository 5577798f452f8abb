"""Who may write at the same time: one build of a profile, several profiles beside each other, clean alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from ndakit.core.locks import WorkspaceBusy
from ndakit.core.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "profiles").mkdir()
    return Workspace.at(tmp_path)


def test_two_profiles_are_written_beside_each_other(workspace: Workspace) -> None:
    with workspace.writing("one", wait_s=0), workspace.writing("other", wait_s=0):
        pass


def test_one_profile_is_written_by_one_run_at_a_time(workspace: Workspace) -> None:
    with (
        workspace.writing("one", wait_s=0),
        pytest.raises(WorkspaceBusy, match="process"),
        workspace.writing("one", wait_s=0),
    ):
        pass
    with workspace.writing("one", wait_s=0):
        pass


def test_whoever_needs_everything_waits_for_every_profile_and_they_for_him(workspace: Workspace) -> None:
    heard: list[str] = []
    with (
        workspace.writing("one"),
        workspace.writing("other"),
        pytest.raises(WorkspaceBusy),
        workspace.alone(wait_s=0, on_wait=heard.append),
    ):
        pass
    assert "is at work here" in heard[0]
    with workspace.alone(wait_s=0), pytest.raises(WorkspaceBusy), workspace.writing("one", wait_s=0):
        pass
