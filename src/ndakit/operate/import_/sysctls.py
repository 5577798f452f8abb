"""Kernel values of a node: those that ndakit computes need no key, the others are `tuning.sysctl`."""

from __future__ import annotations

import re

from ndakit.operate.import_.draft import Draft
from ndakit.operate.import_.ledger import SourceFile


def read(draft: Draft, file: SourceFile, rendered: str) -> None:
    """/etc/sysctl.conf; `rendered` is what ndakit would write."""
    computed = dict(_values(rendered.split("\n")).values())
    for line, (key, value) in _values(file.lines).items():
        if computed.get(key) == value:
            file.same(line, "ndakit writes this value itself")
            continue
        if not re.fullmatch(r"[a-z0-9_]+(\.[A-Za-z0-9_-]+)+", key) or not re.fullmatch(r"[ -~]{1,200}", value):
            file.unsaid(line, "it is no kernel value that tuning.sysctl takes")
            continue
        if file.node == draft.node_names[0] or draft.sysctl.get(key) == value:
            draft.sysctl[key] = value
            file.key(line, f"tuning.sysctl.{key}")
        else:
            file.unsaid(line, "the nodes of a profile have the same kernel values")


def _values(lines: list[str]) -> dict[int, tuple[str, str]]:
    result: dict[int, tuple[str, str]] = {}
    for number, text in enumerate(lines, 1):
        key, equals, value = text.partition("=")
        if equals and not text.lstrip().startswith(("#", ";")):
            result[number] = (key.strip().lstrip("-"), " ".join(value.split()))
    return result
