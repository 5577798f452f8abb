"""From a profile's name to the checked, frozen profile, with the place of every value.

Reads the YAML file and what it extends (`inheritance`), validates (`validation`), runs the cross-checks (`model.rules`)
and reports every mistake at once. Owns how profiles are found and what a loaded profile knows about its files.
Printing is the tasks' business.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ndakit.core import exposure
from ndakit.core.errors import ErrorGroup, InputError, Location, NdakitError, refused
from ndakit.core.mistakes import KeyPath, ProfileMistake, ProfileWarning, dotted, guess, listing, show
from ndakit.core.names import is_name
from ndakit.core.workspace import Workspace
from ndakit.load import inheritance
from ndakit.load.loaded import Loaded
from ndakit.load.validation import diagnose, place
from ndakit.load.yaml_nodes import SIZE_MAX, ListNode, MapNode, Node, Scalar, with_key
from ndakit.model import Profile, rules
from ndakit.model.base import mistake

if TYPE_CHECKING:
    from ndakit.load.dump import OriginLine

__all__ = [
    "Loaded",
    "ProfileIsFragment",
    "ProfileNotFound",
    "cross_check",
    "dump",
    "load",
    "names",
    "origin_lines",
]

MISTAKES_MAX = 100
_TO_FILL_IN = "# FILL IN: "
UNDECIDED = f"{_TO_FILL_IN}decide: "
"""How a comment begins that `./inv import` writes, and that a person has to take out."""


class ProfileNotFound(InputError):
    """There is no profile of that name, or no such file."""

    def __init__(self, what: str, workspace: Workspace) -> None:
        known = names(workspace)
        near = guess(what, known)
        fix = (f"did you mean '{near}'? " if near else "") + (
            f"profiles here: {listing(known)}" if known else "there are none yet: write profiles/NAME.yaml"
        )
        other = workspace.profiles / f"{what}.yml"
        if "/" not in what and "\0" not in what and len(what) < 200 and other.is_file():
            fix = f"rename profiles/{what}.yml to profiles/{what}.yaml"
        super().__init__(f"there is no profile '{show(what)}'", where=str(workspace.profiles), fix=fix)


class ProfileLinkBroken(InputError):
    """A profile's file is a link, and there is nothing where it leads."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"the profile is a link to '{show(str(path.readlink()), 200)}', and no file is there",
            where=show(str(path), 200),
            fix=f"put the file there, or remove the link: rm {shlex.quote(str(path))}",
        )


class ProfileIsFragment(InputError):
    """A fragment is for other profiles to extend; it is not one."""

    def __init__(self, path: str, stem: str) -> None:
        super().__init__(
            f"'{stem}' is a fragment (its name begins with _), not a profile",
            where=path,
            fix=f"name a profile that extends it, or write one: extends: [{stem}]",
        )


def names(workspace: Workspace) -> tuple[str, ...]:
    """The profiles of a workspace by name, sorted; fragments (`_x`) are not profiles."""
    return tuple(sorted(p.stem for p in workspace.profiles.glob("*.yaml") if p.stem[:1] not in ("_", ".")))


def load(workspace: Workspace, what: str, *, release: str | None = None) -> Loaded:
    """The profile of a name, or in a file; with `release`, as if that stood in it.

    Raises ProfileNotFound, ProfileIsFragment, a ProfileMistake, or an ErrorGroup of ProfileMistakes: all that is wrong.
    """
    path = _find(workspace, what)
    merged = inheritance.read(workspace, path)
    if release is not None:
        at = merged.tree.keys_at.get("release", merged.tree.at)
        merged.tree.put("release", Scalar.make(release, at), at)
    attachments = _Attachments(path, merged.sources, workspace)
    diagnosis = diagnose(merged.tree, attachments.read, merged.empty)
    mistakes = [
        *merged.mistakes,
        *diagnosis.mistakes,
        *_undecided(path, inheritance.shown(path, workspace)),
        *_name_mistakes(merged.tree, path, inheritance.shown(path, workspace)),
    ]
    checked = diagnosis.profile or diagnosis.rest
    if not merged.whole:
        checked = None
        mistakes = [m for m in mistakes if m.code not in ("missing-key", "name-missing")]
    warnings: list[ProfileWarning] = []
    for finding in rules.findings(checked) if checked is not None else ():
        if any(diagnosis.touches(p) for p in finding.about) or _settled(workspace, finding.unless):
            continue
        at = place(merged.tree, finding.at)
        other = place(merged.tree, finding.other) if finding.other is not None else None
        if finding.severity == "error":
            mistakes.append(ProfileMistake(finding.code, finding.what, at=at, other=other, fix=finding.fix))
        else:
            warnings.append(ProfileWarning(finding.code, finding.what, at, finding.fix, other))
    if checked is not None:
        mistakes += _timezone_mistakes(checked, merged.tree)
    if mistakes:
        raise _group(mistakes)
    assert diagnosis.profile is not None
    return Loaded(
        diagnosis.profile,
        path,
        dict(_origins(merged.tree, ())),
        tuple(sorted(warnings, key=lambda w: (w.where, w.what))),
        (*merged.sources.values(), *attachments.contents),
        shlex.quote(what),
    )


