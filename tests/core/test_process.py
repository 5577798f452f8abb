"""Programs that are run: how they end is told in words, and no amount of input outlives a time-out."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from ndakit.core import process
from ndakit.core.process import ProcessFailed, ProcessTimeout

_PYTHON = sys.executable
MEBIBYTE = b"x" * 1024 * 1024
"""More than a pipe holds."""


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (0, "ended with exit code 0"),
        (3, "ended with exit code 3"),
        (-15, "was ended by SIGTERM"),
        (-9, "was ended by SIGKILL (often: the machine had no memory left)"),
        (-63, "was ended by signal 63"),
    ],
)
def test_the_end_of_a_program_is_told_by_its_signals_name(returncode: int, words: str) -> None:
    assert process.ending(returncode) == words


def test_a_program_that_a_signal_ended_is_reported_by_the_signals_name() -> None:
    with pytest.raises(ProcessFailed, match="sh was ended by SIGSEGV"):
        process.run(["sh", "-c", "kill -SEGV $$"], timeout_s=10)


def test_no_module_but_process_words_an_exit_code_by_itself() -> None:
    package = Path(process.__file__).parent
    while package.name != "ndakit":
        package = package.parent
    wording = [
        path.name for path in package.rglob("*.py")
        if path.name != "process.py" and re.search(r"ended with exit code \{[^}]*code\}", path.read_text())
    ]  # fmt: skip
    assert wording == []


def test_much_input_is_written_while_the_output_is_logged(tmp_path: Path) -> None:
    """The child says a mebibyte before it reads its input: each would wait for the other."""
    script = "import sys; sys.stdout.write('y' * 1048576); sys.stdout.flush(); print(len(sys.stdin.read()))"
    done = process.run([_PYTHON, "-c", script], timeout_s=30, stdin=MEBIBYTE, log=tmp_path / "log")
    assert done.stdout.endswith("y1048576\n")


def test_a_child_that_reads_no_input_is_stopped_at_its_time_out(tmp_path: Path) -> None:
    started_s = time.monotonic()
    with pytest.raises(ProcessTimeout):
        process.run(["sleep", "60"], timeout_s=1, stdin=MEBIBYTE, log=tmp_path / "log")
    assert time.monotonic() - started_s < 30


def test_a_child_that_ends_without_reading_its_input_is_not_a_failure_of_ours(tmp_path: Path) -> None:
    assert process.run(["true"], timeout_s=10, stdin=MEBIBYTE, log=tmp_path / "log").returncode == 0
