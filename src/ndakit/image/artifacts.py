"""Built images on disk: `images/<profile>/<node>/` with the image files, `manifest`, `SHA256SUMS` and `record.json`.

Owns the record, the names in such a folder, how it comes to be (whole or not at all) and how it is read and verified.
What goes into an image is the business of `pipeline`; texts beside it are made by others and only kept here.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ndakit.core import json_text
from ndakit.core.errors import BuildError, ErrorGroup, NdakitError
from ndakit.core.files import file_sha256, make_folder, swap_folder
from ndakit.core.mistakes import clean
from ndakit.core.workspace import Workspace
from ndakit.load.load import Loaded

RECORD, MANIFEST, SUMS = "record.json", "manifest", "SHA256SUMS"
RECORD_FORMAT = 2


class ImageNotBuilt(BuildError):
    """There is no image of this node yet."""

    def __init__(self, profile: str, node: str, folder: Path, called: str) -> None:
        super().__init__(
            f"there is no image of {profile}'s node {node} yet",
            where=str(folder),
            fix=f"build it: ./inv build {called} --builder openwrt (or without --builder, for the lab only)",
        )


class RecordBroken(BuildError):
    """The record beside an image cannot be read."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(
            f"the record of this image cannot be used: {detail}",
            where=str(path),
            fix=f"remove the folder and build again: rm -r {path.parent}",
        )


class ImageChanged(BuildError):
    """A file is not what the record says: cut off, changed or gone."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(
            f"{path.name} is not the file that was built: {detail}",
            where=str(path),
            fix="do not flash it; build it again with the same --builder (./inv build sees by itself that it has to)",
        )


@dataclass(frozen=True)
class ImageFile:
    """An image file: `kind` as OpenWrt names it (combined-efi, sysupgrade, …), size and hash of the file as it is.

    `format`: as the profile's image.formats has it.
    """

    name: str
    kind: str
    filesystem: str
    size_bytes: int
    sha256: str
    disk_bytes: int | None = None
    """Unpacked size; None for what is no disk."""
    root_capacity_bytes: int | None = None
    root_used_bytes: int | None = None
    mtime_ns: int = 0
    format: str = "img"

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Record:
    """What is known about a build. `id` is the hash of `inputs` and of nothing else: no time, path or user is in it."""

    id: str
    inputs: Mapping[str, Any]
    profile: str
    node: str
    hostname: str
    release: str
    target: str
    device: str
    builder: str
    imagebuilder: str
    source: Mapping[str, str]
    """The ImageBuilder's fingerprint; of one that was fetched also the archive, its SHA-256 and what verified it."""
    revision: str
    warning: str | None
    """Words, if the image is not for flashing."""
    argv: tuple[str, ...]
    overlay: str
    """Digest of the files laid over the root."""
    packages: Mapping[str, str]
    lock: Mapping[str, str]
    """How the packages compare with the lock file (`lockfile` gives the words)."""
    images: tuple[ImageFile, ...]
    sources: Mapping[str, str]
    """Hashes of the files that were read, to say later what changed; not part of the id."""
    warnings: tuple[str, ...]
    tools: Mapping[str, str]
    built_at: str
    elapsed_s: float
    verify: tuple[str, ...]
    secrets: tuple[str, ...] = ()
    """The names of the secrets that the images hold: whoever has such an image has them."""
    format: int = RECORD_FORMAT

    __pydantic_config__ = ConfigDict(extra="forbid")

    def text(self) -> str:
        """As it stands in record.json."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def identity(inputs: Mapping[str, Any]) -> str:
    """The image's id: SHA-256 over the inputs as canonical JSON."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def folder_of(workspace: Workspace, profile: str, node: str) -> Path:
    """Where the image of a node lies."""
    return workspace.images / profile / node


