"""What driving an ImageBuilder costs, against the bare `make image`: the figures of building, on the lab's stand-in.

Everything is run in turns on the same ImageBuilder, so that a busy machine is busy for all of them, and starts when the
disk has what the run before wrote: an image as shipped is 300 MiB, which others should not wait for. A bare run has the
same arguments and the working copy that the driver left: once with its settings, which make the wanted image only, and
once as the ImageBuilder ships them, which is what a person without ndakit would wait for. What either side does once
per ImageBuilder (`make info`, the check of the machine's programs) was done before, in a build that is not counted.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from ndakit.build import plan
from ndakit.cli.bench.figures import Add, Figure
from ndakit.core import process
from ndakit.core.workspace import Workspace
from ndakit.imagebuilder import cache, sources
from ndakit.imagebuilder import request as imagebuilder_request
from ndakit.imagebuilder.request import ImageRequest
from ndakit.load import load
from ndakit.model import Profile, package_plan
from ndakit.render import overlay, render

ROUNDS = 5
MEMORY_LIMIT_MIB = 150.0
SECOND_LIMIT_PERCENT = 40.0
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class _Bench:
    """One node of a profile and a folder to build it in, again and again."""

    profile: Profile
    builder: sources.Builder
    request: ImageRequest
    folder: Path
    kept: Path
    shipped: Path
    """The ImageBuilder's own settings."""

    def driven(self, name: str, *, keep: bool) -> tuple[float, Path]:
        """Build through the driver; seconds, and the ImageBuilder it left. With `keep`, packages may be installed."""
        for root in () if keep else (*self.kept.glob("*.json"), *self.kept.glob("*.tar")):
            root.unlink()
        here = self._fresh(name)
        started_s = time.perf_counter()
        with self.builder.provide(sources.Job(self.profile, here, here / "log")) as driver:
            shutil.copyfile(driver.root / ".config", self.shipped)
            driver.image(self.request, here / "out")
        return time.perf_counter() - started_s, driver.root

    def bare(self, imagebuilder: Path) -> float:
        """Run `make image` with the same arguments; seconds."""
        here = self._fresh("bare")
        argv = imagebuilder_request.image_argv(self.request, self.profile.release, here / "out")
        started_s = time.perf_counter()
        process.run(argv, timeout_s=_TIMEOUT_S, cwd=imagebuilder, umask=0o022)
        return time.perf_counter() - started_s

    def _fresh(self, name: str) -> Path:
        here = self.folder / name
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        os.sync()
        return here


def bench(private: Workspace, profile_name: str, add: Add, *, rounds: int = ROUNDS) -> None:
    """Measure overhead, second customer and memory with one node of a profile of the workspace."""
    loaded = load.load(private, profile_name)
    profile, node = loaded.profile, next(iter(loaded.profile.nodes))
    builder = sources.choose("lab", None, private, profile)
    folder = private.state / "bench-build"
    files = folder / "files"
    overlay.write(render.render(profile, node, private.templates), files)
    fingerprint = builder.fingerprint(profile)
    request = plan.request(loaded, node, package_plan.plan(profile, node), files)
    run = _Bench(profile, builder, request, folder, cache.folder_of(fingerprint), folder / "shipped")
    run.driven("warm", keep=False)  # fills the package cache, and is not counted
    first, bare, second, shipped = [], [], [], []
    for _ in range(rounds):
        took_s, imagebuilder = run.driven("driven", keep=False)
        first.append(took_s)
        bare.append(run.bare(imagebuilder))
        took_s, imagebuilder = run.driven("driven", keep=True)
        second.append(took_s)
        shutil.copyfile(run.shipped, imagebuilder / ".config")
        shipped.append(run.bare(imagebuilder))
    over_s = statistics.median(one - other for one, other in zip(first, bare, strict=True))
    bare_s, shipped_s, second_s = (statistics.median(seconds) for seconds in (bare, shipped, second))
    note = f"make image takes {bare_s:.2f} s with the same settings, {shipped_s:.2f} s as shipped"
    add(Figure("overhead over make image, same settings", over_s, "s", max(0.5, 0.05 * bare_s), note))
    percent = 100 * second_s / shipped_s
    note = f"{second_s:.2f} s of {shipped_s:.2f} s"
    add(Figure("second customer, part of make image as shipped", percent, "%", SECOND_LIMIT_PERCENT, note))
    add(Figure("memory of the tool itself while it builds", _memory_mib(), "MiB", MEMORY_LIMIT_MIB))
    shutil.rmtree(folder, ignore_errors=True)


def _memory_mib() -> float:
    """The most memory this process has had so far (getrusage(2)); Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
