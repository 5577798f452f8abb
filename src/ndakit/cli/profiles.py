"""What the tasks do: load, call the library, print. Decisions about the product are below this layer.

Everything a person reads goes through `terminal`; everything a script reads is JSON on standard output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ndakit.core import terminal
from ndakit.core.errors import ErrorGroup, InputError, Location, MachineError, NdakitError
from ndakit.core.mistakes import ProfileWarning
from ndakit.core.process import ProcessFailed
from ndakit.core.release import Release
from ndakit.core.workspace import Workspace
from ndakit.load import load
from ndakit.load.load import Loaded

if TYPE_CHECKING:
    from ndakit.load.secrets import Secrets
    from ndakit.model import Profile
    from ndakit.render.render import Tree


class NoSuchNode(InputError):
    """`--node` names no node of the profile."""

    def __init__(self, node: str, loaded: Loaded) -> None:
        super().__init__(
            f"profile '{loaded.profile.name}' has no node '{node}'",
            where="--node",
            fix=f"use one of: {', '.join(loaded.profile.nodes)}",
        )


def nodes_of(loaded: Loaded, node: str | None) -> tuple[str, ...]:
    """The nodes to work on. Raises NoSuchNode."""
    if node is None:
        return tuple(loaded.profile.nodes)
    if node not in loaded.profile.nodes:
        raise NoSuchNode(node, loaded)
    return (node,)


def read(workspace: Workspace, profile: str) -> Loaded:
    """Load a profile and show its warnings."""
    loaded = load.load(workspace, profile)
    for warning in loaded.warnings:
        terminal.note(warning.text())
    return loaded


# -- list, check, render -----------------------------------------------------------------------------------------------


def list_text(workspace: Workspace) -> str:
    """The profiles with release, device and what they hold; broken ones say so."""
    rows: list[tuple[str, ...]] = []
    for name in load.names(workspace):
        try:
            profile = load.load(workspace, name).profile
        except NdakitError as error:
            count = len(error.errors) if isinstance(error, ErrorGroup) else 1
            rows.append((name, "-", "-", f"{count} mistake(s): ./inv check {name}"))
            continue
        what = f"{_count(profile.nodes, 'node')}, {_count(profile.vips, 'VIP')}, {_count(profile.services, 'service')}"
        rows.append(
            (name, str(profile.release), profile.device, what + (f"  {profile.customer}" if profile.customer else ""))
        )
    if not rows:
        return "no profiles yet: write profiles/NAME.yaml (docs/profile.md shows the smallest one)"
    return terminal.table(rows, header=("profile", "release", "device", "holds"))


def show_text(workspace: Workspace, profile: str, *, origin: bool) -> str:
    """The merged profile as YAML; with `origin`, each value's place in a comment (so it is YAML still)."""
    loaded = load.load(workspace, profile)
    if not origin:
        return load.dump(loaded).rstrip()
    lines = load.origin_lines(loaded)
    width = min(max(len(line.text) for line in lines), 72)
    return "\n".join(f"{line.text.ljust(width)}  # {line.origin}" if line.origin else line.text for line in lines)


def _count(counted: Sequence[Any] | dict[str, Any], noun: str) -> str:
    return f"{len(counted)} {noun}{'' if len(counted) == 1 else 's'}"


def rendered(workspace: Workspace, loaded: Loaded, node: str, secrets: Secrets) -> Tree:
    """A node's tree, linted. Raises ErrorGroup of the lint's findings."""
    from ndakit.lint.lint import lint
    from ndakit.render.render import render

    tree = render(loaded.profile, node, workspace.templates, secrets=secrets)
    findings = [secrets.mask(finding) for finding in lint(tree, loaded.profile, node)]
    if findings:
        raise ErrorGroup(findings)
    return tree


