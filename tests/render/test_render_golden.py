"""The rendered trees are the ones a person has read; the same inputs give the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import effort
import goldens
from ndakit.core.workspace import Workspace
from ndakit.load.load import load
from ndakit.render.render import render
from places import SUPPORT


@pytest.mark.parametrize(("name", "node"), goldens.cases())
def test_tree_is_the_golden_one(name: str, node: str) -> None:
    folder = goldens.GOLDEN / name
    there = {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.relative_to(folder).parts[0].split(".")[0] == node
    }
    wanted = goldens.expected(name, node)
    assert {k: v.decode("latin-1") for k, v in there.items()} == {k: v.decode("latin-1") for k, v in wanted.items()}, (
        "if the change is wanted: .venv/bin/python -m tests.goldens --accept, and read the diff"
    )


def test_no_golden_is_left_over() -> None:
    kept = {f"{name}/{node}" for name, node in goldens.cases()}
    assert {f"{p.parent.name}/{p.name}" for p in goldens.GOLDEN.glob("*/*") if p.is_dir()} == kept


def test_digest_depends_on_content_mode_and_path_only() -> None:
    first = goldens.tree("bakery", "lb1")
    again = render(goldens.profile("bakery"), "lb1", goldens.TEMPLATES)
    assert again is not first
    assert again.digest() == first.digest()
    assert goldens.tree("bakery", "lb2").digest() != first.digest()


def test_neither_clock_user_umask_locale_nor_folder_change_a_byte(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "import os; os.umask(0o077); import goldens; print(goldens.tree('apache-pair', 'lb1').digest())"
    )
    digest = subprocess.run(
        [sys.executable, "-c", script, str(SUPPORT)],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "Asia/Tokyo", "HOME": str(tmp_path), "USER": "somebody",
             "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()  # fmt: skip
    assert digest == goldens.tree("apache-pair", "lb1").digest()


def test_a_pair_renders_in_under_10_ms_once_warm() -> None:
    profile = goldens.profile("apache-pair")

    def once() -> None:
        for node in profile.nodes:
            render(profile, node, goldens.TEMPLATES)

    assert min(effort.own_s(once) for _ in range(10)) < 0.010


@pytest.mark.parametrize("name", sorted(goldens.PROFILES))
def test_the_loader_takes_every_example(name: str) -> None:
    assert load(Workspace.at(goldens.ROOT), str(goldens.PROFILES[name])).profile == goldens.profile(name)
