"""The cache is this user's alone, and nothing in it is followed to elsewhere: what lies there is run."""

from __future__ import annotations

import json
import marshal
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ndakit.core import json_text, locks, process, workspace
from ndakit.core.events import ignore
from ndakit.core.files import PlaceTaken
from ndakit.core.release import Release
from ndakit.core.workspace import CacheUnsafe, CacheUnusable, RuntimeFolderUnsafe
from ndakit.imagebuilder import cache as imagebuilder_cache
from ndakit.imagebuilder import prerequisites
from ndakit.imagebuilder.fetch import fetch
from ndakit.render import template_cache
from places import ROOT


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own/cache"))
    return tmp_path / "own/cache/ndakit"


def test_it_is_made_for_this_user_alone_whatever_the_umask(base: Path) -> None:
    before = os.umask(0)
    try:
        assert workspace.cache() == base
    finally:
        os.umask(before)
    assert [p.stat().st_mode & 0o777 for p in (base, base.parent, base.parent.parent)] == [0o700] * 3


def test_one_that_others_could_read_is_closed(base: Path) -> None:
    base.mkdir(parents=True, mode=0o755)
    assert workspace.cache().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o722, 0o702, 0o720, 0o1777])
def test_one_that_others_could_write_is_refused_and_the_fix_works(mode: int, base: Path) -> None:
    base.mkdir(parents=True)
    base.chmod(mode)
    with pytest.raises(CacheUnsafe, match="others may write there") as caught:
        workspace.cache()
    assert caught.value.exit_code == 3
    subprocess.run(["sh", "-c", caught.value.fix.partition(": ")[2]], check=True)
    assert workspace.cache() == base


def test_one_of_another_user_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base.mkdir(parents=True)
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(CacheUnsafe, match="another user"):
        workspace.cache()


def test_one_that_everybody_could_replace_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base.mkdir(parents=True, mode=0o700)
    base.parent.chmod(0o777)
    with pytest.raises(CacheUnsafe, match="and so replace it"):
        workspace.cache()
    base.parent.chmod(0o1777)  # sticky, as /tmp
    assert workspace.cache() == base


def test_a_link_to_a_folder_of_ones_own_is_used(base: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o700)
    base.parent.mkdir(parents=True)
    base.symlink_to(tmp_path / "disk")
    assert workspace.cache() == base
    (tmp_path / "disk").chmod(0o777)
    with pytest.raises(CacheUnsafe):
        workspace.cache()


