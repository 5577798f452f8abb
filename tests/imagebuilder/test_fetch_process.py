"""Fetching with a machine that gives up: killed in the middle, twice at once, disks that are full or read-only; and
the task as a user runs it. Each run is a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import mirror
from imagebuilder_fakes import PROFILE, fake, workspace_folder
from ndakit.cli.fetch import fetch_imagebuilder
from ndakit.core import terminal
from ndakit.core.errors import InputError
from ndakit.core.workspace import Workspace
from ndakit.imagebuilder import sources
from ndakit.imagebuilder.sources import FetchOptions
from ndakit.load import load
from places import ROOT

pytestmark = pytest.mark.images

PROGRAM = """
import resource, sys
from pathlib import Path
from ndakit.imagebuilder.fetch import fetch
from ndakit.imagebuilder.fetch.download import DownloadLimits
from ndakit.core.errors import NdakitError
from ndakit.core.release import Release
url, keys, largest = sys.argv[1:]
if int(largest):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest), int(largest)))
limits = DownloadLimits(attempts=2, pause_s=0)
try:
    found = fetch.fetch(Release.parse("24.10.8"), "x86/64", mirrors=[url], keys=[Path(keys)], limits=limits,
                           events=lambda event: print(type(event).__name__, flush=True))
except NdakitError as error:
    print(error.text(), flush=True)
    sys.exit(error.exit_code)
print("fresh" if found.fresh else "cached", found.folder)
"""


class Place:
    """A mirror with one release, and a workspace."""

    def __init__(self, server: mirror.Server, folder: Path, name: str) -> None:
        self.server = server
        self.root = workspace_folder(folder / "ws", PROFILE)
        self.keys = server.files.key.into(self.root / "keys")
        self.cache = folder / "cache"
        self.archive = name
        self.content = server.files.content[name]
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        self.base = self.cache / "ndakit/openwrt/imagebuilders/24.10.8-x86-64"

    def environment(self, cache: Path | None = None) -> dict[str, str]:
        return {**os.environ, "XDG_CACHE_HOME": str(cache or self.cache), "no_proxy": "127.0.0.1"}

    def argv(self, largest: int = 0) -> list[str]:
        return [sys.executable, "-c", PROGRAM, self.server.url, str(self.keys), str(largest)]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self.argv(), env=self.environment(), stdout=subprocess.PIPE, text=True)

    def run(self, *, largest: int = 0, before: Sequence[str] = (), cache: Path | None = None) -> tuple[int, str]:
        """Exit code and what was said last; `before` are words before the command, such as unshare's."""
        done = subprocess.run(
            [*before, *self.argv(largest)], env=self.environment(cache), capture_output=True, text=True, timeout=180,
            check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout

    def inv(self, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ROOT / "inv"), *words], cwd=self.root, env=self.environment() | (env or {}), capture_output=True,
            text=True, timeout=180, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def ranges(self) -> list[str]:
        return [wanted for path, wanted in self.server.asked if path == self.archive]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    files = mirror.Files(mirror.TestKey())
    name = files.add()
    with mirror.running(mirror.Server(files)) as server:
        yield Place(server, tmp_path, name)


def until(condition: object, timeout_s: float = 60.0) -> None:
    assert callable(condition)
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.01)


def in_namespace(line: str) -> list[str]:
    """Words that run the command behind them in a mount namespace of its own, after the shell line `line`."""
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", f'{line} && exec "$@"', "sh"]


# -- killed in the middle ----------------------------------------------------------------------------------------------


def test_killed_while_downloading_the_next_run_goes_on_there(place: Place) -> None:
    place.server.faults[".tar.zst"] = mirror.slowly(0.1)
    with place.start() as child:
        partial = place.base / f"{place.sha256[:16]}.partial"
        until(lambda: partial.is_file() and partial.stat().st_size > 100_000)
        child.send_signal(signal.SIGKILL)
    assert not list(place.base.glob("*/verified.json"))
    place.server.faults.clear()
    code, said = place.run()
    assert (code, said.splitlines()[-1].split()[0]) == (0, "fresh")
    assert place.ranges()[-1].startswith("bytes=")
    assert place.ranges()[-1] != "bytes=0-"


