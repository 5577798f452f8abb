"""Programs whose input and output are too large for memory, or are no text (process.stream)."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest

from ndakit.core import process

LARGE = bytes(range(256)) * 20_000


def nothing(piece: bytes) -> None:
    """For output that nobody wants."""


def test_input_and_output_pass_at_the_same_time_byte_for_byte() -> None:
    """Each is larger than a pipe: whoever wrote all of it first would wait for ever."""
    out = bytearray()
    argv = ["sh", "-c", "tee /dev/stderr"]
    err = bytearray()
    rc = process.stream(argv, timeout_s=60, source=io.BytesIO(LARGE).read, on_stdout=out.extend, on_stderr=err.extend)
    assert (rc, bytes(out), bytes(err)) == (0, LARGE, LARGE)


def test_a_program_that_does_not_want_all_of_its_input_is_no_error() -> None:
    rc = process.stream(
        ["sh", "-c", "exit 7"], timeout_s=60, source=io.BytesIO(LARGE).read, on_stdout=nothing, on_stderr=nothing
    )
    assert rc == 7


def test_what_a_callback_raises_ends_the_program(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def take(piece: bytes) -> None:
        raise Enough

    alive = tmp_path / "alive"
    with pytest.raises(Enough):
        process.stream(["sh", "-c", f"echo x; sleep 1; touch {alive}"], timeout_s=60, on_stdout=take, on_stderr=nothing)
    time.sleep(1.2)
    assert not alive.exists()


def test_a_program_that_takes_too_long_is_ended_also_if_it_has_closed_its_output() -> None:
    for script in ("sleep 60", "exec >&- 2>&-; sleep 60"):
        begun_s = time.monotonic()
        with pytest.raises(process.ProcessTimeout):
            process.stream(["sh", "-c", script], timeout_s=0.3, on_stdout=nothing, on_stderr=nothing)
        assert time.monotonic() - begun_s < 30


def test_a_program_that_is_not_there_is_said_so() -> None:
    with pytest.raises(process.ToolMissing):
        process.stream(["no-such-program"], timeout_s=1, on_stdout=nothing, on_stderr=nothing)
