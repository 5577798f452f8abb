"""What an image carries of how it was made: enough to make the same image again, on a machine that has no profile.

A recipe is JSON inside the image (node/facts, RECIPE): what was asked of the ImageBuilder, and the files that were laid
over the root, with their modes and hashes. The files themselves are in the image anyway. With the same ImageBuilder and
packages, the same recipe gives the same bytes. Nothing but what decides the image stands in it: no time, path or user.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ndakit.core import json_text
from ndakit.core.errors import InputError
from ndakit.core.mistakes import clean
from ndakit.core.release import Release
from ndakit.imagebuilder.request import ImageRequest
from ndakit.load.loaded import Loaded
from ndakit.model.host import ImageFormat
from ndakit.node import facts as node_facts
from ndakit.render.render import Tree

FORMAT = 1
NAME_MAX_BYTES = 255
MAX_BYTES = 4 << 20


class RecipeBroken(InputError):
    """A recipe that cannot be read, or that says what no image can be made of."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(
            f"what the image was made of cannot be read: {why}",
            where=where,
            fix="make the backup anew, with this version of ndakit; without it, build the image from its profile",
        )
        self.why = why


@dataclass(frozen=True)
class Asked:
    """What decides the image beside the files: as `inputs` of the record has it."""

    release: str
    target: str
    device: str
    builder: Literal["lab", "openwrt"]
    fingerprint: str
    """What tells one ImageBuilder from another."""
    packages: str
    """PACKAGES: names to add, and those to leave out with a `-` before them."""
    extra_name: str
    filesystem: Literal["squashfs", "ext4"]
    firmware: Literal["efi", "bios"]
    rootfs_mib: int
    formats: tuple[ImageFormat, ...]
    local_packages: Mapping[str, str]
    """Packages that did not come from OpenWrt's feeds: name → version and digest."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    def request(self, files: Path) -> ImageRequest:
        """The image as an ImageBuilder is asked for it."""
        words = self.packages.split()
        return ImageRequest(
            device=self.device,
            target=self.target,
            add=tuple(word for word in words if not word.startswith("-")),
            remove=tuple(word[1:] for word in words if word.startswith("-")),
            files=files,
            extra_name=self.extra_name,
            rootfs_mib=self.rootfs_mib,
            filesystem=self.filesystem,
            firmware=self.firmware,
            archive="rootfs" in self.formats,
        )


@dataclass(frozen=True)
class ImageRecipe:
    """What an image was made of. `id` is the image's, `files` is path on the node → `0644 SHA-256`."""

    id: str
    profile: str
    node: str
    asked: Asked
    files: Mapping[str, str]
    secrets: tuple[str, ...] = ()
    """The names of the secrets that the files hold."""
    format: int = FORMAT

    __pydantic_config__ = ConfigDict(extra="forbid")

    @property
    def label(self) -> str:
        """What the image says of itself to everybody (node/facts, IMAGE)."""
        words = {"id": self.id, "node": self.node, "profile": self.profile}
        return json.dumps(words, indent=2, sort_keys=True) + "\n"

    def text(self) -> str:
        """As it stands in the image."""
        facts = TypeAdapter(ImageRecipe).dump_python(self, mode="json")
        return json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def of(loaded: Loaded, node: str, inputs: Mapping[str, Any], tree: Tree, image_id: str) -> ImageRecipe:
    """The recipe of a planned image: its `inputs` (build/plan) and the files that it gets."""
    profile = loaded.profile
    asked = Asked(
        **{key: inputs[key] for key in ("release", "target", "device", "builder", "fingerprint", "packages")},
        extra_name=inputs["extra_name"],
        filesystem=inputs["image"]["filesystem"],
        firmware=inputs["image"]["firmware"],
        rootfs_mib=inputs["image"]["rootfs_mib"],
        formats=tuple(profile.image.formats),
        local_packages=dict(inputs.get("local_packages", {})),
    )
    return ImageRecipe(image_id, profile.name, node, asked, files_of(tree), tuple(tree.secrets))


def files_of(tree: Tree) -> dict[str, str]:
    """The files of a tree as a recipe has them. Real hashes, also of what holds secrets."""
    return {path: entry(f.mode, f.content) for path, f in sorted(tree.items())}


def entry(mode: int, content: bytes) -> str:
    """A file as a recipe has it."""
    return f"{mode:04o} {hashlib.sha256(content).hexdigest()}"


def parse(text: bytes, where: str) -> ImageRecipe:
    """Read a recipe, whoever wrote it. Raises RecipeBroken."""
    try:
        facts = json_text.mapping(text)
        if facts.get("format") != FORMAT:
            raise RecipeBroken(where, f"it has format {facts.get('format')!r:.20}, this version reads {FORMAT}")
        recipe = TypeAdapter(ImageRecipe).validate_python(facts)
    except ValidationError as cause:
        places = sorted({clean(".".join(map(str, e["loc"]))) for e in cause.errors(include_input=False)})
        raise RecipeBroken(where, f"it is incomplete or has something foreign in it ({', '.join(places)[:200]})") from (
            cause
        )
    except ValueError as cause:
        raise RecipeBroken(where, clean(str(cause))[:200]) from cause
    _refuse_strange(recipe, where)
    return recipe


_WORDS = {
    "id": r"[0-9a-f]{64}",
    "profile": r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}",
    "node": r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}",
    "device": r"[A-Za-z0-9_.,+-]{1,80}",
    "target": r"[a-z0-9_]{1,40}/[a-z0-9_]{1,40}",
    "extra_name": r"[A-Za-z0-9_.-]{1,80}",
    "packages": r"(-?[A-Za-z0-9][A-Za-z0-9+._-]{0,80}( |$))*",
}
"""What goes into command lines and file names."""


def _refuse_strange(recipe: ImageRecipe, where: str) -> None:
    asked = recipe.asked
    for name, pattern in _WORDS.items():
        value = cast(str, getattr(recipe, name, None) or getattr(asked, name, ""))
        if not re.fullmatch(pattern, value):
            raise RecipeBroken(where, f"its {name} is {value[:40]!r}")
    try:
        Release.parse(asked.release)
    except ValueError:
        raise RecipeBroken(where, f"its release is {asked.release[:40]!r}") from None
    if not 8 <= asked.rootfs_mib <= 65536:
        raise RecipeBroken(where, f"its root partition has {asked.rootfs_mib} MiB")
    for path, facts in recipe.files.items():
        if not re.fullmatch(r"0[0-7]{3} [0-9a-f]{64}", facts) or not good_path(path):
            raise RecipeBroken(where, f"it names the file {path[:80]!r}")
    if not asked.formats:
        raise RecipeBroken(where, "it names no format of an image")
    if path := clash(recipe.files):
        raise RecipeBroken(where, f"in it {path[:80]!r} is a file and a folder")


def good_path(path: str) -> bool:
    """True for an absolute path of a file without anything that leads elsewhere, and of names that a file system takes
    (Linux: 255 bytes each, limits.h)."""
    parts = path.split("/")
    return (
        path.startswith("/")
        and path.isprintable()
        and len(path.encode()) < 1024
        and all(part not in ("", ".", "..") and len(part.encode()) <= NAME_MAX_BYTES for part in parts[1:])
    )


def clash(paths: Iterable[str]) -> str:
    """A path that is a file and a folder at once, or is a folder where what an image says of itself is a file, or the
    other way round; empty if there is none."""
    files = {*paths, node_facts.IMAGE, node_facts.RECIPE}
    folders = {str(folder) for path in files for folder in PurePosixPath(path).parents}
    return min(files & folders, default="")
