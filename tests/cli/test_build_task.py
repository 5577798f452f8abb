"""`./inv build` for several profiles as a user runs it: lines, table, JSON, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest
from test_tasks import inv

from imagebuilder_fakes import PROFILE, fake
from ndakit.build.fleet import ProfileOutcome
from ndakit.cli import build
from ndakit.cli.build import BuildContradiction, BuildOptions
from ndakit.cli.fleet_progress import summary
from ndakit.core.errors import BuildError
from ndakit.core.workspace import Workspace
from places import ROOT
from waiting import processes_below, wait_for

pytestmark = pytest.mark.images

ONE_NODE = PROFILE.replace("  lb2: {addresses: {lan: 192.168.0.12}}\n", "")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace with two profiles."""
    (tmp_path / "ws/profiles").mkdir(parents=True)
    for name in ("one", "two"):
        (tmp_path / f"ws/profiles/{name}.yaml").write_text(ONE_NODE.replace("name: bakery", f"name: {name}"))
    return tmp_path / "ws"


def words(folder: Path) -> tuple[str, ...]:
    return ("--builder", "openwrt", "--imagebuilder", str(folder))


def test_all_profiles_are_built_with_lines_a_summary_and_the_worst_exit_code(workspace: Path, tmp_path: Path) -> None:
    (workspace / "profiles/broken.yaml").write_text("name: broken\n")
    done = inv(workspace, "build", "--all", "-j", "2", *words(fake(tmp_path / "ib")))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "one/lb1: there is no image yet" in done.stdout
    assert "3 profiles in " in done.stdout
    assert done.stdout.rstrip().endswith("2 built, 0 up to date, 1 failed")
    assert "profiles/broken.yaml" in done.stderr
    assert (workspace / "images/one/lb1/SHA256SUMS").is_file()
    assert not (workspace / "images/broken").exists()


def test_named_profiles_are_built_and_json_is_all_there_is_on_standard_output(workspace: Path, tmp_path: Path) -> None:
    done = inv(workspace, "build", "one,two", "--json", *words(fake(tmp_path / "ib")))
    facts = json.loads(done.stdout)
    assert done.returncode == 0
    assert [(f["profile"], [n["built"] for n in f["nodes"]], f["errors"]) for f in facts] == [
        ("one", [True], []), ("two", [True], []),
    ]  # fmt: skip


def test_what_does_not_go_together_is_refused(workspace: Path) -> None:
    here = Workspace.at(workspace)
    with pytest.raises(BuildContradiction, match="profiles were named, and all are asked for"):
        build.chosen(here, "one", all_of_them=True)
    with pytest.raises(BuildContradiction, match="a node was named, and several profiles are to be built"):
        build.build(here, ("one", "two"), "lb1", BuildOptions(), jobs=2, as_json=False)
    for path in here.profiles.iterdir():
        path.unlink()
    with pytest.raises(BuildContradiction, match="there is nothing to build"):
        build.chosen(here, "", all_of_them=True)


def test_names_are_separated_by_commas_and_a_path_may_have_one(workspace: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a,b.yaml"
    odd.write_text("")
    here = Workspace.at(workspace)
    assert build.chosen(here, "one, two,one", all_of_them=False) == ("one", "two")
    assert build.chosen(here, str(odd), all_of_them=False) == (str(odd),)


def test_an_image_of_a_node_that_left_is_mentioned_and_kept(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "images/one/lb9").mkdir(parents=True)
    options = BuildOptions("openwrt", fake(tmp_path / "ib"))
    build.build_profile(Workspace.at(workspace), "one", None, options, as_json=False)
    assert "images/one/lb9 is of a node that the profile no longer has" in capsys.readouterr().err
    assert (workspace / "images/one/lb9").is_dir()


def test_why_of_all_profiles_says_so_and_builds_nothing(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "profiles/broken.yaml").write_text("name: broken\n")
    here, options = Workspace.at(workspace), BuildOptions("openwrt", fake(tmp_path / "ib"))
    assert build.why(here, ("one", "two"), None, options, as_json=False) == 0
    assert capsys.readouterr().out.count("would be built") == 2
    assert build.why(here, ("one", "broken"), None, options, as_json=False) == 2
    said = capsys.readouterr()
    assert said.out.count("would be built") == 1
    assert "profiles/broken.yaml" in said.err
    assert not (workspace / "images").exists()


def test_ctrl_c_ends_all_builds_with_130_and_leaves_nothing(workspace: Path, tmp_path: Path) -> None:
    argv = [str(ROOT / "inv"), "build", "--all", "-j", "2", *words(fake(tmp_path / "ib", mode="sleep-installing"))]
    with subprocess.Popen(
        argv, cwd=workspace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_interruptible
    ) as run:
        logs = [workspace / f".ndakit/log/build/{name}-lb1.log" for name in ("one", "two")]
        wait_for(lambda: all(log.is_file() and "Installing" in log.read_text() for log in logs), 40)
        started_s = time.monotonic()
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=30)
    assert run.returncode == 130, err
    assert time.monotonic() - started_s < 15
    assert "Traceback" not in err
    assert processes_below(workspace) == []
    assert not (workspace / "images/one/lb1").exists()
    assert list((workspace / ".ndakit/scratch").iterdir()) == []


def _interruptible() -> None:
    """Started in the background, a shell's children ignore Ctrl-C; ours must hear it wherever the tests run."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_on_a_terminal_there_is_a_live_table_and_the_summary_stays(workspace: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    argv = [str(ROOT / "inv"), "build", "--all", *words(fake(tmp_path / "ib"))]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(argv, cwd=workspace, stdout=theirs, stderr=subprocess.DEVNULL, env=env) as run:
        os.close(theirs)
        seen = b""
        while True:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # Linux says EIO when the other end is closed
                break
        assert run.wait(60) == 0
    os.close(ours)
    text = seen.decode(errors="replace")
    assert "of 2 profiles" in text
    assert "building" in text
    assert "2 built, 0 up to date, 0 failed" in text.rsplit("\x1b[", 1)[-1]


def test_the_summary_has_a_line_for_every_profile() -> None:
    failed = ProfileOutcome("bad", (), BuildError("no room\nat all", where="x", fix="y"), 3.0)
    lines = summary([ProfileOutcome("good", (), None, 0.25), failed], 3.1).splitlines()
    assert lines == [
        "good  250 ms  up to date", "bad   3.0 s   failed: no room", "",
        "2 profiles in 3.1 s: 0 built, 1 up to date, 1 failed",
    ]  # fmt: skip
