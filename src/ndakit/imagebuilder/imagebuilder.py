"""Drive an unpacked ImageBuilder, real or the lab's, through one class.

Owns the runs of make and the proof that what was asked for was really made: make's exit code is no proof, and output
folders keep old images. Works on a private copy (`sources` makes it), never on the user's own folder. What is asked
for is in `request`, texts of failures are read by `failures`, other texts by `output`, disks by `image.disk`.
An image is made in two runs, packages first (`make_steps`): with a `cache.Memory` the installed packages are kept, and
the next image with the same ones needs the second run only. Without one, or with unknown steps, it is `make image`.
Interface: openwrt/openwrt `target/imagebuilder/files/Makefile`, `include/image.mk`.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ndakit.core import process
from ndakit.core.errors import BuildError, InputError
from ndakit.core.files import file_sha256
from ndakit.core.release import Release
from ndakit.image import disk as image_disk
from ndakit.image import flash as image_flash
from ndakit.image.built import Built, BuiltImage
from ndakit.imagebuilder import cache, diagnosis, failures, make_steps, output, prerequisites, working_copy
from ndakit.imagebuilder import request as imagebuilder_request
from ndakit.imagebuilder.request import ImageRequest

IMAGE_TIMEOUT_S = 1800.0
QUERY_TIMEOUT_S = 900.0
SPARE_MIB = 16
_KEY = "key-build"
_UMASK = 0o022  # the ImageBuilder demands it: modes of folders it makes end up in the image

# opkg downloads with wget, apk by itself; both go through the proxy that is named here, where nobody listens (port 9 is
# "discard"). file:// feeds need no proxy.
_NOBODY = "http://127.0.0.1:9"
_NO_NETWORK = {"http_proxy": _NOBODY, "https_proxy": _NOBODY, "ftp_proxy": _NOBODY, "no_proxy": ""}


class ImageBuilderBroken(InputError):
    """A folder that is no ImageBuilder, or one that lost something on the way."""

    def __init__(self, root: Path, detail: str) -> None:
        super().__init__(
            f"this is not a working ImageBuilder: {detail}",
            where=str(root),
            fix="unpack the archive again with tar, and copy it with cp -a (exec bits must survive)",
        )


class ImageBuilderMismatch(InputError):
    """An ImageBuilder of another target or release."""

    def __init__(self, root: Path, what: str, has: str, wanted: str) -> None:
        key = "release" if what == "release" else "device"
        super().__init__(
            f"this ImageBuilder is for {what} {has}, the profile asks for {wanted}",
            where=str(root),
            fix=f"use the ImageBuilder for {wanted}, or change the profile's {key}",
        )


class OutputNotEmpty(BuildError):
    """The output folder has something in it; what an earlier run left there could pass for this run's image."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            "the output folder is not empty, so that an old image in it could pass for a new one",
            where=str(folder),
            fix="empty it, or name another one",
        )


class ImageMissing(BuildError):
    """make said that all was well, and the image is not there."""

    def __init__(self, wanted: str, names: Sequence[str], log: Path) -> None:
        made = f"it made {', '.join(names)}" if names else "it made nothing"
        super().__init__(
            f"the ImageBuilder ended without an error but made no {wanted} image ({made})",
            where=f"log: {log}",
            fix="read the log; an image that is too big for its device is deleted without an error",
        )


class ServiceUnknown(BuildError):
    """A service to be disabled that no package of the image has."""

    def __init__(self, names: Sequence[str], root: Path) -> None:
        super().__init__(
            f"there is no such service in the image: {', '.join(names)}",
            where=f"{root}/etc/init.d",
            fix="correct the name; the ImageBuilder itself would leave the service enabled without a word",
        )


