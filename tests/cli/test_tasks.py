"""The tasks as a user runs them: what they print, what they write, and their exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndakit.core.workspace import Workspace
from ndakit.load import load
from ndakit.tasks import namespace
from places import ROOT


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A private workspace beside the clone, with the shipped profiles."""
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    return tmp_path


def inv(folder: Path, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "inv"), *words], cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_without_a_task_the_tasks_are_listed_by_what_people_do(workspace: Path) -> None:
    done = inv(workspace)
    assert done.returncode == 0
    for word in ("look", "make", "try", "care", "check", "verify", "demo"):
        assert word in done.stdout


def test_every_task_and_each_of_its_options_has_help(workspace: Path) -> None:
    for name, task in namespace.tasks.items():
        assert task.__doc__, name
        assert all(argument.help for argument in task.get_arguments()), name
    done = inv(workspace, "verify", "--help")
    assert done.returncode == 0
    assert "Docstring:" in done.stdout
    assert "--identity" in done.stdout


def test_list_names_every_profile_and_the_broken_ones(workspace: Path) -> None:
    (workspace / "profiles" / "broken.yaml").write_text("name: broken\n")
    done = inv(workspace, "list")
    assert done.returncode == 0
    assert "apache-pair" in done.stdout
    assert "./inv check broken" in done.stdout


def test_show_origin_is_yaml_with_the_place_of_every_value(workspace: Path) -> None:
    done = inv(workspace, "show", "bakery", "--origin")
    assert done.returncode == 0
    line = next(line for line in done.stdout.splitlines() if line.startswith("release:"))
    assert line.split("#")[1].strip() == "profiles/bakery.yaml:4"


def test_check_of_a_right_profile_is_exit_0(workspace: Path) -> None:
    done = inv(workspace, "check", "apache-pair")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("apache-pair: right")


def test_check_of_a_wrong_profile_shows_every_mistake_and_is_exit_2(workspace: Path) -> None:
    path = workspace / "profiles" / "bakery.yaml"
    path.write_text(path.read_text().replace("port: 80", "prot: 80").replace("192.168.0.12", "192.168.9.12"))
    done = inv(workspace, "check", "bakery")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("error:") >= 2
    assert "did you mean 'port'?" in done.stderr
    assert "profiles/bakery.yaml:9" in done.stderr


def test_check_goes_on_after_a_node_with_lint_findings(workspace: Path) -> None:
    """The template's fault is on the first node and, another one, on the second; both are told in one run."""
    path = workspace / "templates" / "rootfs" / "etc" / "config" / "mine.j2"
    path.parent.mkdir(parents=True)
    names = list(load.load(Workspace(workspace), "apache-pair").profile.nodes)
    path.write_text("# {{ header | comment }}\nconfig thing 'of'\n\toptoin {{ node.name | uci }} '1'\n")
    done = inv(workspace, "check", "apache-pair")
    assert done.returncode == 4
    assert [name for name in names if f"{name}:/etc/config/mine" in done.stderr] == names


