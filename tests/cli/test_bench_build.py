"""The figures of building: what is measured on what, with a fake ImageBuilder in the lab's place."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagebuilder_fakes import fake, workspace_folder
from ndakit.cli.bench import build
from ndakit.cli.bench.figures import Figure, timed
from ndakit.core.workspace import Workspace
from ndakit.imagebuilder import sources

pytestmark = pytest.mark.images


def test_overhead_second_customer_and_memory_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    workspace = Workspace.at(workspace_folder(tmp_path / "ws"))
    monkeypatch.setattr(sources, "choose", lambda *_: sources.OpenWrtBuilder(fake(tmp_path / "ib")))
    figures: list[Figure] = []
    build.bench(workspace, "bakery", figures.append, rounds=1)
    overhead, second, memory = figures
    assert "with the same settings" in overhead.note
    assert overhead.limit == 0.5
    assert 0 < second.value < 1000
    assert second.limit == 40
    assert 10 < memory.value < 4000
    assert memory.limit == 150
    assert not (workspace.state / "bench-build").exists()


def test_a_figure_over_its_limit_is_a_miss_and_one_without_a_limit_is_not() -> None:
    assert not Figure("x", 2, "s", 1).ok
    assert Figure("x", 1, "s", 1).ok
    assert Figure("x", 2, "s", None).ok


def test_each_round_is_timed() -> None:
    rounds: list[int] = []
    assert len(timed(lambda: rounds.append(1), 3)) == len(rounds) == 3