@dataclass(frozen=True)
class Artifact:
    """A built image of one node, with its record."""

    folder: Path
    record: Record

    @classmethod
    def load(cls, folder: Path, called: str = "") -> Artifact:
        """Read a finished build; `called` is how a command names its profile, by default by its name.

        Raises ImageNotBuilt, RecordBroken; says nothing yet about the images' contents.
        """
        path = folder / RECORD
        try:
            facts = json_text.read(path)
        except FileNotFoundError as cause:
            name = folder.parent.name
            raise ImageNotBuilt(name, folder.name, folder, called or name) from cause
        except (OSError, ValueError) as cause:
            raise RecordBroken(path, clean(str(cause))) from cause
        if facts.get("format") != RECORD_FORMAT:
            raise RecordBroken(path, f"it has format {facts.get('format')!r:.20}, this version writes {RECORD_FORMAT}")
        try:
            record = _reader().validate_python(facts)
        except ValidationError as cause:
            places = sorted({clean(".".join(map(str, e["loc"]))) for e in cause.errors(include_input=False)})
            raise RecordBroken(
                path, f"it is incomplete or has something foreign in it ({', '.join(places)[:200]})"
            ) from (cause)
        foreign = [image.name for image in record.images if not _is_name(image.name)]
        if foreign or not record.images:
            raise RecordBroken(
                path, f"{foreign[0]!r:.60} in it is no name of a file" if foreign else "it has no images"
            )
        return cls(folder, record)

    @property
    def id(self) -> str:
        """The image's id."""
        return self.record.id

    @property
    def first(self) -> ImageFile:
        """The image to boot or to flash first: the first disk; where there is none (small devices), the first file."""
        disks = [image for image in self.record.images if image.disk_bytes is not None]
        return (disks or list(self.record.images))[0]

    @property
    def image(self) -> Path:
        """The file of the first image."""
        return self.folder / self.first.name

    def suspicious(self) -> list[NdakitError]:
        """What is evidently not as it was built, without reading the images: gone, another size, touched since."""
        errors: list[NdakitError] = []
        for image in self.record.images:
            path = self.folder / image.name
            try:
                facts = path.stat()
            except OSError:
                errors.append(ImageChanged(path, "it is not there"))
                continue
            if facts.st_size != image.size_bytes:
                errors.append(ImageChanged(path, f"it has {facts.st_size} bytes instead of {image.size_bytes}"))
            elif facts.st_mtime_ns != image.mtime_ns and (bad := _differs(path, image.sha256)):
                errors.append(bad)
        return errors + self._beside()

    def _beside(self) -> list[NdakitError]:
        """What is wrong with the small files: each is in SHA256SUMS and read here."""
        try:
            lines = (self.folder / SUMS).read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return [ImageChanged(self.folder / SUMS, "it is not there, or is no text")]
        images = {image.name for image in self.record.images}
        listed = {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines)}
        foreign = [name for name in listed if not _is_name(name)]
        if foreign:
            return [ImageChanged(self.folder / SUMS, f"it names {foreign[0]!r:.60}, which is no file beside it")]
        errors: list[NdakitError] = []
        for name in sorted({MANIFEST, RECORD, *listed} - images):
            path = self.folder / name
            if not path.is_file():
                errors.append(ImageChanged(path, "it is not there"))
            elif bad := _differs(path, listed.get(name, "")):
                errors.append(bad)
        return errors

    def verify(self) -> list[NdakitError]:
        """Read every file and compare it with the hashes; what is wrong. Empty means whole and unchanged."""
        errors = self.suspicious()
        suspected = {Path(e.where).name for e in errors}
        for image in self.record.images:
            if image.name not in suspected and (bad := _differs(self.folder / image.name, image.sha256)):
                errors.append(bad)
        return errors


@functools.cache
def _reader() -> TypeAdapter[Record]:
    """Reads records: the fields of the dataclasses with their types, no others."""
    return TypeAdapter(Record)


def _is_name(name: str) -> bool:
    """True for a name of a file in a folder, not of one elsewhere."""
    return re.fullmatch(r"(?!\.\.?$)[\w.+@,=~-][\w .+@,=~-]{0,200}", name) is not None


def _differs(path: Path, sha256: str) -> NdakitError | None:
    try:
        now = file_sha256(path)
    except OSError as cause:
        return ImageChanged(path, f"it cannot be read: {cause.strerror}")
    if not sha256:
        return ImageChanged(path, f"{SUMS} does not name it")
    return None if now == sha256 else ImageChanged(path, f"its SHA-256 is {now[:16]}… instead of {sha256[:16]}…")


def store(
    record: Record, images: Sequence[Path], folder: Path, scratch: Path, beside: Mapping[str, str] | None = None
) -> Artifact:
    """Make the finished folder from what lies in scratch, and put it in its place in one step.

    The image files are moved, not copied, where both lie on one file system. `beside` are texts by the names that they
    get. SHA256SUMS covers every other file. Images that hold secrets are for their owner alone (0600). What was there
    before is gone afterwards.
    """
    new = scratch / "finished"
    new.mkdir()
    for image in images:
        _move(image, new / image.name)
    manifest = "".join(f"{name} - {version}\n" for name, version in sorted(record.packages.items()))
    for name, text in {**(beside or {}), MANIFEST: manifest, RECORD: record.text()}.items():
        (new / name).write_text(text)
    known = {image.name: image.sha256 for image in record.images}
    names = sorted(path.name for path in new.iterdir())
    (new / SUMS).write_text("".join(f"{known.get(name) or file_sha256(new / name)}  {name}\n" for name in names))
    for path in (new, *new.iterdir()):
        private = bool(record.secrets) and path.name in known
        path.chmod(0o755 if path.is_dir() else 0o600 if private else 0o644)
    make_folder(folder.parent)
    try:
        swap_folder(new, folder)
    except OSError as cause:
        if cause.errno != errno.EXDEV:
            raise
        # Another disk, or the same one mounted once more (a bind mount): no rename leads there (rename(2)).
        near = folder.parent / f".{folder.name}.partial"
        shutil.rmtree(near, ignore_errors=True)
        shutil.copytree(new, near)
        new = near
        swap_folder(new, folder)
    with contextlib.suppress(OSError):
        shutil.rmtree(new)
    return Artifact.load(folder)


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        shutil.copyfile(source, target)
        shutil.copystat(source, target)
        source.unlink()


def images_of(workspace: Workspace, loaded: Loaded, nodes: Sequence[str]) -> dict[str, Artifact]:
    """The built images, whole and unchanged. Raises ImageNotBuilt, RecordBroken, ImageChanged."""
    name = loaded.profile.name
    artifacts = {node: Artifact.load(folder_of(workspace, name, node), loaded.called) for node in nodes}
    errors = [error for artifact in artifacts.values() for error in artifact.verify()]
    if errors:
        raise ErrorGroup(errors)
    return artifacts
