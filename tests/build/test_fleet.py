"""Many profiles at once: failures stay where they are, no more builds than asked for, and Ctrl-C ends all of it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from imagebuilder_fakes import PROFILE, fake
from ndakit.build import fleet
from ndakit.build.fleet import FleetEvent, ProfileOutcome, ProfileStarted
from ndakit.core import process
from ndakit.core.events import Events, OutputLine, StepStarted, Waiting
from ndakit.core.workspace import Workspace
from ndakit.image.artifacts import folder_of
from ndakit.imagebuilder.failures import PackagesMissing
from ndakit.imagebuilder.sources import Builder, OpenWrtBuilder
from ndakit.load.loaded import Loaded
from waiting import processes_below, wait_for

pytestmark = pytest.mark.images

NAMES = ("one", "two", "three")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "ws/profiles").mkdir(parents=True)
    for name in NAMES:
        text = PROFILE.replace("name: bakery", f"name: {name}").replace("  lb2: {addresses: {lan: 192.168.0.12}}\n", "")
        (tmp_path / f"ws/profiles/{name}.yaml").write_text(text)
    return Workspace.at(tmp_path / "ws")


class Watch:
    """Hears what happens, and remembers how many profiles were at work at a time."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, FleetEvent]] = []
        self.at_work: set[str] = set()
        self.most = 0

    def __call__(self, name: str, event: FleetEvent) -> None:
        self.heard.append((name, event))
        if isinstance(event, ProfileStarted):
            self.at_work.add(name)
        elif isinstance(event, ProfileOutcome):
            self.at_work.discard(name)
        self.most = max(self.most, len(self.at_work))


def build(workspace: Workspace, folder: Path, tell: fleet.FleetListener, jobs: int = 2) -> tuple[ProfileOutcome, ...]:
    def choose(loaded: Loaded, events: Events) -> Builder:
        return OpenWrtBuilder(folder)

    return fleet.build_all(workspace, NAMES, choose, jobs=jobs, tell=tell)


def test_every_profile_is_built_and_the_outcomes_are_in_order(workspace: Workspace, tmp_path: Path) -> None:
    watch = Watch()
    outcomes = build(workspace, fake(tmp_path / "ib"), watch)
    assert [o.profile for o in outcomes] == list(NAMES)
    assert all(o.error is None and o.exit_code == 0 and o.results[0].artifact.verify() == [] for o in outcomes)
    assert watch.most == 2
    assert sum(isinstance(e, ProfileOutcome) for _, e in watch.heard) == 3
    assert not any(r.built for o in build(workspace, tmp_path / "ib", Watch()) for r in o.results)


def test_one_job_builds_one_after_the_other(workspace: Workspace, tmp_path: Path) -> None:
    watch = Watch()
    build(workspace, fake(tmp_path / "ib"), watch, jobs=1)
    assert watch.most == 1


def test_a_failure_of_one_profile_stops_no_other(workspace: Workspace, tmp_path: Path) -> None:
    path = workspace.profiles / "two.yaml"
    path.write_text(path.read_text().replace("rootfs_mib: 64", "rootfs_mib: 64, packages: {nosuch: add}"))
    (workspace.profiles / "three.yaml").write_text("name: three\n")
    one, two, three = build(workspace, fake(tmp_path / "ib"), Watch())
    assert one.error is None
    assert isinstance(two.error, PackagesMissing)
    assert three.error is not None
    assert [o.exit_code for o in (one, two, three)] == [0, two.error.exit_code, 2]
    assert not folder_of(workspace, "two", "lb1").exists()


def test_ctrl_c_ends_every_build_at_once_and_leaves_nothing(workspace: Workspace, tmp_path: Path) -> None:
    folder = fake(tmp_path / "ib", mode="sleep-installing")  # both install: none can take what the other has kept
    installing: set[str] = set()

    def tell(name: str, event: FleetEvent) -> None:
        if isinstance(event, OutputLine) and "Installing" in event.text:
            installing.add(name)

    def press() -> None:
        wait_for(lambda: len(installing) == 2, 40)
        import _thread

        _thread.interrupt_main()

    threading.Thread(target=press, daemon=True).start()
    started_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        build(workspace, folder, tell)
    assert time.monotonic() - started_s < 15
    assert processes_below(workspace.root) == []
    assert not any(folder_of(workspace, name, "lb1").exists() for name in NAMES)
    assert list((workspace.state / "scratch").iterdir()) == []
    process.run(["true"], timeout_s=10)  # nothing stays halted


def test_a_bug_in_one_build_ends_the_others_and_is_raised(workspace: Workspace, tmp_path: Path) -> None:
    folder = fake(tmp_path / "ib", mode="sleep")

    def tell(name: str, event: FleetEvent) -> None:
        if name == "two" and isinstance(event, StepStarted) and event.step == "image":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build(workspace, folder, tell)
    assert processes_below(workspace.root) == []


def test_a_build_that_waits_for_another_run_is_ended_too(workspace: Workspace, tmp_path: Path) -> None:
    folder = fake(tmp_path / "ib")
    one_waits = threading.Event()

    def tell(name: str, event: FleetEvent) -> None:
        if name == "one" and isinstance(event, Waiting):
            one_waits.set()
        elif name == "two" and isinstance(event, ProfileOutcome):
            assert one_waits.wait(10)
            raise ZeroDivisionError

    started_s = time.monotonic()
    with workspace.writing("one"), pytest.raises(ZeroDivisionError):
        build(workspace, folder, tell)
    assert time.monotonic() - started_s < 15
