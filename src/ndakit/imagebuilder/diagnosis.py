"""What an ImageBuilder's own words say: the recognition of the real tools' texts.

opkg, apk, make_ext4fs, prepare_rootfs, the size checks, the host's prerequisites. Exit codes of make say nothing more
than "no", and an image that is too big may come with exit code 0, so the text is read in either case.
Texts: openwrt/openwrt `include/prereq*.mk`, `include/image-commands.mk`, `include/rootfs.mk`; opkg; apk-tools.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ndakit.core import process
from ndakit.core.errors import NdakitError
from ndakit.core.mistakes import clean
from ndakit.image.built import DiskFull
from ndakit.imagebuilder.failures import (
    DependenciesMissing,
    DeviceUnknown,
    FeedsUnreachable,
    FilesClash,
    ImageTooBig,
    InstallScriptFailed,
    MachineLacking,
    PackageFilesUnusable,
    PackagesConflict,
    PackagesMissing,
    PackagesUntrusted,
    PrerequisitesMissing,
    RootTooSmall,
)
from ndakit.imagebuilder.fetch.mirrors import shown


@dataclass(frozen=True)
class Context:
    """What is needed to turn a text into advice. `known` lists the available packages, asked only when needed."""

    where: str
    device: str
    devices: tuple[str, ...]
    rootfs_mib: int
    known: Callable[[], Sequence[str]]
    files: tuple[str, ...] = ()
    """Names of the package files that lie in packages/."""
    offline: bool = False
    """True if the package manager was kept from the network."""


# wget(1), EXIT STATUS.
_WGET = {
    3: "the file cannot be written", 4: "no connection", 5: "the certificate is not accepted",
    6: "a password is asked for", 7: "the server speaks no HTTP", 8: "the server answers with an error",
}  # fmt: skip
# A word in the host check's message → Debian's package of it (openwrt/openwrt include/prereq-build.mk).
_PREREQUISITES = (
    ("distutils", "python3-setuptools"),
    ("gnu 'awk'", "gawk"),
    ("gawk", "gawk"),
    ("rsync", "rsync"),
    ("unzip", "unzip"),
    ("bzip2", "bzip2"),
    ("wget", "wget"),
    ("perl", "perl"),
    ("python3", "python3"),
    ("python 3", "python3"),
    ("python2", "python2"),
    ("python 2", "python2"),
    ("getopt", "util-linux"),
    ("git ", "git"),
    ("'file'", "file"),
    ("'which'", "debianutils"),
    ("zstd", "zstd"),
    ("'patch'", "patch"),
    ("'diff'", "diffutils"),
    ("'tar'", "tar"),
    ("gcc", "gcc"),
    ("g++", "g++"),
    ("ncurses", "libncurses-dev"),
    ("gnu make", "make"),
)


def diagnose(text: str, context: Context) -> NdakitError | None:
    """The error that the output of a run tells of, None if it tells of none that is known."""
    # opkg says "Cannot install" to every failure and "Unknown package" to some: the specific reasons come first. On a
    # full disk it forgets what it has installed and finds dependencies missing, so that comes before all of them.
    for recognise in (
        _spoken, _prerequisites, _device, _disk, _dependencies, _clash, _conflict, _script, _architecture, _missing,
        _untrusted, _too_big, _root_small,
    ):  # fmt: skip
        error = recognise(text, context)
        if error is not None:
            return _first_of_all(text, error, context)
    return None


def _first_of_all(text: str, error: NdakitError, context: Context) -> NdakitError:
    """What cannot be had is missing for those who need it: with lists that failed to load, opkg's last words are
    "libc needs libgcc", and apk's "no such package"."""
    if not isinstance(error, PackagesMissing | DependenciesMissing):
        return error
    if failed := downloads_failed(text):
        return FeedsUnreachable(failed, error.what, context.where, offline=context.offline)
    return _untrusted(text, context) or error  # a list with a wrong signature is not read either