def test_check_json_is_for_scripts(workspace: Path) -> None:
    path = workspace / "profiles" / "bakery.yaml"
    path.write_text(path.read_text().replace("protocol: http", "protocol: htp"))
    done = inv(workspace, "check", "bakery", "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == 2
    assert facts["ok"] is False
    assert facts["errors"][0]["key"] == "services.web.protocol"
    assert facts["errors"][0]["line"] == 12


def test_a_profile_that_is_not_there_is_exit_2_with_the_near_one(workspace: Path) -> None:
    done = inv(workspace, "render", "backery")
    assert done.returncode == 2
    assert "did you mean 'bakery'?" in done.stderr
    assert not (workspace / "overlays").exists()


def test_a_folder_without_profiles_is_no_workspace(tmp_path: Path) -> None:
    done = inv(tmp_path, "list")
    assert done.returncode == 2
    assert "no workspace here" in done.stderr


def test_render_writes_a_tree_and_the_second_time_nothing(workspace: Path) -> None:
    first = inv(workspace, "render", "apache-pair", "--node", "lb1", "--out", "out")
    assert first.returncode == 0, first.stderr
    assert (workspace / "out/lb1/etc/haproxy.cfg").is_file()
    assert not (workspace / "out/lb2").exists()
    second = inv(workspace, "render", "apache-pair", "--node", "lb1", "--out", "out")
    assert " 0 written" in second.stdout


def test_an_unknown_node_is_exit_2_with_the_right_ones(workspace: Path) -> None:
    done = inv(workspace, "render", "apache-pair", "--node", "lb3")
    assert done.returncode == 2
    assert "use one of: lb1, lb2" in done.stderr


def test_an_unknown_task_or_option_is_exit_2(workspace: Path) -> None:
    done = inv(workspace, "biuld")
    assert done.returncode == 2
    assert "there is no task or option 'biuld'" in done.stderr and "./inv alone lists the tasks" in done.stderr
    assert inv(workspace, "list", "--colour").returncode == 2


@pytest.mark.parametrize("task", ["show", "check", "packages", "render", "build", "lock", "servers", "boot", "verify"])
def test_a_task_without_its_profile_says_how_it_is_called_and_so_does_its_help(task: str, workspace: Path) -> None:
    done = inv(workspace, task)
    assert done.returncode == 2
    assert f"error: {task}: which profile?" in done.stderr
    assert f"./inv {task} PROFILE; ./inv list shows the profiles" in done.stderr
    usage = inv(workspace, task, "--help").stdout.splitlines()[0]
    assert usage == f"Usage: ./inv {task} {'[PROFILE]' if task == 'build' else 'PROFILE'} [options]"


def test_a_tasks_py_without_our_tasks_is_named_with_what_belongs_into_it(workspace: Path) -> None:
    (workspace / "tasks.py").write_text("")
    done = inv(workspace, "list")
    assert done.returncode == 2
    assert f"{workspace}/tasks.py does not have the task list" in done.stderr
    assert "write 'from ndakit.tasks import namespace' into it, or remove it" in done.stderr
    (workspace / "tasks.py").write_text("from ndakit.tasks import namespace\n")
    assert inv(workspace, "list").returncode == 0
    (workspace / "tasks.py").unlink()
    assert inv(workspace, "list").returncode == 0


def test_booting_without_an_image_says_how_to_get_one(workspace: Path) -> None:
    """`verify` builds it first: tests/cli/test_verify_task.py."""
    done = inv(workspace, "boot", "bakery")
    assert done.returncode == 4
    assert "./inv build bakery" in done.stderr


def test_an_offline_openwrt_build_without_an_imagebuilder_says_what_to_do(workspace: Path) -> None:
    cache = {"XDG_CACHE_HOME": str(workspace / "cache")}
    done = inv(workspace, "build", "bakery", "--builder", "openwrt", "--offline", env=cache)
    assert done.returncode == 3
    assert "./inv fetch --release" in done.stderr
    assert "--imagebuilder DIR" in done.stderr


def test_clean_removes_what_can_be_made_again_and_nothing_else(workspace: Path) -> None:
    assert inv(workspace, "render", "bakery").returncode == 0
    (workspace / "overlays" / "README.md").write_text("mine")
    (workspace / "rebuilt/former/lb1").mkdir(parents=True)
    (workspace / "backups/bakery/lb1").mkdir(parents=True)
    done = inv(workspace, "clean")
    assert done.returncode == 0
    assert not (workspace / "rebuilt/former").exists(), "it can be made again, from a backup"
    assert (workspace / "backups/bakery/lb1").exists()
    assert not (workspace / "overlays/bakery").exists()
    assert (workspace / "overlays/README.md").exists()
    assert (workspace / "profiles/bakery.yaml").exists()


def test_clean_gone_removes_only_what_belongs_to_no_profile_or_node(workspace: Path) -> None:
    kept = ["images/bakery/lb1", "overlays/bakery/lb2", "images/broken/lb7", "rebuilt/former/lb1"]
    gone = ["images/bakery/lb9", "overlays/bakery/lb9", "images/former/lb1"]
    for name in (*kept, *gone):
        (workspace / name).mkdir(parents=True)
    (workspace / "images/bakery/acceptance.json").write_text("{}")
    (workspace / "profiles/broken.yaml").write_text("name: broken\n")
    done = inv(workspace, "clean", "--gone")
    assert done.returncode == 0, done.stderr
    assert all((workspace / name).is_dir() for name in kept)
    assert not any((workspace / name).exists() for name in gone)
    assert (workspace / "images/bakery/acceptance.json").is_file()


def test_colours_are_for_terminals_only(workspace: Path) -> None:
    done = inv(workspace, "check", "nothing-like-it", env={"FORCE_COLOR": "1"})
    assert "\033" not in done.stdout + done.stderr


def test_a_reader_that_goes_away_is_no_error(workspace: Path) -> None:
    line = f"{ROOT / 'inv'} show apache-pair | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=workspace, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stderr == ""


HOLDER = """
import sys, time
from pathlib import Path
from ndakit.core.workspace import Workspace
with Workspace(Path(sys.argv[1])).lock("build"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def held(workspace: Path) -> Iterator[int]:
    """Another process holds the workspace's lock; its process id."""
    argv = [sys.executable, "-c", HOLDER, str(workspace)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder.pid
        finally:
            holder.kill()


def test_clean_refuses_while_another_run_is_at_work_and_says_who(workspace: Path) -> None:
    with held(workspace) as pid:
        done = inv(workspace, "clean")
        assert done.returncode == 3
        assert f"process {pid}" in done.stderr
    assert inv(workspace, "clean").returncode == 0  # the lock died with its holder


def test_ctrl_c_while_waiting_ends_at_once_with_130(workspace: Path) -> None:
    argv = [str(ROOT / "inv"), "render", "bakery"]
    with held(workspace), subprocess.Popen(argv, cwd=workspace, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        assert any("waiting for process" in line for line in iter(waiting.stderr.readline, ""))
        waiting.send_signal(signal.SIGINT)
        started_s = time.monotonic()
        assert waiting.wait(60) == 130
        assert time.monotonic() - started_s < 30, "it waited for the lock's holder, who sleeps for 60 s"


# -- a machine that is not as it should be -----------------------------------------------------------------------------

OFTEN = [["check", "bakery"], ["--version"], ["check", "nosuch"]]


def odd(folder: Path, line: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A task run by a shell line, in which it is "$@"."""
    return subprocess.run(
        ["sh", "-c", line, "sh", str(ROOT / "inv"), *words], cwd=folder, capture_output=True, text=True, timeout=120,
        check=False, env={**os.environ, **env}, stdin=subprocess.DEVNULL, errors="replace",
    )  # fmt: skip


@pytest.mark.parametrize("words", OFTEN, ids=" ".join)
@pytest.mark.parametrize(
    "line", ['"$@" > /dev/full', '"$@" > /dev/full 2>&1', '"$@" >&-', '"$@" 2>&-', '"$@" >&- 2>&-']
)
def test_output_that_goes_nowhere_is_no_traceback(line: str, words: list[str], workspace: Path) -> None:
    done = odd(workspace, line, *words)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    if line.endswith("full") and words != ["check", "nosuch"]:
        assert (done.returncode, done.stderr.count("cannot be written: No space left")) == (3, 1)
    elif not line.endswith("1"):
        assert done.returncode == (2 if words == ["check", "nosuch"] else 0)


@pytest.mark.parametrize("home", ["/dev/null", "/proc", "/proc/self/mem", ""])
def test_a_home_that_is_no_folder_keeps_nobody_from_checking(home: str, workspace: Path) -> None:
    for words in (["list"], ["check", "bakery"], ["render", "bakery"]):
        done = odd(workspace, '"$@"', *words, HOME=home, XDG_CACHE_HOME="")
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    if home:
        done = odd(workspace, '"$@"', "fetch", "--profile", "bakery", HOME=home, XDG_CACHE_HOME="")
        assert (done.returncode, "the cache cannot be made" in done.stderr) == (3, True)


def test_a_folder_that_is_gone_is_said(workspace: Path) -> None:
    (workspace / "gone").mkdir()
    done = odd(workspace / "gone", 'rmdir "$PWD" && "$@"', "list")
    assert done.returncode == 3
    assert "the current folder is no longer there" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("place", [".ndakit", ".ndakit/lock", ".ndakit/lock/build", "overlays", "images"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_takes_the_place_of_ours_is_said(place: str, kind: str, workspace: Path) -> None:
    taken = workspace / place
    taken.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file":
        taken.write_text("")
    else:
        taken.symlink_to("/nowhere/x")
    for words in (["render", "bakery"], ["build", "bakery", "--why"]):
        done = odd(workspace, '"$@"', *words)
        assert "Traceback" not in done.stderr, (words, done.stderr)
        assert done.returncode in (0, 2, 3, 4)


def test_a_umask_of_000_lets_nobody_else_write(workspace: Path) -> None:
    done = odd(workspace, 'umask 000; "$@"', "render", "bakery", XDG_CACHE_HOME=str(workspace / "cache"))
    assert done.returncode == 0, done.stderr
    made = [p for base in ("overlays", ".ndakit", "cache") for p in (workspace / base, *(workspace / base).rglob("*"))]
    assert len(made) > 20
    assert [p for p in made if p.stat().st_mode & 0o002] == []
    assert (workspace / "cache/ndakit").stat().st_mode & 0o777 == 0o700


def test_nothing_in_a_profile_acts_on_the_terminal(workspace: Path) -> None:
    text = (workspace / "profiles/bakery.yaml").read_text()
    (workspace / "profiles/a\x9b31m.yaml").write_text(text)
    (workspace / "profiles/bakery.yaml").write_text(
        text.replace("4f me}", "4f me\x85\x9b31mX}").replace("name: bakery", "name: bakery\ncustomer: \u202eX")
    )
    for words in (
        ["show", "bakery"],
        ["check", "bakery"],
        ["list"],
        ["show", "bakery", "--origin"],
        ["check", "a\x9b31m"],
    ):
        done = inv(workspace, *words)
        assert all(c.isprintable() or c == "\n" for c in done.stdout + done.stderr), words


def test_terminal_texts_are_inert_and_keep_our_colours() -> None:
    from ndakit.core import terminal

    for bad in ("\x1b[2J", "\x9b31m", "\x07", "\r", "\u202e", "\udcff", "\x1b]0;x\x07", "\x1b[31m", "\ufeff"):
        shown = terminal.inert(f"a{bad}b\n\tc")
        assert shown.replace("\n", "").replace("\t", "").isprintable()
        assert shown.endswith("b\n\tc")
    assert terminal.inert("\x1b[31mred\x1b[0m \x1b[2J", colours=True) == "\x1b[31mred\x1b[0m \\u001b[2J"
    assert terminal.inert("ä€😀 日本", colours=True) == "ä€😀 日本"


def test_json_for_scripts_stays_what_it_was_and_is_inert(capsys: pytest.CaptureFixture[str]) -> None:
    from ndakit.core import terminal

    value = {"a": "x\x9b31m\u202e\ufffe\U0001ffff ü 日本 \u00a0 \u200d"}
    terminal.show_json(value)
    said = capsys.readouterr().out
    assert json.loads(said) == value
    assert not any(c in said for c in "\x9b\u202e\ufffe\U0001ffff")
    assert "ü 日本 \u00a0 \u200d" in said
