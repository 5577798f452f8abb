"""`./inv backup` and `./inv backups`: what running boxes are, kept on this machine; and which backups there are."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ndakit.cli import nodes as cli_nodes
from ndakit.cli.nodes import NOT_WELL, Connections, SshOptions, stranger
from ndakit.cli.profiles import nodes_of, read
from ndakit.core import locks, terminal, workspace
from ndakit.core.errors import InputError, NdakitError
from ndakit.core.mistakes import clean
from ndakit.core.release import Release
from ndakit.core.workspace import Workspace
from ndakit.load import load
from ndakit.load.loaded import Loaded
from ndakit.node.ssh import Ssh
from ndakit.operate import backup, backup_files, backups, encryption
from ndakit.operate.backup import AtHand, Look, Wanted
from ndakit.operate.backups import Backup, ListedBackup
from ndakit.operate.box_files import Patience

ALONE = "box"
"""The node's name of a box without a profile."""
_KIB = 1024


class BackupOptionsWrong(InputError):
    """Options of `backup` that do not fit together."""


@dataclass(frozen=True)
class BackupOptions:
    """How to back up, as said on the command line."""

    to: Path | None = None
    encrypt: tuple[str, ...] = ()
    keep: int = backups.KEEP
    timeout_s: str | None = None
    dry_run: bool = False
    as_json: bool = False

    def root(self, place: Workspace) -> Path:
        """The folder of all backups."""
        return self.to.absolute() if self.to is not None else place.backups

    def patience(self) -> Patience:
        """How slow a box may be. Who names a time bears any speed for so long. Raises BackupOptionsWrong."""
        if self.timeout_s is None:
            return Patience()
        if not re.fullmatch(r"[1-9]\d{0,6}", self.timeout_s):
            raise BackupOptionsWrong(
                "this is no time",
                where=f"--timeout-s {self.timeout_s[:20]}",
                fix="give whole seconds: --timeout-s 7200",
            )
        return Patience(total_s=float(self.timeout_s), least_bytes=0)


def back_up(place: Workspace, profile: str, node: str | None, way: SshOptions, options: BackupOptions) -> int:
    """Back up the nodes of a profile; 0 if every node is backed up, else NOT_WELL."""
    recipients, patience = _checked(options)
    loaded = read(place, profile)
    nodes = nodes_of(loaded, node)
    root = options.root(place)
    with Connections(place, loaded, way, nodes) as connections:

        def ask(name: str, shell: Ssh) -> Backup | Look:
            wanted = Wanted(
                loaded.profile.name, name, shell.target.where, shell.target.address, _fingerprints(shell),
                loaded.profile.hostname(name), str(loaded.profile.release),
            )  # fmt: skip
            if options.dry_run:
                return _look(shell, wanted, patience)
            known = backup.at_hand(place, loaded, name)
            return backup.take(
                shell, wanted, root, known=known, recipients=recipients, patience=patience, tell=_told(name)
            )

        told, lost = cli_nodes.each(nodes, connections, ask)
    matching = Matching(place, loaded.profile.name)
    _finish(root, loaded.profile.name, told, lost, options, matching.matches)
    return NOT_WELL if lost else 0


def back_up_host(
    place: Workspace, host: str, called: str, way: SshOptions, options: BackupOptions, *, port: int, release: str | None
) -> int:
    """Back up a box that has no profile, as `called` (NAME, or NAME/NODE)."""
    recipients, patience = _checked(options)
    name, _, node = called.partition("/")
    node = node or ALONE
    for word in (name, node):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", word):
            raise BackupOptionsWrong(
                f"'{called[:60]}' is no name", where="--as", fix="give one such as --as shop, or shop/lb1"
            )
    if way.address is not None:
        raise BackupOptionsWrong("an address twice", where="--address", fix=f"leave it out: {host} is the address")
    root = options.root(place)
    with _connected(place, host, name, node, way, port, release) as shell:
        wanted = Wanted(name, node, shell.target.where, host, _fingerprints(shell))
        if options.dry_run:
            done: Backup | Look = _look(shell, wanted, patience)
        else:
            known = AtHand()
            done = backup.take(
                shell, wanted, root, known=known, recipients=recipients, patience=patience, tell=_told(node)
            )
    newest = done.record.image_id if isinstance(done, Backup) else ""
    _finish(root, name, {node: done}, {}, options, lambda one: bool(newest) and one.record.image_id == newest)
    return 0


def _checked(options: BackupOptions) -> tuple[tuple[str, ...], Patience]:
    if options.keep < 1:
        raise BackupOptionsWrong(
            "no backup would be left", where=f"--keep {options.keep}", fix="keep at least one: --keep 1"
        )
    return encryption.recipients(options.encrypt), options.patience()


