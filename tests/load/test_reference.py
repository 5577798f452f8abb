"""The pages made from the model are up to date, and the schema agrees with the loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # the package has no types of its own
import pytest
import yaml

from ndakit.load import reference
from ndakit.load.json_schema import descriptions, models, schema
from places import DATA, ROOT

PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))
VALID = sorted((DATA / "valid").glob("*.yaml"))


def as_an_editor_reads_it(path: Path) -> Any:
    """With YAML's own types, as the language server does."""
    return yaml.safe_load(path.read_text())


@pytest.fixture(scope="module")
def validator() -> Any:
    made = schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


def test_the_profile_reference_is_not_stale() -> None:
    assert (ROOT / "docs/profile.md").read_text() == reference.markdown(), "run: python -m ndakit.load.reference"


def test_the_schema_is_not_stale() -> None:
    written = json.loads((ROOT / "docs/profile.schema.json").read_text())
    assert written == schema(), "run: python -m ndakit.load.reference"


def test_both_files_are_written_whole(tmp_path: Path) -> None:
    page, machine = reference.write(tmp_path)
    assert page.read_text() == reference.markdown()
    assert json.loads(machine.read_text()) == schema()


@pytest.mark.parametrize("path", [*PROFILES, *VALID], ids=lambda p: p.stem)
def test_the_schema_takes_what_the_loader_takes(path: Path, validator: Any) -> None:
    assert [e.message for e in validator.iter_errors(as_an_editor_reads_it(path))] == []


@pytest.mark.parametrize("name", ["unknown-keys", "missing-inner-keys", "words", "numbers", "more-kinds", "format"])
def test_the_schema_refuses_what_an_editor_can_know(name: str, validator: Any) -> None:
    assert not validator.is_valid(as_an_editor_reads_it(DATA / f"invalid/{name}.yaml"))


def test_a_child_and_a_fragment_need_no_required_keys_and_may_take_away(validator: Any) -> None:
    assert validator.is_valid({"extends": ["base"], "name": "child", "pools": {"web": None}, "vrrp": {"prefer": None}})
    assert validator.is_valid({"release": "24.10.8"})
    assert not validator.is_valid({"extends": ["base"], "vrrp": {"prefered": "lb1"}})


def test_every_key_of_the_model_has_a_text_and_is_in_the_page() -> None:
    page = reference.markdown()
    for model in models().values():
        assert model.__doc__
        for key in model.model_fields:
            assert f"| `{key}` |" in page
            assert descriptions(model).get(key) or model.__name__ == "Profile"
