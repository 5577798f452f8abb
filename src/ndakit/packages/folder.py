"""A package folder (`Makefile` and `files/`), as OpenWrt people write it, read into a value without running make.

Owns the part of OpenWrt's package Makefiles that is understood: scripts and data, nothing to be compiled or downloaded.
Everything beyond that part is refused with its line, so that what is built here is what OpenWrt's SDK would build.
Forms: openwrt/openwrt `include/package-pack.mk`, `include/package-defaults.mk`; docs/facts.md (Packages).
What becomes of the value is the business of `ipk` and `apk`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ndakit.core.errors import ErrorGroup, InputError, Location
from ndakit.core.release import Release
from ndakit.packages import install as packages_install
from ndakit.packages.install import PackageMember

NAME = re.compile(r"[a-z0-9][a-z0-9+._-]*")
SCRIPTS = ("preinst", "postinst", "prerm", "postrm")
_INCLUDES = ("$(TOPDIR)/rules.mk", "$(INCLUDE_DIR)/package.mk")
_VARIABLES = ("PKG_NAME", "PKG_VERSION", "PKG_RELEASE", "PKG_LICENSE", "PKG_LICENSE_FILES", "PKG_MAINTAINER")
_FIELDS = (
    "SECTION",
    "CATEGORY",
    "SUBMENU",
    "TITLE",
    "URL",
    "MAINTAINER",
    "DEPENDS",
    "CONFLICTS",
    "PROVIDES",
    "PKGARCH",
)
_SDK = "build it in OpenWrt's SDK, and put the .ipk or .apk into packages/ instead of this folder"
_SIZE_MAX = 256 * 1024


class PackageUnusable(InputError):
    """A package folder with something in it that is wrong, or that only OpenWrt's SDK can do."""


@dataclass(frozen=True)
class Package:
    """One package of scripts and data, for every architecture."""

    name: str
    upstream: str
    """PKG_VERSION; `version` has the whole one."""
    build: int
    depends: tuple[str, ...]
    conflicts: tuple[str, ...]
    provides: tuple[str, ...]
    section: str
    license: str
    maintainer: str
    url: str
    description: str
    conffiles: tuple[str, ...]
    """Files of the package that belong to the user: kept by sysupgrade when they were changed."""
    kept: tuple[str, ...]
    """Further paths that sysupgrade keeps: conffiles that the package itself does not have."""
    scripts: Mapping[str, str]
    members: Mapping[str, PackageMember]

    def version(self, release: Release) -> str:
        """The version as packages of this release write it."""
        return release.package_version(self.upstream, self.build)

    @property
    def digest(self) -> str:
        """SHA-256 over everything that the package brings into an image; the same for .ipk and .apk."""
        total = hashlib.sha256()
        for facts in (
            self.name, self.upstream, self.build, self.depends, self.conflicts, self.provides, self.section,
            self.license, self.maintainer, self.url, self.description, self.conffiles, self.kept,
            sorted(self.scripts.items()),
        ):  # fmt: skip
            total.update(f"{facts!r}\0".encode())
        for path, member in sorted(self.members.items()):
            total.update(f"{path}\0{member.kind} {member.mode:o} {member.target}\0".encode() + member.content + b"\0")
        return total.hexdigest()


def read(folder: Path, shown: str) -> Package:
    """The package of a folder; `shown` is its name for people. Raises PackageUnusable, or an ErrorGroup of them."""
    return _Reader(folder, shown).package()


