"""From a loaded profile to built images: the one way to make new what is stale.

Owns the order of the steps (lint, overlay, image, artifact), and that nothing half-made is ever left. What is stale,
and what an image is made of, `plan` decides. Runs no program itself and prints nothing: progress goes to the caller as
events.
"""

from __future__ import annotations

import contextlib
import errno
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ndakit import __version__
from ndakit.build import pinning, recipe
from ndakit.build.plan import Plan, plan, request
from ndakit.build.recipe import ImageRecipe
from ndakit.core.errors import ErrorGroup, MachineError
from ndakit.core.events import Events, OutputLine, Planned, StepDone, StepStarted, Waiting, Warned, ignore
from ndakit.core.files import make_folder, write_atomic
from ndakit.core.workspace import Workspace
from ndakit.image import artifacts, sbom, sidecars
from ndakit.image import formats as image_formats
from ndakit.image.artifacts import Artifact, ImageFile, Record
from ndakit.image.built import Built, BuiltImage, DiskFull
from ndakit.imagebuilder import request as imagebuilder_request
from ndakit.imagebuilder.imagebuilder import ImageBuilder
from ndakit.imagebuilder.sources import Builder, ForImages, Job
from ndakit.lint import lint
from ndakit.load.load import Loaded
from ndakit.node import facts
from ndakit.packages import feed
from ndakit.render import overlay

_MIB = 1024 * 1024


class SpaceShort(MachineError):
    """There is not enough room to build."""

    def __init__(self, folder: Path, needed_mib: int, available_mib: int) -> None:
        super().__init__(
            f"building needs {needed_mib} MiB here, {available_mib} MiB are free",
            where=str(folder),
            fix="free some space (./inv clean removes what can be made again), or move the workspace",
        )


