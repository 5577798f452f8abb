"""Build, explain and pin: what the tasks `build` and `lock` do.

Everything a person reads goes through `terminal`; everything a script reads is JSON on standard output.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ndakit.build import fleet, lockfile, pipeline
from ndakit.build import plan as build_plan
from ndakit.build.fleet import ProfileOutcome
from ndakit.build.pipeline import BuildResult
from ndakit.cli import fleet_progress
from ndakit.cli.build_progress import Steps
from ndakit.cli.profiles import nodes_of, read
from ndakit.core import terminal
from ndakit.core.errors import ErrorGroup, InputError, NdakitError
from ndakit.core.events import Events, ignore
from ndakit.core.workspace import Workspace
from ndakit.image import artifacts
from ndakit.image.artifacts import Artifact
from ndakit.imagebuilder import sources
from ndakit.imagebuilder.fetch.errors import OfflineMissing
from ndakit.imagebuilder.sources import Builder, FetchOptions
from ndakit.load import load
from ndakit.load.loaded import Loaded


class BuildContradiction(InputError):
    """Options of `build` that do not go together, or nothing to build."""


@dataclass(frozen=True)
class BuildOptions:
    """How to build, as said on the command line."""

    kind: str = "lab"
    imagebuilder: Path | None = None
    fetch: FetchOptions = field(default_factory=FetchOptions)
    locked: bool = False

    def without_fetching(self) -> BuildOptions:
        """The same from the cache alone."""
        fetches = self.kind == "openwrt" and self.imagebuilder is None
        return replace(self, fetch=replace(self.fetch, offline=True)) if fetches else self

    def builder(self, workspace: Workspace, loaded: Loaded, events: Events = ignore) -> Builder:
        """The builder for a profile; OpenWrt's is fetched if need be. Raises what `sources.choose` raises."""
        return sources.choose(self.kind, self.imagebuilder, workspace, loaded.profile, self.fetch, events)


def chosen(workspace: Workspace, profiles: str, *, all_of_them: bool) -> tuple[str, ...]:
    """The profiles that were named (several: comma), or all. Raises BuildContradiction."""
    if all_of_them and profiles:
        raise BuildContradiction(
            "profiles were named, and all are asked for", where=f"{profiles} --all", fix="leave one of them out"
        )
    names = load.names(workspace) if all_of_them else _split(profiles)
    if not names:
        raise BuildContradiction(
            "there is nothing to build",
            where=str(workspace.profiles),
            fix="write profiles/NAME.yaml, or name a profile",
        )
    return names


def _split(profiles: str) -> tuple[str, ...]:
    if Path(profiles).exists():
        return (profiles,)
    return tuple(dict.fromkeys(word for word in (w.strip() for w in profiles.split(",")) if word))


def build(
    workspace: Workspace,
    names: Sequence[str],
    node: str | None,
    options: BuildOptions,
    *,
    jobs: int | None,
    as_json: bool,
) -> int:
    """Build what is not up to date, showing each step; the exit code: of several failures the highest."""
    if len(names) == 1:
        build_profile(workspace, names[0], node, options, as_json=as_json)
        return 0
    if node is not None:
        raise BuildContradiction(
            "a node was named, and several profiles are to be built", where=f"--node {node}", fix="name one profile"
        )
    return _build_many(workspace, names, options, jobs=jobs or os.cpu_count() or 1, as_json=as_json)


def build_profile(
    workspace: Workspace, profile: str, node: str | None, options: BuildOptions, *, as_json: bool
) -> None:
    """Build the nodes of one profile that are not up to date."""
    loaded = read(workspace, profile)
    build_loaded(workspace, loaded, nodes_of(loaded, node), options, as_json=as_json)


def build_loaded(
    workspace: Workspace, loaded: Loaded, nodes: Sequence[str], options: BuildOptions, *, as_json: bool
) -> None:
    """The same for nodes of a profile that has been read: all in one call, so that each warning is told once."""
    steps = Steps(to=terminal.note if as_json else terminal.say)
    builder = options.builder(workspace, loaded, steps)
    results = pipeline.build(workspace, loaded, nodes, builder, steps, locked=options.locked)
    _mention_left_over(workspace, loaded)
    if as_json:
        terminal.show_json([result_facts(r) for r in results])
        return
    for result in results:
        record = result.artifact.record
        state = f"built in {terminal.seconds(result.elapsed_s)}" if result.built else "up to date, nothing was run"
        terminal.say(f"{result.node}: {state}")
        for image in record.images:
            terminal.say(f"  {result.artifact.folder / image.name}  {image.size_bytes / 2**20:.1f} MiB  {image.kind}")
        if record.secrets:
            terminal.say(f"  holds secrets: {', '.join(record.secrets)}; the image files are for you alone (0600)")
        if record.warning:
            terminal.say(f"  {terminal.paint(record.warning, 'yellow')}")


def _mention_left_over(workspace: Workspace, loaded: Loaded) -> None:
    """Images of nodes that left the profile stay, and should not be flashed by mistake."""
    base = workspace.images / loaded.profile.name
    for folder in sorted(base.iterdir()) if base.is_dir() else ():
        if folder.is_dir() and not folder.name.startswith(".") and folder.name not in loaded.profile.nodes:
            terminal.note(f"note: {folder} is of a node that the profile no longer has; ./inv clean --gone removes it")


