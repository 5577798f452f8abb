"""The table of where the time of a test run goes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from ndakit.cli.tests import phase_table
from spending import Report, by_module, lines


def report(module: str, when: str, duration_s: float) -> Report:
    return cast(Report, SimpleNamespace(nodeid=f"tests/{module}.py::test_x", when=when, duration=duration_s))


REPORTS = [
    report("test_a", "setup", 0.5),
    report("test_a", "call", 3.0),
    report("test_vm", "setup", 40.0),
    report("test_vm", "call", 20.0),
    report("test_vm", "call", 1.0),
    report("test_vm", "teardown", 2.0),
    report("test_tiny", "call", 0.1),
]


def test_a_labs_start_and_end_are_told_from_the_tests_in_it() -> None:
    spent_by = by_module(REPORTS)
    assert list(spent_by) == ["tests/test_vm.py", "tests/test_a.py", "tests/test_tiny.py"]
    vm = spent_by["tests/test_vm.py"]
    assert (vm.making_s, vm.trying_s, vm.tests) == (42.0, 21.0, 2)


def test_the_table_names_the_dearest_modules_and_sums_up_all() -> None:
    assert lines(by_module(REPORTS)) == [
        "module             making s  trying s  tests",
        "tests/test_vm.py       42.0      21.0      2",
        "tests/test_a.py         0.5       3.0      1",
        "all modules            42.5      24.1      4",
    ]
    assert lines({}) == []


def test_each_phase_of_a_run_tells_how_much_of_the_processors_it_used() -> None:
    table = phase_table([("units", 60.0, 108.0), ("machines, measured", 600.0, 300.0)], processors=2)
    assert table.splitlines() == [
        "phase               wall s  processor s  used",
        "units                 60.0        108.0  90 %",
        "machines, measured   600.0        300.0  25 %",
        "all                  660.0        408.0  31 %",
    ]
