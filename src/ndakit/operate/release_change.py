"""What another release of OpenWrt changes for a profile: families, packages, keys that it refuses, rendered files.

Nothing is edited and nothing downloaded. Secrets are stand-ins: what differs does not depend on them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ndakit.core.errors import ErrorGroup, InputError, Location, NdakitError
from ndakit.core.mistakes import KeyPath, ProfileWarning
from ndakit.core.release import Release
from ndakit.core.workspace import Workspace
from ndakit.lint.lint import lint
from ndakit.load import certificates, load, secrets
from ndakit.load.loaded import Loaded
from ndakit.model import package_plan
from ndakit.model.rules import release as rules
from ndakit.packages import feed
from ndakit.render.render import Tree, render


class ReleaseUnknown(InputError):
    """What --release was given is no release."""


@dataclass(frozen=True)
class FileChange:
    """A rendered file that is another one. `added`, `removed`: lines; `kind`: changed, new, gone."""

    path: str
    kind: str
    added: int
    removed: int
    diff: str


@dataclass(frozen=True)
class ReleaseChange:
    """What changes from the profile's release to another one."""

    profile: str
    before: Release
    after: Release
    facts: tuple[tuple[str, str, str], ...]
    """What differs between the releases themselves: name, before, after."""
    packages_added: Mapping[str, str]
    """Package → why it is needed there."""
    packages_removed: Mapping[str, str]
    """Package → why it was needed, and what takes its place."""
    errors: tuple[NdakitError, ...]
    """Why the profile as it is cannot be built for it."""
    warnings: tuple[ProfileWarning, ...]
    """Those that it has not got now; first that there is no such release, or that nothing is known of it."""
    files: Mapping[str, tuple[FileChange, ...]] = field(default_factory=dict)
    """Node → files; empty where errors keep it from being rendered."""


def compare(workspace: Workspace, what: str, release: str | None) -> ReleaseChange:
    """Look at a profile with another release. Raises ReleaseUnknown, and what loading and rendering the profile as it
    is raise."""
    after, doubt = _named(release)
    now = load.load(workspace, what)
    made: dict[str, bytes] = {}
    trees_now = _trees(workspace, now, made)
    before = now.profile.release
    errors: list[NdakitError] = []
    warnings = doubt
    files: dict[str, tuple[FileChange, ...]] = {}
    plan_now, plan_then = _plan(now), None
    try:
        then = load.load(workspace, what, release=str(after))
        told = {known.text() for known in now.warnings}
        warnings += tuple(w for w in then.warnings if w.text() not in told and w.code not in {d.code for d in doubt})
        plan_then = _plan(then)
        errors += _package_errors(workspace, then)
        trees_then = _trees(workspace, then, made)
        files = {node: _changes(trees_now[node], trees_then[node]) for node in now.profile.nodes}
    except ErrorGroup as group:
        errors += group.errors
    except NdakitError as error:
        errors.append(error)
    added, removed = _package_changes(plan_now, plan_then, after)
    return ReleaseChange(
        now.profile.name,
        before,
        after,
        tuple(_facts(before, after)),
        added,
        removed,
        tuple(errors),
        warnings,
        files,
    )


def _named(release: str | None) -> tuple[Release, tuple[ProfileWarning, ...]]:
    """The release that is meant, and what is doubtful about it, as a profile with it is told."""
    if not release:
        raise ReleaseUnknown(
            "it is not said which release", where="--release", fix="name one, such as --release 25.12.5"
        )
    where = f"--release {release[:40]}"
    try:
        after = Release.parse(release)
    except ValueError as cause:
        raise ReleaseUnknown(str(cause), where=where, fix="such as --release 25.12.5") from None
    words = rules.doubt(after)
    if words is None:
        return after, ()
    what, instead = words
    return after, (ProfileWarning(rules.UNKNOWN, what, Location(where), f"write {instead}"),)


