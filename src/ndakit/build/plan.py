"""What building a profile's images would do, before anything is done: what each is made of, what is stale and why.

Owns what decides an image (its inputs). The packages and the pins of a node are computed here, once, and carried by its
plan; `pipeline` does what a plan says, and computes neither. Runs nothing, and writes nothing but the key of the hashes
that stand for secrets (`load/secrets`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, Self

from ndakit.build import lockfile, pinning, recipe
from ndakit.build import reasons as build_reasons
from ndakit.core.errors import ErrorGroup
from ndakit.core.files import file_sha256
from ndakit.core.workspace import Workspace
from ndakit.image import artifacts, sidecars
from ndakit.image import formats as image_formats
from ndakit.image.artifacts import Artifact, Record
from ndakit.imagebuilder import request as imagebuilder_request
from ndakit.imagebuilder.request import ImageRequest
from ndakit.imagebuilder.sources import Builder
from ndakit.load import certificate_checks, secrets
from ndakit.load.load import Loaded
from ndakit.load.secrets import HashKey, Secrets
from ndakit.model import Profile, package_plan
from ndakit.model.package_plan import PackagePlan
from ndakit.packages import feed
from ndakit.render import render


@dataclass(frozen=True)
class Plan:
    """What building one node would do. `reasons` says why its image is made; empty if it is up to date."""

    node: str
    reasons: tuple[str, ...]
    inputs: Mapping[str, Any]
    sources: Mapping[str, str]
    tree: render.Tree
    overlay: str
    """Digest of the files laid over the root; of those that hold secrets, keyed ones."""
    secrets: Secrets
    doubts: tuple[str, ...]
    """What is doubtful about the profile's certificates."""
    packages: PackagePlan
    """What the image gets and loses beside its device's own packages."""
    local: tuple[feed.Local, ...]
    """Packages of packages/ that the image gets."""
    pins: lockfile.PinnedNode | None
    """What the lock file pins for this node and kind of builder."""

    @property
    def up_to_date(self) -> bool:
        """True if the image on disk is what a build would make."""
        return not self.reasons

    @property
    def image_id(self) -> str:
        """The id that the image has, or will have."""
        return artifacts.identity(self.inputs)


def plan(
    workspace: Workspace, loaded: Loaded, nodes: Sequence[str], builder: Builder, *, locked: bool = False
) -> tuple[Plan, ...]:
    """Compare what the images of these nodes would be made of with what the ones on disk were made of.

    With `locked`, other package versions than the lock file pins make an image stale too, and what cannot be as pinned
    is refused. Raises what resolving secrets, rendering and choosing packages raise, an ErrorGroup of what is wrong
    with certificates, LockBroken, and with `locked` LockMissing and LockDrift; runs nothing.
    """
    held = _Held.of(workspace, loaded)
    lock = lockfile.read(lockfile.path_of(loaded))
    plans = tuple(
        _plan(workspace, loaded, node, builder, held, lock.node(builder.kind, node), locked) for node in nodes
    )
    if locked:
        pinning.require(loaded, builder, lock, {one.node: str(one.inputs["packages"]) for one in plans})
    return plans


def outdated(workspace: Workspace, loaded: Loaded, node: str, record: Record) -> tuple[str, ...]:
    """What differs between an image and what its profile says now, in words; nothing if a build by the same
    ImageBuilder would make the same image. Raises what `plan` raises but for lock files.
    """
    now = by_same_builder(workspace, loaded, node, record.builder, str(record.inputs.get("fingerprint", "")))
    return () if now.image_id == record.id else now.reasons


def by_same_builder(workspace: Workspace, loaded: Loaded, node: str, builder: str, fingerprint: str) -> Plan:
    """What a build of the node would do now, by the ImageBuilder that made an image: its word and its fingerprint.
    Raises what `plan` raises but for lock files."""
    made_by = _AsBuilt(builder, fingerprint)
    return _plan(workspace, loaded, node, made_by, _Held.of(workspace, loaded), None, False)


class _MadeBy(Protocol):
    """What a plan has to know of a builder."""

    @property
    def kind(self) -> str:
        """The word of `--builder`."""

    def fingerprint(self, profile: Profile) -> str:
        """What tells one ImageBuilder from another."""


@dataclass(frozen=True)
class _AsBuilt:
    """The builder that made an image."""

    kind: str
    told: str

    def fingerprint(self, _: Profile) -> str:
        return self.told


