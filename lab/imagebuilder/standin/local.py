"""Package files in the ImageBuilder's own packages/ folder: .ipk, and the .apk that the lab's `apk mkpkg` makes.

Owns how such a file is read and laid over a root. Their post-install scripts are not run, which is said.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .families import Family
from .resolve import Package, Unresolvable

_FILES = "files/"


@dataclass(frozen=True)
class _Opened:
    """What is in a package file: facts, paths of conffiles, and whether it has a script of its own."""

    facts: dict[str, str]
    conffiles: tuple[str, ...]
    scripted: bool


def packages(folder: Path, family: Family, note: Callable[[str], None]) -> dict[str, Package]:
    """The packages of the folder by name; two versions of one are not told apart: the last file counts."""
    by_name = {}
    for path in sorted(folder.glob("*.apk" if family.apk else "*.ipk")):
        try:
            opened = _apk(path) if family.apk else _ipk(path)
        except (tarfile.TarError, KeyError, ValueError, OSError) as failure:
            raise Unresolvable([f"lab: packages/{path.name} cannot be read by the stand-in: {failure}"], 1) from failure
        name = opened.facts["name"]
        if opened.scripted:
            note(f"lab: package {name} has a post-install script, which the stand-in does not run")
        by_name[name] = Package(
            name,
            depends=tuple(opened.facts.get("depends", "").split()),
            archive=path,
            version=opened.facts["version"],
            digest=hashlib.sha256(path.read_bytes()).hexdigest(),
            conffiles=opened.conffiles,
        )
    return by_name


def lay(package: Package, root: Path) -> None:
    """Put the files of a package over a root, with their modes; the owner is whoever builds, as everywhere here."""
    assert package.archive is not None
    apk = package.archive.suffix == ".apk"
    with tarfile.open(package.archive) if apk else _inner(package.archive, "data.tar.gz") as archive:
        for member in archive:
            name = member.name.removeprefix(_FILES) if apk else member.name.removeprefix("./")
            if (apk and not member.name.startswith(_FILES)) or not name or ".." in Path(name).parts:
                continue
            target = root / name
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            if member.issym():
                target.symlink_to(member.linkname)
            elif (source := archive.extractfile(member)) is not None:
                target.write_bytes(source.read())
                target.chmod(member.mode & 0o7777)


def _ipk(path: Path) -> _Opened:
    with _inner(path, "control.tar.gz") as archive:
        texts = {m.name.removeprefix("./"): _text(archive, m.name) for m in archive if m.isfile()}
    lines = (line.partition(":") for line in texts["control"].splitlines() if line[:1].strip())
    fields = {key: value.strip() for key, _, value in lines}
    depends = " ".join(word.split()[0] for word in fields.get("Depends", "").split(",") if word.strip())
    facts = {"name": fields["Package"], "version": fields["Version"], "depends": depends}
    return _Opened(facts, tuple(texts.get("conffiles", "").split()), "postinst-pkg" in texts)


def _apk(path: Path) -> _Opened:
    with tarfile.open(path) as archive:
        facts: dict[str, str] = json.loads(_text(archive, ".PKGINFO"))
        words = [word for word in facts.get("depends", "").split() if not word.startswith("!")]  # a conflict
        facts["depends"] = " ".join(re.split("[<>=~]", word)[0] for word in words)
        names = archive.getnames()
        script = _text(archive, ".scripts/post-install") if ".scripts/post-install" in names else ""
        lists = [name for name in names if name.endswith(".conffiles") and "/lib/apk/packages/" in name]
        conffiles = tuple(_text(archive, lists[0]).split()) if lists else ()
    return _Opened(facts, conffiles, bool(script.partition("default_postinst\n")[2].strip()))


def _inner(path: Path, name: str) -> tarfile.TarFile:
    with tarfile.open(path) as outer:
        source = outer.extractfile(f"./{name}")
        if source is None:
            raise ValueError(f"there is no {name} in it")
        return tarfile.open(fileobj=io.BytesIO(source.read()))


def _text(archive: tarfile.TarFile, name: str) -> str:
    source = archive.extractfile(name)
    return source.read().decode() if source is not None else ""
