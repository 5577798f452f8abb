"""What is in a backup: its files opened, decrypted where that is needed, and what its image was made of."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, BinaryIO, cast

from ndakit.build import plan as build_plan
from ndakit.build import recipe as recipes
from ndakit.build.recipe import ImageRecipe
from ndakit.core.workspace import Workspace
from ndakit.load.loaded import Loaded
from ndakit.node import facts
from ndakit.operate import encryption, tar_files
from ndakit.operate.backups import IMAGE, Backup, BackupBroken

ORIGINAL, NOW, LOCAL = "image", "now", "packages"
"""Folders in image.tar.gz: files as the image has them, files of the image's own as they are now, package files."""


@contextlib.contextmanager
def opened(backup: Backup, name: str, keys: Sequence[Any] = ()) -> Iterator[IO[bytes]]:
    """One file of a backup, to be read and sought in. `keys`: as `encryption.identities` gives them.

    Raises BackupBroken if there is no such file, NotDecrypted.
    """
    path = backup.file(name)
    if path is None:
        raise BackupBroken(backup.folder, f"there is no {name} in it")
    if path.suffix != encryption.SUFFIX:
        with path.open("rb") as source:
            yield source
        return
    if not keys:
        raise encryption.NotDecrypted(
            "this backup is encrypted",
            where=str(path),
            fix="name the private half of one of its recipients (./inv backups --json lists them): --identity FILE",
        )
    with path.open("rb") as source, tempfile.TemporaryFile() as plain:  # without a name: gone however we end
        encryption.decrypt(source, cast(BinaryIO, plain), keys, str(path))
        plain.seek(0)
        yield plain


def recipe_of(backup: Backup, keys: Sequence[Any] = ()) -> ImageRecipe | None:
    """What the image was made of; None if it does not say. Raises ArchiveRefused, RecipeBroken, and what `opened`
    raises."""
    if backup.record.original == "none":
        return None
    where = str(backup.file(IMAGE))
    with opened(backup, IMAGE, keys) as source, tar_files.reading(cast(BinaryIO, source), where) as archive:
        for entry, content in archive.walk():
            if entry.path == f"/{ORIGINAL}{facts.RECIPE}" and content is not None:
                return recipes.parse(tar_files.content(content, entry, where, recipes.MAX_BYTES), where)
    raise BackupBroken(backup.folder, f"there is no {facts.RECIPE} in {IMAGE}")


def differs_from(workspace: Workspace, loaded: Loaded, backup: Backup) -> tuple[str, ...]:
    """What differs between the image of a backup and the one that its profile gives now by the same ImageBuilder, in
    words; nothing if they are the same. What was changed on the box by hand is not asked for.

    Raises what planning a build raises, and ArchiveRefused, RecipeBroken, BackupBroken.
    """
    record = backup.record
    if record.node not in loaded.profile.nodes:
        return (f"the profile has no node {record.node} now",)
    if not record.builder:
        return ("its image does not say what it was made of",)
    now = build_plan.by_same_builder(workspace, loaded, record.node, record.builder, record.fingerprint)
    if now.image_id == record.image_id:
        return ()
    if record.recipients:
        return ("the profile gives another image now",)
    # Ids of images that hold secrets are different in each workspace: their hashes have a key.
    was = recipe_of(backup)
    assert was is not None
    is_now = recipes.of(loaded, record.node, now.inputs, now.tree, now.image_id)
    words = [
        f"{key.replace('_', ' ')}: {getattr(was.asked, key)} → {getattr(is_now.asked, key)}"
        for key in ("release", "target", "device", "packages", "extra_name", "filesystem", "firmware", "rootfs_mib")
        if getattr(was.asked, key) != getattr(is_now.asked, key)
    ]
    if was.asked.formats != is_now.asked.formats or was.asked.local_packages != is_now.asked.local_packages:
        words.append("formats, or packages of packages/")
    paths = sorted(was.files.keys() | is_now.files.keys())
    return (*words, *(path for path in paths if was.files.get(path) != is_now.files.get(path)))