def _build_many(workspace: Workspace, names: Sequence[str], options: BuildOptions, *, jobs: int, as_json: bool) -> int:
    started_s = time.monotonic()
    with fleet_progress.many(names, as_json=as_json) as tell:
        outcomes = fleet.build_all(
            workspace,
            names,
            lambda loaded, events: options.builder(workspace, loaded, events),
            jobs=jobs,
            tell=tell,
            locked=options.locked,
        )
    if as_json:
        terminal.show_json([outcome_facts(outcome) for outcome in outcomes])
    else:
        terminal.say(fleet_progress.summary(outcomes, time.monotonic() - started_s))
    for outcome in outcomes:
        if outcome.error is not None and not as_json:
            terminal.note("")
            terminal.show_error(outcome.error)
    return max(outcome.exit_code for outcome in outcomes)


def result_facts(result: BuildResult) -> dict[str, Any]:
    """A node's result for scripts."""
    record = result.artifact.record
    return {
        "node": result.node,
        "built": result.built,
        "reasons": list(result.reasons),
        "elapsed_s": round(result.elapsed_s, 3),
        "id": record.id,
        "folder": str(result.artifact.folder),
        "images": [{"name": i.name, "kind": i.kind, "bytes": i.size_bytes, "sha256": i.sha256} for i in record.images],
        "builder": record.builder,
        "warning": record.warning,
        "secrets": list(record.secrets),
        "lock": record.lock.get("state", ""),
    }


def outcome_facts(outcome: ProfileOutcome) -> dict[str, Any]:
    """A profile's outcome for scripts; `errors` is empty if it went well."""
    error = outcome.error
    errors = error.errors if isinstance(error, ErrorGroup) else (error,) if error else ()
    return {
        "profile": outcome.profile,
        "elapsed_s": round(outcome.elapsed_s, 3),
        "nodes": [result_facts(result) for result in outcome.results],
        "errors": [one.as_json() for one in errors],
    }


# -- why ---------------------------------------------------------------------------------------------------------------


def why(workspace: Workspace, names: Sequence[str], node: str | None, options: BuildOptions, *, as_json: bool) -> int:
    """Say what a build would do and why, and build and fetch nothing; 0, or the exit code of what cannot be planned."""
    code = 0
    facts: list[dict[str, Any]] = []
    for name in names:
        try:
            facts += _planned(workspace, name, node, options)
        except NdakitError as error:
            if len(names) == 1:
                raise
            terminal.show_error(error)
            code = max(code, error.exit_code)
    if as_json:
        terminal.show_json(facts)
        return code
    for fact in facts:
        where = f"{fact['profile']}/{fact['node']}"
        if fact["up_to_date"]:
            terminal.say(f"{where}: up to date")
        else:
            terminal.say(f"{where}: would be built")
            for reason in fact["reasons"]:
                terminal.say(f"  {reason}")
    return code


def _planned(workspace: Workspace, name: str, node: str | None, options: BuildOptions) -> list[dict[str, Any]]:
    """What a build of one profile's nodes would do, for scripts; `id` is None while that is not known."""
    loaded = read(workspace, name)
    nodes = nodes_of(loaded, node)
    try:
        builder = options.without_fetching().builder(workspace, loaded)
    except OfflineMissing:
        if options.fetch.offline:
            raise
        reasons = ["its ImageBuilder is not in the cache yet"]
        return [_plan_facts(loaded, one, up_to_date=False, reasons=reasons, id=None) for one in nodes]
    plans = build_plan.plan(workspace, loaded, nodes, builder, locked=options.locked)
    return [
        _plan_facts(loaded, one.node, up_to_date=one.up_to_date, reasons=list(one.reasons), id=one.image_id)
        for one in plans
    ]


def _plan_facts(loaded: Loaded, node: str, **facts: Any) -> dict[str, Any]:
    return {"profile": loaded.profile.name, "node": node, **facts}


# -- lock --------------------------------------------------------------------------------------------------------------


def lock(workspace: Workspace, profile: str, *, update: bool, as_json: bool) -> None:
    """Show what differs between a profile's lock file and its images as built; with `update`, pin the images."""
    loaded = read(workspace, profile)
    name, path = loaded.profile.name, lockfile.path_of(loaded)
    kind, section = _as_built(workspace, loaded)
    pinned = lockfile.read(path)
    differ = lockfile.differences(pinned.sections.get(kind), section)
    if update and differ:
        lockfile.write(path, name, lockfile.Lock({**pinned.sections, kind: section}))
    if as_json:
        facts = {"profile": name, "file": str(path), "builder": kind, "differences": differ}
        terminal.show_json({**facts, "written": bool(update and differ)})
        return
    if not differ:
        terminal.say(f"{path}: the images are as pinned (--builder {kind})")
        return
    terminal.say(f"{path}, --builder {kind}: pinned → as built")
    for line in differ:
        terminal.say(f"  {line}")
    pin = f"./inv lock {loaded.called} --update"
    terminal.say("written" if update else f"nothing was written; {pin} pins the images as built")


def _as_built(workspace: Workspace, loaded: Loaded) -> tuple[str, lockfile.PinnedSection]:
    """The builder's kind and what the images of all nodes were built from.

    Raises ImageNotBuilt, RecordBroken, ImageChanged, LockMixed.
    """
    name = loaded.profile.name
    built = [Artifact.load(artifacts.folder_of(workspace, name, n), loaded.called) for n in loaded.profile.nodes]
    if harmed := [error for artifact in built for error in artifact.suspicious()]:
        raise ErrorGroup(harmed)
    kinds = {artifact.record.builder for artifact in built}
    if len(kinds) > 1:
        raise lockfile.LockMixed(name, tuple(loaded.profile.nodes), loaded.called)
    return kinds.pop(), lockfile.section_of(name, [artifact.record for artifact in built])
