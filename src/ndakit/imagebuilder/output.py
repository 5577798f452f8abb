"""What an ImageBuilder says and how it is configured, as values: `make info`, manifests, `.config`, package lists.

Pure text in, values out; what went wrong in a build is read by `failures`. Formats: openwrt/openwrt
`target/imagebuilder/files/Makefile`, `include/image.mk`, `scripts/json_overview_image_info.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ndakit.core import json_text


@dataclass(frozen=True)
class ListedDevice:
    """One device that an ImageBuilder makes images for (its PROFILE)."""

    name: str
    title: str
    packages: tuple[str, ...]
    supported: tuple[str, ...]


@dataclass(frozen=True)
class Info:
    """What `make info` says. `architecture` is empty before 22.03."""

    target: str
    architecture: str
    revision: str
    default_packages: tuple[str, ...]
    devices: Mapping[str, ListedDevice]


@dataclass(frozen=True)
class Listed:
    """One image of profiles.json."""

    name: str
    kind: str
    filesystem: str
    sha256: str


@dataclass(frozen=True)
class Overview:
    """What profiles.json says about one device's images. `version` is OpenWrt's release."""

    version: str
    images: tuple[Listed, ...]


def info(text: str) -> Info:
    """Read the output of `make info`; without devices the result has an empty mapping, which callers must refuse."""
    target = re.search(r'^Current Target: "(.*)"$', text, re.MULTILINE)
    architecture = re.search(r'^Current Architecture: "(.*)"$', text, re.MULTILINE)
    revision = re.search(r'^Current Revision: "(.*)"$', text, re.MULTILINE)
    defaults = re.search(r"^Default Packages: (.*)$", text, re.MULTILINE)
    devices: dict[str, ListedDevice] = {}
    _, _, tail = text.partition("Available Profiles:")
    # A device is a line without indentation that ends in a colon, and the indented lines below it.
    for block in re.finditer(r"^(?P<name>[^\s:]+):\n(?P<body>(?:[ \t]+.*\n?)*)", tail + "\n", re.MULTILINE):
        keys: dict[str, str] = {}
        title = ""
        for line in block["body"].splitlines():
            key = re.match(r"\s+(Packages|hasImageMetadata|SupportedDevices):\s*(.*)$", line)
            if key:
                keys[key[1]] = key[2]
            elif not keys:
                title = line.strip()
        devices[block["name"]] = ListedDevice(
            name=block["name"],
            title=title,
            packages=tuple(keys.get("Packages", "").split()),
            supported=tuple(keys.get("SupportedDevices", "").split()),
        )
    return Info(
        target=target[1] if target else "",
        architecture=architecture[1] if architecture else "",
        revision=revision[1] if revision else "",
        default_packages=tuple(defaults[1].split()) if defaults else (),
        devices=devices,
    )


def manifest(text: str) -> dict[str, str]:
    """Package → version. Lines are `name - version`; early apk builds printed `name version`. Others are ignored."""
    version_of: dict[str, str] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(?P<name>[a-zA-Z0-9][a-zA-Z0-9+._-]*)(?: - | )(?P<version>[^\s]+)\s*", line)
        if match:
            version_of[match["name"]] = match["version"]
    return dict(sorted(version_of.items()))


def package_names(text: str) -> tuple[str, ...]:
    """The names in the output of `make package_list`: `name - version - size …`, `name-1.2-r3 …` with apk."""
    names: set[str] = set()
    for line in text.splitlines():
        match = re.match(r"([a-z0-9][a-z0-9+._-]*)(?: - |$)", line) or re.match(
            r"([a-z0-9][a-z0-9+._-]*?)-[0-9][a-z0-9._~]*(?:-r[0-9]+)?(?: |$)", line
        )
        if match:
            names.add(match[1])
    return tuple(sorted(names))


def index_names(text: str) -> tuple[str, ...]:
    """The names in a package index of opkg (`Packages`, and what opkg keeps of it in dl/)."""
    return tuple(sorted(set(re.findall(r"^Package: *(\S+)", text, re.MULTILINE))))


def overview(text: str, device: str) -> Overview:
    """Read profiles.json for one device. Raises ValueError for anything that is not such a file."""
    facts = json_text.mapping(text)
    try:
        images = facts["profiles"][device]["images"]
        return Overview(
            version=str(facts.get("version_number", "")),
            images=tuple(
                Listed(str(i["name"]), str(i.get("type", "")), str(i.get("filesystem") or ""), str(i["sha256"]))
                for i in images
            ),
        )
    except (KeyError, TypeError, AttributeError) as cause:
        raise ValueError(f"no images of {device} in it") from cause


def same_target(said: str, wanted: str) -> bool:
    """Whether an ImageBuilder's own name of its target is the one of the download folder.

    A target without sub-targets calls itself by one word (TARGETID of openwrt/openwrt `include/target.mk`) and lies in
    the folder `generic`: kirkwood, before it got one.
    """
    return said == wanted or ("/" not in said and f"{said}/generic" == wanted)


def version_number(version_mk: str) -> str | None:
    """The release that include/version.mk of an ImageBuilder falls back to, None if it does not say."""
    version = re.search(r"^VERSION_NUMBER:=\$\(if \$\(VERSION_NUMBER\),\$\(VERSION_NUMBER\),(.+)\)$", version_mk, re.M)
    return version[1] if version else None


def knobs(text: str) -> dict[str, str]:
    """The settings of a .config; what `is not set` or absent is not in it. Quotes of texts are taken off."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(CONFIG_[A-Za-z0-9_.+-]+)=(.*)", line)
        if match:
            value = match[2].strip()
            values[match[1]] = value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
    return values


def set_knobs(text: str, wanted: Mapping[str, bool | int | str]) -> str:
    """A .config with these settings changed where they stand, or added at the end; everything else untouched.

    make reads the file as a makefile, where the last of two assignments wins, so later ones of the same name go.
    """
    written: set[str] = set()
    lines: list[str] = []
    for line in text.splitlines():
        match = re.fullmatch(r"(?:# )?(CONFIG_[A-Za-z0-9_.+-]+)(?:=.*| is not set)", line)
        name = match[1] if match else ""
        if name not in wanted:
            lines.append(line)
        elif name not in written:
            lines.append(_knob(name, wanted[name]))
            written.add(name)
    lines += [_knob(name, value) for name, value in wanted.items() if name not in written]
    return "\n".join(lines) + "\n"


def _knob(name: str, value: bool | int | str) -> str:
    if value is True:
        return f"{name}=y"
    if value is False:
        return f"# {name} is not set"
    return f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}"
