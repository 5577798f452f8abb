"""The fetch task: which ImageBuilder is meant, and what is shown of getting it.

The work is in `imagebuilder.fetch.fetch`; the events are shown as those of a build are.
"""

from __future__ import annotations

import re

from ndakit.cli.build_progress import Steps
from ndakit.core import terminal
from ndakit.core.errors import InputError
from ndakit.core.release import Release
from ndakit.core.workspace import Workspace
from ndakit.imagebuilder.fetch import fetch
from ndakit.imagebuilder.sources import FetchOptions
from ndakit.load import load
from ndakit.model import DEVICES


class NothingNamed(InputError):
    """Neither a profile nor release and device."""

    def __init__(self) -> None:
        super().__init__(
            "which ImageBuilder is needed follows from a profile, or from a release and a device",
            where="the command line",
            fix="write ./inv fetch --profile NAME, or ./inv fetch --release 24.10.8 --device x86-64",
        )


class ReleaseUnreadable(InputError):
    """`--release` is none."""

    def __init__(self, text: str, why: str) -> None:
        super().__init__(f"{text!r}: {why}", where="--release", fix="write --release 24.10.8")


class DeviceUnreadable(InputError):
    """`--device` is none."""

    def __init__(self, text: str) -> None:
        super().__init__(
            f"{text!r} is not a device",
            where="--device",
            fix=f"write {', '.join(DEVICES)}, or <target>:<device> such as ath79/generic:tplink_archer-c7-v2",
        )


def fetch_imagebuilder(
    workspace: Workspace,
    profile: str | None,
    release: str | None,
    device: str | None,
    options: FetchOptions,
    *,
    as_json: bool,
) -> None:
    """Have the ImageBuilder in the cache, and say where it is and who vouches for it."""
    wanted, target = _meant(workspace, profile, release, device)
    steps = Steps(to=terminal.note if as_json else terminal.say)
    fetched = fetch.get(wanted, target, options.origin(workspace), steps)
    facts = {
        "release": str(wanted), "target": target, "archive": fetched.archive, "sha256": fetched.sha256,
        "verified_by": fetched.verified_by, "folder": str(fetched.folder), "fetched": fetched.fresh,
    }  # fmt: skip
    if as_json:
        terminal.show_json(facts)
        return
    terminal.say(f"{fetched.archive}: {'fetched' if fetched.fresh else 'was in the cache'}")
    terminal.say(f"  sha256    {fetched.sha256}")
    terminal.say(f"  verified  {fetched.verified_by}")
    terminal.say(f"  folder    {fetched.folder}")


def _meant(workspace: Workspace, profile: str | None, release: str | None, device: str | None) -> tuple[Release, str]:
    """Release and target: those of the profile, each replaced by what was given."""
    named = load.load(workspace, profile).profile if profile else None
    if named is None and (release is None or device is None):
        raise NothingNamed
    if release is not None:
        try:
            wanted = Release.parse(release)
        except ValueError as cause:
            raise ReleaseUnreadable(release, str(cause)) from None
    else:
        assert named is not None
        wanted = named.release
    if device is None:
        assert named is not None
        return wanted, named.target
    target = DEVICES[device][0] if device in DEVICES else device.partition(":")[0]
    if not re.fullmatch(r"[A-Za-z0-9_-]+/[A-Za-z0-9_-]+", target):
        raise DeviceUnreadable(device)
    return wanted, target
