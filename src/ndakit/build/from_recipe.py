"""An image made from a recipe and a folder of files, without a profile: what a backup is rebuilt with.

The same recipe, files, packages and ImageBuilder give the bytes that a build of the profile gives (`pipeline`). Owns
the order of the steps; where recipe and files come from is the caller's business.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from ndakit import __version__
from ndakit.build import pipeline
from ndakit.build.recipe import ImageRecipe
from ndakit.core.events import Events, OutputLine
from ndakit.core.files import make_folder
from ndakit.core.release import Release
from ndakit.core.workspace import Workspace
from ndakit.image import artifacts, sbom
from ndakit.image import formats as image_formats
from ndakit.image.artifacts import Artifact, Record
from ndakit.image.built import Built
from ndakit.imagebuilder.imagebuilder import ImageBuilder
from ndakit.imagebuilder.request import wanted_knobs
from ndakit.imagebuilder.sources import Builder, Job
from ndakit.packages import feed
from ndakit.packages.feed import Local


@dataclass(frozen=True)
class _Size:
    rootfs_mib: int


@dataclass(frozen=True)
class RecipeFacts:
    """A recipe as builders see it (`sources.ForImages`)."""

    name: str
    release: Release
    target: str
    image: _Size


def facts_of(made_of: ImageRecipe) -> RecipeFacts:
    """What a builder has to know of a recipe."""
    asked = made_of.asked
    return RecipeFacts(made_of.profile, Release.parse(asked.release), asked.target, _Size(asked.rootfs_mib))


def build(
    workspace: Workspace,
    made_of: ImageRecipe,
    files: Path,
    local: Sequence[Local],
    builder: Builder,
    folder: Path,
    events: Events,
) -> Artifact:
    """Make the image into `folder`. `files` gets what the image says of itself; `local` are packages from no feed.

    Raises the errors of the builder and the ImageBuilder, SpaceShort, DiskFull, WorkspaceUnwritable.
    """
    facts = facts_of(made_of)
    with pipeline.disk_errors(workspace), workspace.scratch("rebuild") as scratch:
        pipeline.require_room(workspace, facts, made_of.asked.formats, builder)
        pipeline.put_facts(files, made_of)
        log = workspace.logs("rebuild") / f"{made_of.profile}-{made_of.node}.log"
        log.write_text("")
        started_s = time.monotonic()
        job = Job(facts, scratch, log, on_line=lambda text: events(OutputLine(text, "imagebuilder")))
        with builder.provide(job) as driver:
            feed.deliver(local, driver.root, facts.release)
            with pipeline.step(events, "image", made_of.node, f"building OpenWrt {facts.release}"):
                built = driver.image(made_of.asked.request(files), scratch / "out")
                feed.prove(local, built.packages)
            built = pipeline.in_formats(built, made_of.asked.formats, made_of.node, events)
            record = _record(made_of, built, builder, driver, folder, workspace, time.monotonic() - started_s)
            beside = {sbom.NAME: sbom.document(record, sbom.package_facts(driver.root))}
            make_folder(folder.parent)
            return artifacts.store(record, [i.path for i in built.images], folder, scratch, beside)


def _record(
    made_of: ImageRecipe,
    built: Built,
    builder: Builder,
    driver: ImageBuilder,
    folder: Path,
    workspace: Workspace,
    elapsed_s: float,
) -> Record:
    asked = made_of.asked
    shown = folder.relative_to(workspace.root) if folder.is_relative_to(workspace.root) else Path(folder.name)
    argv = ["FILES=(from the backup)" if a.startswith("FILES=") else a for a in built.argv]
    argv = [f"BIN_DIR={shown}" if a.startswith("BIN_DIR=") else a for a in argv]
    facts = facts_of(made_of)
    return Record(
        id=made_of.id,
        inputs={
            **asdict(asked),
            "fingerprint": builder.fingerprint(facts),
            "settings": wanted_knobs(asked.request(Path("files"))),
        },
        profile=made_of.profile,
        node=made_of.node,
        hostname=asked.extra_name,
        release=asked.release,
        target=asked.target,
        device=asked.device,
        builder=builder.kind,
        imagebuilder=builder.label(),
        source={key: text for key, text in asdict(builder.provenance(facts)).items() if text and key != "name"},
        revision=driver.info.revision,
        warning=builder.warning,
        argv=tuple(argv),
        overlay=artifacts.identity(dict(made_of.files)),
        secrets=made_of.secrets,
        packages=built.packages,
        lock={},
        images=pipeline.image_files(built.images),
        sources={},
        warnings=built.warnings,
        tools={
            "ndakit": __version__,
            "python": platform.python_version(),
            "make": driver.make_version,
            **({"qemu-img": image_formats.version()} if image_formats.wanted(asked.formats) else {}),
        },
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        elapsed_s=round(elapsed_s, 2),
        verify=(f"sha256sum -c {artifacts.SUMS}",),
    )
