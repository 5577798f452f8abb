"""The workspace's packages/: which of them a profile's images get, and how they come into an ImageBuilder.

A package is a folder with a Makefile (built here, for every release), or a ready .ipk or .apk. Only those that a
profile asks for by name are used, with what they depend on in the same place: another customer's package changes
nothing. A workspace's own folder is looked into first, then the shipped one. What a folder may say is the business of
`folder`, the two forms of files that of `ipk` and `apk`; which packages are wanted at all that of `package_plan`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ndakit.core import exposure
from ndakit.core.errors import BuildError, ErrorGroup, InputError, Location, NdakitError
from ndakit.core.files import file_sha256, write_atomic
from ndakit.core.locks import scratch_folder
from ndakit.core.mistakes import KeyPath
from ndakit.core.release import Family, Release
from ndakit.core.workspace import Workspace
from ndakit.imagebuilder import output
from ndakit.load.loaded import Loaded
from ndakit.model import Profile, package_needs, package_plan
from ndakit.model.package_plan import PackagePlan
from ndakit.packages import apk, ipk
from ndakit.packages import folder as packages_folder
from ndakit.packages.folder import Package

FOR_ALL = (ipk.ARCHITECTURE, apk.ARCHITECTURE)
ARCHITECTURES: Mapping[str, str] = {
    "x86/64": "x86_64",
    "x86/generic": "i386_pentium4",
    "kirkwood/generic": "arm_xscale",
    "armsr/armv8": "aarch64_generic",
    "armsr/armv7": "arm_cortex-a15_neon-vfpv4",
}
"""Target → the architecture of its packages (docs/facts.md, Targets and devices; profiles.json, arch_packages)."""


class PackageFileUnusable(InputError):
    """A ready package in packages/ that cannot be used for this profile."""


class PackageAmbiguous(InputError):
    """Two things in packages/ are the same package."""


class PackageLacking(InputError):
    """OpenWrt has no package of this name in the profile's release."""


class PackageNotBuilt(InputError):
    """A program that ndakit brings a recipe for, and nobody has built it for this release and device yet."""


class PackageNotTaken(BuildError):
    """The image has another version of a package than the one in packages/."""


@dataclass(frozen=True)
class Local:
    """One package of packages/ that is to come into an image. `digest` is that of its content."""

    name: str
    version: str
    depends: tuple[str, ...]
    digest: str
    shown: str
    """Where it is, for people: `packages/ndakit-demo`."""
    source: Package | Path
    architecture: str


def choose(
    workspace: Workspace, loaded: Loaded, packages: PackagePlan, *, lab: bool = False, complete: bool = True
) -> tuple[Local, ...]:
    """The packages of packages/ that an image with this plan gets, sorted by name.

    In the lab, programs that OpenWrt's SDK would have to build come from Debian, whatever packages/ has: what was built
    for OpenWrt does not run there. Raises what is wrong with the packages, PackageLacking for names that the release is
    known not to have, and if it has to be complete PackageNotBuilt.
    """
    profile = loaded.profile
    errors: list[NdakitError] = []
    chosen: dict[str, Local] = {}
    queue = list(packages.add)
    asked = set(queue)
    while queue:
        name = queue.pop(0)
        if name in chosen or not packages_folder.NAME.fullmatch(name):  # what a package file depends on is not ours
            continue
        if lab and name in package_plan.RECIPES:
            continue
        try:
            local = _find(workspace, profile, name)
        except NdakitError as error:
            errors += error.errors if isinstance(error, ErrorGroup) else [error]
            continue
        if local is not None:
            chosen[name] = local
            queue += local.depends
        elif name in package_plan.RECIPES and not complete:
            continue
        elif name in package_plan.RECIPES:
            errors.append(_not_built(workspace, loaded, name, package_plan.RECIPES[name]))
        elif name in asked and (lack := package_plan.lack(profile.release, name)) is not None:
            errors.append(_lacking(loaded, name, lack))
    if errors:
        raise errors[0] if len(errors) == 1 else ErrorGroup(errors)
    return tuple(chosen[name] for name in sorted(chosen))


def unbuilt(workspace: Workspace, loaded: Loaded, node: str) -> tuple[PackageNotBuilt, ...]:
    """The programs of a node that somebody has to build in OpenWrt's SDK before there can be an image to flash."""
    try:
        choose(workspace, loaded, package_plan.plan(loaded.profile, node))
    except ErrorGroup as group:
        return tuple(error for error in group.errors if isinstance(error, PackageNotBuilt))
    except PackageNotBuilt as error:
        return (error,)
    except NdakitError:
        pass
    return ()


