"""What every test may rely on, and roots of the lab's base system for tests without a VM."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest

import labrig
import order
import spending
import turns
from pairs import Pair

# A shell script starts what it puts behind `&` with SIGINT ignored, and children inherit that: tests that send Ctrl-C
# to programs would wait for an end that never comes.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Settings such as PYTHONUNBUFFERED would hide from the tests how ./inv behaves on a user's machine, which has none.
for setting in [name for name in os.environ if name.startswith("PYTHON")]:
    del os.environ[setting]


VM = Path(__file__).parent / "vm"
TURNS = pytest.StashKey[turns.Turns]()
TRIED_AGAIN = "tried again"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, object, object]:
    """What lies in tests/vm boots virtual machines; known before `-m` chooses. Long tests begin first."""
    for item in items:
        if item.path.is_relative_to(VM):
            item.add_marker(pytest.mark.vm)
    result = yield
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        items[:] = order.long_first(items, lambda item: item.get_closest_marker("long") is not None, workers)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Tests that measure times in machines take turns, with what they make and end."""
    if not (item.get_closest_marker("timed") or item.get_closest_marker("alone")):
        return (yield)
    mine = item.config.stash.get(TURNS, None)
    if mine is None:
        # Each process of a run has a folder of its own within the run's.
        own = item.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # as its fixture is made
        folder = own.parent if hasattr(item.config, "workerinput") else own
        mine = item.config.stash[TURNS] = turns.Turns(folder / "turns")
    with mine.by_itself() if item.get_closest_marker("alone") else mine.beside():
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Tests of a lab that measure times are judged as `turns` says; all others as usual."""
    pair = next((value for value in pyfuncitem.funcargs.values() if isinstance(value, Pair)), None)
    if pair is None or pyfuncitem.get_closest_marker("timed") is None:
        return None
    words = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    again = turns.judge(lambda: pyfuncitem.obj(**words), pair.pace, pair, pyfuncitem.config.stash[TURNS])
    pyfuncitem.user_properties += [(TRIED_AGAIN, why) for why in again]
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say where the time went, unless the run was short; and which tests were tried again, and why."""
    reports = [r for kind in terminalreporter.stats.values() for r in kind if isinstance(r, pytest.TestReport)]
    told = [(r.nodeid, why) for r in reports for name, why in r.user_properties if name == TRIED_AGAIN]
    if told := list(dict.fromkeys(told)):
        terminalreporter.section("tried again by themselves, for others had disturbed them")
        for name, why in told:
            terminalreporter.write_line(f"{name}: {why}")
    spent_by = spending.by_module(reports)
    if sum(spent.total_s for spent in spent_by.values()) >= spending.TOLD_FROM_S:
        terminalreporter.section("where the time went (seconds of all workers together)")
        for line in spending.lines(spent_by):
            terminalreporter.write_line(line)


def pytest_make_parametrize_id(config: pytest.Config, val: object) -> str | None:
    """IPv6 addresses without `::` in names of tests: pytest-xdist takes what stands before the last one of them for the
    module (loadscope.py, _split_scope), and would boot its lab once more for such a test."""
    return val.replace("::", ":0:") if isinstance(val, str) and val.isascii() and "::" in val else None


@pytest.fixture
def make_root(tmp_path: Path) -> labrig.MakeRoot:
    """Make a root with overlays: `make_root("fw4-lb1", release="24.10.8")`."""
    count = 0

    def make(*overlays: Path | str, release: str = "24.10.8", packages: str = labrig.PACKAGES) -> labrig.Root:
        nonlocal count
        count += 1
        return labrig.Root(tmp_path / str(count), *overlays, release=release, packages=packages)

    return make