def _trees(workspace: Workspace, loaded: Loaded, made: dict[str, bytes]) -> dict[str, Tree]:
    """Rendered and linted. `made`: stand-ins for secrets by name, the same ones each time. Raises ErrorGroup of the
    lint's findings."""

    def stand_in(name: str, at: KeyPath) -> bytes:
        if name not in made:
            made[name] = certificates.placeholder(loaded.profile, datetime.now(UTC), name, at)
        return made[name]

    stand_ins = secrets.placeholders(loaded.profile, stand_in)
    trees: dict[str, Tree] = {}
    findings: dict[str, NdakitError] = {}
    for node in loaded.profile.nodes:
        trees[node] = render(loaded.profile, node, workspace.templates, secrets=stand_ins)
        # A fault of a template is on every node.
        findings |= {error.text(): error for error in lint(trees[node], loaded.profile, node)}
    if findings:
        raise ErrorGroup([stand_ins.mask(error) for error in findings.values()])
    return trees


def _plan(loaded: Loaded) -> package_plan.PackagePlan:
    return package_plan.plan(loaded.profile, next(iter(loaded.profile.nodes)))


def _package_errors(workspace: Workspace, loaded: Loaded) -> list[NdakitError]:
    try:
        feed.choose(workspace, loaded, _plan(loaded), complete=False)
    except ErrorGroup as group:
        return list(group.errors)
    except NdakitError as error:
        return [error]
    return []


def _package_changes(
    now: package_plan.PackagePlan, then: package_plan.PackagePlan | None, after: Release
) -> tuple[dict[str, str], dict[str, str]]:
    """Packages that the images get there and do not get now, and the other way round. Where the profile cannot be
    loaded for the release, only those are known that it does not have."""
    gone = {}
    for name, why in now.add.items():
        lack = package_plan.lack(after, name)
        if (lack is not None) if then is None else (name not in then.add):
            instead = f"; there it is {lack.instead}" if lack is not None and lack.instead else ""
            gone[name] = f"{why}{instead}"
    added = {name: why for name, why in then.add.items() if name not in now.add} if then is not None else {}
    return added, gone


def _facts(before: Release, after: Release) -> list[tuple[str, str, str]]:
    """Capabilities of the two releases that differ, in words (docs/facts.md)."""

    def words(release: Release) -> dict[str, str]:
        return {
            "family": str(release.family),
            "firewall": "fw4 (nftables)" if release.fw4 else "fw3 (iptables)",
            "packages": "apk" if release.branch >= (25, 12) else "opkg",
            "HAProxy": ".".join(map(str, release.haproxy)),
            "network": "config device" if release.device_sections else "type bridge, ifname",
            "TLS 1.3": "yes" if release.tls13 else "no",
            "SSH keys": ", ".join(sorted(release.ssh_key_types)),
            "EFI images": "yes" if release.efi_images else "no",
        }

    old, new = words(before), words(after)
    return [(name, old[name], new[name]) for name in old if old[name] != new[name]]


def _changes(now: Tree, then: Tree) -> tuple[FileChange, ...]:
    changes = []
    for path in sorted({*now, *then}):
        texts = [tree[path].content.decode(errors="replace") if path in tree else "" for tree in (now, then)]
        if path in now and path in then and texts[0] == texts[1] and now[path].mode == then[path].mode:
            continue
        kind = "changed" if path in now and path in then else "new" if path in then else "gone"
        lines = list(
            difflib.unified_diff(
                texts[0].splitlines(), texts[1].splitlines(), f"{path} (now)", f"{path} (then)", lineterm=""
            )
        )
        added = sum(1 for line in lines[2:] if line.startswith("+"))
        removed = sum(1 for line in lines[2:] if line.startswith("-"))
        if kind == "changed" and not lines:
            lines = [f"mode {now[path].mode:04o} becomes {then[path].mode:04o}"]
        changes.append(FileChange(path, kind, added, removed, "\n".join(lines)))
    return tuple(changes)
