"""OpenWrt's .apk (25.12 and later): written by an ImageBuilder's own `apk mkpkg`, read as far as name and version.

The form is apk-tools' ADB, version 3 (alpinelinux/apk-tools `src/adb.h`, `src/apk_adb.h`); what belongs into a package
of OpenWrt is openwrt/openwrt `include/package-pack.mk`. Where packages come from is the business of `feed`.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ndakit.core import process
from ndakit.core.errors import MachineError
from ndakit.core.release import Release
from ndakit.packages.folder import Package

ARCHITECTURE = "noarch"
PROGRAM = "staging_dir/host/bin/apk"
_TIMEOUT_S = 60.0
_HEAD_MAX = 16 * 1024 * 1024
_FIELDS = {1: "name", 2: "version", 5: "arch"}  # apk_adb.h, ADBI_PI_…
_DEPENDS = 15
_PREAMBLE = (
    "#!/bin/sh\n{first}[ -s ${{IPKG_INSTROOT}}/lib/functions.sh ] || exit 0\n. ${{IPKG_INSTROOT}}/lib/functions.sh\n"
    'export root="${{IPKG_INSTROOT}}"\nexport pkgname="{name}"\n{calls}{own}'
)
_GUARD = '[ "${IPKG_NO_SCRIPT}" = "1" ] && exit 0\n'


class NotAnApk(Exception):
    """The file is no .apk of version 3; the text says why."""


class ApkMissing(MachineError):
    """The ImageBuilder has no apk program, so that no package can be built for it."""

    def __init__(self, imagebuilder: Path, name: str) -> None:
        super().__init__(
            f"package {name} cannot be built: the ImageBuilder has no apk",
            where=str(imagebuilder / PROGRAM),
            fix="unpack the ImageBuilder's archive again (exec bits must survive); or build the package in OpenWrt's "
            "SDK, and put the .apk into packages/ instead of its folder",
        )


@dataclass(frozen=True)
class Header:
    """What an .apk says of itself; `depends` are names without versions."""

    name: str
    version: str
    arch: str
    depends: tuple[str, ...]


def file_name(name: str, version: str) -> str:
    """An .apk's name: apk finds a package of an index by it."""
    return f"{name}-{version}.apk"


def build(package: Package, release: Release, imagebuilder: Path, scratch: Path, target: Path) -> None:
    """Write the .apk of a package to `target` with the ImageBuilder's apk; `scratch` is an empty folder.

    Raises ApkMissing, process.ProcessFailed with apk's words.
    """
    program = imagebuilder / PROGRAM
    if not os.access(program, os.X_OK):
        raise ApkMissing(imagebuilder, package.name)
    root, files = scratch / "root", scratch / "files"
    # apk writes owners by name and takes the names from its root: whoever builds is called root there.
    for path, text in (
        ("passwd", f"root:x:{os.getuid()}:{os.getgid()}::/:/bin/sh\n"),
        ("group", f"root:x:{os.getgid()}:\n"),
    ):
        (root / "etc").mkdir(parents=True, exist_ok=True)
        (root / "etc" / path).write_text(text)
    _fill(files, package)
    argv: list[str | Path] = [program, "--root", root, "mkpkg"]
    facts = {
        "name": package.name, "version": package.version(release), "description": package.description,
        "arch": ARCHITECTURE, "license": package.license, "origin": f"packages/{package.name}", "url": package.url,
        "maintainer": package.maintainer, "provides": " ".join(package.provides),
        "depends": " ".join([*package.depends, *(f"!{name}" for name in package.conflicts)]),
    }  # fmt: skip
    for key, value in facts.items():
        if value:
            argv += ["--info", f"{key}:{value}"]
    for kind, text in _scripts(package).items():
        (scratch / kind).write_text(text)
        argv += ["--script", f"{kind}:{scratch / kind}"]
    argv += ["--files", files, "--output", target]
    process.run(argv, timeout_s=_TIMEOUT_S, env={"SOURCE_DATE_EPOCH": "1"}, umask=0o022)


def _fill(files: Path, package: Package) -> None:
    """Lay the package's files out, with the lists that OpenWrt's base system looks for in /lib/apk/packages."""
    files.mkdir(parents=True)
    files.chmod(0o755)
    for path, member in sorted(package.members.items()):
        if member.kind == "dir":
            (files / path).mkdir()
        elif member.kind == "link":
            (files / path).symlink_to(member.target)
        else:
            (files / path).write_bytes(member.content)
        if member.kind != "link":
            (files / path).chmod(member.mode)
    lists = files / "lib/apk/packages"
    listed = sorted(f"/{path}" for path, member in package.members.items() if member.kind != "dir")
    texts = {"list": "".join(f"{path}\n" for path in listed)}
    conffiles = (*package.conffiles, *package.kept)
    if conffiles:
        digests = [(p, hashlib.sha256(package.members[p.lstrip("/")].content).hexdigest()) for p in package.conffiles]
        texts["conffiles"] = "".join(f"{path}\n" for path in conffiles)
        texts["conffiles_static"] = "".join(f"{path} {digest}\n" for path, digest in digests)
    for folder in (files / "lib", files / "lib/apk", lists):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    for kind, text in texts.items():
        if text:
            (lists / f"{package.name}.{kind}").write_text(text)
            (lists / f"{package.name}.{kind}").chmod(0o644)