def downloads_failed(text: str) -> dict[str, str]:
    """Address → reason of what a package manager could not download, in its order; a password is left out."""
    failed: dict[str, str] = {}
    # opkg (opkg_cmd.c, opkg_download.c) tells of a list at once, and of the reason at its end.
    for address in re.findall(r"Failed to download the package list from (\S+)", text):
        failed[address] = ""
    for address, code in re.findall(r"Failed to download (\S*[/:]\S*?), wget returned (\d+)", text):
        failed[address] = _WGET.get(int(code), f"wget ended with {code}") if len(code) < 4 else ""
    # apk (apk-tools 3, src/database.c, src/print.c)
    apk = r"^(?:WARNING|ERROR): (?:updating and opening|updating|opening|fetching) (\S+): (?!UNTRUSTED)(.+)$"
    failed |= {address: why.strip() for address, why in re.findall(apk, text, re.MULTILINE)}
    failed |= {a: why.strip() for a, why in re.findall(r"^WARNING: Ignoring (\S+): (.+)$", text, re.MULTILINE)}
    return {shown(address): clean(why)[:80] for address, why in failed.items()}


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _spoken(text: str, _: Context) -> NdakitError | None:
    lines = re.search(r"^error: (.+)\n  where: (.+)\n  fix:   (.+)$", text, re.MULTILINE)
    return MachineLacking(lines[1], where=lines[2], fix=lines[3]) if lines else None


def _prerequisites(text: str, context: Context) -> NdakitError | None:
    if "Prerequisite check failed" not in text and "Preparation failed" not in text:
        return None
    wishes = _unique(m.strip() for m in re.findall(r"Build dependency: (.+)", text))
    packages: list[str] = []
    refused: list[str] = []
    for wish in wishes:
        asked = [package for word, package in _PREREQUISITES if word in wish.lower()][:1]
        # It asks for "4.8 or later" and refuses what is later than it knows (include/prereq-build.mk up to 19.07.7).
        if asked and "please install the gnu c" in wish.lower() and process.find(asked[0]) is not None:
            refused += asked
        else:
            packages += asked
    return PrerequisitesMissing(wishes, _unique(packages), context.where, refused=_unique(refused))


def _device(text: str, context: Context) -> NdakitError | None:
    match = re.search(r'^Profile "(.*)" does not exist!', text, re.MULTILINE)
    return DeviceUnknown(match[1], context.devices, context.where) if match else None


def _missing(text: str, context: Context) -> NdakitError | None:
    missing = _unique(
        [
            *re.findall(r"Unknown package '([^']+)'", text),
            *re.findall(r"opkg_install_cmd: Cannot install package ([^\s]+?)\.?$", text, re.MULTILINE),
            *re.findall(r"^ *([^\s(]+) \(no such package\):", text, re.MULTILINE),
        ]
    )
    if not missing:
        return None
    damaged = [f for f in context.files for name in missing if re.match(rf"{re.escape(name)}(_|-[0-9])", f)]
    if damaged:
        return PackageFilesUnusable(_unique(damaged), "they have no readable control data", context.where)
    known = list(context.known())
    near = {name: difflib.get_close_matches(name, known, 3, 0.7) for name in missing}
    return PackagesMissing(missing, near, context.where)


def _architecture(text: str, context: Context) -> NdakitError | None:
    names = re.findall(r"Packages for (\S+) found, but incompatible with the architectures configured", text)
    return PackageFilesUnusable(_unique(names), "another architecture", context.where) if names else None


def _dependencies(text: str, context: Context) -> NdakitError | None:
    needs_of: dict[str, list[str]] = {}
    for need, package in re.findall(r"cannot find dependency (\S+) for (\S+)", text):
        needs_of.setdefault(package, []).append(need)
    old = r"[Cc]annot satisfy the following dependencies for ([^\s:]+):\n((?: \*[^\n]*\t[^\n]*\n?)+)"
    for match in re.finditer(old, text):
        needs_of.setdefault(match[1], []).extend(re.findall(r"\t\s*([a-z0-9][a-z0-9+._-]*)", match[2]))
    # apk says who asks: `world` is what was asked for by name, and _missing's business.
    asking = re.findall(r"^ *([^\s(]+) \(no such package\):\n +required by: (.+)$", text, re.MULTILINE)
    if not any("world[" in by for _, by in asking):
        for need, by in asking:
            for package in re.findall(r"(\S+?)-\d[^\s\[]*\[", by):
                needs_of.setdefault(package, []).append(need)
    pairs = [(package, tuple(_unique(needs))) for package, needs in needs_of.items()]
    return DependenciesMissing(pairs, context.where) if pairs else None