def secrets_of(
    workspace: Workspace, loaded: Loaded, *, placeholders: bool = False
) -> tuple[Secrets, tuple[ProfileWarning, ...]]:
    """The secrets of a profile (with `placeholders`, stand-ins), and what is doubtful about its certificates.

    Raises what `secret.resolve` raises, and an ErrorGroup of what is wrong with the certificates.
    """
    from ndakit.load import secrets

    cas = [pool for pool in loaded.profile.pools.values() if pool.to_servers is not None and pool.to_servers.ca]
    if not secrets.references(loaded.profile) and not cas:
        return secrets.NONE, ()
    from ndakit.load import certificate_checks, certificates

    now = datetime.now(UTC)
    if placeholders:
        values = secrets.placeholders(loaded.profile, partial(certificates.placeholder, loaded.profile, now))
    else:
        values = secrets.resolve(workspace, loaded)
    mistakes, doubts = certificate_checks.check(loaded, values, now)
    if mistakes:
        raise ErrorGroup(mistakes)
    return values, doubts


@dataclass
class Checked:
    """What `check` finds."""

    errors: list[NdakitError] = field(default_factory=list)
    warnings: list[ProfileWarning] = field(default_factory=list)
    asked: str = ""
    """How asking the daemons went."""
    profile: Profile | None = None
    secrets_seen: bool = True


def checked(workspace: Workspace, profile: str, *, daemons: bool = False, without_secrets: bool = False) -> Checked:
    """Check a profile, what is rendered from it, and how it sits beside the others."""
    result = Checked()
    errors, warnings = result.errors, result.warnings
    try:
        loaded = load.load(workspace, profile)
        warnings += loaded.warnings
        warnings += _beside_the_others(workspace, loaded)
        errors += _package_errors(workspace, loaded)
        warnings += _packages_to_build(workspace, loaded)
        result.profile = loaded.profile
        secrets, doubts = secrets_of(workspace, loaded, placeholders=without_secrets)
        result.secrets_seen = secrets.real or not without_secrets
        warnings += doubts
        for node in loaded.profile.nodes:
            try:
                tree = rendered(workspace, loaded, node, secrets)
            except ErrorGroup as group:
                told = {e.text() for e in errors}  # a fault of a template is on every node
                errors += [e for e in group.errors if e.text() not in told]
            else:
                result.asked = _ask_daemons(tree, errors, loaded.profile.release, download=daemons)
        for error in errors:
            secrets.mask(error)
    except ErrorGroup as group:
        errors += group.errors
    except NdakitError as error:
        errors.append(error)
    return result


def check_profile(
    workspace: Workspace, profile: str, *, as_json: bool, daemons: bool, without_secrets: bool = False
) -> int:
    """Check a profile and show what was found; the exit code."""
    result = checked(workspace, profile, daemons=daemons, without_secrets=without_secrets)
    errors, warnings, asked, right = result.errors, result.warnings, result.asked, result.profile
    code = errors[0].exit_code if errors else 0
    if as_json:
        facts = {
            "ok": not errors,
            "errors": [e.as_json() for e in errors],
            "warnings": [w.as_json() for w in warnings],
            "daemons": asked,
        }
        terminal.show_json(facts)
        return code
    for warning in warnings:
        terminal.note(warning.text())
    if errors or right is None:
        terminal.show_error(ErrorGroup(errors))
        return code
    terminal.say(
        f"{right.name}: right, {len(warnings)} warning(s). OpenWrt {right.release} ({right.release.family}), "
        f"{', '.join(right.nodes)}; {asked}" + ("" if result.secrets_seen else "; its secrets were not looked at")
    )
    return code


def _package_errors(workspace: Workspace, loaded: Loaded) -> list[NdakitError]:
    """What is wrong with the packages that the profile asks for, as far as it is known without an ImageBuilder."""
    from ndakit.model import package_plan
    from ndakit.packages import feed

    try:
        packages = package_plan.plan(loaded.profile, next(iter(loaded.profile.nodes)))
        feed.choose(workspace, loaded, packages, complete=False)
    except ErrorGroup as group:
        return list(group.errors)
    except NdakitError as error:
        return [error]
    return []