def test_killed_while_unpacking_the_next_run_unpacks_anew(place: Place) -> None:
    with place.start() as child:
        assert child.stdout is not None
        scratch = place.base / ".scratch"
        until(lambda: list(scratch.glob("*/unpacked/*")) if scratch.is_dir() else False)
        child.send_signal(signal.SIGKILL)
    unfinished = not list(place.base.glob("*/unpacked"))
    code, said = place.run()
    assert code == 0, said
    assert len(place.ranges()) == 1  # the archive was whole and verified already
    folder = Path(said.splitlines()[-1].split(" ", 1)[1])
    assert (folder / "packages/noise_1_all.ipk").stat().st_size == 512 * 1024
    assert unfinished or "cached" in said


def test_two_processes_fetch_the_same_archive_once(place: Place) -> None:
    place.server.faults[".tar.zst"] = mirror.slowly(0.05)
    with place.start() as first, place.start() as second:
        said = [first.communicate(timeout=120)[0], second.communicate(timeout=120)[0]]
    assert (first.returncode, second.returncode) == (0, 0)
    assert sorted(text.splitlines()[-1].split()[0] for text in said) == ["cached", "fresh"]
    assert place.ranges() == [""]
    assert any("Waiting" in text for text in said)


# -- disks -------------------------------------------------------------------------------------------------------------


def test_a_limit_met_while_downloading_is_told_and_the_download_goes_on_afterwards(place: Place) -> None:
    code, said = place.run(largest=200_000)
    assert code == 3
    assert "there is no room for the ImageBuilder: File too large" in said
    assert not list(place.base.glob("*/verified.json"))
    code, said = place.run()
    assert code == 0
    assert place.ranges()[-1] == "bytes=200000-"


@pytest.mark.parametrize("size_kib", [256, 800])
def test_a_disk_that_is_full_while_downloading_or_unpacking_is_told(
    size_kib: int, place: Place, tmp_path: Path
) -> None:
    """256 KiB are less than the archive has; 800 KiB take the archive, and not what is in it."""
    small = tmp_path / "small"
    small.mkdir()
    # The namespace and its disk are gone with the command, so the second half of the shell line looks at what is left.
    line = f'mount -t tmpfs -o size={size_kib}k tmpfs "{small}"; "$@"; code=$?; find "{small}"; exit $code'
    words = ["unshare", "--map-root-user", "--mount", "sh", "-c", line, "sh"]
    code, said = place.run(before=words, cache=small)
    assert code == 3, said
    assert "there is no room for the ImageBuilder: No space left on device" in said
    assert "set XDG_CACHE_HOME to a larger disk" in said
    assert "/unpacked" not in said
    assert ("StepStarted" in said) and ("verified.json" in said) == (size_kib == 800)


def test_a_read_only_cache_that_has_it_works(place: Place) -> None:
    assert place.run()[0] == 0
    line = f'mount --bind "{place.cache}" "{place.cache}" && mount -o remount,bind,ro "{place.cache}"'
    code, said = place.run(before=in_namespace(line))
    assert (code, said.split()[0]) == (0, "cached")


@pytest.mark.parametrize(("inside", "says"), [("", "made"), ("ndakit/openwrt/imagebuilders/24.10.8-x86-64", "written")])
def test_a_read_only_cache_that_lacks_it_says_so(inside: str, says: str, place: Place) -> None:
    (place.cache / inside).mkdir(parents=True)
    line = f'mount --bind "{place.cache}" "{place.cache}" && mount -o remount,bind,ro "{place.cache}"'
    code, said = place.run(before=in_namespace(line))
    assert code == 3
    assert f"the cache cannot be {says}: Read-only file system" in said
    assert "XDG_CACHE_HOME" in said
    assert place.ranges() == []


# -- the tasks ---------------------------------------------------------------------------------------------------------


def test_the_fetch_task_says_what_is_there_and_who_vouches(place: Place) -> None:
    words = ["--release", "24.10.8", "--device", "x86-64", "--mirror", place.server.url]
    done = place.inv("fetch", *words)
    assert done.returncode == 0, done.stderr
    assert "x86-64.Linux-x86_64.tar.zst: fetched" in done.stdout
    assert "usign key 0123456789abcdef (a test key)" in done.stdout
    again = place.inv("fetch", "--profile", "bakery", "--offline", "--json")
    facts = json.loads(again.stdout)
    assert (facts["sha256"], facts["fetched"]) == (place.sha256, False)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({}, "write ./inv fetch --profile NAME"),
        ({"release": "24.10", "device": "x86-64"}, "an exact OpenWrt release is needed"),
        ({"release": "24.10.8", "device": "toaster"}, "is not a device"),
        ({"profile": "bakery", "checksum": "abc"}, "no SHA-256"),
        ({"profile": "bakery", "mirror": "gopher://x"}, "no address of a mirror"),
    ],
)
def test_the_fetch_task_refuses_what_it_cannot_mean(words: dict[str, str], says: str, tmp_path: Path) -> None:
    workspace = Workspace.at(workspace_folder(tmp_path / "ws", PROFILE))
    profile, release, device = words.get("profile"), words.get("release"), words.get("device")
    options = FetchOptions(words.get("mirror"), True, words.get("checksum"))
    with pytest.raises(InputError, match=says):
        fetch_imagebuilder(workspace, profile, release, device, options, as_json=False)


