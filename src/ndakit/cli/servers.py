"""`./inv servers`: write the servers' side of a profile as scripts, with a table of who needs what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ndakit.cli.profiles import read
from ndakit.core import terminal
from ndakit.core.files import write_atomic
from ndakit.core.workspace import Workspace
from ndakit.model import Profile
from ndakit.model.server_side import ServerSide, servers, watched
from ndakit.render import overlay
from ndakit.render.render import RenderedFile, Tree
from ndakit.render.servers import SYSTEMS, NoSuchServer, OnlyWatched, in_words, script

_USE = {
    "linux": "`sh linux.sh up` now, `sh linux.sh install` to last",
    "windows": "`powershell -ExecutionPolicy Bypass -File windows.ps1 up`, lasts",
    "freebsd": "`sh freebsd.sh up`, and from `/etc/rc.local` to last",
}
_WORDS_USE = "other routers: `router.txt` says in words what `linux.sh` does"


def write_scripts(workspace: Workspace, name: str, server: str | None, out: Path | None, *, as_json: bool) -> None:
    """Write every server's scripts, or those of one, and say what each needs. Raises NoSuchServer,
    OnlyWatched."""
    profile = read(workspace, name).profile
    sides = chosen(profile, server)
    base = out or workspace.root / "servers" / profile.name
    if as_json:
        terminal.show_json([facts(side) for side in sides])
    if server is None:
        base.mkdir(parents=True, exist_ok=True)
        write_atomic(base / "README.md", readme(profile, sides))
    for side in sides:
        made = [script(side, system, profile, workspace.templates) for system in SYSTEMS]
        files = [_placed(f) for f in (*made, in_words(side, profile, workspace.templates)) if f is not None]
        done = overlay.write(Tree(files), base / side.name)
        if not as_json:
            terminal.say(
                f"{base / side.name}: {done.written} written, {done.unchanged} unchanged, {done.removed} removed"
            )
            for need in side.needs:
                terminal.say(f"  {need}")
            for system in SYSTEMS:
                if why := side.impossible(system):
                    terminal.say(f"  not for {system}: it has {why}")


def chosen(profile: Profile, name: str | None) -> tuple[ServerSide, ...]:
    """The machines to write for: all that a service uses, or the one called `name` (its own name, or pool/server)."""
    sides = servers(profile)
    used = tuple(s for s in sides if not watched(profile, s))
    if name is None:
        return used
    wanted = tuple(s for s in used if name in (s.name, *s.names))
    if not wanted and any(name in (s.name, *s.names) for s in sides):
        raise OnlyWatched(name)
    if not wanted:
        raise NoSuchServer(name, [s.name for s in used])
    return wanted


def facts(side: ServerSide) -> dict[str, Any]:
    """What one machine needs, for scripts."""
    return {
        "server": side.name,
        "stands_in": list(side.names),
        "addresses": [str(a) for a in side.own],
        "needs": list(side.needs),
        "default_gateways": [str(g.gateway) for g in side.gateways],
        "answers": [
            {
                "from": str(a.source),
                "protocol": a.protocol,
                "port": a.port,
                "gateway": str(a.gateway),
                "directly_to": [str(n) for n in a.nodes],
            }
            for a in side.answers
        ],
        "vips": [{"address": str(a.address), "device": a.device} for a in side.addresses],
        "tunnels": [{"device": t.device, "local": str(t.local)} for t in side.tunnels],
        "not_for": {system: why for system in SYSTEMS if (why := side.impossible(system))},
    }


def _placed(made: RenderedFile) -> RenderedFile:
    """The file at the top of its machine's folder."""
    return replace(made, path="/" + made.path.rpartition("/")[2])


def readme(profile: Profile, sides: Sequence[ServerSide]) -> bytes:
    """The table server × what it must have, with how to use the scripts."""
    lines = [
        f"<!-- made by ndakit for {profile.name}: change the profile, not this file -->",
        f"# The servers behind {profile.name}",
        "",
        "| server | addresses | what it must have |",
        "|---|---|---|",
    ]
    for side in sides:
        needs = "<br>".join(side.needs)
        lines.append(f"| {side.name} | {', '.join(str(a) for a in side.own)} | {needs} |")
    lines += ["", "Each server's folder has its scripts; `status` says what is missing, `down` undoes them.", ""]
    lines += [f"- {system}: {use}" for system, use in _USE.items()]
    lines += [f"- {_WORDS_USE}"] if any(s.router for s in sides) else []
    if only := [s for s in servers(profile) if watched(profile, s)]:
        names = ", ".join(f"{s.name} ({', '.join(str(a) for a in s.own)})" for s in only)
        lines += ["", f"Only watched, so that nothing is to be done there: {names}."]
    return "\n".join([*lines, ""]).encode()
