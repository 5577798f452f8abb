"""What every test may rely on, and roots of the lab's base system for tests without a VM."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import labrig
import pytest

import spending

# A shell script starts what it puts behind `&` with SIGINT ignored, and children inherit that: tests that send Ctrl-C
# to programs would wait for an end that never comes.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Settings such as PYTHONUNBUFFERED would hide from the tests how ./inv behaves on a user's machine, which has none.
for setting in [name for name in os.environ if name.startswith("PYTHON")]:
    del os.environ[setting]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say where the time went; of a run that took none, nothing."""
    reports = [r for kind in terminalreporter.stats.values() for r in kind if isinstance(r, pytest.TestReport)]
    found = spending.by_module(reports)
    if sum(spent.total_s for spent in found.values()) >= spending.TOLD_FROM_S:
        terminalreporter.section("where the time went (seconds of all workers together)")
        for line in spending.lines(found):
            terminalreporter.write_line(line)


@pytest.fixture
def make_root(tmp_path: Path) -> labrig.MakeRoot:
    """Make a root with overlays: `make_root("fw4-lb1", release="24.10.8")`."""
    count = 0

    def make(*overlays: Path | str, release: str = "24.10.8", packages: str = labrig.PACKAGES) -> labrig.Root:
        nonlocal count
        count += 1
        return labrig.Root(tmp_path / str(count), *overlays, release=release, packages=packages)

    return make
