"""The bill of materials beside an image: CycloneDX 1.6 as JSON, the same bytes for the same image.

Owns the document and how the packages' own descriptions (licence, CPE) are read from the root that an ImageBuilder put
together. Which packages an image has is in its record. Formats: https://cyclonedx.org/docs/1.6/json/,
https://github.com/package-url/purl-spec, docs/facts.md, Packages (control fields), apk-tools' installed database.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ndakit import __version__
from ndakit.core.release import Release
from ndakit.image.artifacts import Record

NAME = "sbom.cdx.json"
_NAMESPACE = uuid.UUID("5b1f8f0e-0b0c-5d0c-9d5e-6f1d3c1c7a55")

_SPDX_IDS = """
0BSD AFL-2.1 AGPL-3.0-only AGPL-3.0-or-later Apache-2.0 Artistic-2.0 BSD-2-Clause BSD-3-Clause BSD-4-Clause BSL-1.0
CC0-1.0 EPL-1.0 EPL-2.0 GPL-1.0 GPL-1.0-or-later GPL-2.0 GPL-2.0+ GPL-2.0-only GPL-2.0-or-later GPL-3.0 GPL-3.0+
GPL-3.0-only GPL-3.0-or-later HPND IJG ISC LGPL-2.0 LGPL-2.0+ LGPL-2.0-only LGPL-2.0-or-later LGPL-2.1 LGPL-2.1+
LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0 LGPL-3.0+ LGPL-3.0-only LGPL-3.0-or-later Libpng MIT MIT-0 MPL-1.1
MPL-2.0 NTP OLDAP-2.8 OpenSSL PSF-2.0 Python-2.0 Ruby TCL Unlicense Vim WTFPL X11 Zlib bzip2-1.0.6 curl
"""
SPDX = frozenset(_SPDX_IDS.split())
"""The SPDX identifiers that OpenWrt's packages use; anything else is given as a name, as the schema wants it."""


@dataclass(frozen=True)
class PackageFacts:
    """What a package says about itself; empty where it says nothing."""

    licence: str = ""
    cpe: str = ""
    """A CPE 2.2 name without a version, as in `cpe:/a:haproxy:haproxy`."""
    architecture: str = ""


def package_facts(imagebuilder: Path) -> dict[str, PackageFacts]:
    """What the installed packages say about themselves, from the root that make left in a working copy.

    Empty if there is no root any more, or one without a package database.
    """
    facts_of: dict[str, PackageFacts] = {}
    for root in (*sorted(imagebuilder.glob("build_dir/*/root*-*")), *sorted(imagebuilder.glob("build_dir/root*-*"))):
        for path in sorted(root.glob("usr/lib/opkg/info/*.control")):
            fields = _fields(path.read_text(errors="replace"))
            facts = PackageFacts(fields.get("License", ""), fields.get("CPE-ID", ""), fields.get("Architecture", ""))
            facts_of[fields.get("Package", path.stem)] = facts
        for path in (root / "lib/apk/db/installed", root / "usr/lib/apk/db/installed"):
            for entry in path.read_text(errors="replace").split("\n\n") if path.is_file() else ():
                fields = _fields(entry)
                if "P" in fields:
                    facts_of[fields["P"]] = PackageFacts(fields.get("L", ""), "", fields.get("A", ""))
        if facts_of:
            break
    return facts_of


def _fields(text: str) -> dict[str, str]:
    """`Key: value` (opkg) or `K:value` (apk) lines; continued lines belong to descriptions and are left out."""
    return {m[1]: m[2].strip() for m in re.finditer(r"^([A-Za-z][A-Za-z-]*):[ \t]*(.*)$", text, re.M)}


def document(record: Record, facts: Mapping[str, PackageFacts]) -> str:
    """The document for one image. No clock is in it, and its serial number follows from the image."""
    files = [_file(image.name, image.sha256) for image in record.images]
    serial = uuid.uuid5(_NAMESPACE, " ".join([record.id, *(image.sha256 for image in record.images)]))
    components = [
        _component(record, name, version, facts.get(name, PackageFacts()))
        for name, version in sorted(record.packages.items())
    ]
    root = f"image:{record.id}"
    described = f"Load balancer {record.hostname}: OpenWrt {record.release}, {record.target}, {record.device}"
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "ndakit", "version": __version__}]},
            "component": {
                "type": "firmware",
                "bom-ref": root,
                "name": record.hostname,
                "version": record.id[:12],
                "description": ". ".join([described, *([record.warning] if record.warning else [])]),
                "components": files,
            },
            "properties": [
                {"name": f"ndakit:{name}", "value": value}
                for name, value in (
                    ("builder", record.builder), ("image-id", record.id), ("node", record.node),
                    ("profile", record.profile), ("revision", record.revision),
                )
            ],
        },
        "components": components,
        "dependencies": [{"ref": root, "dependsOn": sorted(c["bom-ref"] for c in components)}],
    }  # fmt: skip
    return json.dumps(bom, indent=1, ensure_ascii=False) + "\n"


def _file(name: str, sha256: str) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"file:{name}",
        "name": name,
        "hashes": [{"alg": "SHA-256", "content": sha256}],
    }


def _component(record: Record, name: str, version: str, facts: PackageFacts) -> dict[str, Any]:
    address = purl(record, name, version, facts.architecture)
    component: dict[str, Any] = {
        "type": "library", "bom-ref": address, "name": name, "version": version, "purl": address,
    }  # fmt: skip
    if facts.licence:
        component["licenses"] = [
            {"license": {"id": word} if word in SPDX else {"name": word}} for word in _licences(facts.licence)
        ]
    upstream = re.sub(r"-r?\d+$", "", version)
    if facts.cpe and re.fullmatch(r"[\w.]+", upstream, re.ASCII):
        component["cpe"] = f"{facts.cpe.rstrip(':')}:{upstream}"
    return component


def _licences(text: str) -> list[str]:
    """OpenWrt lists licences with spaces between them; an SPDX expression or a sentence stays one name."""
    words = text.split()
    listed = all(re.fullmatch(r"[A-Za-z0-9.+-]+", word) for word in words) and not {"AND", "OR", "WITH"} & set(words)
    return list(dict.fromkeys(words)) if listed else [text]


def purl(record: Record, name: str, version: str, architecture: str = "") -> str:
    """The package URL.

    purl-spec registers `apk` and names openwrt as one of its vendors; for the releases before, scanners of firmware use
    `opkg` in the same form, though it is only proposed there. The lab's stand-ins and what comes from the workspace's
    packages/ are packages of no distribution.
    """
    if record.builder == "lab" or name in record.inputs.get("local_packages", {}):
        return f"pkg:generic/{_quoted(name)}@{_quoted(version)}"
    release = Release.parse(record.release)
    kind = "apk" if release.family.endswith("apk") else "opkg"
    qualifiers = {"arch": architecture, "distro": f"openwrt-{record.release}"}
    tail = "&".join(f"{key}={_quoted(value)}" for key, value in sorted(qualifiers.items()) if value)
    return f"pkg:{kind}/openwrt/{_quoted(name.lower())}@{_quoted(version)}?{tail}"


def _quoted(text: str) -> str:
    return quote(text, safe=".-_~")
