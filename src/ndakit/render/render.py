"""Profile and templates → the tree of files of one node, in memory.

Pure: no clock, no environment, no network; the templates are the only thing read (`template_cache` spares compiling
them each time). `rootfs/etc/config/network.j2` becomes `/etc/config/network`, a file without `.j2` is taken as it is;
of two folders with the same path the first one wins (the workspace's own before the shipped one). A template that
starts with `{% only_if … %}` is left out of nodes for which that is false. Modes come from one table here. Writing the
tree to disk is overlay's.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.exceptions import TemplateSyntaxError

from ndakit.core import exposure, pem
from ndakit.core.errors import BuildError, InputError
from ndakit.load import timezone
from ndakit.load.secrets import NONE, HashKey, Secrets
from ndakit.model import Profile, package_plan
from ndakit.render import firewall, pair
from ndakit.render.engines import haproxy, pound, stunnel
from ndakit.render.engines import ipvs as engines_ipvs
from ndakit.render.environment import NotHere, environment, stamped
from ndakit.render.filters import is_word
from ndakit.render.node import NodeView

ROOTFS = "rootfs"
SUFFIX = ".j2"
MODE_FILE, MODE_PROGRAM, MODE_PRIVATE = 0o644, 0o755, 0o600

MODES: tuple[tuple[str, int], ...] = (
    ("/etc/dropbear/", MODE_PRIVATE),
    ("/etc/ndakit/private/", MODE_PRIVATE),
    ("/etc/init.d/", MODE_PROGRAM),
    ("/etc/hotplug.d/", MODE_FILE),
    ("/etc/rc.button/", MODE_PROGRAM),
    ("/lib/netifd/", MODE_PROGRAM),
    ("/www/cgi-bin/", MODE_PROGRAM),
    ("/usr/libexec/", MODE_PROGRAM),
    ("/usr/bin/", MODE_PROGRAM),
    ("/usr/sbin/", MODE_PROGRAM),
)
"""Folder on the node → mode of the files in it; all others 0644. dropbear refuses keys that others may write, OpenWrt
enables init scripts without looking at their mode but cannot run them without the x bit (docs/facts.md, Packages)."""

READ_BY_SHELLS = (
    "/etc/rc.local", "/etc/uci-defaults/", "/etc/hotplug.d/", "/etc/profile", "/etc/profile.d/", "/etc/shinit",
    "/etc/keepalived.user", "/etc/firewall.user", "/etc/udhcpc.user", "/lib/functions/", "/lib/functions.sh",
    "/lib/preinit/", "/lib/upgrade/",
)  # fmt: skip
"""Scripts that a shell of OpenWrt's reads (`.`, or `sh FILE`) and nobody executes: they need no x bit, whatever their
first line says (base-files: rc.d/done, uci_apply_defaults, hotplug-call, preinit)."""
SSH_SERVER = "/etc/dropbear/"
SYSUPGRADE = "/etc/sysupgrade.conf"
KEPT_ANYWAY = ("/etc/config/", "/etc/sysctl.conf", SYSUPGRADE, "/etc/rc.local", "/etc/dropbear/", "/etc/profile",
               "/etc/shinit")  # fmt: skip
"""What an upgrade that keeps the configuration keeps by itself (base-files' lists, docs/facts.md, Upgrades)."""
BROUGHT = ("/etc/uci-defaults/", "/lib/upgrade/", "/lib/preinit/")
"""What is of use only in the image it came with: run once and deleted, or part of the upgrade itself."""


class NodeUnknown(InputError):
    """The profile has no such node."""


class TemplateBroken(BuildError):
    """A template cannot be rendered."""


class TemplateKept(BuildError):
    """A template, or a file that is taken as it is, looks as if it were kept from others."""


class TemplateConflict(BuildError):
    """Two sources for one file."""


@dataclass(frozen=True)
class RenderedFile:
    """One file of the tree: where it goes, what is in it, its mode, and the template it came from."""

    path: str
    content: bytes = field(repr=False)
    mode: int
    source: str
    secrets: tuple[str, ...] = ()
    """The names of the secrets that it holds. It is then for its owner alone, on the node and everywhere else."""

    def __post_init__(self) -> None:
        if self.secrets and self.mode & 0o077:
            raise ValueError(f"{self.path} holds a secret, and its mode {self.mode:04o} lets others read it")

    def digest(self, key: HashKey | None = None) -> str:
        """SHA-256 of the content, in hex. Of a file that holds a secret: a keyed hash, or without a key one that says
        only that there is a secret."""
        if not self.secrets:
            return hashlib.sha256(self.content).hexdigest()
        return f"secret-{'' if key is None else key.digest(self.content)}"

    @property
    def shown(self) -> str:
        """The content for people: of a file that holds a secret only its name."""
        return f"(holds secrets: {', '.join(self.secrets)})\n" if self.secrets else self.text

    @property
    def text(self) -> str:
        """The content as text."""
        return self.content.decode("utf-8", errors="replace")


class Tree(Mapping[str, RenderedFile]):
    """The files of one node by their path there, sorted; cannot be changed. With `placeholders` for secrets it can be
    checked, and is never written."""

    def __init__(self, files: Sequence[RenderedFile], *, placeholders: bool = False) -> None:
        self.placeholders = placeholders
        self._files = {f.path: f for f in sorted(files, key=lambda f: f.path)}
        if len(self._files) != len(files):
            raise ValueError("two files with one path")

    def __getitem__(self, path: str) -> RenderedFile:
        return self._files[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The names of the secrets that its files hold, sorted."""
        return tuple(sorted({name for file in self.values() for name in file.secrets}))

    def digest(self, key: HashKey | None = None) -> str:
        """SHA-256 over path, mode and content hash of every file, as canonical JSON; see `RenderedFile.digest`."""
        facts = [[f.path, f"{f.mode:04o}", f.digest(key)] for f in self.values()]
        return hashlib.sha256(json.dumps(facts, separators=(",", ":")).encode()).hexdigest()


def render(
    profile: Profile,
    node: str,
    templates: Sequence[Path],
    packages: package_plan.PackagePlan | None = None,
    secrets: Secrets = NONE,
) -> Tree:
    """The files of one node. `templates` are folders, searched in order; the profile has passed the cross-checks, and
    `secrets` are all that it names.

    `packages` is the node's package plan where the caller has it; otherwise it is computed here.

    Raises NodeUnknown, an ErrorGroup of PackagesContradict, UnknownTimezone, TemplateBroken, TemplateConflict.
    """
    if node not in profile.nodes:
        raise NodeUnknown(
            f"profile '{profile.name}' has no node '{node}'",
            where=f"profile {profile.name}, nodes",
            fix=f"take one of {', '.join(profile.nodes)}",
        )
    source_of = _sources(tuple(Path(t) for t in templates))
    view = NodeView(profile, node)
    balancer, ipvs = haproxy.haproxy(view), engines_ipvs.ipvs(view)
    context = {
        "profile": profile,
        "node": view,
        "release": profile.release,
        "haproxy": balancer,
        "pair": pair.pair(view),
        "ipvs": ipvs,
        "pound": pound.pound(view),
        "stunnel": stunnel.stunnel(view, secrets),
        "packages": packages or package_plan.plan(profile, node),
        "firewall": firewall.firewall(view),
        "part": functools.partial(_part, tuple(Path(t) for t in templates)),
        "timezone": timezone.posix(profile.system.timezone, where=f"profile {profile.name}, system.timezone"),
    }
    files = []
    for path, source in source_of.items():
        content = _content(source, f"{profile.name}, node {node}", context) if path != SYSUPGRADE else None
        if content is not None:
            files.append(RenderedFile(path, content, mode_of(path), source.name))
    own = [(path, content, page) for path, (page, content) in balancer.sorry_pages.items()]
    own += [(script.path, script.content, script.source) for script in ipvs.scripts]
    own += [(trust.path, pem.only_blocks(trust.file.content), trust.file.path) for trust in balancer.trust_files]
    own += [(listed.path, listed.content, f"service {listed.service}") for listed in balancer.certificate_lists]
    for path, name in balancer.certificates.items():
        own.append((path, pem.only_blocks(secrets[name].reveal()), f"secret {name}"))
    for path, content, written in own:
        held = (balancer.certificates[path],) if path in balancer.certificates else ()
        if path in source_of:
            kind = "" if held else "file "
            raise TemplateConflict(
                f"{path} is made from the profile's {kind}{written}, and there is a template for it too",
                where=source_of[path].name,
                fix="remove or rename the template",
            )
        files.append(RenderedFile(path, content, mode_of(path), written, held))
    if SYSUPGRADE in source_of:  # last, for it lists all the others
        source = source_of[SYSUPGRADE]
        _refuse_unlistable(files)
        listed = {"kept": kept(f.path for f in files)}
        content = _content(source, f"{profile.name}, node {node}", context | listed)
        if content is not None:
            files.append(RenderedFile(SYSUPGRADE, content, mode_of(SYSUPGRADE), source.name))
    return Tree(files, placeholders=not secrets.real)


def kept(paths: Iterable[str]) -> tuple[str, ...]:
    """The files of a tree that an upgrade must be told to keep, sorted."""
    return tuple(sorted(p for p in paths if not within(p, KEPT_ANYWAY + BROUGHT)))


def _refuse_unlistable(files: Iterable[RenderedFile]) -> None:
    """Raise TemplateBroken for a file that must be in the list of an upgrade and whose path cannot stand there: the
    shell of sysupgrade takes a blank for the end of a path, and `*` for any name."""
    for file in files:
        if file.path in kept([file.path]) and not is_word(file.path):
            raise TemplateBroken(
                f"the path {file.path!r} cannot be written into {SYSUPGRADE}, which lists what an upgrade keeps",
                where=file.source,
                fix="rename the file: letters, digits and . _ - in its name and folders",
            )


def within(path: str, places: Iterable[str]) -> bool:
    """True if a path is one of the places, or below one of them that is a folder (`/etc/config/`)."""
    return any(path == place or (place.endswith("/") and path.startswith(place)) for place in places)


def single(templates: Sequence[Path], name: str, subject: str, context: Mapping[str, Any]) -> RenderedFile:
    """One file that is not part of a node: template `name` (`servers/linux.sh.j2`) of the first folder that has it.

    `subject` says in its header what it is for. Raises TemplateBroken.
    """
    for folder in templates:
        file = folder / name
        if file.is_file():
            facts = file.stat()
            _refuse_kept(file, facts, f"/{name.removesuffix(SUFFIX)}", folder)
            source = _Source(f"{folder.name}/{name}", file, True, (facts.st_mtime_ns, facts.st_size))
            content = _content(source, subject, context)
            if content is not None:
                return RenderedFile(name.removesuffix(SUFFIX), content, MODE_PROGRAM, source.name)
    raise TemplateBroken(
        "there is no such template", where=name, fix=f"put it into {' or '.join(str(t) for t in templates)}"
    )


def _part(folders: tuple[Path, ...], name: str) -> str:
    """A part of a template, such as `checks/http.haproxy.j2`, for `include`: the first folder that has it wins. Its
    text goes into a file that others may read. Raises TemplateBroken, TemplateKept."""
    for folder in folders:
        file = folder / name
        if file.is_file():
            facts = file.stat()
            _refuse_kept(file, facts, f"/{name.removesuffix(SUFFIX)}", folder)
            return stamped(file, (facts.st_mtime_ns, facts.st_size))
    raise TemplateBroken(
        "there is no such template", where=name, fix=f"put it into {' or '.join(str(t) for t in folders)}"
    )


def mode_of(path: str) -> int:
    """The mode of a file by its place on the node."""
    return next((mode for folder, mode in MODES if path.startswith(folder)), MODE_FILE)


@dataclass(frozen=True)
class _Source:
    """A template or static file: its name for people, its content, whether it is a template."""

    name: str
    file: Path
    is_template: bool
    stamp: tuple[int, int]


def _sources(folders: tuple[Path, ...]) -> dict[str, _Source]:
    """Path on the node → source; the first folder that has a path wins."""
    source_of: dict[str, _Source] = {}
    for folder in folders:
        here: dict[str, _Source] = {}
        root = folder / ROOTFS
        for file in sorted(root.rglob("*")) if root.is_dir() else ():
            if not file.is_file() or file.name.startswith(".") or file.name.endswith("~"):
                continue
            relative = file.relative_to(root).as_posix()
            path = f"/{relative.removesuffix(SUFFIX)}"
            facts = file.stat()
            _refuse_kept(file, facts, path, folder)
            source = _Source(
                f"{folder.name}/{ROOTFS}/{relative}",
                file,
                relative.endswith(SUFFIX),
                (facts.st_mtime_ns, facts.st_size),
            )
            if path in here:
                raise TemplateConflict(
                    f"two sources for {path}",
                    where=f"{here[path].name} and {source.name}",
                    fix="remove one of the two",
                )
            here[path] = source
        source_of = here | source_of
    return source_of


def _refuse_kept(file: Path, facts: os.stat_result, path: str, folder: Path) -> None:
    """Raise TemplateKept for a file that would be seen by others in the image, and looks as if it should not be."""
    try:
        if file.is_symlink():
            exposure.place(file, folder.parent)
        if mode_of(path) & stat.S_IROTH:
            exposure.refuse_mode(facts.st_mode, folder)
        if path.startswith(SSH_SERVER) and path.endswith("_host_key"):
            raise exposure.KeptFromOthers("is a private key, that of the SSH server")
        if (mode_of(path) & stat.S_IROTH or path.startswith(SSH_SERVER)) and _holds_key(
            file, (facts.st_mtime_ns, facts.st_size)
        ):
            raise exposure.KeptFromOthers("holds a private key")
    except exposure.KeptFromOthers as cause:
        name = f"{folder.name}/{file.relative_to(folder).as_posix()}"
        raise TemplateKept(
            f"the template {name} {cause}, and {path} could be in the image",
            where=name,
            fix=_fix_of_kept(cause, file, path, folder),
        ) from None


def _fix_of_kept(cause: exposure.KeptFromOthers, file: Path, path: str, folder: Path) -> str:
    if "private key" not in str(cause):
        return exposure.fix(cause, str(file), f"{folder.name}/")
    if path.startswith(SSH_SERVER):
        return "remove it: every node makes host keys of its own at its first start, and keeps them over upgrades"
    return (
        f"remove it; or, if the node needs it: move it to {folder.name}/{ROOTFS}/etc/ndakit/private/, which only "
        "root reads there (whoever has the image can read it)"
    )


@functools.lru_cache(maxsize=1024)
def _holds_key(file: Path, stamp: tuple[int, int]) -> bool:
    """True if a private key is in the file, as it was with this stamp."""
    return exposure.private_key(file.read_bytes(), program=True)


def _content(source: _Source, subject: str, context: Mapping[str, Any]) -> bytes | None:
    """What becomes of one source; None if it does not apply to this node. `subject`: what the file is for."""
    if not source.is_template:
        return source.file.read_bytes()
    header = f"made by ndakit for {subject}, from {source.name}: change the profile, not this file"
    try:
        template = _template(source)
        rendered: str = template.render({**context, "header": header})
        return rendered.encode()
    except NotHere:
        return None
    except TemplateSyntaxError as cause:
        raise _broken(source, cause.lineno, str(cause.message)) from cause
    except (TemplateError, ValueError, TypeError, AttributeError, KeyError) as cause:
        raise _broken(source, _line_in(source, cause), f"{type(cause).__name__}: {cause}") from cause


def _broken(source: _Source, line: int, message: str) -> TemplateBroken:
    return TemplateBroken(
        f"the template cannot be rendered: {message}",
        where=f"{source.name}:{line}" if line else source.name,
        fix="mend that line of the template; every value in it goes through the filter of its syntax",
    )


def _line_in(source: _Source, cause: BaseException) -> int:
    """The template's line from the traceback (the engine maps its frames to the template)."""
    line, frame = 0, cause.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == str(source.file):
            line = frame.tb_lineno
        frame = frame.tb_next
    return line


def _template(source: _Source) -> Any:
    return environment().get_template(stamped(source.file, source.stamp))