class _Reader:
    """One Makefile, line by line; mistakes are collected."""

    def __init__(self, folder: Path, shown: str) -> None:
        self.folder = folder
        self.file = f"{shown}/Makefile"
        self.errors: list[PackageUnusable] = []
        self.variables: dict[str, str] = {}
        self.blocks: dict[str, tuple[int, list[str]]] = {}
        self.evaluated = ""
        self.included: list[str] = []

    def refuse(self, what: str, line: int, fix: str) -> None:
        """Note a mistake of a line (0: of the whole file)."""
        self.errors.append(PackageUnusable(what, where=Location(self.file, line, 1 if line else 0), fix=fix))

    def package(self) -> Package:
        """Read everything. Raises what was collected."""
        self._lines(self._text())
        package = self._assemble() if not self.errors else None
        if self.errors or package is None:
            raise self.errors[0] if len(self.errors) == 1 else ErrorGroup(self.errors)
        return package

    def _text(self) -> str:
        path = self.folder / "Makefile"
        try:
            raw = path.read_bytes()
            if len(raw) > _SIZE_MAX:
                raise ValueError("it is larger than 256 KiB")
            return raw.decode()
        except (OSError, ValueError) as cause:
            why = cause.strerror if isinstance(cause, OSError) else str(cause).partition(":")[0]
            raise PackageUnusable(
                f"the package's Makefile cannot be read: {why}", where=self.file,
                fix="write it (packages/README.md shows one), or take the folder away",
            ) from None  # fmt: skip

    def _lines(self, text: str) -> None:
        """Sort the lines into variables and blocks."""
        block: list[str] | None = None
        joined, start = "", 0
        for number, raw in enumerate(text.splitlines(), 1):
            if block is not None:
                if raw.strip() == "endef":
                    block = None
                else:
                    block.append(raw)
                continue
            if not joined:
                start = number
            joined += raw[:-1] + " " if raw.endswith("\\") else raw
            if raw.endswith("\\"):
                continue
            line, joined = joined.strip(), ""
            opening = re.fullmatch(r"define\s+(\S+)", line)
            if opening:
                if opening[1] in self.blocks:
                    self.refuse(f"'{opening[1]}' is defined twice", start, "keep one of them")
                block = []
                self.blocks[opening[1]] = (start, block)
            elif line and not line.startswith("#"):
                self._statement(line, start)
        if block is not None:
            self.refuse("a define has no endef", self.blocks[list(self.blocks)[-1]][0], "close it by a line: endef")

    def _statement(self, line: str, number: int) -> None:
        assigned = re.fullmatch(r"(\w+)\s*(:=|=)\s*(.*)", line)
        if line.startswith("include ") and line.split(maxsplit=1)[1].strip() in _INCLUDES:
            self.included.append(line.split(maxsplit=1)[1].strip())
        elif assigned and assigned[1] in _VARIABLES:
            self.variables[assigned[1]] = self._value(assigned[3], number)
        elif evaluated := re.fullmatch(r"\$\(eval \$\(call BuildPackage,\s*([^)]+)\)\)", line):
            if self.evaluated:
                self.refuse(
                    "a second package is made here", number, "one folder, one package: give it a folder of its own"
                )
            self.evaluated = self._value(evaluated[1], number)
        else:
            self.refuse(f"this is more than ndakit understands: {line[:80]}", number, _SDK)

    def _value(self, text: str, number: int) -> str:
        """A value with the variables above put in."""

        def put(variable: re.Match[str]) -> str:
            if variable[1] not in self.variables:
                self.refuse(f"{variable[0]} is not known here", number, f"write its value; or {_SDK}")
            return self.variables.get(variable[1], "")

        value = re.sub(r"\$\((\w+)\)", put, text.strip())
        if "$" in value or "#" in value:
            self.refuse(f"there is a $ or # in this value: {value[:60]}", number, "write the value without it")
        return value

    def _assemble(self) -> Package | None:
        name = self.variables.get("PKG_NAME", "")
        if name != self.folder.name or not NAME.fullmatch(name):
            self.refuse(f"PKG_NAME is '{name}', and the folder is {self.folder.name}", 0, "give both the same name, "
                        "of lower-case letters, digits and + . _ -")  # fmt: skip
        if self.evaluated != name or set(self.included) != set(_INCLUDES):
            self.refuse("the Makefile is not whole: OpenWrt needs both includes and the last line", 0,
                        f"write: include {_INCLUDES[0]}, include {_INCLUDES[1]}, "
                        f"and at the end $(eval $(call BuildPackage,{name}))")  # fmt: skip
        upstream, build = self.variables.get("PKG_VERSION", ""), self.variables.get("PKG_RELEASE", "")
        # apk takes nothing else, and what opkg would take besides could not move to 25.12.
        if not re.fullmatch(r"\d+(\.\d+)*[a-z]?", upstream) or not re.fullmatch(r"[1-9]\d{0,4}", build):
            self.refuse(f"the version is '{upstream}-{build}'", 0, "write PKG_VERSION:=1.2.3 and PKG_RELEASE:=1")
        known = {f"Package/{name}", *(f"Package/{name}/{p}" for p in ("description", "conffiles", "install", *SCRIPTS))}
        for title, (number, lines) in self.blocks.items():
            if title in ("Build/Prepare", "Build/Configure", "Build/Compile") and not "".join(lines).strip():
                continue  # nothing to compile, said the way that OpenWrt wants it said
            if title not in known:
                self.refuse(f"this is more than ndakit understands: define {title}", number, _SDK)
        fields = self._fields(f"Package/{name}")
        members = self._members(f"Package/{name}/install")
        conffiles = self._conffiles(f"Package/{name}/conffiles")
        if self.errors:
            return None
        files = {path for path, member in members.items() if member.kind == "file"}
        kept = tuple(p for p in conffiles if p.lstrip("/") not in files)
        if kept:
            packages_install.put(members, f"lib/upgrade/keep.d/{name}", "".join(f"{p}\n" for p in kept).encode(), 0o644)
        scripts = {s: self._script(f"Package/{name}/{s}") for s in SCRIPTS if f"Package/{name}/{s}" in self.blocks}
        if self.errors:
            return None
        text = self.blocks.get(f"Package/{name}/description", (0, []))[1]
        return Package(
            name, upstream, int(build), self._depends(fields.get("DEPENDS", "")),
            _words(fields.get("CONFLICTS", "")), _words(fields.get("PROVIDES", "")),
            fields.get("SECTION", "utils"), self.variables.get("PKG_LICENSE", ""),
            fields.get("MAINTAINER") or self.variables.get("PKG_MAINTAINER", ""), fields.get("URL", ""),
            " ".join(" ".join(text).split()) or fields.get("TITLE", name),
            tuple(p for p in conffiles if p.lstrip("/") in files), kept,
            MappingProxyType(scripts), MappingProxyType(members),
        )  # fmt: skip

    def _fields(self, title: str) -> dict[str, str]:
        number, lines = self.blocks.get(title, (0, []))
        fields: dict[str, str] = {}
        for offset, raw in packages_install.logical(lines):
            at = number + offset
            assigned = re.fullmatch(r"(\w+)\s*(?::=|=)\s*(.*)", raw)
            if assigned is None or assigned[1] not in _FIELDS:
                self.refuse(f"this is more than ndakit understands: {raw[:80]}", at, _SDK)
            else:
                fields[assigned[1]] = self._value(assigned[2], at)
                for word in fields[assigned[1]].split() if assigned[1] == "DEPENDS" else ():
                    if not NAME.fullmatch(word.removeprefix("+")):
                        self.refuse(
                            f"a dependency '{word}' depends on the target", at, f"name packages only; or {_SDK}"
                        )
        if not number or fields.get("PKGARCH") != "all" or not fields.get("TITLE"):
            self.refuse("the package does not say PKGARCH:=all and a TITLE", number,
                        f"add both to define {title}; what is compiled for one architecture: {_SDK}")  # fmt: skip
        return fields

    def _depends(self, text: str) -> tuple[str, ...]:
        # libc is every package's dependency (PKG_DEFAULT_DEPENDS); opkg 2022 crashes on a package with none at all.
        return tuple(dict.fromkeys(["libc", *(word.removeprefix("+") for word in text.split())]))

    def _members(self, title: str) -> dict[str, PackageMember]:
        number, lines = self.blocks.get(title, (0, []))
        install = packages_install.Install(self.folder)
        for offset, line in packages_install.logical(lines):
            try:
                install.run(line)
            except packages_install.NotUnderstood as cause:
                self.refuse(str(cause), number + offset, cause.fix)
        if not install.members and not self.errors:
            self.refuse("the package installs nothing", number, f"write define {title} … endef")
        return install.members

    def _conffiles(self, title: str) -> tuple[str, ...]:
        number, lines = self.blocks.get(title, (0, []))
        paths = [line.strip() for line in lines if line.strip()]
        for path in paths:
            if not re.fullmatch(r"(/[\w.+-]+)+/?", path) or ".." in path.split("/"):
                self.refuse(f"'{path[:60]}' is not a path of the target", number, "write one absolute path per line")
        return tuple(sorted(set(paths)))

    def _script(self, title: str) -> str:
        number, lines = self.blocks[title]
        text = "".join(f"{line}\n" for line in lines)
        if "$" in text.replace("$$", ""):
            self.refuse(
                f"in {title} there is a single $, which make would expand", number, "write $$ where the script has $"
            )
        if not text.startswith("#!/bin/sh"):
            self.refuse(f"{title} does not begin with #!/bin/sh", number, "make that its first line")
        return text.replace("$$", "$")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in re.split(r"[,\s]+", text) if word)
