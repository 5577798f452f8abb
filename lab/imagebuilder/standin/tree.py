"""The files of an image: the installed packages (cached per set), then FILES, then the enabling of services.

Owns how files get from Debian packages and lab/base into a root, and OpenWrt's `prepare_rootfs` step
(openwrt/openwrt `include/rootfs.mk`). Which packages those are is `resolve`'s business, the disk image `images`'.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import debian

from . import busybox, debian_roots, elf, local
from .families import Family
from .modules import Kernel
from .resolve import Package
from .targets import Target
from .tools import Tools

_FOLDERS = """bin dev etc/config etc/init.d etc/rc.d etc/uci-defaults etc/modules.d etc/sysctl.d etc/hotplug.d/iface
    lib/upgrade/keep.d mnt overlay proc rom root sbin sys tmp usr/bin usr/sbin usr/lib usr/libexec www"""
_RC_COMMON = b"#!/bin/sh /etc/rc.common"
_STRAY = re.compile(r"^(\.git|\.svn|CVS|\.#.*)$")


@dataclass(frozen=True)
class Base:
    """An installed package set: `root` is to be read only."""

    root: Path
    guest: Path  # the Debian root that kernel and busybox come from
    kernel: Kernel
    versions: dict[str, str]


def base(
    cache: Path, lab: Path, family: Family, packages: Sequence[Package], tools: Tools, stamp: str, epoch: int
) -> Base:
    """The installed root of a package set, made once per set. `stamp` names the state of the lab's own sources."""
    target = family.target
    main = debian_roots.guest(cache, target)
    packages = [package.of_suite(debian.suite_of(cache, target.debian)) for package in packages]
    roots = dict.fromkeys(debian_roots.GUEST_SET, main)
    for package in packages:
        for name in package.debian:
            if name not in roots:
                roots[name] = debian.root(cache, [name], arch=target.debian, name=name)
    kernel = debian_roots.kernel(cache, target, tools)
    versions = _versions(debian_roots.debs(cache, target, set(roots) - set(debian_roots.GUEST_SET)), packages, family)
    words = [
        stamp,
        family.release,
        target.name,
        kernel.version,
        str(epoch),
        *(p.name + p.digest for p in packages),
        *sorted({str(r) for r in roots.values()}),
    ]
    key = hashlib.sha256("\0".join(words).encode()).hexdigest()[:24]
    place = cache / "trees" / key
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{key}.", suffix=".partial", dir=place.parent))
        try:
            _install(partial, lab, family, packages, roots, kernel)
            _release_files(partial, family)
            _package_database(partial, family, packages, versions)
            settle(partial, epoch)
            try:
                partial.rename(place)
            except OSError:
                if not place.is_dir():  # else another run has made the same one meanwhile
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    os.utime(place)  # in use now
    prune(place.parent)
    return Base(place, main, kernel, versions)


def prune(folder: Path, *, keep: int = 8, idle_s: float = 7200.0) -> None:
    """Remove what nobody has used for `idle_s` from a folder of the cache, but leave the `keep` newest entries.

    What killed runs left half made goes the same way.
    """
    used: list[tuple[float, Path]] = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another run may prune at the same time
            used.append((path.lstat().st_mtime, path))
    for last, path in sorted(used, reverse=True)[keep:]:
        if time.time() - last > idle_s:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def installed_root(base: Base, into: Path) -> None:
    """Put the installed packages into the empty folder `into`."""
    into.mkdir(parents=True, exist_ok=True)
    link_tree(base.root, into)


def prepare_root(into: Path, files: Path | None, disabled: Sequence[str], epoch: int) -> list[str]:
    """Make an installed root that of one image: FILES, enabled services, settled times. The services' messages."""
    if files is not None and files.is_dir():  # a folder that does not exist is silently left out, as in rootfs.mk
        lay_over(files, into)
    said = _enable(into, disabled)
    for name in ("tmp", "boot"):
        shutil.rmtree(into / name, ignore_errors=True)
    (into / "tmp").mkdir()
    for folder, names, others in os.walk(into):
        for name in [n for n in [*names, *others] if _STRAY.match(n)]:
            stray = Path(folder) / name
            shutil.rmtree(stray) if stray.is_dir() and not stray.is_symlink() else stray.unlink()
    settle(into, epoch)
    (into / "tmp").chmod(0o1777)
    return said


