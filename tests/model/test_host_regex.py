"""Expressions for host names: what is taken is read alike by Python and PCRE, and no name keeps it busy."""

from __future__ import annotations

import re
import subprocess
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haproxy_live import program
from ndakit.model.host_regex import HostRegexFault, check
from ndakit.model.http import matches

TAKEN = (
    r"^img[0-9]+\.", r"^test[0-9]*-", r"-test\.shops\.example$", r"^(img|web)[0-9]{1,3}\.", r"^(?:www\.)?shop\.",
    r"[a-z]+\.[a-z]+\.[a-z]+\.example$", ".*shop.*", r"^[a-z0-9.-]*\.shop\.example$", r"[^a-z.-]", r"^\d\d-\w+$",
    r"^(img[0-9]+|web[0-9]+|test[0-9]+)\.", "a{2}", "^a{2,}b", "[-a]", "[a-]", r"[\d.-]{3}", "(ab)+c", "((a|b)c)?d",
    r"[a-z]*[a-z0-9]*$", "^$", r"^a\-b", "A-Z", "^[A-F]+$", "(ab){2}", "(a)(b)?", "[a-z]{1,63}x[a-z]*", "a?b?c?d?e?f?",
)  # fmt: skip
BUSY = (
    "(a+)+$", "(a*)*$", "(a|a)*$", "(a|ab|b)+$", "((a+)b?)+$", "(a?)*$", "(a?){30}$", "(a{1,3}){9}$", "a*a*a*$",
    ".*.*.*$", "[a-z]*a?[a-z0-9]*b?[a-z-]*$", "(a+)?(a+)?(a+)?$", "(a+|b)(a+|c)(a+|d)$", "a?a?a?a?a?a?a?$",
    "a+(b|a)a+(b|a)a+$", "((a{63}){63}){63}", r"[^b]+[^c]+[^d]+$",
    "[^a-z0-9_.:-]*[^a-z0-9_.:-]*[^a-z0-9_.:-]*$", r"([a-z]+\.)*x",
)  # fmt: skip
NAMES = (
    "shop.example", "img7.shop.example", "IMG12.other", "ximg7.x", "test-1", "a", "aa", "aaab", "ab", "abc", "acd", "d",
    "12-abc", "12-a.b", "a-b", "web.a.b.example", "x-test.shops.example", "A-Z", "FADE", "b", "1.2", "www.shop.x",
    "abab",
)  # fmt: skip


@pytest.mark.parametrize("expression", TAKEN)
def test_python_and_pcre_read_it_alike(expression: str) -> None:
    check(expression)
    asked = "".join(f"{name}\n" for name in NAMES)
    pcre = subprocess.run(["grep", "-iP", "-e", expression], input=asked, capture_output=True, text=True, check=False)
    assert pcre.stderr == ""
    assert pcre.stdout.split() == [name for name in NAMES if matches((expression,), name)]


def test_haproxy_takes_them_all(tmp_path: Path) -> None:
    lines = "".join(f"  acl a{n} req.hdr(host),field(1,:) -m reg -i -- '{one}'\n" for n, one in enumerate(TAKEN))
    config = tmp_path / "haproxy.cfg"
    config.write_text(f"defaults\n  mode http\n  timeout client 1s\nfrontend a\n  bind 127.0.0.1:1\n{lines}")
    done = subprocess.run([*program("haproxy"), "-c", "-f", config], capture_output=True, text=True, check=False)
    assert "error detected while parsing ACL" not in done.stderr and "ALERT" not in done.stderr, done.stderr


@pytest.mark.parametrize("expression", BUSY)
def test_what_some_name_keeps_busy_is_refused(expression: str) -> None:
    with pytest.raises(HostRegexFault, match=r"busy for ever|more than 6 times"):
        check(expression)


@pytest.mark.parametrize("expression", TAKEN)
def test_no_name_keeps_the_others_busy(expression: str) -> None:
    begun = time.process_time()
    for letter in "a1-.":
        matches((expression,), letter * 252 + "!")
    assert time.process_time() - begun < 5


@given(st.text(st.sampled_from(r"ab1-.\dw[]()|^$?*+{},:_!P<=#"), max_size=12))
def test_what_is_taken_is_an_expression_without_doubts_of_pythons(expression: str) -> None:
    try:
        check(expression)
    except HostRegexFault as fault:
        assert fault.what and fault.fix
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        re.compile(expression)
