"""UCI text: what the quoter writes, the reader returns; what uci refuses or swallows, the reader refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndakit.core.uci import UciError, quote, read

LEGAL = st.text(
    st.characters(codec="utf-8", exclude_characters=[chr(c) for c in (*range(32), *range(127, 160))]),
    min_size=1,
)


@given(LEGAL)
def test_a_quoted_value_is_read_back_unchanged(value: str) -> None:
    assert read(f"config a\n\toption b {quote(value)}\n")[0].get("b") == value


@pytest.mark.parametrize(
    "value",
    [
        "it's",
        "''",
        "$(reboot)",
        "`reboot`",
        "' ; option x '1",
        "a\\",
        "#x",
        "a#b",
        "%s",
        "ä€😀",
        " ",
        "x" * 10_000,
        '"',
    ],
)
def test_hostile_values_are_inert(value: str) -> None:
    sections = read(f"config a\n\toption b {quote(value)}\n\toption c 'd'\n")
    assert len(sections) == 1
    assert [(o.name, o.value) for o in sections[0].options] == [("b", value), ("c", "d")]


@pytest.mark.parametrize("value", ["", "a\nb", "a\0b", "\x07", "a\rb", "\x7f", "\x85", "\ud800"])
def test_what_uci_cannot_hold_is_not_quoted(value: str) -> None:
    with pytest.raises(ValueError, match=r"UCI|option"):
        quote(value)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("config a\n\toption b ''\n", 2, "empty"),
        ("config a 'x-y'\n", 1, "section name"),
        ("config a\n\toption b-c 'd'\n", 2, "option name"),
        ("config a 'x'\nconfig b 'x'\n", 2, "twice"),
        ("config a 'x'\nconfig a 'x'\n", 2, "twice"),
        ("config a\n\toption b 'c'\n\toption b 'd'\n", 3, "twice"),
        ("config a\n\toption b 'c'\n\tlist b 'd'\n", 3, "twice"),
        ("config a\n\toption b c d\n", 2, "one value"),
        ("config a\n\toption b a#b\n", 2, "#"),
        ("config a\n\toption b 'c\n", 2, "unterminated '"),
        ('config a\n\toption b "c\n', 2, 'unterminated "'),
        ("config a\n\toption b 'c'", 2, "newline"),
        ("option b 'c'\n", 1, "before the first section"),
        ("config a\n\tlsit b 'c'\n", 2, "invalid command"),
        ("config a\n\toption b 'a\0b'\n", 2, "control"),
        ("config a\n\toption b ä\n", 2, "outside quotes"),
        ("config\n", 1, "takes a type"),
        ("config a\\\n", 1, "backslash"),
    ],
)
def test_the_reader_names_the_line_of_what_is_wrong(text: str, line: int, message: str) -> None:
    with pytest.raises(UciError, match=message) as caught:
        read(text)
    assert caught.value.line == line


def test_comments_blank_lines_lists_and_glued_quotes_are_read() -> None:
    sections = read("# c\n\nconfig a 'n' # x\n\tlist b '1'\n\tlist b \"2\\\"\"\n\toption c d'e'\\''f'\n;config g\n")
    assert [(s.type, s.name) for s in sections] == [("a", "n"), ("g", None)]
    assert sections[0].list("b") == ("1", '2"')
    assert sections[0].get("c") == "de'f"
    assert sections[0].line_of("c") == 6
    assert sections[0].line_of("nothing") == 3
    assert sections[0].get("nothing") is None


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read(text)
    except UciError as cause:
        assert cause.line >= 1
