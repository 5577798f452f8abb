"""Builds and lock files: what is refused, what is stale, and what the record says about it.

Owns when pins count. The lock file itself, and differences in words, are `lockfile`'s.
"""

from __future__ import annotations

from collections.abc import Mapping

from ndakit.build import lockfile
from ndakit.image.artifacts import Record
from ndakit.imagebuilder.sources import Builder
from ndakit.load.loaded import Loaded

_SHOWN = 3


def stale(pins: lockfile.PinnedNode | None, kind: str, record: Record, *, locked: bool) -> list[str]:
    """Why an image of a kind of builder is stale because of the lock file; usually nothing.

    Other versions than pinned count if that lock file is news to the image, or if they are demanded (`locked`); else
    every build would make it again where the pinned versions cannot be had any more.
    """
    if pins is None or record.builder != kind or (not locked and record.lock.get("pins") == pins.digest):
        return []
    differ = lockfile.version_differences(record.node, record.packages, pins.packages)
    return [f"the lock file pins other versions: {_short(differ)}"] if differ else []


def require(loaded: Loaded, builder: Builder, lock: lockfile.Lock, asked: Mapping[str, str]) -> None:
    """Refuse at once what can be known to drift before anything is made; `asked` is node → packages asked for.

    Raises LockMissing, LockDrift.
    """
    profile, path = loaded.profile, lockfile.path_of(loaded)
    section = lock.sections.get(builder.kind)
    if section is None:
        raise lockfile.LockMissing(path, profile.name, builder.kind, loaded.called)
    source = builder.provenance(profile)
    now = lockfile.Base(
        str(profile.release), profile.target, profile.imagebuilder_device,
        source.name, source.fingerprint, source.archive, source.sha256,
    )  # fmt: skip
    differ = lockfile.base_differences(section.base, now)
    for node, words in asked.items():
        differ += lockfile.asked_differences(node, section.nodes.get(node), words)
    if differ:
        raise lockfile.LockDrift(path, profile.name, differ, loaded.called)


def compare(
    loaded: Loaded, node: str, pins: lockfile.PinnedNode | None, packages: Mapping[str, str], *, locked: bool
) -> tuple[dict[str, str], tuple[str, ...]]:
    """What the record says of the lock file, and warnings. Raises LockDrift for other versions if they are demanded."""
    path = lockfile.path_of(loaded)
    if pins is None:
        return {"state": "nothing is pinned"}, ()
    differ = lockfile.version_differences(node, pins.packages, packages)
    if differ and locked:
        raise lockfile.LockDrift(path, loaded.profile.name, differ, loaded.called)
    if differ:
        warning = f"other versions than the lock file pins: {_short(differ)}"
        return {"state": "other versions than pinned", "pins": pins.digest}, (warning,)
    return {"state": "as pinned", "pins": pins.digest}, ()


def _short(differ: list[str]) -> str:
    return "; ".join(differ[:_SHOWN]) + (f" and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else "")