def _not_built(workspace: Workspace, loaded: Loaded, name: str, recipe: package_plan.Recipe) -> PackageNotBuilt:
    profile = loaded.profile
    release, target = profile.release, profile.target
    arch = ARCHITECTURES.get(target, "ARCHITECTURE")
    form = "apk" if release.family is Family.FW4_APK else "ipk"
    built = f"{name}-*.apk" if form == "apk" else f"{name}_*_{arch}.ipk"
    ours = f"{workspace.shipped / 'packages' / name}" if workspace.shipped != workspace.root else f"packages/{name}"
    steps = (
        f"./scripts/feeds update base && ./scripts/feeds install {' '.join(recipe.libraries)}",
        f"cp -r {ours} package/",
        "make defconfig",
        f"make package/{name}/compile",
    )
    instead = package_plan.LACKS[name].instead
    return PackageNotBuilt(
        f"OpenWrt {release} has no package {name}, and packages/ has no {built} that was built for it",
        where=_asked_at(loaded, name),
        fix=f"build it once in OpenWrt's SDK {release} for {target} ({recipe.guide}): {'; '.join(steps)}; then put "
        f"bin/packages/{arch}/base/{built} into packages/; or use {instead}",
    )


def _asked_at(loaded: Loaded, name: str) -> Location:
    """The place of the profile that asks for a package: image.packages, else the key that needs it, else the file."""
    asked: list[KeyPath] = [("image", "packages", name)]
    if (place := package_needs.place_of(loaded.profile, name)) is not None:
        asked.append(place)
    return next((loaded.origins[key] for key in asked if key in loaded.origins), Location(str(loaded.path)))


def _lacking(loaded: Loaded, name: str, lack: package_plan.Lack) -> PackageLacking:
    release = loaded.profile.release
    form = "apk" if release.family is Family.FW4_APK else "ipk"
    ways = f"put an .{form} of it for this device into packages/"
    return PackageLacking(
        f"OpenWrt {release} has no package {name}",
        where=_asked_at(loaded, name),
        fix=f"use {lack.instead}; or {ways}" if lack.instead else f"{ways}; or take {name} out of image.packages",
    )


def _find(workspace: Workspace, profile: Profile, name: str) -> Local | None:
    """The package of a name, from the first folder that has it."""
    for folder in workspace.packages:
        shown = folder.name if folder.parent == workspace.root else f"ndakit's {folder.name}"
        ready = list(_ready(folder, shown, profile, name))
        makefile = folder / name / "Makefile"
        # A recipe of ours is for the SDK, and what lies beside it is what came of it.
        is_recipe = name in package_plan.RECIPES and folder == workspace.shipped / folder.name
        is_folder = makefile.is_file() and not is_recipe
        if is_folder and ready:
            raise PackageAmbiguous(
                f"package {name} is there twice: as a folder and as {ready[0].shown.rpartition('/')[2]}",
                where=f"{shown}/{name}",
                fix="keep one of them",
            )
        if is_folder:
            for path in (folder / name, makefile):
                _refuse_elsewhere(path, folder, f"{shown}/{name}")
            package = packages_folder.read(folder / name, f"{shown}/{name}")
            form = ipk.ARCHITECTURE if profile.release.family is not Family.FW4_APK else apk.ARCHITECTURE
            version = package.version(profile.release)
            return Local(name, version, package.depends, package.digest, f"{shown}/{name}", package, form)
        if len(ready) > 1:
            raise PackageAmbiguous(
                f"package {name} is there {len(ready)} times: {', '.join(r.shown.rpartition('/')[2] for r in ready)}",
                where=shown,
                fix="keep one of them",
            )
        if ready:
            return ready[0]
    return None


def _ready(folder: Path, shown: str, profile: Profile, name: str) -> Iterator[Local]:
    """The ready files of a package that fit the profile. Raises PackageFileUnusable if there are only others."""
    release = profile.release
    form, other = (".apk", ".ipk") if release.family is Family.FW4_APK else (".ipk", ".apk")
    wanted = ARCHITECTURES.get(profile.target)
    foreign: list[Local] = []
    fitting = 0
    for path in sorted(folder.glob(f"*{form}")) if folder.is_dir() else ():
        if not re.match(rf"{re.escape(name)}[-_]", path.name):
            continue
        _refuse_elsewhere(path, folder, f"{shown}/{path.name}")
        local = _read(path, f"{shown}/{path.name}")
        if local.name != name:
            continue
        if wanted is None or local.architecture in (*FOR_ALL, wanted):
            fitting += 1
            yield local
        else:
            foreign.append(local)
    if foreign and not fitting:
        raise PackageFileUnusable(
            f"package {name} is here for {foreign[0].architecture} only, and {profile.device} needs {wanted}",
            where=foreign[0].shown,
            fix=f"put the package for {wanted} beside it, or take it away",
        )
    others = [p for p in sorted(folder.glob(f"{name}[-_]*{other}")) if _name_in(p) == name] if not fitting else []
    if others and (name in package_plan.RECIPES or not (folder / name / "Makefile").is_file()):
        raise PackageFileUnusable(
            f"{others[0].name} is an {other}, and OpenWrt {release} installs {form} files",
            where=f"{shown}/{others[0].name}",
            fix=f"put the {form} for {release} beside it, or take it away",
        )


