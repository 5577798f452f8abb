"""The servers' side of a profile: what each server must have so that the balancers can use it, as scripts that run.

Owns which machine needs which gateway, address, tunnel and rule, from the topologies of the services that use it, and
the scripts for Linux, Windows and FreeBSD (templates/servers). Pure; where scripts are written to is the front end's
business. The same machine may stand in several pools: servers with a common address are one machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ndakit.core.errors import InputError
from ndakit.model import Profile
from ndakit.model.server_side import ServerSide
from ndakit.render import render

SYSTEMS = {"linux": "servers/linux.sh.j2", "windows": "servers/windows.ps1.j2", "freebsd": "servers/freebsd.sh.j2"}


WORDS = "servers/router.txt.j2"


class NoSuchServer(InputError):
    """`--server` names no server of the profile."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(
            f"no pool has a server '{name}'", where="--server", fix=f"use one of: {', '.join(known) or 'none'}"
        )


class OnlyWatched(InputError):
    """`--server` names one that no service uses."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"'{name}' needs nothing: no service uses it, the balancers only watch it",
            where="--server", fix="nothing is to be done there",
        )  # fmt: skip


def in_words(side: ServerSide, profile: Profile, templates: Sequence[Path]) -> render.RenderedFile | None:
    """What an inner router must do, for routers that run no script; None for servers. Raises TemplateBroken."""
    if not side.router:
        return None
    made = render.single(templates, WORDS, f"{profile.name}, {side.title}", {"server": side, "profile": profile})
    return replace(made, mode=render.MODE_FILE)


def script(side: ServerSide, system: str, profile: Profile, templates: Sequence[Path]) -> render.RenderedFile | None:
    """The script for an operating system of SYSTEMS; None if that cannot do it. Raises TemplateBroken."""
    if side.impossible(system):
        return None
    subject = f"{profile.name}, {side.title}"
    return render.single(templates, SYSTEMS[system], subject, {"server": side, "profile": profile})


def linux_script(profile: Profile, templates: Sequence[Path], side: ServerSide) -> bytes:
    """The script for Linux, as the lab's servers run it: what `./inv servers` writes. Raises TemplateBroken."""
    file = script(side, "linux", profile, templates)
    assert file is not None, "there is one for Linux always"
    return file.content
