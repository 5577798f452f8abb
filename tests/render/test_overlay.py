"""Writing the overlay: whole or not at all, modes as stated, foreign folders untouched."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import goldens
from ndakit.render.overlay import OverlayForeign, OverlayUnwritable, Written, write
from ndakit.render.render import RenderedFile, Tree
from places import SUPPORT


def tree(**files: str) -> Tree:
    return Tree([RenderedFile(f"/etc/{n}", t.encode(), 0o644, "x") for n, t in files.items()])


def content(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_the_folder_holds_exactly_the_tree(tmp_path: Path) -> None:
    folder = tmp_path / "p" / "lb1"
    assert write(tree(a="1", b="2"), folder) == Written(2, 0, 0)
    assert content(folder) == {"etc/a": "1", "etc/b": "2"}
    assert str(write(tree(a="1", c="3"), folder)) == "1 written, 1 unchanged, 1 removed"
    assert content(folder) == {"etc/a": "1", "etc/c": "3"}


def test_a_second_write_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "lb1"
    write(goldens.tree("bakery"), folder)
    before = {p: p.stat().st_ino for p in folder.rglob("*")}
    assert write(goldens.tree("bakery"), folder) == Written(0, len(goldens.tree("bakery")), 0)
    assert {p: p.stat().st_ino for p in folder.rglob("*")} == before


def test_modes_are_those_of_the_tree_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write(goldens.tree("bakery"), tmp_path / "lb1")
    finally:
        os.umask(before)
    for path, file in goldens.tree("bakery").items():
        assert stat.S_IMODE((tmp_path / "lb1" / path.lstrip("/")).stat().st_mode) == file.mode
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "lb1").rglob("*") if p.is_dir()} == {0o755}


@pytest.mark.parametrize("spoil", ["mode", "content", "folder mode", "extra folder", "link", "missing"])
def test_what_somebody_changed_is_put_right(tmp_path: Path, spoil: str) -> None:
    folder = tmp_path / "lb1"
    write(tree(a="1"), folder)
    match spoil:
        case "mode":
            (folder / "etc/a").chmod(0o600)
        case "content":
            (folder / "etc/a").write_text("2")
        case "folder mode":
            (folder / "etc").chmod(0o700)
        case "extra folder":
            (folder / "usr").mkdir()
        case "link":
            (folder / "etc/l").symlink_to("/etc/passwd")
        case "missing":
            (folder / "etc/a").unlink()
    write(tree(a="1"), folder)
    assert content(folder) == {"etc/a": "1"}
    assert sorted(p.name for p in folder.rglob("*")) == ["a", "etc"]
    assert stat.S_IMODE((folder / "etc").stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / "etc/a").stat().st_mode) == 0o644


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "letter").write_text("dear")
    with pytest.raises(OverlayForeign, match="not written by ndakit"):
        write(tree(a="1"), folder)
    assert content(folder) == {"letter": "dear"}
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_an_empty_folder_may_be_used_a_file_or_link_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert write(tree(a="1"), tmp_path / "empty").written == 1
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("file", "link"):
        with pytest.raises(OverlayForeign):
            write(tree(a="1"), tmp_path / name)


def test_the_marker_is_beside_the_folder_and_nothing_else_is_left(tmp_path: Path) -> None:
    write(tree(a="1"), tmp_path / "lb1")
    write(tree(a="2"), tmp_path / "lb1")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lb1.ndakit", "lb1"]


def test_without_exchange_two_renames_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoExchange:
        def renameat2(self, *_: object) -> int:  # the C library's name
            return -1

    write(tree(a="1"), tmp_path / "lb1")
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: NoExchange())
    monkeypatch.setattr("ctypes.get_errno", lambda: 22)
    write(tree(a="2"), tmp_path / "lb1")
    assert content(tmp_path / "lb1") == {"etc/a": "2"}


def test_a_disk_that_refuses_is_a_machine_error_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tree(a="1"), tmp_path / "lb1")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OverlayUnwritable, match="No space left on device") as caught:
        write(tree(a="2"), tmp_path / "lb1")
    assert caught.value.exit_code == 3
    assert content(tmp_path / "lb1") == {"etc/a": "1"}


@pytest.mark.parametrize("stage", ["_fill", "swap_folder"])
def test_a_killed_run_leaves_the_old_tree_and_trips_nobody(tmp_path: Path, stage: str) -> None:
    folder = tmp_path / "lb1"
    write(tree(a="1"), folder)
    script = f"""
import os, signal
import sys; sys.path.insert(0, {str(SUPPORT)!r})
from pathlib import Path
from ndakit.render import overlay
from test_overlay import tree
overlay.{stage} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
overlay.write(tree(a="2"), Path({str(folder)!r}))
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent, check=False)
    assert killed.returncode == -9
    assert content(folder) == {"etc/a": "1"}
    for left in (tmp_path / ".ndakit-scratch").iterdir():
        os.utime(left, (0, 0))
    assert write(tree(a="2"), folder).written == 1
    assert content(folder) == {"etc/a": "2"}
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lb1.ndakit", "lb1"]
