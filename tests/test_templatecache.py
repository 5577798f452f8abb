"""Compiled templates that are kept: used again, never when they are stale or damaged, never needed."""

from __future__ import annotations

from pathlib import Path

import pytest

import goldens
from ndakit import render, templatecache


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "cache"
    found.mkdir()
    monkeypatch.setattr(templatecache, "_folder", lambda: found)
    return found


def rendered(templates: Path, text: str) -> str:
    """As a new process would do it."""
    (templates / "rootfs/etc").mkdir(parents=True, exist_ok=True)
    (templates / "rootfs/etc/a.j2").write_text(text)
    render._environment.cache_clear()
    return render.render(goldens.profile("bakery"), "lb1", [templates])["/etc/a"].text


def test_a_compiled_template_is_used_again(folder: Path, tmp_path: Path) -> None:
    assert rendered(tmp_path / "t", "one {{ node.hostname | comment }}\n") == "one bakery-lb1\n"
    (kept,) = folder.iterdir()
    other = kept.read_bytes().replace(b"one ", b"two ")  # nobody else would know
    kept.write_bytes(other)
    assert rendered(tmp_path / "t", "one {{ node.hostname | comment }}\n") == "two bakery-lb1\n"
    assert kept.read_bytes() == other


def test_a_changed_template_is_compiled_anew_and_takes_its_place(folder: Path, tmp_path: Path) -> None:
    rendered(tmp_path / "t", "one\n")
    assert rendered(tmp_path / "t", "two\n") == "two\n"
    assert len(list(folder.iterdir())) == 1


def test_changed_filters_are_another_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered(tmp_path / "t", "one\n")
    monkeypatch.setattr(templatecache, "_code", lambda: "other")
    rendered(tmp_path / "t", "one\n")
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"j2", b"\0" * 200, None])
def test_a_damaged_file_is_as_good_as_none(folder: Path, tmp_path: Path, damage: bytes | None) -> None:
    rendered(tmp_path / "t", "one\n")
    (kept,) = folder.iterdir()
    kept.write_bytes(kept.read_bytes()[:-20] if damage is None else damage)
    assert rendered(tmp_path / "t", "one\n") == "one\n"


def test_a_cache_that_cannot_be_used_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(templatecache, "_folder", lambda: tmp_path / "file")
    assert rendered(tmp_path / "t", "one\n") == "one\n"


def test_it_does_not_grow_without_end(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templatecache, "_LIMIT", 3)
    for number in range(6):
        assert rendered(tmp_path / f"t{number}", "one\n") == "one\n"
    assert len(list(folder.iterdir())) == 3
