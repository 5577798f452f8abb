"""Tests that measure times: a failure on a quiet machine counts at once, one beside others is tried again by itself."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import conftest
import pytest

import turns
from ndakit.core.deadline import Deadline
from ndakit.core.workspace import Workspace
from ndakit.lab.clients import LabLacks, LabNotReady
from ndakit.lab.network import LabNetwork
from ndakit.lab.pace import Pace
from ndakit.verify.claims import Claim, Outcome
from pairs import Pair
from turns import Turns, judge

QUIET = Pace(5.0, "lb1", lost_share=0.1, waited_share=0.4, others_share=0.05)
BESIDE = Pace(5.0, "lb1", lost_share=0.2, waited_share=0.3, others_share=0.3)
CROWDED = Pace(5.0, "lb1", waited_share=0.9)


class Paces:
    """A meter that tells of one pace after the other."""

    def __init__(self, *paces: Pace) -> None:
        self.paces = list(paces)

    def since(self, moment_s: float) -> Pace:
        return self.paces.pop(0)

    def wait_calm(self, timeout_s: float) -> bool:
        return True


def failing(times: int, error: type[BaseException] = AssertionError) -> tuple[Callable[[], None], list[int]]:
    """A test that fails so often and then holds; its calls."""
    calls: list[int] = []

    def test() -> None:
        calls.append(len(calls))
        if len(calls) <= times:
            raise error(f"failed {len(calls)}\nand more")

    return test, calls


@pytest.mark.parametrize("address", ["2001:db8::1"])
def test_a_test_about_an_ipv6_address_is_run_where_its_module_is(address: str, request: pytest.FixtureRequest) -> None:
    scope = request.node.nodeid.rpartition("::")[0]  # as pytest-xdist's loadscope takes it
    assert scope == "tests/support/test_turns.py"


class Lab:
    """The lab of a test, and how often it was brought back; `lost`: what doing so raises."""

    def __init__(self, *, late_matters: bool = True, lost: Exception | None = None) -> None:
        self.late_matters = late_matters
        self.brought_back = 0
        self._lost = lost

    def begin(self) -> None:
        pass

    def again(self) -> None:
        self.brought_back += 1
        if self._lost is not None:
            raise self._lost


def test_a_failure_on_a_quiet_machine_is_not_tried_again(tmp_path: Path) -> None:
    test, calls = failing(1)
    mine = Turns(tmp_path)
    with mine.beside(), pytest.raises(AssertionError, match=r"^failed 1"):
        judge(test, Paces(QUIET), Lab(), mine)
    assert len(calls) == 1


@pytest.mark.parametrize("pace", [BESIDE, CROWDED])
def test_a_failure_beside_others_is_tried_again_and_told(tmp_path: Path, pace: Pace) -> None:
    test, calls = failing(1)
    mine, lab = Turns(tmp_path), Lab()
    with mine.beside():
        told = judge(test, Paces(pace), lab, mine)
    assert (len(calls), lab.brought_back) == (2, 1)
    assert len(told) == 1
    assert told[0].endswith(": failed 1")


def test_what_fails_again_with_the_machine_to_itself_fails(tmp_path: Path) -> None:
    test, calls = failing(9)
    mine = Turns(tmp_path)
    with mine.beside(), pytest.raises(AssertionError, match=r"^failed 2"):
        judge(test, Paces(BESIDE, QUIET), Lab(), mine)
    assert len(calls) == 2


def test_what_is_disturbed_each_time_fails_and_says_so(tmp_path: Path) -> None:
    test, calls = failing(9)
    mine = Turns(tmp_path)
    with mine.beside(), pytest.raises(AssertionError, match="too busy to judge this: lb1 waited 20% of a second"):
        judge(test, Paces(BESIDE, BESIDE, BESIDE), Lab(), mine)
    assert len(calls) == turns.TRIES


def test_a_fault_of_the_test_itself_is_not_tried_again(tmp_path: Path) -> None:
    test, calls = failing(1, KeyError)
    mine = Turns(tmp_path)
    with mine.beside(), pytest.raises(KeyError):
        judge(test, Paces(BESIDE), Lab(), mine)
    assert len(calls) == 1


@pytest.mark.parametrize("pace", [BESIDE, CROWDED])
@pytest.mark.parametrize("error", [AssertionError, pytest.fail.Exception])
def test_what_has_nothing_to_do_with_time_fails_at_once_however_busy_the_machine_is(
    tmp_path: Path, pace: Pace, error: type[BaseException]
) -> None:
    test, calls = failing(1, error)
    mine, lab = Turns(tmp_path), Lab(late_matters=False)
    with mine.beside(), pytest.raises(error, match=r"^failed 1"):
        judge(test, Paces(pace), lab, mine)
    assert (len(calls), lab.brought_back) == (1, 0)


def test_a_console_that_does_not_answer_in_time_is_one_of_time_and_a_lab_that_lacks_something_is_not(
    tmp_path: Path,
) -> None:
    mine = Turns(tmp_path)

    def console() -> None:
        raise LabNotReady("the shell of lb1 does not answer", "its log")

    def lacks() -> None:
        raise LabLacks("client", "wan")

    with mine.beside(), pytest.raises(AssertionError, match="too busy to judge this"):
        judge(console, Paces(*[BESIDE] * turns.TRIES), Lab(late_matters=False), mine)
    with mine.beside(), pytest.raises(LabLacks):
        judge(lacks, Paces(BESIDE), Lab(), mine)


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        (lambda pair: pair.claims.keys(), False),
        (lambda pair: pair.outcome("identity/lb1"), False),
        (lambda pair: pair.outcome("service/www"), True),
        (lambda pair: (pair.outcome("service/www"), pair.outcome("identity/lb1")), True),
        (lambda pair: pair.lab, True),
    ],
    ids=["lists", "name", "service", "both", "lab"],
)
def test_a_test_is_one_of_time_once_it_has_asked_the_lab_for_more_than_names(
    tmp_path: Path, test: Callable[[Pair], object], *, expected: bool
) -> None:
    holds = Outcome(True, "")
    tried = {
        "identity/lb1": Claim("identity/lb1", "its name", lambda _: holds, timeless=True),
        "service/www": Claim("service/www", "it answers", lambda _: holds),
    }
    pair = Pair(cast(LabNetwork, SimpleNamespace()), tried, Workspace(tmp_path))
    pair.begin()
    test(pair)
    assert pair.late_matters is expected
    pair.begin()
    assert not pair.late_matters


def test_pytest_fail_is_a_failure_as_well(tmp_path: Path) -> None:
    test, calls = failing(1, pytest.fail.Exception)
    mine = Turns(tmp_path)
    with mine.beside():
        assert judge(test, Paces(BESIDE), Lab(), mine)
    assert len(calls) == 2


def test_a_lab_that_cannot_be_put_back_is_told_with_what_failed_before(tmp_path: Path) -> None:
    test, calls = failing(1)
    mine, lab = Turns(tmp_path), Lab(lost=LabNotReady("lb2 does not boot", "its log"))
    with mine.beside(), pytest.raises(LabNotReady) as raised:
        judge(test, Paces(BESIDE), lab, mine)
    assert len(calls) == 1
    assert "failed 1" in str(raised.value.__cause__)


class Item:
    """A test that pytest has got ready: its function takes a lab."""

    def __init__(self, test: Callable[..., object], pair: Pair, marks: set[str], mine: Turns) -> None:
        self.obj = test
        self.funcargs = {"lab": pair, "request": None}
        self.user_properties: list[tuple[str, object]] = []
        self._fixtureinfo = SimpleNamespace(argnames=("lab",))
        self._marks = marks
        self.config = SimpleNamespace(stash={conftest.TURNS: mine})

    def get_closest_marker(self, name: str) -> bool | None:
        return (name in self._marks) or None


def test_pytest_leaves_a_timed_test_of_a_lab_to_the_rule_and_no_other(tmp_path: Path) -> None:
    mine, tried = Turns(tmp_path), []
    lab = SimpleNamespace(pace=Paces(BESIDE), put_back=lambda: tried.append("put back"))
    claim = Claim("a/b", "a claim of its own", lambda _: Outcome(True, ""), again=lambda _: tried.append("again"))
    pair = Pair(cast(LabNetwork, lab), {"a/b": claim}, Workspace(tmp_path))

    def test(lab: Pair) -> None:
        lab.outcome("a/b")
        tried.append("tried")
        assert len(tried) > 1

    item = Item(test, pair, {"vm", "timed"}, mine)
    with mine.beside():
        assert conftest.pytest_pyfunc_call(cast(pytest.Function, item)) is True
    assert tried == ["tried", "again", "tried"]
    assert [name for name, _ in item.user_properties] == [conftest.TRIED_AGAIN]
    other = Item(test, pair, {"vm"}, mine)
    assert conftest.pytest_pyfunc_call(cast(pytest.Function, other)) is None, "pytest runs it"


def shut(gate: Path) -> bool:
    """True if somebody holds this lock."""
    with gate.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_who_is_tried_again_is_alone_and_who_comes_later_waits(tmp_path: Path) -> None:
    ours, theirs, latecomers = Turns(tmp_path), Turns(tmp_path), Turns(tmp_path)
    seen: list[str] = []
    they_work, they_may_end, we_work, we_may_end = (threading.Event() for _ in range(4))

    def they() -> None:
        with theirs.beside():
            they_work.set()
            they_may_end.wait(20)
            seen.append("they end")

    def we() -> None:
        with ours.beside():
            we_work.set()
            with ours.by_itself_for_once():
                seen.append("we are alone")
                we_may_end.wait(20)
                seen.append("we were alone")
            seen.append("beside others again")

    def later() -> None:
        with latecomers.beside():
            seen.append("late")

    threads = [threading.Thread(target=who, daemon=True) for who in (they, we, later)]
    threads[0].start()
    assert they_work.wait(20)
    threads[1].start()
    gate = tmp_path / "gate"
    assert we_work.wait(20)
    # From here on only who wants to be alone takes the gate, and keeps it shut while it waits.
    Deadline(20, "the gate").wait_until(lambda: shut(gate), every_s=0.01)
    threads[2].start()
    assert seen == []
    they_may_end.set()
    Deadline(20, "being alone").wait_until(lambda: "we are alone" in seen, every_s=0.01)
    threads[2].join(0.5)
    assert seen == ["they end", "we are alone"]
    we_may_end.set()
    for thread in threads:
        thread.join(20)
    assert seen[2] == "we were alone"
    assert {*seen[3:]} == {"beside others again", "late"}
