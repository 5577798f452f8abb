"""What `./inv packages PROFILE` shows: the packages beyond and against the device's own, from where, and why."""

from __future__ import annotations

from typing import Any

from ndakit.core import terminal
from ndakit.core.workspace import Workspace
from ndakit.load.loaded import Loaded
from ndakit.model import package_plan
from ndakit.packages import feed


def rows(workspace: Workspace, loaded: Loaded) -> list[dict[str, Any]]:
    """One per package, sorted by name. Raises what choosing packages raises.

    `change` is add or remove, `source` OpenWrt or a place in packages/; `version` is known of the latter only.
    """
    node = next(iter(loaded.profile.nodes))
    plan = package_plan.plan(loaded.profile, node)
    local = {one.name: one for one in feed.choose(workspace, loaded, plan, complete=False)}
    table = [
        {
            "package": name,
            "change": "add",
            "source": local[name].shown if name in local else _elsewhere(name),
            "version": local[name].version if name in local else None,
            "why": plan.add.get(name) or _needed_by(name, local),
        }
        for name in plan.add.keys() | local.keys()
    ]
    table += [
        {"package": name, "change": "remove", "source": "OpenWrt", "version": None, "why": why}
        for name, why in plan.remove.items()
    ]
    return sorted(table, key=lambda row: str(row["package"]))


def _elsewhere(name: str) -> str:
    recipe = package_plan.RECIPES.get(name)
    return "OpenWrt" if recipe is None else f"not here yet: {recipe.guide}"


def _needed_by(name: str, local: dict[str, feed.Local]) -> str:
    return f"needed by {', '.join(sorted(one.name for one in local.values() if name in one.depends))}"


def show(workspace: Workspace, loaded: Loaded, *, as_json: bool) -> None:
    """Print the table, or the rows as JSON."""
    packages = rows(workspace, loaded)
    if as_json:
        terminal.show_json(packages)
        return
    shown = [
        (row["package"], row["change"], f"{row['source']} {row['version'] or ''}".rstrip(), row["why"])
        for row in packages
    ]
    terminal.say(terminal.table(shown, header=("package", "", "from", "why")))
