"""JSON that comes from outside: what is no text is refused, but for what programs print."""

from __future__ import annotations

import pytest

from ndakit.core import json_text


@pytest.mark.parametrize("text", ['{"a": "\\ud800"}', b'{"a": "\\uDcff"}', '["\ud800"]'])
def test_half_of_a_character_is_refused_unless_it_stands_for_a_byte(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="half of a character"):
        json_text.parse(text)
    assert json_text.parse(text, halves=True)


@pytest.mark.parametrize("text", ['{"a": "\\ud83d\\ude00"}', '{"a": "ü"}', '{"a": "\\\\ud800"}'])
def test_whole_characters_are_taken_however_they_are_written(text: str) -> None:
    assert json_text.mapping(text)["a"]