def settle(root: Path, epoch: int) -> None:
    """Set the time of every file, and modes that do not depend on the builder's umask."""
    for folder, names, others in os.walk(root):
        for name in [*names, *others]:
            path = os.path.join(folder, name)  # noqa: PTH118  # 2000 files: pathlib costs a third of the build here
            if os.lstat(path).st_mtime != epoch:
                os.utime(path, (epoch, epoch), follow_symlinks=False)
    os.utime(root, (epoch, epoch))


def sources_stamp(lab: Path) -> str:
    """A digest of the lab's sources: a change in any of them makes the cached roots stale."""
    digest = hashlib.sha256()
    for path in sorted(lab.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md":
            digest.update(f"{path.relative_to(lab)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _install(
    root: Path, lab: Path, family: Family, packages: Sequence[Package], roots: dict[str, Path], kernel: Kernel
) -> None:
    root.chmod(0o755)
    for name in _FOLDERS.split():
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "var").symlink_to("tmp")
    (root / "run").symlink_to("tmp/run")  # Debian's daemons keep their pid files there
    programs: list[tuple[Path, Path]] = []
    for package in packages:
        for entry in package.files:
            source, _, place = (part.strip() for part in entry.partition("->"))
            origin = next(roots[d] for d in package.debian if (roots[d] / source).exists())
            for one in _files(origin / source):
                relative = one.relative_to(origin / source) if source.endswith("/") else Path()
                target = root / (place or source) / relative if source.endswith("/") else root / (place or source)
                _copy(one, target)
                programs.append((target, origin))
    _libraries(root, programs, family.target)
    _busybox(root, next(r for r in roots.values() if (r / "usr/bin/busybox").is_file()))
    kernel.install([m for p in packages for m in p.modules], root)
    for package in packages:
        if package.autoload:
            name = package.name.removeprefix("kmod-")
            _write(root / "etc/modules.d" / name, "".join(f"{m}\n" for m in package.autoload))
    for folder in dict.fromkeys(folder for package in packages for folder in package.base):
        _lay(lab / "base/packages" / folder, root)
        variant = lab / "base/packages" / f"{folder}.{'fw4' if family.fw4 else 'fw3'}"
        if variant.is_dir():
            _lay(variant, root)
    _users(root, [user for package in packages for user in package.users])
    for package in packages:
        if package.archive is not None:
            local.lay(package, root)
    if not family.target.x86:  # no screen, and a serial port of another name
        lines = (root / "etc/inittab").read_text().replace("ttyS0", family.target.serial).splitlines(keepends=True)
        _write(root / "etc/inittab", "".join(line for line in lines if not line.startswith("tty1:")))
    _write(root / "usr/lib/lab/installed", "".join(f"{p.name}\n" for p in packages if not p.hidden))
    _write(root / "usr/lib/lab/absent", "".join(f"{p.name}\n" for p in packages if p.absent))
    _write(root / "usr/lib/lab/conffiles", _conffiles(root, lab, packages))


def _users(root: Path, users: Sequence[str]) -> None:
    """Add the accounts of packages, as base-files' functions.sh does for USERID (add_group_and_user)."""
    for name, number in (user.split("=") for user in users):
        for file, line in (
            ("passwd", f"{name}:x:{number}:{number}:{name}:/var/run/{name}:/bin/false\n"),
            ("group", f"{name}:x:{number}:\n"),
            ("shadow", f"{name}:x:0:0:99999:7:::\n"),
        ):
            place = root / "etc" / file
            mode = place.stat().st_mode & 0o777
            _write(place, place.read_text() + line)
            place.chmod(mode)


