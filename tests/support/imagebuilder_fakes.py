"""Fake ImageBuilder folders for tests, and a workspace with one small profile."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from ndakit.core.release import Release
from ndakit.imagebuilder.imagebuilder import ImageBuilder
from ndakit.imagebuilder.request import ImageRequest

SOURCE = Path(__file__).parent / "fake_imagebuilder"
CONFIG = """\
CONFIG_TARGET_ROOTFS_EXT4FS=y
CONFIG_TARGET_ROOTFS_SQUASHFS=y
CONFIG_TARGET_ROOTFS_TARGZ=y
CONFIG_USES_SQUASHFS=y
CONFIG_USES_EXT4=y
CONFIG_GRUB_IMAGES=y
CONFIG_GRUB_EFI_IMAGES=y
CONFIG_GRUB_TIMEOUT="5"
# CONFIG_VDI_IMAGES is not set
CONFIG_TARGET_ROOTFS_PARTSIZE=104
"""
PROFILE = """\
name: bakery
release: 24.10.8
image: {rootfs_mib: 64}
access:
  ssh_keys: {me: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me}
  sources: {office: 192.168.0.0/24}
networks: {lan: {nics: [eth0], subnet: 192.168.0.0/24, gateway: 192.168.0.254}}
nodes:
  lb1: {addresses: {lan: 192.168.0.11}}
  lb2: {addresses: {lan: 192.168.0.12}}
vips: {www: {network: lan, address: 192.168.0.10}}
pools: {web: {check: http, servers: {web1: 192.168.0.21, web2: 192.168.0.22}}}
services: {web: {vip: www, port: 80, protocol: http, pool: web}}
"""


def fake(folder: Path, release: str = "24.10.8", target: str = "x86/64", mode: str = "", **more: str) -> Path:
    """A fake ImageBuilder of a release; `mode` is what goes wrong."""
    folder.mkdir(parents=True)
    (folder / "Makefile").write_text((SOURCE / "Makefile").read_text().replace("@PYTHON", f"@{sys.executable}"))
    for name in ("fake.py", "flashfiles.py"):
        shutil.copyfile(SOURCE / name, folder / name)
    settings = {"release": release, "target": target, "mode": mode, **more}
    (folder / "fake.json").write_text(json.dumps(settings))
    config = CONFIG if tuple(map(int, release.split(".")[:2])) >= (21, 2) else CONFIG.replace("_EFI_", "_NO_")
    (folder / ".config").write_text(config)
    (folder / "include").mkdir()
    version = f"VERSION_NUMBER:=$(if $(VERSION_NUMBER),$(VERSION_NUMBER),{release})\n"
    (folder / "include/version.mk").write_text(version)
    (folder / "staging_dir/host").mkdir(parents=True)
    (folder / "packages").mkdir()
    (folder / "packages/kernel_1_all.ipk").write_bytes(b"a package")
    return folder


def driver(base: Path, release: str = "24.10.8", mode: str = "", **more: str) -> ImageBuilder:
    """The driver on a fake ImageBuilder of its own."""
    folder = fake(base / "imagebuilder", release, mode=mode, **more)
    return ImageBuilder(folder, Release.parse(release), log=base / "log")


def request(folder: Path, **changes: object) -> ImageRequest:
    """A request for an image of node lb1 that any fake can fulfil."""
    files = folder / "files"
    (files / "etc").mkdir(parents=True, exist_ok=True)
    (files / "etc/banner").write_text("hello\n")
    facts: dict[str, object] = {
        "device": "generic", "target": "x86/64", "add": ("haproxy",), "remove": ("ppp",), "files": files,
        "extra_name": "bakery-lb1", "rootfs_mib": 64,
    }  # fmt: skip
    return ImageRequest(**(facts | changes))  # type: ignore[arg-type]  # each test names fields of the dataclass


def workspace_folder(folder: Path, profile: str = PROFILE) -> Path:
    """A folder with profiles/bakery.yaml."""
    (folder / "profiles").mkdir(parents=True)
    (folder / "profiles/bakery.yaml").write_text(profile)
    return folder
