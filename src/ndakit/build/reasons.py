"""What changed since an image was built, in words for people: its record beside what it would be made of now.

Owns the wording of reasons. What an image is made of, and when it is stale, is the business of `pipeline`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ndakit.image.artifacts import Record


def changes(record: Record, inputs: Mapping[str, Any], sources: Mapping[str, str]) -> list[str]:
    """What differs between the record of an image and what it would be made of now, in words."""
    before = record.inputs
    reasons: list[str] = []
    words = {"release": "release", "target": "target", "device": "device", "extra_name": "host name"}
    for key, word in words.items():
        if before.get(key) != inputs[key]:
            reasons.append(f"{word}: {before.get(key)} → {inputs[key]}")
    if before.get("builder") != inputs["builder"]:
        reasons.append(f"builder: {before.get('builder')} → {inputs['builder']}")
    elif before.get("fingerprint") != inputs["fingerprint"]:
        reasons.append("the ImageBuilder changed")
    if before.get("recipe") != inputs["recipe"]:
        reasons.append("images say what they are made of now, in another form or for the first time")
    for prefix, key in (("image.", "image"), ("", "settings")):
        old, new = _mapping(before.get(key)), inputs[key]
        differ = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
        if differ and (
            key == "image" or before.get("image") == inputs["image"]
        ):  # the settings follow from the image's
            reasons += [f"{prefix}{k}: {old.get(k)} → {new.get(k)}" for k in differ]
    was, now = set(str(before.get("packages", "")).split()), set(inputs["packages"].split())
    if was != now:
        words_now = [*(f"+{p}" for p in sorted(now - was)), *(f"no longer {p}" for p in sorted(was - now))]
        reasons.append(f"packages: {', '.join(words_now)}")
    old, new = _mapping(before.get("local_packages")), inputs.get("local_packages", {})
    reasons += [
        f"package {name} of packages/ changed" for name in sorted(old.keys() & new.keys()) if old[name] != new[name]
    ]
    reasons += [f"package {name} comes from packages/ now" for name in sorted(new.keys() - old.keys())]
    reasons += [f"package {name} no longer comes from packages/" for name in sorted(old.keys() - new.keys())]
    return reasons + _file_changes(record, inputs, sources)


def _mapping(value: Any) -> Mapping[str, Any]:
    """The value; an empty one in the place of what is none, for a record comes from a file that anybody can write."""
    return value if isinstance(value, Mapping) else {}


def _file_changes(record: Record, inputs: Mapping[str, Any], sources: Mapping[str, str]) -> list[str]:
    """Changed files of the overlay, by what changed them: their template, the profile, or neither of them."""
    old, new = _mapping(record.inputs.get("files")), inputs["files"]
    changed = [path for path in sorted(old.keys() | new.keys()) if old.get(path) != new.get(path)]
    touched = [name for name in sorted(sources) if sources[name] != record.sources.get(name)]
    gone = sorted(record.sources.keys() - sources.keys())
    if not changed:
        return []
    templates = [name for name in touched if name.startswith("templates/")]
    reasons = [f"{name} {'changed' if name in record.sources else 'is new'}" for name in touched]
    reasons += [f"{name} is gone" for name in gone]
    shown = ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
    if not reasons:
        return [f"rendered differently than by the version that built it: {shown}"]
    return reasons if set(touched) <= set(templates) else [*reasons, f"that changes {shown}"]