def _conflict(text: str, context: Context) -> NdakitError | None:
    pairs: list[tuple[str, tuple[str, ...]]] = []
    # opkg writes the names behind one another on one line, each behind a tab.
    for match in re.finditer(r"The following packages conflict with ([^\s:]+):\n([^\n]*)", text):
        pairs.append((match[1], tuple(re.findall(r"\t\s*([a-z0-9][a-z0-9+._-]*)", match[2]))))
    for match in re.finditer(r"^ +([a-z0-9][^\s:]*):\n +conflicts: ([^\n]+)", text, re.MULTILINE):
        pairs.append((_apk_name(match[1]), tuple(_apk_name(w.partition("[")[0]) for w in match[2].split())))
    return PackagesConflict(pairs, context.where) if pairs else None


def _apk_name(text: str) -> str:
    """`haproxy-3.0.5-r1` → `haproxy`: apk names the versions along."""
    return re.sub(r"-[0-9][a-z0-9._~]*(?:-r[0-9]+)?$", "", text)


def _clash(text: str, context: Context) -> NdakitError | None:
    clashes = [
        (m[1], _rooted(m[2]), m[3])
        for m in re.finditer(
            r"check_data_file_clashes: Package ([^\s]+) wants to install file ([^\s]+)\n"
            r"[\s*]*But that file is already provided by package\s+\*?\s*([^\s]+)",
            text,
        )
    ]
    clashes += [
        (_apk_name(m[1]), _rooted(m[2]), _apk_name(m[3]))
        for m in re.finditer(r"ERROR: ([^\s:]+): trying to overwrite ([^\s]+) owned by ([^\s]+?)\.?$", text, re.M)
    ]
    return FilesClash(clashes, context.where) if clashes else None


def _rooted(path: str) -> str:
    """The path on the appliance: opkg names it below the folder where the root file system is put together."""
    path = re.sub(r"^.*/root-[^/]+/", "/", path)
    return path if path.startswith("/") else f"/{path}"


def _untrusted(text: str, context: Context) -> NdakitError | None:
    names = _unique(re.findall(r"(?<!\S)([^\s]+): UNTRUSTED signature", text))
    names += _unique(re.findall(r"[Ss]ignature check failed(?: for)? ?([^\s.]*)", text))
    names = [name or "a package list" for name in names]
    return PackagesUntrusted(names, context.where) if names else None


def _too_big(text: str, context: Context) -> NdakitError | None:
    size_told = re.search(r"(?:WARNING: )?Image file (\S+) is too big: (\d+) > (\d+)", text)
    if size_told:
        size, limit = int(size_told[2]), int(size_told[3])
        return ImageTooBig(
            f"{Path(size_told[1]).name} has {size} bytes, {size - limit} more than {limit}", context.where
        )
    size_told = re.search(r"images are too big by (\d+) bytes", text)
    return ImageTooBig(f"{size_told[1]} bytes too much", context.where) if size_told else None


def _root_small(text: str, context: Context) -> NdakitError | None:
    message = re.search(r"failed to allocate (\d+) blocks, out of space\?", text)
    if message:
        detail = f"no room for {message[1]} more blocks"
    elif "make_file: failed to allocate inode" in text:
        detail = "no room for more files"
    elif message := re.search(r"^.*(?:is too big|out of space\?).*$", text, re.MULTILINE):
        detail = message[0].strip()
    else:
        return None
    return RootTooSmall(detail, context.rootfs_mib, context.where)


def _script(text: str, context: Context) -> NdakitError | None:
    message = re.search(r"postinst script \S+ has failed with exit code \d+", text) or re.search(
        r'package "[^"]+" postinst script returned status \d+', text
    )
    return InstallScriptFailed(message[0], context.where) if message else None


def _disk(text: str, context: Context) -> NdakitError | None:
    return disk_full(text, context.where)


def disk_full(text: str, where: str) -> DiskFull | None:
    """The error of a full disk, if the output tells of one; opkg ends with 0 when it cannot write its lists."""
    message = re.search(r"^.*(?:No space left on device|Disk quota exceeded).*$", text, re.MULTILINE)
    return DiskFull(where, message[0].strip()[:160]) if message else None


def script_errors(text: str) -> list[str]:
    """Warnings for init scripts that the shell could not read to their end; make goes on without a word."""
    errors = re.findall(r"^\./etc/init\.d/([^:\n]+): line (\d+): (.+)$", text, re.MULTILINE)
    return [f"the init script /etc/init.d/{name} has an error in line {line}: {said}" for name, line, said in errors]