class WorkspaceUnwritable(MachineError):
    """The workspace cannot be written."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(
            f"the workspace cannot be written: {cause.strerror}",
            where=str(cause.filename or "the workspace"),
            fix="make it writable for the user who builds",
        )


@dataclass(frozen=True)
class BuildResult:
    """What came of one node: its image, and whether it was made now (`reasons`) or was there already."""

    node: str
    built: bool
    artifact: Artifact
    reasons: tuple[str, ...]
    elapsed_s: float


def build(
    workspace: Workspace,
    loaded: Loaded,
    nodes: Sequence[str],
    builder: Builder,
    events: Events = ignore,
    *,
    locked: bool = False,
) -> tuple[BuildResult, ...]:
    """Make the images of these nodes (all of them if none is named) that are not up to date.

    One build of a profile at a time; another one waits and is told so by an event. Every node is rendered and checked
    before the first image is made. With `locked`, nothing is built but what the lock file pins. Raises the errors of
    rendering, lint, the builder and the ImageBuilder, SpaceShort, DiskFull, WorkspaceUnwritable, LockBroken, and with
    `locked` also LockMissing and LockDrift.
    """
    name = loaded.profile.name
    with disk_errors(workspace), workspace.writing(name, on_wait=lambda who: events(Waiting(who))):
        chosen = nodes or tuple(loaded.profile.nodes)
        plans = plan(workspace, loaded, chosen, builder, locked=locked)
        stale = [p for p in plans if not p.up_to_date]
        for one in plans:
            events(Planned(one.node, one.up_to_date, one.reasons))
        for doubt in dict.fromkeys(text for one in plans for text in one.doubts):
            events(Warned("", doubt))
        findings = [one.secrets.mask(f) for one in stale for f in lint.lint(one.tree, loaded.profile, one.node)]
        if findings:
            raise findings[0] if len(findings) == 1 else ErrorGroup(findings)
        if stale:
            _prepare(workspace, loaded, builder)
        return tuple(_result(workspace, loaded, one, builder, events, locked) for one in plans)


def _prepare(workspace: Workspace, loaded: Loaded, builder: Builder) -> None:
    """Refuse at once what would fail late: a path that make cannot work in, no space."""
    make_folder(artifacts.folder_of(workspace, loaded.profile.name, "").parent)
    require_room(workspace, loaded.profile, loaded.profile.image.formats, builder)


def require_room(workspace: Workspace, profile: ForImages, formats: Sequence[str], builder: Builder) -> None:
    """Raises SpaceShort, PathUnusable, and ToolMissing for a format that needs a program that is not here."""
    make_folder(workspace.state)
    imagebuilder_request.usable_path(workspace.state)
    image_formats.require(formats)
    needed_mib = builder.space_mib(profile) + 2 * len(image_formats.wanted(formats)) * profile.image.rootfs_mib
    available_mib = shutil.disk_usage(workspace.state).free // _MIB
    if available_mib < needed_mib:
        raise SpaceShort(workspace.state, needed_mib, available_mib)


def _result(
    workspace: Workspace, loaded: Loaded, one: Plan, builder: Builder, events: Events, locked: bool
) -> BuildResult:
    folder = artifacts.folder_of(workspace, loaded.profile.name, one.node)
    if one.up_to_date:
        return BuildResult(one.node, False, Artifact.load(folder), (), 0.0)
    started_s = time.monotonic()
    with workspace.scratch("build") as scratch:
        artifact = _make(workspace, loaded, one, builder, events, scratch, locked)
    for warning in artifact.record.warnings:
        events(Warned(one.node, warning))
    return BuildResult(one.node, True, artifact, one.reasons, time.monotonic() - started_s)


def _make(
    workspace: Workspace, loaded: Loaded, one: Plan, builder: Builder, events: Events, scratch: Path, locked: bool
) -> Artifact:
    profile, node = loaded.profile, one.node
    files, bin_dir = scratch / "files", scratch / "out"
    log = workspace.logs("build") / f"{profile.name}-{node}.log"
    log.write_text("")
    with step(events, "overlay", node, "writing the rendered files") as done:
        done.append(str(overlay.write(one.tree, workspace.overlays / profile.name / node)))
        overlay.write(one.tree, files, for_image=True)
        put_facts(files, recipe.of(loaded, node, one.inputs, one.tree, one.image_id))
    started_s = time.monotonic()
    job = Job(profile, scratch, log, on_line=lambda text: events(OutputLine(text, "imagebuilder")))
    with contextlib.ExitStack() as stack:
        with step(events, "imagebuilder", node, f"preparing {builder.label()}"):
            driver = stack.enter_context(builder.provide(job))
            feed.deliver(one.local, driver.root, profile.release)
        with step(events, "image", node, f"building OpenWrt {profile.release} for {profile.hostname(node)}") as done:
            built = driver.image(request(loaded, node, one.packages, files), bin_dir)
            feed.prove(one.local, built.packages)
            done.append(_sizes(built.images))
        lock, warnings = pinning.compare(loaded, node, one.pins, built.packages, locked=locked)
        built = replace(built, warnings=(*built.warnings, *warnings))
        built = in_formats(built, profile.image.formats, node, events)
        record = _record(workspace, loaded, one, builder, built, driver, lock, time.monotonic() - started_s)
        with step(events, "artifact", node, "writing the record") as done:
            folder = artifacts.folder_of(workspace, profile.name, node)
            beside = sidecars.texts(profile, node, record.images, record.warning, workspace.templates)
            beside[sbom.NAME] = sbom.document(record, sbom.package_facts(driver.root))
            artifact = artifacts.store(record, [i.path for i in built.images], folder, scratch, beside)
            done.append(f"image {artifact.id[:12]}")
    return artifact


def put_facts(files: Path, made_of: ImageRecipe) -> None:
    """Let the image say which one it is, so that a running box can be asked (node/facts), and what it is made of, so
    that it can be made again from a backup of the box alone (operate/rebuild). Neither is part of the overlay, for the
    id is the hash of what the image is made of."""
    place = files / facts.IMAGE.lstrip("/")
    for folder in reversed(place.relative_to(files).parents[:-1]):
        (files / folder).mkdir(exist_ok=True)
        (files / folder).chmod(0o755)  # whatever the umask
    write_atomic(place, made_of.label.encode())
    # It has hashes of files that hold secrets: a short secret can be found by hashing guesses.
    write_atomic(files / facts.RECIPE.lstrip("/"), made_of.text().encode(), mode=0o600)


def in_formats(built: Built, formats: Sequence[str], node: str, events: Events) -> Built:
    """The images in the formats that are wanted, and no others."""
    wanted = image_formats.wanted(formats)
    if not wanted:
        return replace(built, images=image_formats.make(built.images, formats))
    with step(events, "formats", node, f"making {', '.join(wanted)}") as done:
        images = image_formats.make(built.images, formats)
        done.append(_sizes([i for i in images if i.format in wanted]))
    return replace(built, images=images)


def _sizes(images: Sequence[BuiltImage]) -> str:
    return ", ".join(f"{i.path.name}, {i.path.stat().st_size / _MIB:.1f} MiB" for i in images)


def _record(
    workspace: Workspace,
    loaded: Loaded,
    one: Plan,
    builder: Builder,
    built: Built,
    driver: ImageBuilder,
    lock: Mapping[str, str],
    elapsed_s: float,
) -> Record:
    profile, node = loaded.profile, one.node
    overlays = (workspace.overlays / profile.name / node).relative_to(workspace.root)
    images = artifacts.folder_of(workspace, profile.name, node).relative_to(workspace.root)
    # Private folders of this run say nothing to a reader: the command names the places where the same lies.
    argv = [f"FILES={overlays}" if a.startswith("FILES=") else a for a in built.argv]
    argv = [f"BIN_DIR={images}" if a.startswith("BIN_DIR=") else a for a in argv]
    tools = {"ndakit": __version__, "python": platform.python_version(), "make": driver.make_version}
    if image_formats.wanted(profile.image.formats):
        tools["qemu-img"] = image_formats.version()
    return Record(
        id=one.image_id,
        inputs=one.inputs,
        profile=profile.name,
        node=node,
        hostname=profile.hostname(node),
        release=str(profile.release),
        target=profile.target,
        device=profile.imagebuilder_device,
        builder=builder.kind,
        imagebuilder=builder.label(),
        source={key: text for key, text in asdict(builder.provenance(profile)).items() if text and key != "name"},
        revision=driver.info.revision,
        warning=builder.warning,
        argv=tuple(argv),
        overlay=one.overlay,
        secrets=one.tree.secrets,
        packages=built.packages,
        lock=lock,
        images=image_files(built.images),
        sources=one.sources,
        warnings=built.warnings,
        tools=tools,
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        elapsed_s=round(elapsed_s, 2),
        verify=(f"sha256sum -c {artifacts.SUMS}", f"./inv verify {profile.name}"),
    )


def image_files(images: Sequence[BuiltImage]) -> tuple[ImageFile, ...]:
    """Images as a record has them."""
    return tuple(
        ImageFile(
            name=i.path.name,
            kind=i.kind,
            filesystem=i.filesystem,
            format=i.format,
            size_bytes=i.path.stat().st_size,
            sha256=i.sha256,
            disk_bytes=i.disk.disk_bytes if i.disk else None,
            root_capacity_bytes=i.disk.root_capacity if i.disk else None,
            root_used_bytes=i.disk.root_payload if i.disk else i.flash.root_bytes if i.flash else None,
            mtime_ns=i.path.stat().st_mtime_ns,
        )
        for i in images
    )


@contextlib.contextmanager
def step(events: Events, called: str, node: str, what: str) -> Iterator[list[str]]:
    """Tell of a step's beginning and, if it went well, of its end; the block may leave a note."""
    events(StepStarted(called, node, what))
    started_s = time.monotonic()
    note: list[str] = []
    yield note
    events(StepDone(called, node, time.monotonic() - started_s, ", ".join(note)))


@contextlib.contextmanager
def disk_errors(workspace: Workspace) -> Iterator[None]:
    """Turn a full or unwritable disk into the error of it, whichever step met it."""
    try:
        yield
    except OSError as cause:
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(str(cause.filename or workspace.root)) from cause
        if cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise WorkspaceUnwritable(cause) from cause
        raise
