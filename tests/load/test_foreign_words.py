"""Words of other programs: what is said instead exists in the profile language, and is right there."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from ndakit.core.mistakes import KeyPath
from ndakit.load import field_types, foreign_words
from ndakit.load.json_schema import kinds_of
from ndakit.model import Model, Profile

TEXTS = sorted({*foreign_words.KEYS.values(), *foreign_words.PLACES.values(), *foreign_words.VALUES.values()})
SPOKEN = re.compile(r"\b(?:" + "|".join(Profile.model_fields) + r")(?:\.[A-Za-z_]+)+")


def path_of(dotted: str) -> KeyPath:
    return tuple("a-name" if part == "NAME" else part for part in dotted.split("."))


@pytest.mark.parametrize("text", TEXTS)
def test_every_key_that_a_text_names_is_in_the_model(text: str) -> None:
    for spoken in SPOKEN.findall(text):
        assert field_types.at(path_of(spoken)) is not None, spoken


def test_the_texts_name_keys_at_all() -> None:
    assert sum(len(SPOKEN.findall(text)) for text in TEXTS) > 40
    assert field_types.at(path_of("networks.NAME.nisc")) is None


def models(annotation: object = Profile) -> Iterator[type[Model]]:
    """Every class of the model below one."""
    seen: dict[type[Model], None] = {}
    ahead: list[type[Model]] = [Profile]
    while ahead:
        model = ahead.pop()
        if model in seen:
            continue
        seen[model] = None
        for key in model.model_fields:
            here = field_types.field_type(model, key)
            for below in (here, field_types.step(here, "a-name"), field_types.step(here, 0)):
                inner = field_types.model_of(below) if below is not None else None
                if inner is not None:
                    ahead.append(inner)
    yield from seen


def test_places_are_classes_of_the_model_and_words_that_they_do_not_have() -> None:
    known = {m.__name__: {*m.model_fields, *(key for k in kinds_of(m) for key in k.model_fields)} for m in models()}
    for (name, word), text in foreign_words.PLACES.items():
        assert word not in known[name]
        first = re.match(r"write ([a-z_]+)", text)
        assert first is not None
        if not SPOKEN.match(text.removeprefix("write ")):  # a key elsewhere; the test above looks it up
            assert first[1] in known[name]


@pytest.mark.parametrize("of", sorted({of for of, _ in foreign_words.VALUES}))
def test_a_value_that_is_proposed_is_taken(of: str) -> None:
    place = {
        "protocol": "services.NAME.protocol", "topology": "services.NAME.topology", "balance": "pools.NAME.balance",
        "mode": "networks.NAME.bond.mode", "check": "pools.NAME.check.type", "platform": "platform",
        "firmware": "image.firmware", "formats": "image.formats.0", "families": "services.NAME.families.0",
        "packages": "image.packages.NAME",
    }[of]  # fmt: skip
    path = tuple(int(part) if part == "0" else part for part in path_of(place))
    allowed = field_types.words(field_types.at(path))
    assert allowed
    for (key, wrong), text in foreign_words.VALUES.items():
        if key != of:
            continue
        assert wrong not in allowed, f"{wrong} is a value of {key}"
        said = re.findall(rf"{key}: \{{?(?:type: )?([a-z0-9.-]+)", text) or re.findall(r"write ([a-z0-9]+)", text)
        assert said
        assert set(said) <= set(allowed), text


def test_why_there_is_no_password_says_what_protects_instead() -> None:
    for word in ("auth", "auth_pass", "authentication", "AUTH_TYPE"):
        text = foreign_words.key(word, "Vrrp")
        assert text is not None
        assert "vrrp.unicast" in text
        assert "firewall" in text
