"""Every profile, and every part of one, that a page shows is right: readers copy them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import goldens
from ndakit.core.errors import NdakitError
from ndakit.core.workspace import Workspace
from ndakit.load.load import load
from ndakit.load.loaded import Loaded
from ndakit.render.render import render

PAGES = (
    *sorted((goldens.ROOT / "docs").glob("*.md")),
    *(goldens.ROOT / p for p in ("README.md", "packages/README.md")),
)
AROUND = (goldens.ROOT / "profiles/shop-nat.yaml").read_text()
"""What a part of a profile is merged into: two nodes on two networks, with a gateway VIP."""


def blocks() -> Iterator[tuple[str, str]]:
    """(page:line, text) of each YAML block of the pages."""
    for page in PAGES:
        text = page.read_text()
        for block in re.finditer(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            yield f"{page.name}:{text[: block.start()].count(chr(10)) + 1}", block[1]


BLOCKS = dict(blocks())
WHOLE = [place for place, text in BLOCKS.items() if text.startswith("name:")]


def merged(around: Any, part: Any) -> Any:
    """`part` over `around`, mappings by key."""
    if not (isinstance(around, dict) and isinstance(part, dict)):
        return part
    return around | {key: merged(around.get(key), value) for key, value in part.items()}


def loaded(folder: Path, text: str) -> Loaded:
    """The profile of a text; raises what is wrong with it."""
    name = yaml.load(text, yaml.BaseLoader)["name"]
    (folder / "profiles").mkdir()
    (folder / "profiles" / f"{name}.yaml").write_text(text)
    shutil.copy(goldens.ROOT / "profiles/sorry.html", folder / "profiles")  # which pages name
    return load(Workspace.at(folder), name)


@pytest.mark.parametrize("place", WHOLE)
def test_a_profile_on_a_page_is_right_and_renders(place: str, tmp_path: Path) -> None:
    profile = loaded(tmp_path, BLOCKS[place])
    for node in profile.profile.nodes:
        assert render(profile.profile, node, goldens.TEMPLATES, secrets=goldens.placeholders(profile.profile))
    if place.startswith("examples.md"):
        assert [w.what for w in profile.warnings] == []


@pytest.mark.parametrize("place", [place for place in BLOCKS if place not in WHOLE])
def test_a_part_of_a_profile_on_a_page_is_right_where_it_belongs(place: str, tmp_path: Path) -> None:
    around, part = (yaml.load(text, yaml.BaseLoader) for text in (AROUND, BLOCKS[place]))
    profile = loaded(tmp_path, yaml.safe_dump(merged(around, part), sort_keys=False))
    for key in part:
        assert getattr(profile.profile, key) != getattr(goldens.profile("shop-nat"), key)


def test_a_wrong_one_would_be_found(tmp_path: Path) -> None:
    with pytest.raises(NdakitError):
        loaded(tmp_path, BLOCKS[WHOLE[0]].replace("subnet:", "subnets:"))


def test_the_pages_have_profiles_and_parts() -> None:
    assert len(WHOLE) >= 5
    assert len(BLOCKS) - len(WHOLE) >= 3


FOR_THE_LAB = (
    "To try such a profile without the device: `./inv build PROFILE`",
    "--locked builds exactly this or nothing",
)
"""Lines that mean either builder, or the lab's."""


def test_who_is_told_to_build_is_told_the_builder() -> None:
    """Without `--builder` the lab's images are made, which nobody may flash."""
    files = [*(goldens.ROOT / "docs").glob("*.md"), goldens.ROOT / "README.md", *(goldens.ROOT / "src").rglob("*.py")]
    told = [line for file in files for line in file.read_text().splitlines() if re.search(r"\./inv build [\w{]", line)]
    assert len(told) > 20
    assert [line for line in told if "--builder" not in line and not any(known in line for known in FOR_THE_LAB)] == []