class ImageBuilder:
    """A private ImageBuilder folder for one release.

    `log` gets everything that is said; `on_line` is called with each line while it runs; `memory` is where installed
    packages and answers of this very ImageBuilder are kept; `origin` is what errors name, where this is a copy of it;
    `offline` keeps its package manager from the network.
    """

    def __init__(
        self,
        root: Path,
        release: Release,
        *,
        log: Path,
        on_line: Callable[[str], None] | None = None,
        memory: cache.Memory | None = None,
        origin: Path | None = None,
        offline: bool = False,
    ) -> None:
        self.root = imagebuilder_request.usable_path(root)
        self.release = release
        self.log = log
        self._on_line = on_line
        self._memory = memory
        self._origin = origin or root
        self._env = _NO_NETWORK if offline else {}
        self._signs = (root / _KEY).is_file()  # a key of the user's own; one that make makes vouches for nothing
        check_release(root, release)

    @functools.cached_property
    def info(self) -> output.Info:
        """What `make info` says. Raises ImageBuilderBroken if that names no device: exit code 0 proves nothing."""
        if self._memory and (known := output.info(self._memory.recall("info"))).devices:
            return known
        done = self._make(["make", "info"], QUERY_TIMEOUT_S)
        told = output.info(done.stdout)
        if done.returncode != 0 or not told.devices:
            detail = f"`make info` {process.ending(done.returncode)} and lists {len(told.devices)} devices"
            raise ImageBuilderBroken(self._origin, detail)
        if self._memory:
            self._memory.remember("info", done.stdout)
            self._memory.remember("profiles", self._text(".profiles.mk"))
        return told

    @functools.cached_property
    def make_version(self) -> str:
        """The version of this machine's make, for the record."""
        number = re.search(r"\d+(?:\.\d+)+", self._make(["make", "--version"], QUERY_TIMEOUT_S).stdout)
        return number[0] if number else ""

    def check(self, device: str, target: str) -> None:
        """Refuse an ImageBuilder of another target, or one that does not know the device."""
        if not output.same_target(self.info.target, target):
            raise ImageBuilderMismatch(self._origin, "target", self.info.target, target)
        if device not in self.info.devices:
            raise failures.DeviceUnknown(device, tuple(self.info.devices), str(self._origin))

    def package_names(self) -> tuple[str, ...]:
        """Every package that can be installed; empty if the lists cannot be had.

        opkg's lists are read where they lie: make would ask the servers for them once more, one time-out after another.
        """
        lists = [self.root / "packages/Packages", *sorted((self.root / "dl").glob("*"))]
        texts = [p.read_text(errors="replace") for p in lists if p.is_file() and p.suffix not in (".ipk", ".apk")]
        if names := output.index_names("\n".join(texts)):
            return names
        done = self._make(["make", "package_list"], QUERY_TIMEOUT_S)
        return output.package_names(done.stdout) if done.returncode == 0 else ()

    def manifest(self, device: str, add: Sequence[str] = (), remove: Sequence[str] = ()) -> dict[str, str]:
        """Package → version as an image with these packages would have them; makes no image."""
        packages = " ".join([*sorted(set(add)), *(f"-{name}" for name in sorted(set(remove)))])
        done = self._make(imagebuilder_request.manifest_argv(device, packages), QUERY_TIMEOUT_S)
        version_of = output.manifest(done.stdout)
        if done.returncode != 0 or not version_of:
            raise self._failure(done, device, rootfs_mib=0)
        return version_of

    def image(self, request: ImageRequest, bin_dir: Path) -> Built:
        """Make one image into `bin_dir`, which must be empty or absent, and prove that it is what was asked for."""
        imagebuilder_request.check_request(request, self.release)
        imagebuilder_request.check_files(request.files)
        imagebuilder_request.usable_path(bin_dir)
        self.check(request.device, request.target)
        if bin_dir.exists() and any(bin_dir.iterdir()):
            raise OutputNotEmpty(bin_dir)
        bin_dir.mkdir(parents=True, exist_ok=True)
        self._configure(request)
        started_s = time.monotonic()
        argv = imagebuilder_request.image_argv(request, self.release, bin_dir)
        done = self._steps(request, bin_dir) or self._succeed(argv, request)
        images = self._images(done, request, bin_dir)
        if request.archive:
            images = (*images, self._archive(bin_dir))
        packages = self._manifest_of(bin_dir)
        warnings = self._check_services(request.disabled_services)
        warnings += [
            *diagnosis.script_errors(done.stdout),
            *_removed_anyway(request, packages),
            *_little_room(images, request),
        ]
        return Built(images, packages, tuple(argv), time.monotonic() - started_s, tuple(warnings))

    def _steps(self, request: ImageRequest, bin_dir: Path) -> process.Done | None:
        """Make the image step by step, of a kept root if there is one; None if `make image` has to do it."""
        steps = make_steps.read(self._text("Makefile")) if self._memory else None
        if steps is None or self._memory is None:
            return None
        if steps.once and not prerequisites.restore(self.root, self._memory.recall("host")):
            self._succeed(make_steps.once_argv(steps), request)
            self._memory.remember("host", prerequisites.facts(self.root))
        profile = make_steps.profile_id(self._memory.recall("profiles"), request.device)
        key = cache.key(request.device, request.packages, (working_copy.package_digest(self.root),))
        kept = self._memory.root(key)
        if kept is None or not cache.unpack(kept, self.root):
            done = self._succeed(make_steps.install_argv(steps, request, profile), request)
            root = make_steps.root_of(done.stdout)
            if root is not None and root.is_relative_to(self.root):
                remote = cache.has_remote_feeds(self.root)
                self._memory.keep_root(key, self.root, root.relative_to(self.root).as_posix(), remote=remote)
        return self._succeed(make_steps.finish_argv(steps, request, profile, bin_dir), request)

    def _text(self, name: str) -> str:
        path = self.root / name
        return path.read_text(errors="replace") if path.is_file() else ""

    def _succeed(self, argv: Sequence[str], request: ImageRequest) -> process.Done:
        """Run make; what its failure means is raised, and a full disk even if make has not noticed it."""
        done = self._make(argv, IMAGE_TIMEOUT_S)
        if done.returncode != 0:
            raise self._failure(done, request.device, request.rootfs_mib)
        if full := diagnosis.disk_full(done.stdout, f"log: {self.log}"):
            raise full
        return done

    def _configure(self, request: ImageRequest) -> None:
        config = self.root / ".config"
        text = config.read_text(errors="surrogateescape")
        has = output.knobs(text)
        offered = [
            name
            for name, knob in imagebuilder_request.KNOB_OF.items()
            if has.get(f"CONFIG_TARGET_ROOTFS_{knob}") == "y"
        ]
        uses = {"squashfs": "CONFIG_USES_SQUASHFS", "ext4": "CONFIG_USES_EXT4"}[request.filesystem]
        if request.filesystem not in offered and has.get(uses) != "y":
            raise imagebuilder_request.FilesystemUnavailable(request.filesystem, offered, self.root)
        config.write_text(output.set_knobs(text, imagebuilder_request.wanted_knobs(request)), errors="surrogateescape")

    def _images(self, done: process.Done, request: ImageRequest, bin_dir: Path) -> tuple[BuiltImage, ...]:
        made = sorted(p.name for p in bin_dir.iterdir() if p.is_file())
        listed = self._listed(bin_dir, request.device)
        wanted = [i for i in listed if i.kind in request.kinds and i.filesystem == request.filesystem]
        chosen = [i for i in wanted if (bin_dir / i.name).is_file() and (bin_dir / i.name).stat().st_size > 0]
        if not chosen or len(chosen) != len(wanted):
            raise self._told(done, request.device, request.rootfs_mib) or ImageMissing(
                f"{request.filesystem} {' or '.join(request.kinds)}", made, self.log
            )
        return tuple(self._looked_into(bin_dir / i.name, i, request) for i in chosen)

    def _archive(self, bin_dir: Path) -> BuiltImage:
        """The root file system's archive; profiles.json does not list it."""
        archives = sorted(bin_dir.glob("*rootfs.tar.gz"))
        if not archives:
            made = sorted(p.name for p in bin_dir.iterdir())
            raise ImageMissing("rootfs.tar.gz", made, self.log)
        image_disk.inspect_archive(archives[0])
        return BuiltImage(archives[0], "rootfs", "tar", file_sha256(archives[0]), None, "rootfs")

    def _listed(self, bin_dir: Path, device: str) -> list[output.Listed]:
        """The images of profiles.json; before 21.02 there is none, and the names have to tell."""
        overview = bin_dir / "profiles.json"
        if not overview.is_file():
            return [_from_name(path.name) for path in sorted(bin_dir.iterdir()) if path.is_file()]
        try:
            made = output.overview(overview.read_text(errors="replace"), device)
        except ValueError as cause:
            raise ImageMissing("listed", [f"a profiles.json with {cause}"], self.log) from cause
        if made.version and made.version != str(self.release):
            raise ImageBuilderMismatch(self._origin, "release", made.version, str(self.release))
        return list(made.images)

    def _looked_into(self, path: Path, listed: output.Listed, request: ImageRequest) -> BuiltImage:
        with ThreadPoolExecutor(1) as beside:  # hashing and unpacking both let the other work meanwhile
            looking = beside.submit(image_disk.inspect, path) if listed.kind.startswith("combined") else None
            sha256 = file_sha256(path)
        if listed.sha256 and listed.sha256 != sha256:
            raise image_disk.DiskImageBroken(path, "its SHA-256 is not the one in profiles.json")
        # Each copy of an ImageBuilder makes a key of its own, which no appliance trusts: the same image would be
        # another file in each, and one that an appliance with ucert refuses.
        if not self._signs and image_flash.cut_signature(path):
            sha256 = file_sha256(path)
        disk = looking.result() if looking is not None else None
        if disk is not None:
            self._check_disk(path, disk, request)
        known = request.device in image_flash.FLASHES and disk is None
        flash = image_flash.inspect(path, request.device) if known else None
        return BuiltImage(path, listed.kind, listed.filesystem, sha256, disk, flash=flash)

    def _check_disk(self, path: Path, disk: image_disk.DiskFacts, request: ImageRequest) -> None:
        payload_mib = -(-disk.root_payload // image_disk.MIB)
        if disk.root_payload > disk.root_capacity or disk.root_offset + disk.root_payload > disk.disk_bytes:
            detail = f"the {disk.filesystem} is {payload_mib} MiB"
            raise failures.RootTooSmall(detail, request.rootfs_mib, f"log: {self.log}", _next_size(payload_mib))
        if disk.filesystem != request.filesystem:
            raise image_disk.DiskImageBroken(path, f"there is no {request.filesystem} in its root partition")
        if disk.root_capacity != request.rootfs_mib * image_disk.MIB:
            capacity_mib = disk.root_capacity // image_disk.MIB
            raise image_disk.DiskImageBroken(
                path, f"its root partition has {capacity_mib} MiB instead of {request.rootfs_mib}"
            )

    def _manifest_of(self, bin_dir: Path) -> dict[str, str]:
        manifests = [p for p in sorted(bin_dir.iterdir()) if p.name.endswith(".manifest")]
        packages = output.manifest(manifests[0].read_text(errors="replace")) if manifests else {}
        if not packages:
            raise ImageMissing("documented", [p.name for p in manifests] or ["no manifest"], self.log)
        return packages

    def _check_services(self, names: Sequence[str]) -> list[str]:
        """Refuse names that make let pass without a word; a warning if it left no root to look into."""
        folders = sorted(self.root.glob("build_dir/*/root-*")) + sorted(self.root.glob("build_dir/root-*"))
        roots = [p for p in folders if (p / "etc/init.d").is_dir()]
        if names and not roots:
            return [f"whether there are services {', '.join(sorted(names))} to disable could not be checked"]
        missing = [n for n in names if not any((r / "etc/init.d" / n).is_file() for r in roots)]
        if missing:
            raise ServiceUnknown(missing, roots[0])
        return []

    def _failure(self, done: process.Done, device: str, rootfs_mib: int) -> Exception:
        return self._told(done, device, rootfs_mib) or failures.ImageBuilderFailed(
            done.command(), done.returncode, done.tail(), self.log
        )

    def _told(self, done: process.Done, device: str, rootfs_mib: int) -> Exception | None:
        """The error that the output tells of, if it does. The answer to `known` needs make again, so it comes last."""
        devices = tuple(self.info.devices)
        here = tuple(p.name for p in (self.root / "packages").glob("*.?pk"))
        context = diagnosis.Context(
            f"log: {self.log}", device, devices, rootfs_mib, self.package_names, here, bool(self._env)
        )
        return diagnosis.diagnose(done.stdout + "\n" + done.stderr, context)

    def _make(self, argv: Sequence[str], timeout_s: float) -> process.Done:
        """Run make in the folder. It ends with us even if we are killed: make passes the signal on to what it runs."""
        process.require("make", package="make", reason="to drive an ImageBuilder")
        setpriv = process.require("setpriv", package="util-linux", reason="so that make does not outlive this program")
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(argv)}\n")
        done = process.run(
            [str(setpriv), "--pdeathsig", "TERM", "--", *argv],
            timeout_s=timeout_s,
            cwd=self.root,
            env=self._env,
            log=self.log,
            check=False,
            on_line=self._on_line,
            umask=_UMASK,
        )
        return process.Done(tuple(argv), done.returncode, done.stdout, done.stderr, done.elapsed_s)