@contextmanager
def _connected(
    place: Workspace, host: str, name: str, node: str, way: SshOptions, port: int, release: str | None
) -> Iterator[Ssh]:
    """A shell on a box without a profile."""
    try:
        Release.parse(release or "24.10.0")
    except ValueError as cause:
        raise BackupOptionsWrong(str(cause), where=f"--release {release}", fix="such as --release 19.07.10") from None
    task = ("backup", host, "--as", name if node == ALONE else f"{name}/{node}")
    with stranger(place, host, name, node, way, port, release, task) as shell:
        yield shell


def _fingerprints(shell: Ssh) -> tuple[str, ...]:
    return tuple(f"{key.kind} {key.fingerprint}" for key in shell.pins.read())


def _told(node: str) -> Callable[[str], None]:
    return lambda what: terminal.note(f"{node}: reading {what}")


def _look(shell: Ssh, wanted: Wanted, patience: Patience) -> Look:
    with locks.scratch_folder(workspace.runtime(), "look") as scratch:
        return backup.look(shell, wanted, scratch, patience)


# -- what came of it ---------------------------------------------------------------------------------------------------


def _finish(
    root: Path,
    profile: str,
    told: Mapping[str, Backup | Look],
    lost: Mapping[str, NdakitError],
    options: BackupOptions,
    matches: Callable[[Backup], bool],
) -> None:
    """Say what was done, and remove what the rule lets go."""
    facts: dict[str, Any] = {}
    for node, done in told.items():
        folder = backups.node_folder(root, profile, node)
        there = backups.whole(folder)
        if isinstance(done, Look) and there:  # the one to come counts
            record = replace(there[-1].record, taken_at=datetime.now(UTC).isoformat(), image_id=_image_of(done))
            there.append(Backup(folder / "to come", record))
        gone = backups.spare(there, options.keep, matches)
        facts[node] = _facts(done, gone)
        if not options.as_json:
            for line in _lines(node, done, folder):
                terminal.say(line)
        for old in gone:
            if not options.dry_run:
                backups.remove(old)
            if not options.as_json:
                verb = "would be removed" if options.dry_run else "removed"
                terminal.say(f"{node}: {old.folder.name} {verb}, {_rule(options.keep)}")
    if options.as_json:
        errors = {node: error.as_json() for node, error in lost.items()}
        terminal.show_json({"profile": profile, "dry_run": options.dry_run, "nodes": facts, "errors": errors})
        return
    for error in lost.values():
        terminal.show_error(error)


def _image_of(seen: Look) -> str:
    return seen.who.image.get("id", "")


def _rule(keep: int) -> str:
    return f"for the newest {keep} are kept, the newest of each month, and the newest that matches the profile"


def _facts(done: Backup | Look, gone: Sequence[Backup]) -> dict[str, Any]:
    removed = [str(one.folder) for one in gone]
    if isinstance(done, Backup):
        return {"folder": str(done.folder), "size_bytes": done.size_bytes, **asdict(done.record), "removed": removed}
    return {
        "hostname": done.who.hostname,
        "release": done.who.release,
        "image_id": done.who.image.get("id", ""),
        "kept": list(done.kept),
        "packages": done.packages,
        "notes": list(done.notes),
        "removed": removed,
    }


def _lines(node: str, done: Backup | Look, folder: Path) -> list[str]:
    if isinstance(done, Look):
        image = done.who.image.get("id", "")[:12] or "does not say which"
        return [
            f"{node}: {done.who.hostname}, OpenWrt {done.who.release or '?'}, image {image}",
            f"{node}: would save {len(done.kept)} configuration files and the names of {done.packages} packages below "
            f"{folder}",
            *(f"{node}: note: {note}" for note in done.notes),
        ]
    record = done.record
    head = f"{node}: {done.folder}, {_size(done.size_bytes)}{', encrypted' if record.recipients else ''}"
    return [head, *(f"{node}: {line}" for line in contents(record)), *(f"{node}: note: {n}" for n in record.notes)]