def _conffiles(root: Path, lab: Path, packages: Sequence[Package]) -> str:
    """The configuration files that packages brought, with digests: sysupgrade keeps those that have changed since."""
    lines = []
    for folder in dict.fromkeys(folder for p in packages for folder in p.base if folder != "base-files"):
        top = lab / "base/packages" / folder
        for path in sorted((top / "etc").rglob("*")):
            relative = path.relative_to(top)
            if path.is_file() and path.name != ".keep" and relative.parts[1] not in ("init.d", "hotplug.d"):
                lines.append(f"{hashlib.sha256((root / relative).read_bytes()).hexdigest()}  /{relative}\n")
    for name in (name.lstrip("/") for p in packages for name in p.conffiles):
        if (root / name).is_file():
            lines.append(f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  /{name}\n")
    return "".join(lines)


def _package_database(root: Path, family: Family, packages: Sequence[Package], versions: dict[str, str]) -> None:
    """What the package manager writes down of the installed packages, as far as names and versions go: opkg's status
    file, from 25.12 on apk's list (apk-tools, apk-db-installed.5)."""
    seen = [(p.name, versions[p.name]) for p in packages if not p.hidden]
    if family.apk:
        _write(root / "lib/apk/db/installed", "".join(f"P:{name}\nV:{version}\n\n" for name, version in seen))
    else:
        text = "".join(f"Package: {n}\nVersion: {v}\nStatus: install user installed\n\n" for n, v in seen)
        _write(root / "usr/lib/opkg/status", text)


def _release_files(root: Path, family: Family) -> None:
    year, month = family.number
    facts = {
        "DISTRIB_ID": "OpenWrt",
        "DISTRIB_RELEASE": family.release,
        "DISTRIB_REVISION": REVISION,
        "DISTRIB_TARGET": family.target.name,
        "DISTRIB_ARCH": family.target.architecture,
        "DISTRIB_DESCRIPTION": family.vendor_words,
        "DISTRIB_TAINTS": "no-all",
    }
    _write(root / "etc/openwrt_release", "".join(f"{k}='{v}'\n" for k, v in facts.items()))
    _write(root / "etc/openwrt_version", f"{REVISION}\n")
    _write(
        root / "etc/os-release",
        f'NAME="OpenWrt"\nVERSION="{family.release}"\nID="openwrt"\nPRETTY_NAME="{family.vendor_words}"\n',
    )
    _write(
        root / "etc/banner", f"\n  {family.vendor_words}\n  -- not an OpenWrt image; do not flash it anywhere --\n\n"
    )
    _write(root / "usr/lib/lab/family", f"release={family.release}\nnumber={year * 100 + month}\n")


REVISION = "r0-ndakit-lab"


def _files(path: Path) -> Iterable[Path]:
    return sorted(p for p in path.rglob("*") if not p.is_dir()) if path.is_dir() else [path]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)  # follows links: alternatives and versioned names become plain files
    target.chmod(0o755 if source.stat().st_mode & 0o111 else 0o644)


def _libraries(root: Path, programs: Sequence[tuple[Path, Path]], target: Target) -> None:
    """Copy the libraries that the programs need, and their loader, to where the loader looks by itself."""
    library = f"usr/lib/{target.triplet}"
    queue = list(programs)
    seen: set[str] = set()
    while queue:
        program, origin = queue.pop()
        names, interpreter = elf.needed(program)
        for name in [*names, *([interpreter.rsplit("/", 1)[-1]] if interpreter else [])]:
            if name in seen:
                continue
            seen.add(name)
            source = next((origin / f / name for f in (library, "usr/lib") if (origin / f / name).exists()), None)
            if source is None:
                raise FileNotFoundError(f"{name}, needed by {program.name}, is in no library folder of {origin}")
            copy = root / library / name
            _copy(source, copy)
            queue.append((copy, origin))
    loader = root / target.loader
    loader.parent.mkdir(exist_ok=True)
    loader.symlink_to(f"../{library}/{loader.name}")


def _busybox(root: Path, origin: Path) -> None:
    program, names = busybox.restricted((origin / "usr/bin/busybox").read_bytes())
    target = root / "bin/busybox"
    target.write_bytes(program)
    target.chmod(0o755)
    for name in names:
        folder = _APPLET_FOLDERS.get(name, "usr/bin")
        link = root / folder / name
        if name != "busybox" and not link.exists() and not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to("../" * (folder.count("/") + 1) + "bin/busybox")