def _undecided(path: Path, shown: str) -> Iterator[ProfileMistake]:
    """What `./inv import` asks a person to decide: comments before the first key, which stand there until somebody has
    decided them."""
    comments: list[tuple[int, str]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            break
        if line.startswith(_TO_FILL_IN):
            comments.append((number, line))
        elif comments:
            comments[-1] = (comments[-1][0], f"{comments[-1][1]} {line.lstrip('# ')}".rstrip())
    for number, text in comments:
        if text.startswith(UNDECIDED):
            yield ProfileMistake(
                "undecided",
                f"nobody has decided yet: {show(text.removeprefix(UNDECIDED), 400)}",
                at=Location(shown, number),
                fix="change the profile so that it lets in only who may come, or find that it is right as it is; then "
                "delete this comment",
            )


def dump(loaded: Loaded) -> str:
    """The whole profile as YAML, defaults included, secrets as references; it can be loaded again."""
    from ndakit.load import dump as writer

    return "".join(f"{line.text}\n" for line in writer.lines(loaded.profile, loaded.origins))


def origin_lines(loaded: Loaded) -> tuple[OriginLine, ...]:
    """The lines of `dump`, each with the file and line that wrote its value, or `default`."""
    from ndakit.load import dump as writer

    return tuple(writer.lines(loaded.profile, loaded.origins))


def cross_check(workspace: Workspace, loaded: Sequence[Loaded] | None = None) -> tuple[ProfileWarning, ...]:
    """What profiles of a workspace share and should not: addresses, router ids, names, servers that many check.

    Without `loaded`, every profile of the workspace that can be loaded is compared.
    """
    from ndakit.load import workspace_checks

    if loaded is None:
        others: list[Loaded] = []
        for name in names(workspace):
            with contextlib.suppress(NdakitError):
                others.append(load(workspace, name))
        loaded = others
    return tuple(workspace_checks.compare(loaded))


def _find(workspace: Workspace, what: str) -> Path:
    """The file of a profile's name, or the file itself."""
    if not what or "\0" in what or len(what) > 4096:
        raise ProfileNotFound(what, workspace)
    path = workspace.profiles / f"{what}.yaml"
    if "/" in what or what.endswith((".yaml", ".yml")):
        path = Path(what)
        if "/" not in what and not os.path.lexists(path):
            path = workspace.profiles / what
    try:
        path.stat()
    except OSError as cause:
        if os.path.islink(path):  # noqa: PTH114  # pathlib's raises for a name that is too long
            raise ProfileLinkBroken(path) from None
        if isinstance(cause, PermissionError):
            raise refused(cause) from None
        raise ProfileNotFound(what, workspace) from None
    path = path.resolve()
    if path.stem.startswith("_"):
        raise ProfileIsFragment(inheritance.shown(path, workspace), path.stem)
    return path


class _Attachments:
    """Reads the files that a profile names; their paths belong to the file that writes them.

    What is read ends up on the appliance, for clients to see: whatever looks as if it were kept from others is refused.
    """

    def __init__(self, main: Path, sources: Mapping[str, Path], workspace: Workspace) -> None:
        self.sources = sources
        self.main = main
        self.workspace = workspace
        self.contents: dict[Path, bytes] = {}

    def read(self, text: str) -> bytes:
        """The content of the file that a scalar names; a refusal of the model's kind if there is none."""
        by = self.sources.get(text.at.file, self.main) if isinstance(text, Scalar) else self.main
        path = by.parent / text
        beside = f"{inheritance.shown(by.parent, self.workspace)}/"
        if "\0" in text or len(text) > 1024 or text.startswith("/"):
            raise mistake(
                "attachment", "'{got}' is not a relative path", got=show(text),
                fix=f"copy the file to {beside}, and write its name",
            )  # fmt: skip
        if path not in self.contents:
            named = show(inheritance.shown(path, self.workspace), 200)
            try:
                self.contents[path] = self._content(path, by, named, beside)
            except OSError as cause:
                raise mistake(
                    "attachment",
                    "the file {got} cannot be read: {why}",
                    got=named,
                    why=cause.strerror or "",
                    fix=f"put it there (the path is relative to {beside}), or correct the path",
                ) from None
        return self.contents[path]

    def _content(self, path: Path, by: Path, named: str, beside: str) -> bytes:
        inside = by.is_relative_to(self.workspace.root)
        try:
            real = exposure.place(path, self.workspace.root if inside else by.parent)
            return exposure.read(real, by, SIZE_MAX + 1)
        except exposure.KeptFromOthers as cause:
            fix = exposure.fix(cause, named, beside)
            raise mistake("attachment", "{got} {why}", got=named, why=str(cause), fix=fix) from None
        except IsADirectoryError:
            raise mistake("attachment", "{got} is not a file", got=named, fix="name a file") from None


def _name_mistakes(tree: MapNode, path: Path, file: str) -> list[ProfileMistake]:
    """The profile's name has to be its file's."""
    written = tree.get("name")
    if not isinstance(written, Scalar) or written == path.stem or not is_name(written):
        return []
    if written.at.file != file:
        return [
            ProfileMistake(
                "name-missing",
                f"'name' is missing, and '{show(written)}' is the name of what it extends",
                at=Location(file, 1, 1, "name"),
                other=written.at,
                fix=f"add a line: name: {show(path.stem)}",
            )
        ]
    rename = f"rename the file to {written}.yaml"
    return [
        ProfileMistake(
            "name-differs",
            f"the profile is called '{written}', and its file '{show(path.name)}'",
            at=place(tree, ("name",)),
            fix=f"write name: {path.stem}, or {rename}" if is_name(path.stem) else rename,
        )
    ]


def _settled(workspace: Workspace, file: str | None) -> bool:
    """True if one of the template folders brings this file of the node, as it is or as a template."""
    if file is None:
        return False
    places = [folder / "rootfs" / file.lstrip("/") for folder in workspace.templates]
    return any(p.exists() or p.with_name(f"{p.name}.j2").exists() for p in places)


def _timezone_mistakes(profile: Profile, tree: MapNode) -> Iterator[ProfileMistake]:
    """Whether the time zone exists is in a data file, so the model cannot know it."""
    if profile.system.timezone == "UTC":
        return
    from ndakit.load import timezone

    try:
        timezone.posix(profile.system.timezone)
    except timezone.UnknownTimezone as cause:
        yield ProfileMistake("timezone", cause.what, at=place(tree, ("system", "timezone")), fix=cause.fix)


def _group(mistakes: list[ProfileMistake]) -> NdakitError:
    if len(mistakes) == 1:
        return mistakes[0]
    more = len(mistakes) - MISTAKES_MAX
    group = ErrorGroup(mistakes[:MISTAKES_MAX] if more > 0 else mistakes)
    if more > 0:
        last = group.errors[-1]
        return ErrorGroup(
            [
                *group.errors,
                InputError(f"… and {more} more mistakes", where=last.location or last.where, fix="correct these first"),
            ]
        )
    return group


def _origins(node: Node, path: KeyPath) -> Iterator[tuple[KeyPath, Location]]:
    """Every value's place by its path."""
    if path:
        yield path, with_key(node.at, dotted(path))
    if isinstance(node, MapNode):
        for key, value in node.items():
            yield from _origins(value, (*path, key))
    elif isinstance(node, ListNode):
        for number, value in enumerate(node):
            yield from _origins(value, (*path, number))