def _scripts(package: Package) -> dict[str, str]:
    """apk's scripts by their kind: base-files' functions around the package's own ones."""

    def own(name: str) -> str:
        return package.scripts.get(name, "").partition("\n")[2]

    install = _PREAMBLE.format(
        first=_GUARD, name=package.name, calls="add_group_and_user\ndefault_postinst\n", own=own("postinst")
    )
    scripts = {
        "post-install": install,
        "post-upgrade": install.replace("#!/bin/sh\n", "#!/bin/sh\nexport PKG_UPGRADE=1\n", 1),
        "pre-deinstall": _PREAMBLE.format(first="", name=package.name, calls="default_prerm\n", own=own("prerm")),
    }
    if "preinst" in package.scripts:
        scripts["pre-install"] = package.scripts["preinst"]
        scripts["pre-upgrade"] = f"#!/bin/sh\nexport PKG_UPGRADE=1\n{own('preinst')}"
    if "postrm" in package.scripts:
        scripts["post-deinstall"] = package.scripts["postrm"]
    return scripts


def header(path: Path) -> Header:
    """Name, version, architecture and dependencies of an .apk. Raises NotAnApk, OSError."""
    with path.open("rb") as source:
        raw = source.read(_HEAD_MAX)
    try:
        return _header(_unpacked(raw))
    except (struct.error, IndexError, UnicodeDecodeError, zlib.error) as cause:
        raise NotAnApk("it is damaged") from cause


def _unpacked(raw: bytes) -> bytes:
    kind = raw[:4]
    if kind == b"ADB.":
        return raw
    if kind == b"ADBd":
        return zlib.decompressobj(-15).decompress(raw[4:], _HEAD_MAX)
    if kind == b"ADBc" and raw[4:5] == b"\0":
        return raw[6:]
    if kind == b"ADBc" and raw[4:5] == b"\1":
        return zlib.decompressobj(-15).decompress(raw[6:], _HEAD_MAX)
    if kind == b"ADBc":
        raise NotAnApk("it is compressed in another way than OpenWrt's packages (deflate)")
    if raw[:2] == b"\x1f\x8b":
        raise NotAnApk("it is an .apk of the old form (version 2), or an .ipk")
    raise NotAnApk("it does not begin as one")


def _header(raw: bytes) -> Header:
    """Read the first block: header, then objects that name each other by offset, the root last (adb.h)."""
    magic, schema, first = struct.unpack_from("<4s4sI", raw)
    if magic != b"ADB." or schema != b"pckg" or first >> 30 != 0:
        raise NotAnApk("it is no package")
    block = raw[12 : 8 + (first & 0x3FFFFFFF)]
    (root,) = struct.unpack_from("<I", block, 4)
    info = list(_slots(block, list(_slots(block, root))[1]))
    texts = {word: _text(block, info[slot]) for slot, word in _FIELDS.items() if slot < len(info)}
    depends = list(_slots(block, info[_DEPENDS]))[1:] if len(info) > _DEPENDS and info[_DEPENDS] else []
    names = tuple(_text(block, list(_slots(block, one))[1]) for one in depends)
    if not texts.get("name") or not texts.get("version"):
        raise NotAnApk("it says no name or version")
    return Header(texts["name"], texts["version"], texts.get("arch", ""), names)


def _slots(block: bytes, value: int) -> Iterator[int]:
    """The slots of an object or array; the first one holds their number, itself included."""
    if value >> 28 not in (0xD, 0xE):
        raise NotAnApk("it is damaged")
    at = value & 0x0FFFFFFF
    (count,) = struct.unpack_from("<I", block, at)
    yield from struct.unpack_from(f"<{min(count, 65536)}I", block, at)


def _text(block: bytes, value: int) -> str:
    kind, at = value >> 28, value & 0x0FFFFFFF
    if kind not in (0x8, 0x9, 0xA):
        return ""
    form = {0x8: "<B", 0x9: "<H", 0xA: "<I"}[kind]
    (size,) = struct.unpack_from(form, block, at)
    start = at + struct.calcsize(form)
    return block[start : start + size].decode()
