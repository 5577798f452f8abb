"""The figures that ndakit promises, measured on this machine: rendering, building, failover.

Everything happens in a private workspace, so that nothing of the user's is built or changed. Commands are timed as a
user runs them, process start included.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ndakit.build import pipeline
from ndakit.cli.bench import build, fleet, topologies
from ndakit.cli.bench.figures import Add, Figure, timed
from ndakit.core import process, terminal
from ndakit.core.errors import InputError
from ndakit.core.locks import scratch_folder
from ndakit.core.workspace import Workspace, cache
from ndakit.image.artifacts import images_of
from ndakit.imagebuilder import sources
from ndakit.lab import host
from ndakit.lab.network import LabNetwork
from ndakit.load import load
from ndakit.machine.boot_image import boot_images
from ndakit.render import render
from ndakit.render.servers import linux_script
from ndakit.verify.claims.failover import asked
from ndakit.verify.report import write_json

BASE = "apache-pair"
ADVERTS_S = (1.0, 0.1)
LIMITS_MS = {1.0: 4000.0, 0.1: 800.0}
USUAL_LIMITS_MS = {1.0: 3800.0, 0.1: 600.0}
"""Limits for every gap, and for 95 of 100."""
WARM_ROUNDS = 200

_PROFILE = """\
# Written by ./inv bench: {base} without preemption, so that every failover kills whoever is master.
extends: [{base}]
name: {name}
vrrp: {{prefer: lb1, preempt: false, preempt_delay_s: null, advert_interval_s: {advert_s:g}}}
"""


class BenchUnknown(InputError):
    """There is no such measurement."""

    def __init__(self, what: str, detail: str) -> None:
        super().__init__(
            detail, where=f"./inv bench {what}".strip(), fix="write ./inv bench, or ./inv bench topologies"
        )


def run(workspace: Workspace, what: str, *, runs: int, json: Path | None, plot: Path | None) -> int:
    """What `./inv bench [WHAT]` measures; its exit code. Raises BenchUnknown."""
    if what == "topologies":
        return topologies.bench(workspace, json=json, plot=plot)
    if what:
        raise BenchUnknown(what, f"'{what}' is nothing that can be measured")
    if plot is not None:
        raise BenchUnknown(what, "only what the topologies carry can be drawn (--plot)")
    return bench(workspace, runs=runs, json=json)


def bench(workspace: Workspace, *, runs: int, json: Path | None) -> int:
    """Measure everything, show it, and write it as JSON; 0 if every limit is kept, else 5."""
    figures: list[Figure] = []
    samples: dict[str, list[float]] = {}

    def add(figure: Figure) -> None:
        figures.append(figure)
        limit = f"(limit {figure.limit:g} {figure.unit})" if figure.limit is not None else ""
        word = (
            ""
            if figure.limit is None
            else terminal.paint("ok  " if figure.ok else "MISS", "green" if figure.ok else "red")
        )
        terminal.say(f"{word:4} {figure.name}: {figure.value:.4g} {figure.unit} {limit} {figure.note}".rstrip())

    base = workspace.state / "scratch"
    with scratch_folder(base, "bench") as folder:
        private = _private(workspace, folder)
        _bench_render(private, add)
        _bench_build(private, add)
        build.bench(private, BASE, add)
        fleet.bench(private, BASE, add)
        for advert_s in ADVERTS_S if runs else ():
            gaps = _bench_failover(private, advert_s, runs)
            samples[f"gap_ms_at_{advert_s:g}_s"] = gaps
            for figure in gap_figures(advert_s, gaps):
                add(figure)
    path = json or workspace.images / "bench.json"
    facts: dict[str, Any] = {"figures": [{**f.__dict__, "ok": f.ok} for f in figures], "samples": samples}
    write_json(path, facts)
    terminal.say(f"figures: {path}")
    return 0 if all(f.ok for f in figures) else 5


def gap_figures(advert_s: float, gaps: list[float]) -> tuple[Figure, Figure]:
    """The longest gap, and the one that 95 % are not longer than (nearest rank), in ms, each with its limit."""
    what = f"failover, adverts every {advert_s:g} s"
    good = sum(g <= LIMITS_MS[advert_s] for g in gaps)
    p95 = sorted(gaps)[-(-len(gaps) * 95 // 100) - 1]
    return (
        Figure(f"{what}, longest gap", max(gaps), "ms", LIMITS_MS[advert_s], f"{good} of {len(gaps)} within the limit"),
        Figure(
            f"{what}, 95 % of the gaps", p95, "ms", USUAL_LIMITS_MS[advert_s],
            f"half of them within {statistics.median(gaps):.0f} ms",
        ),
    )  # fmt: skip


def _private(workspace: Workspace, folder: Path) -> Workspace:
    """A workspace with the shipped pair and its variants."""
    profiles = folder / "profiles"
    profiles.mkdir()
    for source in (workspace.shipped / "profiles").iterdir():
        if source.is_file():
            (profiles / source.name).write_bytes(source.read_bytes())
    for advert_s in ADVERTS_S:
        name = _name(advert_s)
        (profiles / f"{name}.yaml").write_text(_PROFILE.format(base=BASE, name=name, advert_s=advert_s))
    return Workspace(folder)


def _name(advert_s: float) -> str:
    return f"bench-{round(advert_s * 1000)}ms"


def _command(private: Workspace, *words: str) -> Callable[[], object]:
    """A task as a user runs it, process start included."""
    argv = [str(private.shipped / "inv"), *words]
    return lambda: process.run(argv, timeout_s=600, cwd=private.root)


def _bench_render(private: Workspace, add: Add) -> None:
    took_s = timed(_command(private, "render", BASE), 5)
    add(Figure("render, process start included", statistics.median(took_s), "s", 0.5))
    profile = load.load(private, BASE).profile

    def pair() -> None:
        for node in profile.nodes:
            render.render(profile, node, private.templates)

    pair()
    add(Figure("rendering a pair, warm", statistics.median(timed(pair, WARM_ROUNDS)) * 1000, "ms", 10))
    try:
        from netjsonconfig import OpenWrt
    except ImportError:
        return
    config = {
        "general": {"hostname": "lb1", "timezone": "UTC"},
        "interfaces": [
            {
                "name": f"eth{n}",
                "type": "ethernet",
                "addresses": [{"address": a, "mask": 24, "proto": "static", "family": "ipv4"}],
            }
            for n, a in enumerate(("203.0.113.11", "192.168.0.11"))
        ],
    }
    OpenWrt(config).render()
    other = statistics.median(timed(lambda: OpenWrt(config).render(), 50)) * 1000
    add(Figure("netjsonconfig, one node's network only, warm", other, "ms", None, "for comparison"))


def _bench_build(private: Workspace, add: Add) -> None:
    loaded = load.load(private, BASE)
    builder = sources.choose("lab", None, private, loaded.profile)
    pipeline.build(private, loaded, ["lb1"], builder)  # fills the package cache, and is not counted
    (result,) = pipeline.build(private, loaded, ["lb2"], builder)
    add(Figure("lab image of one node, packages cached", result.elapsed_s, "s", 6))
    took_s = timed(_command(private, "build", BASE), 5)
    add(Figure("unchanged build, process start included", statistics.median(took_s), "s", 0.6))


def _bench_failover(private: Workspace, advert_s: float, runs: int) -> list[float]:
    """Cut the master's power `runs` times; the gap each time, in ms, for a client that connects every 10 ms."""
    loaded = load.load(private, _name(advert_s))
    profile = loaded.profile
    builder = sources.choose("lab", None, private, profile)
    pipeline.build(private, loaded, [], builder)
    built = images_of(private, loaded, tuple(profile.nodes))
    image = host.image.build(private.lab, cache() / "lab", tell=terminal.note)
    gaps: list[float] = []
    run_dir = private.logs(f"bench-{profile.name}")
    lab_network = LabNetwork(
        profile, boot_images(profile, built), run_dir, image,
        script_of=partial(linux_script, profile, private.templates), tell=lambda text: None,
    )  # fmt: skip
    with lab_network as lab:
        for number in range(1, runs + 1):
            master = lab.master()
            with lab.watch(asked(lab)) as watch:
                time.sleep(0.5)
                lab.power_off(master)
                moved = lab.taken_over(watch, master, timeout_s=20)
                gap_ms = watch.stop().gap_ms
            gaps.append(round(gap_ms, 1))
            terminal.say(f"     run {number}: {master} → {moved or 'nobody'}, gap {gap_ms:.0f} ms")
            lab.power_on(master)
            lab.settle()
    return gaps