_IN_BIN = """ash cat chgrp chmod chown cp date dd df dmesg echo egrep false fgrep grep gunzip gzip kill ln login ls
    mkdir mknod mktemp mount mv nc netstat pidof ping ping6 ps pwd rm rmdir sed sh sleep sync tar touch true umount
    uname vi zcat"""
_IN_SBIN = """brctl halt hwclock ifconfig init insmod losetup lsmod mkswap modprobe pivot_root poweroff reboot rmmod
    route start-stop-daemon swapoff swapon switch_root sysctl udhcpc"""
_APPLET_FOLDERS = {**dict.fromkeys(_IN_BIN.split(), "bin"), **dict.fromkeys(_IN_SBIN.split(), "sbin")}


def _lay(folder: Path, root: Path) -> None:
    """Copy one of the lab's own folders over the root, with modes by kind (a checkout's umask must not matter)."""
    for path in sorted(folder.rglob("*")):
        target = root / path.relative_to(folder)
        if path.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.symlink_to(path.readlink())
        elif path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif path.name != ".keep":
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            shutil.copyfile(path, target)
            script = path.read_bytes()[:2] == b"#!"
            secret = target.name == "shadow"
            target.chmod(0o755 if script else 0o600 if secret else 0o644)


def link_tree(source: Path, into: Path) -> None:
    """A copy of a tree whose files are hard links: nothing in it may be written, only replaced."""
    for folder, names, others in os.walk(source):
        here = into / os.path.relpath(folder, source)
        here.mkdir(exist_ok=True)
        here.chmod(0o755)
        for name in others + [n for n in names if os.path.islink(os.path.join(folder, n))]:  # noqa: PTH114, PTH118  # speed
            try:
                os.link(os.path.join(folder, name), here / name, follow_symlinks=False)  # noqa: PTH118  # speed
            except OSError:  # another file system
                shutil.copy2(os.path.join(folder, name), here / name, follow_symlinks=False)  # noqa: PTH118  # speed


def lay_over(files: Path, root: Path) -> None:
    """Copy FILES over the root: its modes and links as they are, replacing what is there."""
    for path in sorted(files.rglob("*")):
        target = root / path.relative_to(files)
        if path.is_dir() and not path.is_symlink():
            if target.is_symlink() or (target.exists() and not target.is_dir()):
                target.unlink()
            target.mkdir(parents=True, exist_ok=True)
            target.chmod(path.stat().st_mode & 0o7777)
            continue
        target.unlink(missing_ok=True)
        if path.is_symlink():
            target.symlink_to(path.readlink())
        else:
            shutil.copyfile(path, target)
            target.chmod(path.stat().st_mode & 0o7777)


def _enable(root: Path, disabled: Sequence[str]) -> list[str]:
    """Enable every init script that is one, or disable it when named; by running it, as the real one does."""
    said = []
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "IPKG_INSTROOT": str(root)}
    for script in sorted((root / "etc/init.d").glob("*")):
        if not script.is_file() or not script.read_bytes().startswith(_RC_COMMON):
            continue
        verb = "disable" if script.name in disabled else "enable"
        done = subprocess.run(
            ["/bin/sh", str(root / "etc/rc.common"), f"./etc/init.d/{script.name}", verb],
            cwd=root, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        said += [f"{verb.capitalize()[:-1]}ing {script.name}", *done.stderr.splitlines()]
    return said


def _versions(debs: Sequence[Path], packages: Sequence[Package], family: Family) -> dict[str, str]:
    """The version of each package as the manifest shows it: Debian's upstream part, in the family's spelling."""
    known: dict[str, str] = {}
    for path in debs:
        name, version, _ = path.name.split("_")
        known[name] = re.sub(r"^\d+%3a|[-+~].*$", "", version)
    version_of = {}
    for package in packages:
        upstream = next((known[d] for d in package.debian if d in known), "1")
        if package.name == "kernel" or package.modules:
            upstream = next((v for n, v in sorted(known.items()) if n.startswith("linux-image-6")), "6")
        version_of[package.name] = package.version or family.package_version(upstream)
    return version_of


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o644)
