#!/usr/bin/env python3
"""Make a folder that behaves like an unpacked OpenWrt ImageBuilder of one release and target.

    instantiate.py --release 24.10.8 --target x86/64 --cache DIR --into IBDIR

Owns what such a folder contains. It is complete in itself, apart from the cache of Debian packages, and running this
again on an unchanged folder changes nothing. Exit code 2 for a release or target the lab does not have, 3 when the
folder cannot be written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_LAB = _HERE.parent
sys.path[:0] = [str(_HERE), str(_LAB)]

from standin import families  # noqa: E402  # beside this script, which is no package

_PARTS = ("debian.py", "debian_base.py", "debian_unpack.py", "imagebuilder", "base")
_NOT = shutil.ignore_patterns("__pycache__", "*.md", ".*_cache")
_EPOCH_BASE = 1767225600  # 2026-01-01; each release gets its own second


def config(family: families.Family) -> str:
    """The .config as such a release ships it, as far as the stand-in honours it."""
    target = family.target
    ext4 = [] if target.start == "flash" else ["CONFIG_TARGET_ROOTFS_EXT4FS=y"]
    switches = [
        *ext4,
        "CONFIG_TARGET_ROOTFS_SQUASHFS=y",
        "CONFIG_TARGET_ROOTFS_TARGZ=y",
        "CONFIG_TARGET_IMAGES_GZIP=y",
        *(["CONFIG_GRUB_IMAGES=y"] if target.x86 else []),
        *(["CONFIG_GRUB_EFI_IMAGES=y"] if family.efi and target.start != "flash" else []),
        "CONFIG_GRUB_CONSOLE=y",
        'CONFIG_GRUB_TIMEOUT="1"',
        'CONFIG_GRUB_TITLE="OpenWrt"',
        'CONFIG_GRUB_BOOTOPTS=""',
        "CONFIG_GRUB_BAUDRATE=115200",
        f'CONFIG_{"TARGET" if family.number >= (24, 10) else "GRUB"}_SERIAL="{target.serial}"',
        f"CONFIG_TARGET_KERNEL_PARTSIZE={target.kernel_mib}",
        f"CONFIG_TARGET_ROOTFS_PARTSIZE={family.default_rootfs_mib}",
    ]
    return (
        "# .config of the stand-in ImageBuilder: these knobs, and no others, are honoured.\n"
        + "\n".join(switches)
        + "\n"
    )


def instantiate(release: str, target: str, cache: Path, into: Path) -> bool:
    """Make the folder, or bring it up to date; False when it was already. Raises UnknownRelease, OSError."""
    family = families.family(release, target)
    year, month = family.number
    python = os.path.realpath(sys.executable)
    settings = {
        "release": release,
        "target": target,
        "cache": str(cache),
        "source_date_epoch": _EPOCH_BASE + year * 10000 + month * 100 + int(release.split(".")[2].split("-")[0]),
        "sources": _digest(),
        "python": python,
    }
    text = json.dumps(settings, indent=1) + "\n"
    stamp = into / ".lab.json"
    if stamp.is_file() and stamp.read_text() == text:
        return False
    into.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{into.name}.", suffix=".partial", dir=into.parent))
    try:
        lab = partial / "lab"
        lab.mkdir()
        for part in _PARTS:
            source = _LAB / part
            if source.is_dir():
                shutil.copytree(source, lab / part, symlinks=True, ignore=_NOT)
            else:
                shutil.copyfile(source, lab / part)
        word = shlex.quote(python).replace("$", "$$")
        (partial / "Makefile").write_text((_HERE / "Makefile.in").read_text().replace("@PYTHON@", word))
        (partial / ".config").write_text(config(family))
        (partial / "packages").mkdir()
        if family.apk:
            (partial / "staging_dir/host/bin").mkdir(parents=True)
            shutil.copyfile(_HERE / "apk.py", partial / "staging_dir/host/bin/apk")
            (partial / "staging_dir/host/bin/apk").chmod(0o755)
        (partial / ".lab.json").write_text(text)
        partial.chmod(0o755)
        if into.exists():
            old = into.with_name(f".{into.name}.{os.getpid()}.old")
            into.rename(old)
            partial.rename(into)
            shutil.rmtree(old, ignore_errors=True)
        else:
            partial.rename(into)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _digest() -> str:
    digest = hashlib.sha256()
    for part in _PARTS:
        top = _LAB / part
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md":
                digest.update(f"{path.relative_to(_LAB)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="instantiate.py", description="Make a stand-in ImageBuilder folder")
    parser.add_argument("--release", required=True, help="an exact OpenWrt release, such as 24.10.8")
    parser.add_argument("--target", required=True, help="target/subtarget, such as x86/64")
    parser.add_argument("--cache", type=Path, required=True, help="folder for Debian packages and what is made of them")
    parser.add_argument("--into", type=Path, required=True, help="the folder to make")
    options = parser.parse_args(argv)
    os.umask(0o022)
    try:
        instantiate(options.release, options.target, options.cache.absolute(), options.into.absolute())
    except families.UnknownRelease as failure:
        sys.stderr.write(f"error: {failure}\n")
        return 2
    except OSError as failure:
        sys.stderr.write(
            f"error: the folder cannot be written: {failure.strerror}\n  where: {failure.filename or options.into}\n"
            "  fix:   free some space there, or choose another folder\n"
        )
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