@pytest.mark.parametrize("home", ["/dev/null", "/proc", "/proc/1/nothing"])
def test_where_no_folder_can_be_there_is_a_text(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    with pytest.raises(CacheUnusable, match="XDG_CACHE_HOME"):
        workspace.cache()


def test_a_file_or_a_link_to_itself_in_its_place_is_a_text(base: Path) -> None:
    base.parent.mkdir(parents=True)
    base.write_text("")
    with pytest.raises(CacheUnusable):
        workspace.cache()
    base.unlink()
    base.symlink_to(base)
    with pytest.raises(CacheUnusable):
        workspace.cache()


def test_another_users_program_in_a_shared_cache_is_not_run(tmp_path: Path) -> None:
    """The attack as it was found: an own file in another user's cache, under the name of a compiled template."""
    cache = tmp_path / "shared"
    words = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    argv = [sys.executable, "-m", "ndakit", "render", "bakery", "--out", str(tmp_path / "out")]

    def render() -> subprocess.CompletedProcess[str]:
        env = words | {"PYTHONPATH": str(ROOT / "src")}
        return subprocess.run(argv, check=False, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)

    assert render().returncode == 0
    mark = tmp_path / "owned"
    code = f"open({str(mark)!r}, 'w')"
    for file in (cache / "ndakit/templates").iterdir():
        checksum = file.read_bytes()[32:].partition(b"\n")[0]
        file.write_bytes(template_cache.sealed(checksum + b"\n" + marshal.dumps(compile(code, "x", "exec"))))
        file.chmod(0o666)  # as it could be for whoever wrote it
    done = render()
    assert done.returncode == 0, done.stderr
    assert not mark.exists()


@pytest.mark.parametrize("taken", ["file", "link"])
def test_what_takes_the_place_of_the_socket_folder_is_refused(
    taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(os.path.realpath(f"/tmp/{tmp_path.parent.name[-8:]}{os.getpid()}"))
    run.mkdir()
    try:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
        (run / "ndakit").write_text("") if taken == "file" else (run / "ndakit").symlink_to(tmp_path)
        with pytest.raises(RuntimeFolderUnsafe):
            workspace.runtime()
    finally:
        (run / "ndakit").unlink()
        run.rmdir()


# -- notes in it -------------------------------------------------------------------------------------------------------

SHA256 = "ab" * 32
NAME = "openwrt-imagebuilder-24.10.8-x86-64.Linux-x86_64.tar.zst"
RIGHT = {"format": 1, "archive": NAME, "sha256": SHA256, "verified_by": "a key", "pinned": False}


def entries(base: Path, facts: object) -> list[Path]:
    folder = base / SHA256[:16]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "verified.json").write_text(facts if isinstance(facts, str) else json.dumps(facts))
    wanted = fetch._Wanted(Release.parse("24.10.8"), "x86/64", fetch.Origin(offline=True), ignore, base)
    places = [place for place, _ in fetch._known(wanted)]
    assert fetch._cached(wanted) is None
    assert fetch._unpacked(wanted) is None
    return places


def test_the_note_of_an_archive_is_believed_as_it_is_written(tmp_path: Path) -> None:
    assert entries(tmp_path, RIGHT) == [tmp_path / SHA256[:16]]


@pytest.mark.parametrize(
    "change",
    [
        {"archive": "../../../outside"}, {"archive": "/etc/passwd"}, {"archive": ".."}, {"archive": None},
        {"archive": "openwrt-imagebuilder-../../x.Linux-x86_64.tar.zst"}, {"archive": f"../{NAME}"}, {"archive": 1},
        {"sha256": "cd" * 32}, {"sha256": 5}, {"sha256": "../" * 20}, {"verified_by": None}, {"pinned": "no"},
        {"pinned": None}, {"format": 2}, {"format": None},
    ],
)  # fmt: skip
def test_a_note_that_names_something_else_is_none(change: dict[str, object], tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("keep")
    assert entries(tmp_path / "a/b", RIGHT | change) == []
    for key in change:
        assert entries(tmp_path / "a/b", {k: v for k, v in RIGHT.items() if k != key}) == []
    assert outside.read_text() == "keep"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format":' * 100_000, "{}", "null", '{"format": NaN}', ""])
def test_a_note_that_is_no_note_is_none(text: str, tmp_path: Path) -> None:
    assert entries(tmp_path, text) == []


@pytest.mark.parametrize(
    "change",
    [
        {"archive": "../../victim"}, {"archive": "/etc/passwd"}, {"archive": "victim"}, {"archive": None},
        {"place": "../x"}, {"place": "/x"}, {"place": "a\0b"}, {"made_s": 10**400}, {"made_s": "x"}, {"limit_s": []},
    ],
)  # fmt: skip
def test_the_note_of_a_kept_root_leads_nowhere_else(change: dict[str, object], tmp_path: Path) -> None:
    memory = imagebuilder_cache.Memory("f" * 64, base=tmp_path / "base")
    folder = tmp_path / "base" / ("f" * 32)
    folder.mkdir(parents=True)
    key = imagebuilder_cache.key("device", "packages")
    victims = [tmp_path / "victim", folder / "victim"]
    for victim in victims:
        victim.write_text("keep")
    facts = {"format": 1, "archive": f"{key}-{'0' * 16}.tar", "sha256": "0" * 64, "place": "build_dir/root-x"}
    (folder / f"{key}.json").write_text(json.dumps(facts | {"made_s": 0, "limit_s": 0} | change))
    assert memory.root(key) is None
    assert [victim.read_text() for victim in victims] == ["keep", "keep"]


@pytest.mark.parametrize("name", ["../../evil", "", "..", "a/b", "a\0b"])
def test_kept_links_stay_in_their_folder(name: str, tmp_path: Path) -> None:
    text = json.dumps({"links": {name: ["/bin/sh", None]}, "path": process.environment()["PATH"]})
    assert not prerequisites.restore(tmp_path / "ib", text)
    assert not (tmp_path / "ib").exists()


# -- JSON, locks, folders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "NaN", "[Infinity]", "9" * 5000, b"\xff", ""])
def test_whatever_is_no_json_is_one_kind_of_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        json_text.parse(text)


def test_only_one_module_reads_json() -> None:
    """The others would have to know that Python's reader raises RecursionError as well."""
    sources = (ROOT / "src/ndakit").rglob("*.py")
    assert [p.name for p in sources if "json.load" in p.read_text()] == ["json_text.py"]


@pytest.mark.parametrize("what", ["folder", "fifo", "dangling link", "file above"])
def test_something_else_in_the_place_of_a_lock_is_said_and_the_fix_works(what: str, tmp_path: Path) -> None:
    lock = tmp_path / "state/lock/build"
    if what == "file above":
        (tmp_path / "state").write_text("")
    else:
        lock.parent.mkdir(parents=True)
    if what == "folder":
        lock.mkdir()
    elif what == "fifo":
        os.mkfifo(lock)
    elif what == "dangling link":
        lock.symlink_to("/nowhere/at/all")
    with pytest.raises(PlaceTaken) as caught, locks.hold(lock, wait_s=0):
        pass
    subprocess.run(["sh", "-c", caught.value.fix.partition(": ")[2]], check=True)
    with locks.hold(lock, wait_s=0):
        pass


@pytest.mark.parametrize("text", ["[" * 100_000, '{"pid": "x"}', '{"pid": [1]}', "[]", '{"pid": "../../etc"}', ""])
def test_a_lock_file_with_nonsense_in_it_is_another_process(text: str, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(text)
    assert locks._holder(tmp_path / "lock") == "another process"
