"""Filters: a hostile value is refused or read back unchanged by a reader that shares no code with the filter."""

from __future__ import annotations

import shlex
import subprocess
from ipaddress import ip_address, ip_interface

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import StrictUndefined, UndefinedError

from ndakit.core.uci import read
from ndakit.lint import config_text
from ndakit.render import filters

HOSTILE = ["it's", "$(reboot)", "`reboot`", "a\nb", "'; option x '1", "x" * 10_000, "Müller", "", "\0", "#", '"', "\\",
           "a b", "{", "}", "!", "%[env(HOME)]", "\u2028", "\ud800", "\x9b31m", "&&", "|", ">", "*", "~"]  # fmt: skip
TEXT = st.one_of(st.sampled_from(HOSTILE), st.text())


@given(TEXT)
def test_uci_value_is_refused_or_read_back(value: str) -> None:
    try:
        written = filters.uci(value)
    except ValueError:
        return
    assert [o.value for o in read(f"config a\n\toption b {written}\n")[0].options] == [value]


@given(TEXT)
def test_shell_word_is_refused_or_read_back_by_a_lexer(value: str) -> None:
    try:
        written = filters.shell(value)
    except ValueError:
        return
    assert shlex.split(f"echo {written}") == ["echo", value]


@given(st.lists(TEXT, min_size=20, max_size=40))
@settings(max_examples=15, deadline=None)
def test_shell_words_are_read_back_by_a_shell(values: list[str]) -> None:
    written = []
    kept = []
    for value in values:
        try:
            written.append(filters.shell(value))
        except ValueError:
            continue
        kept.append(value)
    script = "printf '%s\\0' " + " ".join(written) if written else "true"
    said = subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout
    assert [v.decode() for v in said.split(b"\0")[:-1]] == kept


@given(TEXT)
def test_haproxy_word_is_refused_or_read_back(value: str) -> None:
    try:
        written = filters.haproxy(value)
    except ValueError:
        return
    sections = config_text.haproxy(f"global\n\tnode {written}\n")
    assert [line.words for line in sections[0].lines] == [("node", value)]


@given(TEXT)
def test_word_is_refused_or_read_back_by_a_keepalived_reader(value: str) -> None:
    try:
        written = filters.word(value)
    except ValueError:
        return
    root = config_text.keepalived(f"a {{\n\tb {written}\n}}\n")
    assert [line.words for line in root.blocks[0].lines] == [("b", value)]


@given(TEXT)
def test_comment_stays_on_its_line(value: str) -> None:
    try:
        written = filters.comment(value)
    except ValueError:
        return
    assert f"# {written}\nx\n".splitlines() == [f"# {value}", "x"]
    assert read(f"# {written}\nconfig a\n")[0].type == "a"
    assert config_text.haproxy(f"global\n# {written}\n\tnode a\n")[0].lines[0].words == ("node", "a")


@given(TEXT)
def test_authorized_key_stays_one_line(value: str) -> None:
    try:
        written = filters.authorized_key(f"ssh-ed25519 AAAA {value}")
    except ValueError:
        return
    assert len(str(written).splitlines()) == 1


@pytest.mark.parametrize("name", sorted(filters.FILTERS))
@pytest.mark.parametrize("value", [None, [], {}, b"x", object(), StrictUndefined(name="x")])
def test_what_is_no_value_is_refused(name: str, value: object) -> None:
    with pytest.raises((ValueError, UndefinedError)):
        filters.FILTERS[name](value)


@pytest.mark.parametrize(
    ("value", "wanted"), [(2.0, "2s"), (0.5, "500ms"), (0.25, "250ms"), (3600, "3600s"), (1.0004, "1s")]
)
def test_seconds_are_haproxy_times(value: float, wanted: str) -> None:
    assert filters.seconds(value) == wanted


@pytest.mark.parametrize("value", [0, 0.0001, -1, True, "2"])
def test_no_time_to_wait_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="time"):
        filters.seconds(value)


@pytest.mark.parametrize(("value", "wanted"), [(1.0, "1"), (0.1, "0.1"), (0.05, "0.05"), (40.95, "40.95")])
def test_decimals_are_short(value: float, wanted: str) -> None:
    assert filters.decimal(value) == wanted


def test_addresses_numbers_and_booleans_are_values() -> None:
    assert filters.uci(ip_address("2001:db8::1")) == "'2001:db8::1'"
    assert filters.uci(ip_interface("192.0.2.1/24")) == "'192.0.2.1/24'"
    assert filters.uci(True) == "'1'"
    assert filters.words(["a", 1]) == "a 1"


def test_only_filtered_values_pass_the_finalizer() -> None:
    assert filters.plain(filters.Ready("x")) == "x"
    with pytest.raises(ValueError, match="not put through a filter"):
        filters.plain("x")