def test_a_build_fetches_its_imagebuilder_and_records_who_vouched(place: Place) -> None:
    done = place.inv("build", "bakery", "--node", "lb1", "--builder", "openwrt", "--mirror", place.server.url)
    assert done.returncode == 0, done.stderr
    record = (place.root / "images/bakery/lb1").glob("*.json")
    facts = next(f for f in (json.loads(p.read_text()) for p in record) if "builder" in f)
    assert facts["builder"] == "openwrt"
    assert place.sha256 in json.dumps(facts)
    assert "usign key 0123456789abcdef" in json.dumps(facts)
    place.server.asked.clear()
    again = place.inv("build", "bakery", "--node", "lb1", "--builder", "openwrt", "--offline")
    assert again.returncode == 0, again.stderr
    assert "up to date, nothing was run" in again.stdout
    assert place.server.asked == []


def test_a_build_with_an_unverified_imagebuilder_makes_nothing(place: Place) -> None:
    shutil.rmtree(place.keys)
    done = place.inv("build", "bakery", "--builder", "openwrt", env={"NDAKIT_MIRROR": place.server.url})
    assert done.returncode == 4
    assert "nobody who is trusted for this release signed sha256sums" in done.stderr
    assert not (place.root / "images").exists()
    assert place.ranges() == []


def test_a_build_with_a_read_only_cache_that_has_the_imagebuilder_works(place: Place) -> None:
    assert place.run()[0] == 0
    line = f'mount --bind "{place.cache}" "{place.cache}" && mount -o remount,bind,ro "{place.cache}"'
    words = [*in_namespace(line), str(ROOT / "inv"), "build", "bakery", "--node", "lb1", "--builder", "openwrt"]
    done = subprocess.run(
        words, cwd=place.root, env=place.environment(), capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "built in" in done.stdout


MAKE = """#!{python}
import os, sys, urllib.request
try:
    urllib.request.urlopen("{url}/.versions.json", timeout=5).read()
    said = "reached"
except OSError as cause:
    said = f"refused {{cause}}"
with open({log!r}, "a") as log:
    log.write(said + "\\n")
os.execv("/usr/bin/make", ["make", *sys.argv[1:]])
"""


@pytest.mark.parametrize(("offline", "says"), [(True, "refused"), (False, "reached")])
def test_an_offline_builds_package_manager_reaches_nobody(
    offline: bool, says: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "reached"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/make").write_text(MAKE.format(python=sys.executable, url=place.server.url, log=str(log)))
    (tmp_path / "bin/make").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place.cache))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    workspace = Workspace.at(place.root)
    profile = load.load(workspace, "bakery").profile
    folder = fake(tmp_path / "imagebuilder")
    builder = sources.choose("openwrt", folder, workspace, profile, FetchOptions(offline=offline))
    (tmp_path / "build").mkdir()
    with builder.provide(sources.Job(profile, tmp_path / "build", tmp_path / "log")) as driver:
        assert driver.info.target == "x86/64"
    assert log.read_text().splitlines()[0].startswith(says)


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    lines: list[str] = []
    progress = terminal.ProgressLine(lines.append)
    for done_mib in range(40):
        progress(done_mib * 2**20, 40 * 2**20)
        now_s[0] += 0.5
    assert lines == ["  20.0 of 40.0 MiB, 50 %"]


def test_progress_is_one_line_that_goes_away_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    progress = terminal.ProgressLine(lambda text: pytest.fail("a line of its own"))
    for done_mib in (1, 2, 2, 4):
        now_s[0] += 0.3
        progress(done_mib * 2**20, 4 * 2**20)
    shown = capsys.readouterr().err
    assert "2.0 of 4.0 MiB, 50 %" in shown
    assert shown.endswith("\r\033[K\r")
    assert "\n" not in shown
