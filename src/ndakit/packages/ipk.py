"""OpenWrt's .ipk: written from a package value, byte for byte the same everywhere; read as far as its control file.

An .ipk is a gzipped tar of `debian-binary`, `data.tar.gz` and `control.tar.gz` (openwrt/openwrt `scripts/ipkg-build`).
Where packages come from and which are used is the business of `feed`.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from ndakit.core.release import Release
from ndakit.packages.folder import Package
from ndakit.packages.install import PackageMember

ARCHITECTURE = "all"
_CONTROL_MAX = 1024 * 1024

# What every package of OpenWrt runs when it is installed and removed: base-files' own functions, which enable its
# services and then run the package's own script, <name>.postinst-pkg.
_AROUND = (
    "#!/bin/sh\n{guard}[ -s ${{IPKG_INSTROOT}}/lib/functions.sh ] || exit 0\n"
    ". ${{IPKG_INSTROOT}}/lib/functions.sh\n{call} $0 $@\n"
)
_GUARD = '[ "${IPKG_NO_SCRIPT}" = "1" ] && exit 0\n'


class NotAnIpk(Exception):
    """The file is no .ipk; the text says why."""


def build(package: Package, release: Release) -> bytes:
    """The .ipk of a package for a release: no times, no names of users, sorted."""
    data = _tar(package.members)
    control = {
        "control": PackageMember("file", 0o644, _control(package, release, len(data)).encode()),
        "postinst": _script(_AROUND.format(guard=_GUARD, call="default_postinst")),
        "prerm": _script(_AROUND.format(guard="", call="default_prerm")),
    }
    for name, text in package.scripts.items():
        control[f"{name}-pkg" if name in ("postinst", "prerm") else name] = _script(text)
    if package.conffiles:
        control["conffiles"] = PackageMember("file", 0o644, "".join(f"{p}\n" for p in package.conffiles).encode())
    return _gzip(
        _tar(
            {
                "debian-binary": PackageMember("file", 0o644, b"2.0\n"),
                "data.tar.gz": PackageMember("file", 0o644, _gzip(data)),
                "control.tar.gz": PackageMember("file", 0o644, _gzip(_tar(control))),
            },
            whole=False,
        )
    )


def file_name(name: str, version: str, architecture: str) -> str:
    """An .ipk's name, as opkg's index expects it."""
    return f"{name}_{version}_{architecture}.ipk"


def control(path: Path) -> dict[str, str]:
    """The fields of an .ipk's control file. Raises NotAnIpk, OSError."""
    try:
        with tarfile.open(path, "r:gz") as outer:
            while (member := outer.next()) is not None:
                if member.name.removeprefix("./") == "control.tar.gz":
                    inner = outer.extractfile(member)
                    if inner is None or member.size > _CONTROL_MAX:
                        break
                    return _fields(inner.read())
    except (tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError, gzip.BadGzipFile) as cause:
        # ValueError and OverflowError are what tarfile raises for numbers and texts that no tar has.
        raise NotAnIpk(f"it is not a gzipped tar ({str(cause)[:60]})") from cause
    raise NotAnIpk("there is no control.tar.gz in it")


def _fields(packed: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        for member in archive:
            if member.name.removeprefix("./") == "control" and member.size <= _CONTROL_MAX:
                source = archive.extractfile(member)
                lines = source.read().decode().splitlines() if source is not None else []
                pairs = (line.partition(":") for line in lines if line[:1].strip())
                return {key: value.strip() for key, _, value in pairs}
    raise NotAnIpk("there is no control file in it")


def _control(package: Package, release: Release, size: int) -> str:
    fields = [
        ("Package", package.name),
        ("Version", package.version(release)),
        ("Depends", ", ".join(package.depends)),
        ("Conflicts", ", ".join(package.conflicts)),
        ("Provides", ", ".join(package.provides)),
        ("Source", f"packages/{package.name}"),
        ("License", package.license),
        ("Section", package.section),
        ("URL", package.url),
        ("Maintainer", package.maintainer),
        ("Architecture", ARCHITECTURE),
        ("Installed-Size", str(size)),
        ("Description", package.description),  # last: OpenWrt's index maker puts file name and hash before it
    ]
    return "".join(f"{key}: {value}\n" for key, value in fields if value)


def _script(text: str) -> PackageMember:
    return PackageMember("file", 0o755, text.encode())


def _tar(members: Mapping[str, PackageMember], *, whole: bool = True) -> bytes:
    """A tar of the members as GNU tar would write it: `whole` sorts and begins with `./`."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT) as archive:
        if whole:
            archive.addfile(_header("./", PackageMember("dir", 0o755)))
        for path in sorted(members) if whole else members:
            member = members[path]
            archive.addfile(_header(f"./{path}", member), io.BytesIO(member.content))
    return sink.getvalue()


def _header(name: str, member: PackageMember) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.mode, header.size, header.linkname = member.mode, len(member.content), member.target
    header.type = {"file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "link": tarfile.SYMTYPE}[member.kind]
    return header  # owner 0:0, time 0 and no names are a TarInfo's defaults


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, 9, mtime=0)
