"""`./inv upgrade PROFILE --release R`: what another release of OpenWrt changes for a profile."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ndakit.core import terminal
from ndakit.core.errors import ErrorGroup
from ndakit.core.workspace import Workspace
from ndakit.model.rules.release import UNKNOWN
from ndakit.operate import release_change
from ndakit.operate.release_change import FileChange, ReleaseChange

REFUSED = 2


def show(place: Workspace, profile: str, release: str | None, *, diff: bool, as_json: bool) -> int:
    """Say what changes; 0 if the profile can be built for the release as it is, else REFUSED. Edits nothing.

    Raises ReleaseUnknown, and what the profile as it is raises.
    """
    change = release_change.compare(place, profile, release)
    if as_json:
        terminal.show_json(_json(change, diff=diff))
        return REFUSED if change.errors else 0
    doubts = [warning for warning in change.warnings if warning.code == UNKNOWN]
    for doubt in doubts:  # what is said of the release afterwards is a guess
        terminal.note(doubt.text())
    terminal.say(_text(change, diff=diff))
    for warning in change.warnings:
        if warning not in doubts:
            terminal.note(warning.text())
    if change.errors:
        terminal.show_error(ErrorGroup(change.errors))
        return REFUSED
    if doubts:
        terminal.say("\nNothing was edited.")
        return 0
    terminal.say(
        f"\nNothing was edited. Write release: {change.after} into the profile, then build, verify, and upgrade one "
        f"node after the other:\n  ./inv build {profile} --builder openwrt\n  ./inv verify {profile}\n"
        f"  ./inv flash {profile} --node NODE --upgrade"
    )
    return 0


def _text(change: ReleaseChange, *, diff: bool) -> str:
    if change.before == change.after:
        return f"{change.profile} has release {change.after} already"
    older = ", which is older" if change.after < change.before else ""
    parts = [f"{change.profile}: OpenWrt {change.before} → {change.after}{older}"]
    if change.facts:
        parts.append(terminal.table(change.facts, header=("", str(change.before), str(change.after))))
    rows = [(name, "new", why) for name, why in change.packages_added.items()]
    rows += [(name, "gone", why) for name, why in change.packages_removed.items()]
    parts.append(terminal.table(rows, header=("package", "", "why")) if rows else "the same packages")
    if change.files:
        files = [(node, *_row(one)) for node, list_of in change.files.items() for one in list_of]
        parts.append(terminal.table(files, header=("node", "file", "", "lines")) if files else "the same files")
    else:
        parts.append("files: not rendered, for the release refuses what is below")
    if diff:
        parts += [f"node {node}\n{one.diff}" for node, list_of in change.files.items() for one in list_of]
    return "\n\n".join(parts)


def _row(change: FileChange) -> tuple[str, str, str]:
    return change.path, change.kind, f"+{change.added} -{change.removed}"


def _json(change: ReleaseChange, *, diff: bool) -> dict[str, Any]:
    files = {
        node: [{k: v for k, v in asdict(one).items() if diff or k != "diff"} for one in list_of]
        for node, list_of in change.files.items()
    }
    return {
        "profile": change.profile,
        "before": str(change.before),
        "after": str(change.after),
        "facts": [{"what": name, "before": old, "after": new} for name, old, new in change.facts],
        "packages": {"new": dict(change.packages_added), "gone": dict(change.packages_removed)},
        "errors": [error.as_json() for error in change.errors],
        "warnings": [warning.as_json() for warning in change.warnings],
        "files": files,
    }
