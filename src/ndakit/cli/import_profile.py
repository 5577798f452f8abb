"""`./inv import`: a profile out of a running balancer, or of a backup of it, with an account of every line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ndakit.cli.nodes import SshOptions, stranger
from ndakit.cli.profiles import checked
from ndakit.core import terminal
from ndakit.core.errors import ErrorGroup, InputError
from ndakit.core.names import is_name
from ndakit.core.release import Release
from ndakit.core.workspace import Workspace
from ndakit.operate.import_ import importer, sources, writing
from ndakit.operate.import_.refine import Imported
from ndakit.operate.import_.sources import NodeFiles

SHOWN_MAX = 40
"""So many of the lines that no key says are shown; all of them stand in the profile."""


class ImportOptionsWrong(InputError):
    """The options of `import` do not fit together."""


def import_profile(
    place: Workspace,
    given: str,
    name: str | None,
    nodes: str | None,
    release: str | None,
    way: SshOptions,
    *,
    port: int = 22,
    as_json: bool = False,
) -> int:
    """Read the sources, write the profile, check it; the exit code is that of the check.

    Raises what reading (`operate.import_.sources`, SSH) and writing (`operate.import_.writing`) raise.
    """
    path = writing.path_for(place, name)
    assert name is not None
    origins = [one for one in given.split(",") if one]
    names = _node_names(nodes, len(origins))
    if release is not None:
        try:
            Release.parse(release)
        except ValueError as cause:
            raise ImportOptionsWrong(
                str(cause), where=f"--release {release}", fix="such as --release 24.10.8"
            ) from None
    read: list[NodeFiles] = []
    for position, origin in enumerate(origins, 1):
        if _is_here(origin):
            read.append(sources.read(origin))
            continue
        node = names[position - 1] if names else f"lb{position}"
        task = ("import", given, "--as", name)
        with stranger(place, origin, name, node, way, port, release, task) as shell:
            terminal.note(f"{origin}: reading")
            files = sources.over_shell(shell, origin)
            files.record.setdefault("node", node)
            read.append(files)
    result = importer.convert(place, name, read, names, release or "")
    written = writing.write(place, result)
    outcome = checked(place, name, without_secrets=_lacks_secrets(result))
    if as_json:
        terminal.show_json(_facts(result, written, outcome.errors, outcome.warnings))
    else:
        _tell(place, result, written, path)
        for warning in outcome.warnings:
            terminal.note(warning.text())
        if outcome.errors:
            terminal.show_error(ErrorGroup(outcome.errors))
    return outcome.errors[0].exit_code if outcome.errors else 0


def _lacks_secrets(result: Imported) -> bool:
    return any(content is None for content in result.draft.secrets.values())


def _node_names(nodes: str | None, count: int) -> list[str]:
    names = [n for n in (nodes or "").split(",") if n]
    if wrong := next((n for n in names if not is_name(n)), None):
        raise ImportOptionsWrong(f"'{wrong[:60]}' is no name for a node", where="--node", fix="such as --node lb1")
    if names and (len(names) != count or len(set(names)) != count):
        raise ImportOptionsWrong(
            f"{count} sources are given, and {len(names)} names of nodes",
            where=f"--node {nodes}",
            fix="give each source a name of its own, in the same order: --node lb1,lb2",
        )
    return names


def _is_here(origin: str) -> bool:
    """True for a file or folder; a word without a slash that is no file is a host."""
    return Path(origin).exists() or "/" in origin or origin.endswith((".gz", ".tgz", ".tar"))


def _tell(place: Workspace, result: Imported, written: Sequence[Path], path: Path) -> None:
    counts = result.ledger.counts()
    total = sum(counts.values())
    terminal.say(f"{path}: {', '.join(result.draft.node_names)}")
    for other in written:
        if other != path:
            terminal.say(f"{other}")
    terminal.say(
        f"{total} lines of {len(result.ledger.files)} files: {counts['key']} said by keys, {counts['same']} "
        f"that ndakit writes or does itself, {counts['comment']} comments and empty ones, {counts['unsaid']} that no "
        "key says"
    )
    for words in result.draft.fill_in:
        terminal.say(f"fill in  {words}")
    for one in result.unsaid[:SHOWN_MAX]:
        terminal.say(f"no key   {one.place}: {one.text}\n         {one.why}")
    if len(result.unsaid) > SHOWN_MAX:
        terminal.say(f"… and {len(result.unsaid) - SHOWN_MAX} more: all of them are at the end of {path}")


def _facts(result: Imported, written: Sequence[Path], errors: Sequence[Any], warnings: Sequence[Any]) -> dict[str, Any]:
    return {
        "profile": result.draft.name,
        "nodes": result.draft.node_names,
        "sources": list(result.sources),
        "written": [str(p) for p in written],
        "fill_in": result.draft.fill_in,
        "lines": result.ledger.counts(),
        "unsaid": [dataclasses.asdict(one) for one in result.unsaid],
        "errors": [e.as_json() for e in errors],
        "warnings": [w.as_json() for w in warnings],
    }
