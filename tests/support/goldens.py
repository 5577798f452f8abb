"""The golden overlays: what is rendered for the example profiles, kept as files for a person to read.

    .venv/bin/python -m tests.support.goldens --accept        rewrite what is kept; read the diff

`tests/data/golden/<profile>/<node>/` holds the tree; MODES beside it the modes (git keeps only one bit of them),
PACKAGES the package plan with its reasons. Of a file that holds secrets only their names are kept.
"""

from __future__ import annotations

import functools
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

import yaml

from ndakit.load import certificates, secrets
from ndakit.model import Profile, package_plan
from ndakit.render.render import Tree, render

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = (ROOT / "templates",)
DATA = ROOT / "tests" / "data"
GOLDEN = DATA / "golden"
SHIPPED = ("bakery", "apache-pair", "shop-nat", "mirror-dr", "far-tun", "iis-tproxy", "rtmp-tproxy")
PROFILES = {
    path.stem: path
    for path in (
        *(ROOT / "profiles" / f"{n}.yaml" for n in SHIPPED),
        *sorted((DATA / "profiles").glob("*.yaml")),
    )
}
ALL_NODES = ("apache-pair", "dual-stack")
"""Profiles of which every node is kept; of the others the first one."""


def parse(text: str, folder: Path = ROOT / "profiles") -> Profile:
    """A profile from YAML text, without the loader (which has tests of its own)."""
    values = yaml.load(text, yaml.BaseLoader)
    return Profile.model_validate(values, context={"attach": lambda name: (folder / name).read_bytes()})


def attachment(name: str) -> bytes:
    """What stands for a file that a profile names, where its content does not matter."""
    return b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n" if name.endswith(".pem") else b"#!/bin/sh\n"


@functools.cache
def profile(name: str) -> Profile:
    """An example profile."""
    path = PROFILES[name]
    return parse(path.read_text(), path.parent)


@functools.cache
def tree(name: str, node: str = "") -> Tree:
    """The rendered tree of a node, by default of the first; placeholders stand for secrets."""
    example = profile(name)
    return render(example, node or next(iter(example.nodes)), TEMPLATES, secrets=placeholders(example))


def placeholders(example: Profile) -> secrets.Secrets:
    """What stands for the secrets of a profile."""
    return secrets.placeholders(example, functools.partial(certificates.placeholder, example, datetime.now(UTC)))


def cases() -> list[tuple[str, str]]:
    """Every profile and node that is kept."""
    return [(n, node) for n in PROFILES for i, node in enumerate(profile(n).nodes) if i == 0 or n in ALL_NODES]


def expected(name: str, node: str) -> dict[str, bytes]:
    """The files of one golden folder, with MODES and PACKAGES, as they should be now."""
    files = tree(name, node).items()
    texts = {f"{node}{path}": file.shown.encode() if file.secrets else file.content for path, file in files}
    texts[f"{node}.MODES"] = "".join(f"{f.mode:04o} {p}\n" for p, f in tree(name, node).items()).encode()
    plan = package_plan.plan(profile(name), node)
    lines = [f"+{n}: {why}\n" for n, why in plan.add.items()] + [f"-{n}: {why}\n" for n, why in plan.remove.items()]
    texts[f"{node}.PACKAGES"] = "".join(lines).encode()
    return texts


def accept() -> None:
    """Rewrite all golden folders."""
    shutil.rmtree(GOLDEN, ignore_errors=True)
    for name, node in cases():
        for path, content in expected(name, node).items():
            target = GOLDEN / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


if __name__ == "__main__":
    if sys.argv[1:] != ["--accept"]:
        sys.exit("usage: python -m tests.support.goldens --accept")
    accept()