def contents(record: backups.BackupRecord) -> list[str]:
    """What is in a backup, and how the box differs from its image, in words."""
    image = f"image {clean(record.image_id[:12])}" if record.image_id else "an image that does not say which it is"
    differ = record.differences
    lines = [
        f"{image}, OpenWrt {clean(record.release) or '?'}" + ("" if differ.by_hand else ", nothing changed by hand")
    ]
    for word, names in (
        ("changed", differ.changed), ("gone", differ.missing), ("added", differ.added),
        ("packages added", differ.packages_added), ("packages removed", differ.packages_removed),
        ("NOT in the backup", differ.not_saved),
    ):  # fmt: skip
        if names:
            lines.append(f"{word}: {_some(names)}")
    if differ.not_saved:
        lines.append("to save such files too, write their paths into /etc/sysupgrade.conf there, and back up again")
    if record.original == "none":
        lines.append(
            "the image does not say what it was made of (it is not ndakit's, or older): a rebuilt one is close"
        )
    elif record.not_original:
        lines.append(f"as the image had them, these are nowhere any more: {_some(record.not_original)}")
    return lines


def _some(names: Sequence[str]) -> str:
    return clean(", ".join(names[:6])) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / _KIB:.0f} KiB" if size_bytes < 10 * _KIB * _KIB else f"{size_bytes / _KIB / _KIB:.0f} MiB"


# -- backups -----------------------------------------------------------------------------------------------------------


class Matching:
    """Whether backups match what their profile says now; the profile is read once."""

    def __init__(self, place: Workspace, profile: str) -> None:
        self._place = place
        self._why = ""
        self._loaded: Loaded | None = None
        try:
            self._loaded = load.load(place, profile)
        except NdakitError:
            known = profile in load.names(place)
            self._why = "the profile has mistakes" if known else "there is no such profile here"

    def differences(self, one: Backup) -> tuple[str, ...] | None:
        """What differs; None if that cannot be said (`why`)."""
        if self._loaded is None:
            return None
        try:
            return backup_files.differs_from(self._place, self._loaded, one)
        except NdakitError as error:
            self._why = error.what
            return None

    def matches(self, one: Backup) -> bool:
        """True if nothing differs."""
        return self.differences(one) == ()

    @property
    def why(self) -> str:
        """Why it could not be said."""
        return self._why


def show_backups(place: Workspace, profile: str | None, to: Path | None, *, as_json: bool) -> None:
    """The backups of one profile, or of all. Raises BackupsExposed, NoSuchBackups."""
    root = to.absolute() if to is not None else place.backups
    if root.is_dir():
        backups.refuse_exposed(root)
    names = [profile] if profile else _folders(root)
    rows: list[tuple[str, ...]] = []
    facts: list[dict[str, Any]] = []
    for name in names:
        matching = Matching(place, name)
        for node in _folders(root / name):
            for one in backups.listed(root / name / node):
                row, fact = _listed_row(name, node, one, matching)
                rows.append(row)
                facts.append(fact)
    if as_json:
        terminal.show_json(facts)
        return
    if not rows:
        terminal.say(f"no backups{' of ' + profile if profile else ''} in {root}: ./inv backup PROFILE makes them")
        return
    terminal.say(terminal.table(rows, header=("node", "taken (UTC)", "age", "size", "image", "holds", "the profile")))


def _folders(folder: Path) -> list[str]:
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted(entry.name for entry in there if entry.is_dir() and not entry.name.startswith("."))


def _listed_row(
    profile: str, node: str, one: ListedBackup, matching: Matching
) -> tuple[tuple[str, ...], dict[str, Any]]:
    called = f"{profile}/{node}"
    whole = one.backup
    if whole is None:
        words = f"NO BACKUP: {one.why}"
        return (called, one.folder.name[:24], "-", "-", "-", words, "-"), {
            "profile": profile, "node": node, "folder": str(one.folder), "whole": False, "why": one.why,
        }  # fmt: skip
    record = whole.record
    differ = matching.differences(whole)
    if differ is None:
        words = matching.why
    elif differ:
        words = f"another now: {_some(differ)}"
    else:
        words = "matches"
    hand = record.differences
    counted = (
        (len(hand.changed) + len(hand.missing) + len(hand.added), "file"),
        (len(hand.packages_added) + len(hand.packages_removed), "package"),
    )
    changed = ", ".join(f"{n} {what}{'' if n == 1 else 's'}" for n, what in counted if n)
    holds = ["encrypted"] if record.recipients else []
    holds.append(f"{changed} changed by hand" if changed else "as built" if record.builder else "config and packages")
    age_s = time.time() - whole.time.timestamp()
    row = (
        called,
        whole.time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        cli_nodes.span(max(age_s, 0)),
        _size(whole.size_bytes),
        clean(record.image_id[:12]) or "does not say",
        ", ".join(holds),
        words,
    )
    fact = {
        "folder": str(whole.folder),
        "whole": True,
        "age_s": round(age_s),
        "size_bytes": whole.size_bytes,
        "matches": None if differ is None else not differ,
        "differs": list(differ or ()),
        **asdict(record),
    }
    return row, fact
