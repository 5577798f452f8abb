"""Compiled templates that are kept: used again, never when they are stale or damaged, never needed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from jinja2.bccache import bc_magic

import goldens
from ndakit.core import workspace
from ndakit.render import environment, render, template_cache
from ndakit.render.environment import OnlyIf
from ndakit.render.filters import FILTERS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "cache"
    made.mkdir()
    monkeypatch.setattr(template_cache, "_folder", lambda: made)
    return made


def rendered(templates: Path, text: str) -> str:
    """As a new process would do it."""
    (templates / "rootfs/etc").mkdir(parents=True, exist_ok=True)
    (templates / "rootfs/etc/a.j2").write_text(text)
    environment.environment.cache_clear()
    return render.render(goldens.profile("bakery"), "lb1", [templates])["/etc/a"].text


def test_a_compiled_template_is_used_again(folder: Path, tmp_path: Path) -> None:
    assert rendered(tmp_path / "t", "one {{ node.hostname | comment }}\n") == "one bakery-lb1\n"
    (kept,) = folder.iterdir()
    content = kept.read_bytes()[32:]
    other = template_cache.sealed(content.replace(b"one ", b"two "))  # nobody else would know
    kept.write_bytes(other)
    assert rendered(tmp_path / "t", "one {{ node.hostname | comment }}\n") == "two bakery-lb1\n"
    assert kept.read_bytes() == other


def test_a_changed_template_is_compiled_anew_and_takes_its_place(folder: Path, tmp_path: Path) -> None:
    rendered(tmp_path / "t", "one\n")
    assert rendered(tmp_path / "t", "two\n") == "two\n"
    assert len(list(folder.iterdir())) == 1


def test_changed_filters_are_another_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered(tmp_path / "t", "one\n")
    monkeypatch.setattr(template_cache, "_code", lambda: "other")
    rendered(tmp_path / "t", "one\n")
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("name", ["filters.py", "environment.py"])
def test_filters_and_extensions_are_a_part_of_the_name(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiled template calls an extension by its module's name: one that has moved would not be found."""
    before = template_cache._code()
    copies = [tmp_path / file.name for file in template_cache._CODE]
    for copy, file in zip(copies, template_cache._CODE, strict=True):
        copy.write_bytes(file.read_bytes() + (b"\n" if copy.name == name else b""))
    monkeypatch.setattr(template_cache, "_CODE", tuple(copies))
    assert {OnlyIf.__module__, *(f.__module__ for f in FILTERS.values())} == {
        f"ndakit.render.{file.stem}" for file in copies
    }
    assert template_cache._code.__wrapped__() != before


@pytest.mark.parametrize("damage", [b"", b"j2", b"\0" * 200, None, 40, 120])
def test_a_damaged_file_is_as_good_as_none(folder: Path, tmp_path: Path, damage: bytes | int | None) -> None:
    rendered(tmp_path / "t", "one\n")
    (kept,) = folder.iterdir()
    content = bytearray(kept.read_bytes())
    if isinstance(damage, int):
        content[damage] ^= 0xFF
    kept.write_bytes(content if isinstance(damage, int) else content[:-20] if damage is None else damage)
    assert rendered(tmp_path / "t", "one\n") == "one\n"


class Planted:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_nothing_is_unpickled(folder: Path, tmp_path: Path) -> None:
    rendered(tmp_path / "t", "one\n")
    (kept,) = folder.iterdir()
    mark = tmp_path / "owned"
    kept.write_bytes(bc_magic + pickle.dumps(Planted(mark)))
    assert rendered(tmp_path / "t", "one\n") == "one\n"
    assert not mark.exists()


@pytest.mark.parametrize("what", ["group", "world", "foreign", "link", "folder"])
def test_a_file_that_others_can_have_written_is_not_loaded(
    folder: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered(tmp_path / "t", "one {{ node.hostname | comment }}\n")
    (kept,) = folder.iterdir()
    evil = template_cache.sealed(kept.read_bytes()[32:].replace(b"one ", b"two "))
    kept.unlink()
    real = tmp_path / "elsewhere" if what == "link" else kept
    if what == "folder":
        kept.mkdir()
    else:
        real.write_bytes(evil)
        real.chmod({"group": 0o620, "world": 0o602}.get(what, 0o600))
        if what == "link":
            kept.symlink_to(real)
    if what == "foreign":
        monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    assert rendered(tmp_path / "t", "one {{ node.hostname | comment }}\n") == "one bakery-lb1\n"


def test_a_cache_that_others_can_write_is_refused_while_rendering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    template_cache._folder.cache_clear()
    rendered(tmp_path / "t", "one\n")
    (tmp_path / "cache/ndakit").chmod(0o777)
    template_cache._folder.cache_clear()
    with pytest.raises(workspace.CacheUnsafe):
        rendered(tmp_path / "t", "one\n")
    template_cache._folder.cache_clear()


def test_a_cache_that_cannot_be_used_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(template_cache, "_folder", lambda: tmp_path / "file")
    assert rendered(tmp_path / "t", "one\n") == "one\n"


def test_it_does_not_grow_without_end(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_cache, "_LIMIT", 3)
    for number in range(6):
        assert rendered(tmp_path / f"t{number}", "one\n") == "one\n"
    assert len(list(folder.iterdir())) == 3
