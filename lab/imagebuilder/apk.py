#!/usr/bin/env python3
"""The stand-in for an ImageBuilder's `apk mkpkg` (25.12 and later): makes package files that the stand-in installs.

Takes the options that apk-tools 3 takes for a package and refuses any other. What it writes is a gzipped tar with the
facts in `.PKGINFO`, the scripts in `.scripts/` and the files in `files/`: the lab's own form, which no real apk reads.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

_INFO = ["name", "version", "description", "arch", "license", "origin", "url", "maintainer", "provides", "depends"]
_SCRIPTS = ["pre-install", "post-install", "pre-deinstall", "post-deinstall", "pre-upgrade", "post-upgrade"]


def _pairs(words: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    named = dict(word.split(":", 1) for word in words)
    unknown = named.keys() - set(known)
    if unknown:
        raise SystemExit(f"ERROR: invalid info field: {', '.join(sorted(unknown))}")
    return named


def main(argv: Sequence[str] | None = None) -> int:
    """`apk --root DIR mkpkg --info KEY:VALUE … --script KIND:FILE … --files DIR --output FILE`."""
    parser = argparse.ArgumentParser(prog="apk", allow_abbrev=False)
    parser.add_argument("--root", type=Path)
    parser.add_argument("applet", choices=["mkpkg"])
    parser.add_argument("--info", "-I", action="append", default=[])
    parser.add_argument("--script", "-s", action="append", default=[])
    parser.add_argument("--files", "-F", type=Path, required=True)
    parser.add_argument("--output", "-o", type=Path, required=True)
    options = parser.parse_args(argv)
    info = _pairs(options.info, _INFO)
    scripts = _pairs(options.script, _SCRIPTS)
    for key in ("name", "version"):
        if not info.get(key):
            raise SystemExit(f"ERROR: required info field '{key}' not provided")
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT) as archive:
        _add(archive, ".PKGINFO", json.dumps(info, sort_keys=True).encode())
        for kind, path in sorted(scripts.items()):
            _add(archive, f".scripts/{kind}", Path(path).read_bytes())
        for path in sorted(options.files.rglob("*")):
            archive.add(path, f"files/{path.relative_to(options.files)}", recursive=False, filter=_plain)
    options.output.write_bytes(gzip.compress(sink.getvalue(), mtime=0))
    return 0


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    sys.exit(main())
