"""The same driver and pipeline on the lab's ImageBuilder: real packages, real disks, this user's package cache."""

from __future__ import annotations

import base64
import re
import struct
from pathlib import Path

import pytest

from imagebuilder_fakes import PROFILE, workspace_folder
from ndakit.build import pipeline
from ndakit.core.events import Event, Planned
from ndakit.core.workspace import Workspace
from ndakit.imagebuilder import failures, sources
from ndakit.load import load

pytestmark = pytest.mark.images


def build(root: Path, name: str, node: str, heard: list[Event] | None = None) -> pipeline.BuildResult:
    workspace = Workspace.at(root)
    loaded = load.load(workspace, name)
    builder = sources.choose("lab", None, workspace, loaded.profile)
    (result,) = pipeline.build(workspace, loaded, [node], builder, (heard if heard is not None else []).append)
    return result


def test_the_lab_builds_once_and_says_in_words_that_it_is_the_lab(tmp_path: Path) -> None:
    root = workspace_folder(tmp_path / "ws", PROFILE.replace("rootfs_mib: 64", "rootfs_mib: 128"))
    first = build(root, "bakery", "lb1")
    record = first.artifact.record
    assert first.built
    assert record.builder == "lab"
    assert record.warning is not None
    assert "Never flash it" in record.warning
    assert {"haproxy", "keepalived"} <= set(record.packages)
    assert not {"dnsmasq", "ppp"} & set(record.packages)
    assert first.artifact.verify() == []
    heard: list[Event] = []
    assert not build(root, "bakery", "lb1", heard).built
    assert heard == [Planned("lb1", True, ())]


@pytest.mark.parametrize(
    ("release", "firmware", "kind"), [("19.07.10", "bios", "combined"), ("25.12.5", "efi", "combined-efi")]
)
def test_the_lab_is_driven_in_old_and_new_families(release: str, firmware: str, kind: str, tmp_path: Path) -> None:
    text = PROFILE.replace("24.10.8", release).replace("rootfs_mib: 64", f"firmware: {firmware}, rootfs_mib: 128")
    if release.startswith("19."):  # its dropbear knows no Ed25519
        text = re.sub("ssh-ed25519 [^ ]+", rsa_key(), text)
    (image,) = build(workspace_folder(tmp_path / "ws", text), "bakery", "lb1").artifact.record.images
    assert (image.kind, image.filesystem) == (kind, "squashfs")
    assert image.root_used_bytes is not None
    assert image.root_capacity_bytes == 128 * 2**20
    assert 0 < image.root_used_bytes < image.root_capacity_bytes


def rsa_key() -> str:
    """A public key of the right form that nobody has the private half of."""
    parts = (b"ssh-rsa", b"\1\0\1", b"\0" + b"\xc5" * 256)
    blob = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    return f"ssh-rsa {base64.b64encode(blob).decode()}"


@pytest.mark.parametrize("release", ["24.10.8", "25.12.5"])
def test_an_unknown_package_is_named_with_what_comes_near_it(release: str, tmp_path: Path) -> None:
    text = PROFILE.replace("24.10.8", release).replace("rootfs_mib: 64", "packages: {tcpdmp: add, nosuch: add}")
    with pytest.raises(failures.PackagesMissing) as caught:
        build(workspace_folder(tmp_path / "ws", text), "bakery", "lb1")
    assert caught.value.missing == ("nosuch", "tcpdmp")
    assert "for tcpdmp there is tcpdump" in caught.value.what