@dataclass(frozen=True)
class _Held:
    """The secrets of a profile, and what follows from them for all its nodes."""

    secrets: Secrets
    doubts: tuple[str, ...]
    key: HashKey | None

    @classmethod
    def of(cls, workspace: Workspace, loaded: Loaded) -> Self:
        held = secrets.resolve(workspace, loaded)
        wrong, doubts = certificate_checks.check(loaded, held, datetime.now(UTC))
        if wrong:
            raise ErrorGroup(wrong)
        return cls(held, tuple(doubt.what for doubt in doubts), secrets.hash_key(workspace) if held else None)


def _plan(
    workspace: Workspace,
    loaded: Loaded,
    node: str,
    builder: _MadeBy,
    held: _Held,
    pins: lockfile.PinnedNode | None,
    locked: bool,
) -> Plan:
    packages = package_plan.plan(loaded.profile, node)
    tree = render.render(loaded.profile, node, workspace.templates, packages, held.secrets)
    local = feed.choose(workspace, loaded, packages, lab=builder.kind == "lab")
    inputs = _inputs(loaded, node, builder, tree, held.key, packages, local)
    sources = _sources(workspace, loaded, tree)
    folder = artifacts.folder_of(workspace, loaded.profile.name, node)
    try:
        there = Artifact.load(folder)
    except artifacts.ImageNotBuilt:
        reasons = ["there is no image yet"]
    except artifacts.RecordBroken as cause:
        reasons = [cause.what]
    else:
        reasons = [error.what for error in there.suspicious()]
        if there.record.id != artifacts.identity(inputs):
            reasons += build_reasons.changes(there.record, inputs, sources) or ["what the image is made of changed"]
        reasons += pinning.stale(pins, builder.kind, there.record, locked=locked)
        reasons = reasons or sidecars.outdated(loaded.profile, node, there, workspace.templates)
    return Plan(
        node=node,
        reasons=tuple(reasons),
        inputs=inputs,
        sources=sources,
        tree=tree,
        overlay=tree.digest(held.key),
        secrets=held.secrets,
        doubts=held.doubts,
        packages=packages,
        local=local,
        pins=pins,
    )


def request(loaded: Loaded, node: str, packages: PackagePlan, files: Path) -> ImageRequest:
    """The image of a node with these packages as an ImageBuilder is asked for it."""
    profile = loaded.profile
    return ImageRequest(
        device=profile.imagebuilder_device,
        target=profile.target,
        add=tuple(packages.add),
        remove=tuple(packages.remove),
        files=files,
        extra_name=profile.hostname(node),
        rootfs_mib=profile.image.rootfs_mib,
        filesystem=profile.image.filesystem,
        firmware=profile.image.firmware,
        archive="rootfs" in profile.image.formats,
    )


def _inputs(
    loaded: Loaded,
    node: str,
    builder: _MadeBy,
    tree: render.Tree,
    key: HashKey | None,
    packages: PackagePlan,
    local: Sequence[feed.Local],
) -> dict[str, Any]:
    """Everything that decides an image, and nothing else: no time, no path, no user."""
    profile = loaded.profile
    asked = request(loaded, node, packages, Path("files"))
    return {
        "format": artifacts.RECORD_FORMAT,
        "recipe": recipe.FORMAT,
        "release": str(profile.release),
        "target": profile.target,
        "device": asked.device,
        "builder": builder.kind,
        "fingerprint": builder.fingerprint(profile),
        "packages": asked.packages,
        **({"local_packages": {one.name: f"{one.version} {one.digest}" for one in local}} if local else {}),
        "extra_name": asked.extra_name,
        "image": {
            "filesystem": asked.filesystem,
            "firmware": asked.firmware,
            "rootfs_mib": asked.rootfs_mib,
            "formats": " ".join(profile.image.formats),
        },
        "disks": {name: image_formats.OPTIONS[name] for name in image_formats.wanted(profile.image.formats)},
        "settings": imagebuilder_request.wanted_knobs(asked),
        "files": {path: f"{f.mode:04o} {f.digest(key)}" for path, f in tree.items()},
    }


def _sources(workspace: Workspace, loaded: Loaded, tree: render.Tree) -> dict[str, str]:
    """Hashes of the files that the tree was made from, by their names in the workspace; for explaining changes only."""
    digests: dict[str, str] = {}
    for file in tree.values():
        for folder in workspace.templates:
            path = folder.parent / file.source
            if path.is_file():
                digests[file.source] = file_sha256(path)
                break
    for source in loaded.sources:
        with contextlib.suppress(OSError):
            inside = source.is_relative_to(workspace.root)
            name = source.relative_to(workspace.root).as_posix() if inside else source.name
            digests[name] = file_sha256(source)
    return digests
