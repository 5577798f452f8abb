"""What the Makefile of an instantiated folder calls: `python3 -m standin VERB`, settings in the environment.

Owns the verbs' output and exit codes. Run by make in the ImageBuilder's folder.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path.cwd()
sys.path.insert(0, str(HERE / "lab"))

import debian  # noqa: E402  # lies two folders up: a script of its own as well

from . import families, images, local, resolve, tools, tree  # noqa: E402  # after the path is set


class _Folder:
    """The ImageBuilder's folder and the settings it was made with."""

    def __init__(self) -> None:
        settings = json.loads((HERE / ".lab.json").read_text())
        self.family = families.family(settings["release"], settings["target"])
        self.cache = Path(settings["cache"])
        self.epoch = int(settings["source_date_epoch"])
        self.lab = HERE / "lab"
        self.feed = resolve.feed(self.lab / "imagebuilder/packages.toml", self.family)
        self.feed |= local.packages(HERE / "packages", self.family, _note)

    @functools.cached_property
    def stamp(self) -> str:
        """Names the state of the lab's sources in this folder."""
        return tree.sources_stamp(self.lab)

    def packages(self) -> list[resolve.Package]:
        """The packages that PACKAGES asks for. Raises resolve.Unresolvable."""
        defaults = [*self.family.default_packages, *self.family.profile_packages, "kernel"]
        return resolve.selection(
            self.feed, defaults, _setting("USER_PACKAGES") or _setting("PACKAGES"), self.family, _say
        )


def _setting(name: str) -> str:
    return os.environ.get(name, "")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _note(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def info(folder: _Folder) -> int:
    """`make info`, in the format ASU and others parse."""
    family = folder.family
    target = family.target
    _say(f'Current Target: "{family.info_target}"')
    if family.fw4:
        _say(f'Current Architecture: "{target.architecture}"')
    _say(f'Current Revision: "{tree.REVISION}"')
    _say(f"Default Packages: {' '.join(family.default_packages)}")
    _say("Available Profiles:\n")
    _say(f"{family.profile}:\n    {target.title}\n    Packages: {' '.join(family.profile_packages)}")
    _say(f"    hasImageMetadata: {'1' if family.l2_devices else ''}")
    if family.l2_devices:
        _say(f"    SupportedDevices: {' '.join(target.supported)}")
    return 0


def _profile_known(folder: _Folder) -> bool:
    wanted = _setting("USER_PROFILE").removeprefix("DEVICE_") or _setting("PROFILE")
    if wanted and wanted != folder.family.profile:
        _say(f'Profile "{wanted}" does not exist!')
        _say('Use "make info" to get a list of available profile names.')
        return False
    return True


def manifest(folder: _Folder) -> int:
    """`make manifest`: resolve and print, no image."""
    if not _profile_known(folder):
        return 1
    packages = folder.packages()
    base = _base(folder, packages)
    for name, version in images.manifest_lines(packages, base.versions):
        _say(f"{name} - {version}")
    return 0


def package_install(folder: _Folder) -> int:
    """`make package_install`: the packages into the empty TARGET_DIR."""
    if not _profile_known(folder):
        return 1
    _say("Installing packages...")
    packages = folder.packages()
    for package in packages:
        if package.absent:
            _note(f"lab: package {package.name} has no stand-in: nothing of it is in the image")
    tree.installed_root(_base(folder, packages), Path(_setting("TARGET_DIR")))
    return 0


def prepare_rootfs(folder: _Folder) -> int:
    """`make prepare_rootfs`: the root of TARGET_DIR becomes that of one image."""
    _say("Finalizing root filesystem...")
    files = HERE / _setting("USER_FILES") if _setting("USER_FILES") else None
    disabled = _setting("DISABLED_SERVICES").split()
    for line in tree.prepare_root(Path(_setting("TARGET_DIR")), files, disabled, folder.epoch):
        _say(line)
    return 0


def build_image(folder: _Folder) -> int:
    """`make build_image`: the images of the root in TARGET_DIR, and the files that describe them."""
    started_s = time.monotonic()
    packages = folder.packages()
    base = _base(folder, packages)
    knobs = images.Knobs.read(HERE / ".config")
    target = HERE / (_setting("BIN_DIR") or f"bin/targets/{folder.family.target.name}")
    target.mkdir(parents=True, exist_ok=True)
    root = Path(_setting("TARGET_DIR"))
    partsize = knobs.text("TARGET_ROOTFS_PARTSIZE", str(folder.family.default_rootfs_mib))
    if folder.family.rootfs_partsize_variable and _setting("CONFIG_TARGET_ROOTFS_PARTSIZE"):
        partsize = _setting("CONFIG_TARGET_ROOTFS_PARTSIZE")
    job = images.Job(
        family=folder.family,
        tools=tools.Tools(folder.cache),
        kernel=base.kernel,
        guest_root=base.guest,
        lab=folder.lab,
        cache=folder.cache,
        root=root,
        scratch=root.parent,
        target=target,
        extra=_setting("EXTRA_IMAGE_NAME"),
        knobs=knobs,
        partsize_mib=int(partsize),
        epoch=folder.epoch,
        stamp=folder.stamp,
        say=_say,
    )
    _say("Building images...")
    records = images.build(job)
    images.describe(job, records, packages, base.versions)
    _say(f"lab: images made in {time.monotonic() - started_s:.1f} s")
    return 0


def package_list(folder: _Folder) -> int:
    """`make package_list`: every package, with its version."""
    for package in sorted(folder.feed.values(), key=lambda p: p.name):
        if not package.hidden:
            _say(f"{package.name} - {package.version or folder.family.package_version('1')}")
    return 0


def _base(folder: _Folder, packages: list[resolve.Package]) -> tree.Base:
    return tree.base(
        folder.cache, folder.lab, folder.family, packages, tools.Tools(folder.cache), folder.stamp, folder.epoch
    )


_VERBS: dict[str, Callable[[_Folder], int]] = {
    "info": info, "manifest": manifest, "package_list": package_list, "package_install": package_install,
    "prepare_rootfs": prepare_rootfs, "build_image": build_image,
}  # fmt: skip


def main() -> int:
    """Run one verb; its exit code (make turns any but 0 into 2)."""
    os.umask(0o022)
    try:
        return _VERBS[sys.argv[1]](_Folder())
    except resolve.Unresolvable as failure:
        _note(str(failure))
        return failure.code
    except (images.BuildFailed, tools.ToolFailed) as failure:
        _note(str(failure))
        return 1
    except debian.LabError as failure:
        _note(f"error: {failure}")
        return 3


if __name__ == "__main__":
    sys.exit(main())