def _refuse_elsewhere(path: Path, folder: Path, shown: str) -> None:
    """Raise PackageFileUnusable for a link out of packages/ and of the workspace around it, or to secrets there."""
    try:
        base = folder.resolve()
        exposure.place(path, base if path.resolve().is_relative_to(base) else folder.parent)
    except (exposure.KeptFromOthers, OSError, RuntimeError) as cause:
        why = cause.strerror if isinstance(cause, OSError) else str(cause)
        fix = f"put the package itself into {folder.name}/ in the place of the link"
        raise PackageFileUnusable(f"the package {path.name} {why}", where=shown, fix=fix) from None


def _name_in(path: Path) -> str:
    """A package's name as its file's name says it."""
    if path.suffix == ".ipk":
        return path.name.partition("_")[0]
    name = re.match(r"(.+?)-\d", path.name)
    return name[1] if name else ""


def _read(path: Path, shown: str) -> Local:
    """What a ready file says of itself."""
    try:
        if path.suffix == ".apk":
            header = apk.header(path)
            name, version, depends, arch = header.name, header.version, header.depends, header.arch
        else:
            fields = ipk.control(path)
            name, version, arch = (fields.get(key, "") for key in ("Package", "Version", "Architecture"))
            depends = tuple(re.findall(r"(?:^|,)\s*([^\s,(]+)", fields.get("Depends", "")))
    except (ipk.NotAnIpk, apk.NotAnApk, OSError) as cause:
        why = cause.strerror if isinstance(cause, OSError) else str(cause)
        raise PackageFileUnusable(
            f"{path.name} is no package: {why}", where=shown, fix="download or build it again, or take it away"
        ) from None
    if not packages_folder.NAME.fullmatch(name) or not re.fullmatch(r"[\w.+~:-]+", version) or not arch:
        raise PackageFileUnusable(
            f"{path.name} does not say its name, version and architecture", where=shown,
            fix="build it again, or take it away",
        )  # fmt: skip
    return Local(name, version, depends, file_sha256(path), shown, path, arch)


def read_saved(folder: Path, release: Release, wanted: Mapping[str, str]) -> tuple[Local, ...]:
    """The packages in a folder of saved ones, by what an image had of them: name → version and digest.

    Raises PackageFileUnusable for one that is not there as it was, and what is wrong with those that are there.
    """
    chosen: list[Local] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir():
            package = packages_folder.read(path, path.name)
            form = ipk.ARCHITECTURE if release.family is not Family.FW4_APK else apk.ARCHITECTURE
            version = package.version(release)
            one = Local(package.name, version, package.depends, package.digest, path.name, package, form)
        else:
            one = _read(path, path.name)
        if wanted.get(one.name) == f"{one.version} {one.digest}":
            chosen.append(one)
    for name in sorted(wanted.keys() - {one.name for one in chosen}):
        raise PackageFileUnusable(
            f"the image had package {name} {wanted[name].partition(' ')[0]} from packages/, and the backup lacks it",
            where=f"packages/{name}",
            fix="take a backup on the machine that has this package as it was; or make the image without it: "
            "--without-local-packages",
        )
    return tuple(chosen)


def deliver(local: Sequence[Local], imagebuilder: Path, release: Release) -> None:
    """Put the packages into the `packages/` of an ImageBuilder's private copy, where make indexes them by itself.

    Raises PackageFileUnusable for an architecture that the ImageBuilder is not for, ApkMissing, ProcessFailed.
    """
    if not local:
        return
    config = imagebuilder / ".config"
    knob = output.knobs(config.read_text(errors="replace")).get("CONFIG_TARGET_ARCH_PACKAGES", "")
    arch = knob.strip('"') if config.is_file() else ""
    folder = imagebuilder / "packages"
    folder.mkdir(exist_ok=True)
    for one in local:
        if arch and one.architecture not in (*FOR_ALL, arch):
            raise PackageFileUnusable(
                f"package {one.name} is for {one.architecture}, and the ImageBuilder for {arch}",
                where=one.shown,
                fix=f"put the package for {arch} into packages/",
            )
        if release.family is Family.FW4_APK:
            target = folder / apk.file_name(one.name, one.version)
        else:
            target = folder / ipk.file_name(one.name, one.version, one.architecture)
        target.unlink(missing_ok=True)  # it may be a hard link into the user's own ImageBuilder
        if isinstance(one.source, Path):
            shutil.copyfile(one.source, target)
        elif release.family is Family.FW4_APK:
            with scratch_folder(imagebuilder / "tmp" / "ndakit", one.name) as scratch:
                apk.build(one.source, release, imagebuilder, scratch, target)
        else:
            write_atomic(target, ipk.build(one.source, release))


def prove(local: Sequence[Local], manifest: Mapping[str, str]) -> None:
    """Raise PackageNotTaken if an image has another version of one of the packages: a feed had a higher one."""
    for one in local:
        if manifest.get(one.name) != one.version:
            raise PackageNotTaken(
                f"the image has {one.name} {manifest.get(one.name, '(none)')} instead of {one.version} from packages/",
                where=one.shown,
                fix="the package manager takes the highest version: raise the package's, or take it away",
            )
