"""Large profiles: what a check costs grows with the profile, not with its square.

Measured in processor time, and as a ratio: four times as much costs about four times as much where the work is linear,
sixteen times where everything is compared with everything. So a busy machine changes nothing.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ndakit.core.errors import NdakitError
from ndakit.core.mistakes import guess
from ndakit.core.workspace import Workspace
from ndakit.lint.lint import lint
from ndakit.load import load
from ndakit.model import Profile
from ndakit.model.server_side import servers
from ndakit.render.render import Tree, render

SIZE, TIMES, RUNS = 50, 4, 2
"""The small size is over in a moment, so that it is run several times."""
GROWTH_MAX = 9.0
"""Between 4 (linear) and 16 (quadratic)."""

HEAD = """\
name: big
release: 24.10.8
access:
  ssh_keys: {{me: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me}}
  sources: {{lan: 10.0.0.0/16{sources}}}
system: {{ntp: []}}
networks: {{lan: {{nics: [eth0], subnet: 10.0.0.0/16, gateway: 10.0.0.254}}}}
nodes: {{lb1: {{addresses: {{lan: 10.0.0.1}}}}, lb2: {{addresses: {{lan: 10.0.0.2}}}}}}
vrrp: {{preempt: true, preempt_delay_s: 60, connection_sync: true}}
"""


def address(number: int) -> str:
    return f"10.0.{1 + number // 250}.{1 + number % 250}"


def text(
    servers: int = 4, services: int = 2, topology: str = "proxy", *, sources: int = 0, rules: int = 0, vips: int = 1,
    wrong: int = 0, sorry: int = 0,
) -> str:  # fmt: skip
    """A profile with so many of each: servers spread over as many pools as there are services."""
    more = "".join(f", s{n}: 172.{16 + n // 256}.{n % 256}.0/24" for n in range(sources))
    lines = [HEAD.format(sources=more), "vips:"]
    lines += [f"  v{n}: {{network: lan, address: 10.0.200.{n + 1}}}" for n in range(min(vips, 250))]
    if topology == "nat":
        lines.append("  gw: {network: lan, address: 10.0.0.200, role: gateway}")
    lines.append("pools:")
    each = max(1, servers // services)
    for pool in range(services):
        lines += [f"  p{pool}:", "    check: {interval_s: 5, port: 80}"]
        if pool < sorry:
            lines.append(f"    sorry: {{pool: p{services - 1}}}")
        lines.append("    servers:")
        lines += [f"      s{pool}-{n}: {address(pool * each + n)}" for n in range(each)]
    lines.append("services:")
    for n in range(services):
        target = f"wrong{n}" if n < wrong else f"p{n}"
        what = f"vip: v{n % min(vips, 250)}, port: {1000 + n}, protocol: tcp, topology: {topology}"
        lines.append(f"  t{n}: {{{what}, pool: {target}}}")
    lines.append("firewall:\n  allow:")
    who = "{network: lan, protocol: tcp, port: %d, sources: [lan, 10.0.1.%d]}"
    lines += [f"    r{n}: {who % (20000 + n, 1 + n % 250)}" for n in range(rules)] or ["    {}"]
    return "\n".join(lines)


def written(folder: Path, content: str) -> Workspace:
    (folder / "profiles").mkdir(exist_ok=True)
    (folder / "profiles/big.yaml").write_text(content)
    return Workspace(folder)


def seconds(work: Callable[[], object], runs: int = 1) -> float:
    """The least processor time of some runs, in seconds; a collector of garbage that happens to run is no part of
    it."""
    times_s = []
    for _ in range(runs):
        gc.collect()
        gc.disable()
        try:
            started = time.process_time()
            work()
            times_s.append(time.process_time() - started)
        finally:
            gc.enable()
    return min(times_s)


def loaded(folder: Path, content: str) -> Callable[[], object]:
    workspace = written(folder, content)

    def work() -> None:
        with contextlib.suppress(NdakitError):
            load.load(workspace, "big")

    return work


def fresh(profile: Profile) -> Profile:
    """The same profile, with nothing computed yet."""
    return Profile.model_construct(profile.model_fields_set, **dict(profile))


def costs(folder: Path, content: str, runs: int) -> dict[str, float]:
    """What is done with a profile → seconds; each step takes what came of the one before it."""
    workspace = written(folder, content)
    loaded: dict[str, Profile] = {}
    trees: dict[str, Tree] = {}

    def loads() -> None:
        loaded["big"] = load.load(workspace, "big").profile

    def renders() -> None:
        trees["lb1"] = render(fresh(loaded["big"]), "lb1", workspace.templates)

    def lints() -> None:
        assert lint(trees["lb1"], loaded["big"], "lb1") == []

    steps = {"load": loads, "render": renders, "lint": lints, "servers": lambda: servers(fresh(loaded["big"]))}
    return {name: seconds(step, runs) for name, step in steps.items()}


SHAPES: dict[str, Callable[[int], str]] = {
    "services": lambda n: text(5 * n, n),
    "services of topology nat": lambda n: text(5 * n, n, "nat"),
    "services of topology dr": lambda n: text(5 * n, n, "dr"),
    "servers of one pool": lambda n: text(20 * n, 1),
    "servers of one pool of topology dr": lambda n: text(20 * n, 1, "dr"),
    "sources": lambda n: text(sources=20 * n),
    "firewall rules": lambda n: text(rules=3 * n),
    "VIPs": lambda n: text(n, n, vips=n // 2),
    "pools with one sorry pool": lambda n: text(5 * n, n, sorry=n - 1),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_four_times_as_much_costs_about_four_times_as_much_whatever_is_done(tmp_path: Path, shape: str) -> None:
    small = costs(tmp_path, SHAPES[shape](SIZE), RUNS)
    large = costs(tmp_path, SHAPES[shape](SIZE * TIMES), 1)
    grown = {step: large[step] / max(small[step], 0.002) for step in small}
    assert all(factor < GROWTH_MAX for factor in grown.values()), f"{grown}: {small}, then {large}"


@pytest.mark.parametrize("what", ["pool", "address", "key", "name"])
def test_four_times_as_many_mistakes_cost_about_four_times_as_much(tmp_path: Path, what: str) -> None:
    def content(n: int) -> str:
        written = text(n, n, wrong=n if what == "pool" else 0)
        if what == "address":
            return written.replace(": 10.0.", ": 10.0.300.")
        if what == "key":
            return written.replace("protocol:", "protocoll:")
        return written.replace("  t", "  T") if what == "name" else written

    small = seconds(loaded(tmp_path, content(150)), RUNS)
    large = seconds(loaded(tmp_path, content(150 * TIMES)))
    assert large / max(small, 0.002) < GROWTH_MAX, f"{small:.4f} s, then {large:.4f} s"


def test_the_measurement_finds_quadratic_work() -> None:
    def compare_all(n: int) -> Callable[[], object]:
        names = [f"p{i}" for i in range(n)]
        return lambda: [a for a in names for b in names if a == b + "x"]

    small, large = seconds(compare_all(400), RUNS), seconds(compare_all(400 * TIMES))
    assert large / small > GROWTH_MAX


def test_a_check_of_1000_servers_and_200_services_takes_less_than_two_seconds(tmp_path: Path) -> None:
    for topology in ("proxy", "dr", "nat"):
        workspace = written(tmp_path, text(1000, 200, topology))

        def check(workspace: Workspace = workspace) -> None:
            profile = load.load(workspace, "big").profile
            for node in profile.nodes:
                assert lint(render(profile, node, workspace.templates), profile, node) == []

        assert seconds(check) < 2


def test_a_name_among_many_is_still_guessed() -> None:
    names = [f"{kind}-{n}" for kind in ("shop", "mail", "images") for n in range(300)]
    for wrong, meant in {"shp-217": "shop-217", "imagse-12": "images-12", "mial-299": "mail-299"}.items():
        assert guess(wrong, names) == meant
    assert guess("SHOP_217", names) == "shop-217"
    assert guess("zzzzzz", names) is None