def _packages_to_build(workspace: Workspace, loaded: Loaded) -> list[ProfileWarning]:
    """Programs without which there is no image to flash. The lab has them, so that all else can be tried before."""
    from ndakit.packages import feed

    return [
        ProfileWarning(one.code, one.what, one.location or Location(one.where), one.fix)
        for one in feed.unbuilt(workspace, loaded, next(iter(loaded.profile.nodes)))
    ]


def _beside_the_others(workspace: Workspace, loaded: Loaded) -> list[ProfileWarning]:
    """Warnings about this profile and the other ones of the workspace; broken ones and examples are left out."""
    others: list[Loaded] = []
    if loaded.profile.name in workspace.examples:
        return []
    for name in load.names(workspace):
        if name != loaded.profile.name and name not in workspace.examples:
            with contextlib.suppress(NdakitError):
                others.append(load.load(workspace, name))
    return [w for w in load.cross_check(workspace, [*others, loaded]) if _concerns(w, loaded)]


def _concerns(warning: ProfileWarning, loaded: Loaded) -> bool:
    files = {warning.where.file, warning.other.file if warning.other else ""}
    return any(Path(f).name == loaded.path.name for f in files)


def _ask_daemons(tree: Tree, errors: list[NdakitError], release: Release, *, download: bool) -> str:
    """Have the real daemons read the files, HAProxy in a version at least as new as the release's where one can be had;
    how that went, in words."""
    from ndakit.core.workspace import cache
    from ndakit.lint import real_daemons

    try:
        lab = cache() / "lab"
        if not download and not real_daemons.ready(lab):
            return "the daemons were not asked (--daemons downloads them once)"
        branch = real_daemons.haproxy_branch(real_daemons.daemons_root(lab)) or (0, 0)
        newer = None
        if branch < release.haproxy:
            newer = real_daemons.newer_haproxy(lab, release.haproxy, download=download)
        told = {e.text() for e in errors}  # the nodes' files are alike, and so are their faults
        errors += [e for e in real_daemons.check(tree, lab, haproxy=newer) if e.text() not in told]
    except (MachineError, ProcessFailed) as cause:
        if download:
            raise
        return f"the daemons could not be asked here ({cause.what.splitlines()[0]})"
    major, minor = newer.branch if newer is not None else branch
    version = f"haproxy {major}.{minor}"
    its = f"the release has {release.haproxy[0]}.{release.haproxy[1]}"
    if (major, minor) < release.haproxy:
        version += f" ({its}, and Debian has none as new"
        version += " here)" if download else " in the cache; --daemons looks for it)"
    elif (major, minor) > release.haproxy:
        version += f" ({its}, an older one)"
    words = [{"haproxy": version}.get(who, who) for who in real_daemons.asked(tree)]
    return f"{', '.join(words[:-1])}{' and ' if words[1:] else ''}{words[-1]} accept what they get"


def render_profile(workspace: Workspace, profile: str, node: str | None, out: Path | None) -> None:
    """Write the trees and say what changed."""
    from ndakit.render import overlay

    loaded = read(workspace, profile)
    secrets, doubts = secrets_of(workspace, loaded)
    for doubt in doubts:
        terminal.note(doubt.text())
    trees = {name: rendered(workspace, loaded, name, secrets) for name in nodes_of(loaded, node)}
    base = out or workspace.overlays / loaded.profile.name
    with workspace.writing(loaded.profile.name, on_wait=terminal.note):
        for name, tree in trees.items():
            done = overlay.write(tree, base / name)
            terminal.say(f"{base / name}: {done.written} written, {done.unchanged} unchanged, {done.removed} removed")


# -- care --------------------------------------------------------------------------------------------------------------
