"""What keepalived is told of a daemon: the rendered script, with stand-ins that only sleep."""

from __future__ import annotations

import subprocess
from pathlib import Path

import goldens

BEFORE = """\
mount -t tmpfs none /run && export PATH=$PATH:/sbin
cp "$(command -v sleep)" haproxy
look() { sh runs haproxy; said="$said$?"; }
"""


def said(folder: Path, commands: str) -> str:
    """The exit codes of the looks, in a machine of its own (namespaces), one after the other."""
    (folder / "runs").write_bytes(goldens.tree("bakery")["/usr/libexec/ndakit/daemon-runs"].content)
    logger = folder / "logger"
    logger.write_text('#!/bin/sh\necho "$*" >>log\n')
    logger.chmod(0o755)
    text = f'{BEFORE}PATH=$PWD:$PATH\n{commands}\necho "$said"'
    argv = ["unshare", "-Urmpf", "--kill-child", "--mount-proc", "sh", "-c", text]
    return subprocess.run(argv, check=True, capture_output=True, text=True, cwd=folder, timeout=30).stdout.strip()


def test_one_that_runs_is_well_and_one_that_does_not_is_not(tmp_path: Path) -> None:
    assert said(tmp_path, "look; ./haproxy 60 & sleep 0.2; look; look; kill -9 $!; wait; look") == "1001"
    assert not (tmp_path / "log").exists()


def test_one_that_hangs_is_killed_at_the_third_look(tmp_path: Path) -> None:
    commands = "./haproxy 60 & sleep 0.2; look; kill -STOP $!; look; look; look; wait $!; said=$said,$?,; look"
    assert said(tmp_path, commands) == "0001,137,1"
    assert (tmp_path / "log").read_text() == "-t ndakit -p daemon.warning haproxy hangs: it is killed\n"


def test_one_that_goes_on_in_time_is_left_alone(tmp_path: Path) -> None:
    commands = "./haproxy 60 & sleep 0.2; kill -STOP $!; look; look; kill -CONT $!; sleep 0.1; look; kill -STOP $!"
    assert said(tmp_path, f"{commands}; look; look") == "00000"


def test_one_of_several_processes_is_enough(tmp_path: Path) -> None:
    assert said(tmp_path, "./haproxy 60 & ./haproxy 60 & sleep 0.2; kill -STOP $!; look; look; look; look") == "0011"