def check_release(folder: Path, release: Release) -> None:
    """Refuse a folder that is no ImageBuilder, or one of another release (include/version.mk says which)."""
    for name in ("Makefile", ".config"):
        if not (folder / name).is_file():
            raise ImageBuilderBroken(folder, f"it has no {name}")
    says = folder / "include/version.mk"
    version = output.version_number(says.read_text(errors="replace")) if says.is_file() else None
    if version is not None and version != str(release):
        raise ImageBuilderMismatch(folder, "release", version, str(release))


def _from_name(name: str) -> output.Listed:
    """What a file name tells where there is no profiles.json (`…-combined-squashfs.img.gz` on x86 up to 19.07)."""
    old = re.search(r"-(combined)-(squashfs|ext4)\.img(?:\.gz)?$", name)
    if old:
        return output.Listed(name, old[1], old[2], "")
    new = re.search(r"-(squashfs|ext4)-([a-z-]+)\.(?:img|img\.gz|bin|tar)$", name)
    return output.Listed(name, new[2], new[1], "") if new else output.Listed(name, "", "", "")


def _next_size(payload_mib: int) -> int:
    """A root partition with room for this payload and changes, in whole 64 MiB."""
    return -(-(payload_mib + 2 * SPARE_MIB) // 64) * 64


def _removed_anyway(request: ImageRequest, packages: Mapping[str, str]) -> list[str]:
    names = [name for name in sorted(set(request.remove)) if name in packages]
    return [f"package {name} was to be left out and is in the image: another package needs it" for name in names]


def _little_room(images: Sequence[BuiltImage], request: ImageRequest) -> list[str]:
    for image in images:
        if image.disk is not None and image.filesystem == "squashfs":
            left_mib = (image.disk.root_capacity - image.disk.root_payload) // image_disk.MIB
            if left_mib < SPARE_MIB:
                wanted = _next_size(request.rootfs_mib - left_mib)
                return [f"only {left_mib} MiB are left for changes on the appliance; image.rootfs_mib: {wanted}"]
    return []
