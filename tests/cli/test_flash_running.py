"""`./inv flash --upgrade` as it is typed: options, the question, what is shown, exit codes."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fake_pair
import goldens
from fake_pair import NEW, FakeBox, FakePair
from ndakit.cli import upgrade as cli
from ndakit.cli.flash import FlashOptionsWrong, NotConfirmed, refuse_mixed
from ndakit.cli.nodes import SshOptions
from ndakit.cli.upgrade import UpgradeOptions, flash_running
from ndakit.core.errors import ErrorGroup
from ndakit.core.workspace import Workspace
from ndakit.load import load
from ndakit.node import status
from ndakit.operate.upgrade import Ways

PLACE = Workspace(goldens.ROOT)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePair:
    """What the task reaches instead of boxes, and the build that it finds."""
    profile = load.load(PLACE, "apache-pair").profile
    made = FakePair(profile)
    artifact = fake_pair.build(tmp_path, profile)

    @contextlib.contextmanager
    def reached(*_: object) -> Iterator[Any]:
        yield made.open_node

    monkeypatch.setattr(status, "ask", lambda shell, profile, node, address: shell.status())
    monkeypatch.setattr(cli, "_reached", reached)
    monkeypatch.setattr(cli, "current_build", lambda *_, **__: artifact)
    monkeypatch.setattr(cli, "_saved", lambda *_: lambda shell: "backups/apache-pair/lb1/now")
    waiting = functools.partial(Ways, clock_s=lambda: made.clock_s, sleep=made.sleep)
    monkeypatch.setattr(cli, "Ways", waiting)
    return made


def run(yes: str | None = "lb1", **more: Any) -> int:
    return flash_running(PLACE, "apache-pair", "lb1", SshOptions(), UpgradeOptions(yes, **more))


def test_steps_backup_and_image_are_shown(pair: FakePair, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    out, err = capsys.readouterr()
    assert "it is master, and gives its VIPs to lb2" in err
    assert "lb1: sysupgrade: the image is being written; from now on nothing can be stopped" in err
    for words in ("VIPs handed over", "written and started anew", f"lb1 runs image {NEW[:12]}", "all is well"):
        assert words in out
    assert "backup made before: backups/apache-pair/lb1/now" in out


def test_as_json(pair: FakePair, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["written"], told["well"], told["now"], told["trouble"]) == (True, True, NEW, [])
    assert [step["step"] for step in told["steps"]][-2:] == ["written and started anew", "all well again"]
    assert run(as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["written"] is False


def test_a_node_that_runs_it_already_is_left_alone(pair: FakePair, capsys: pytest.CaptureFixture[str]) -> None:
    pair.boxes["lb1"].image = NEW
    assert run(yes=None) == 0
    assert "runs this image already" in capsys.readouterr().out
    assert not pair.boxes["lb1"].files


@pytest.mark.parametrize("yes", [None, "lb2"])
def test_nothing_is_written_unless_the_node_is_named(
    pair: FakePair, yes: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(NotConfirmed):
        run(yes)
    assert not any("keepalived" in one or one.startswith("sysupgrade -f") for one in pair.boxes["lb1"].commands)
    assert "how it is now: lb1 is as it was" in capsys.readouterr().err


def test_what_is_not_well_afterwards_ends_with_5(pair: FakePair, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(box: FakeBox) -> None:
        pair.well_written(box)
        box.keepalived = False

    pair.writes = broken
    assert run() == 5
    assert "NOT WELL\n  lb1: keepalived does not run" in capsys.readouterr().out


def test_ctrl_c_says_how_the_box_is(pair: FakePair, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(box: FakeBox, line: str) -> None:
        if line.startswith("sysupgrade -f"):
            raise KeyboardInterrupt

    pair.happens = stop
    with pytest.raises(KeyboardInterrupt):
        run()
    assert "how it is now: lb1 may be writing its new image: leave it its power" in capsys.readouterr().err


def test_what_speaks_against_it_ends_with_5(pair: FakePair) -> None:
    pair.boxes["lb2"].state = "FAULT"
    with pytest.raises(ErrorGroup) as caught:
        run()
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"upgrade": True, "to": "/dev/sdb"}, "a disk and a running box at once"),
        ({"upgrade": False, "only_with_upgrade": {"--keep": True}}, "--keep belongs to --upgrade"),
        (
            {"upgrade": False, "only_with_upgrade": {"--again": 1, "--jump": "x"}},
            "--again, --jump belong to --upgrade",
        ),
    ],
)
def test_options_of_the_other_way_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(FlashOptionsWrong, match=words):
        refuse_mixed(**{"to": None, "only_with_upgrade": {}, **options})
