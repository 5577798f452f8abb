"""Whatever is in a balancer's files: an import never ends in a traceback, and every line is accounted for."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ndakit.core.uci import UciError, read, read_leniently
from ndakit.core.workspace import Workspace
from ndakit.operate.import_ import importer, refine
from ndakit.operate.import_.ledger import NOT_READ, Ledger
from ndakit.operate.import_.refine import Imported
from ndakit.operate.import_.sources import NodeFiles
from places import DATA, ROOT

CASES = sorted(p for p in (DATA / "imports").iterdir() if p.is_dir())
PATHS = (
    "/etc/config/network",
    "/etc/config/firewall",
    "/etc/config/system",
    "/etc/config/keepalived",
    "/etc/haproxy.cfg",
    "/etc/keepalived/keepalived.conf",
    "/etc/ipvsadm.rules",
    "/etc/sysctl.conf",
    "/etc/dropbear/authorized_keys",
    "/etc/pound/pound.cfg",
    "/etc/banner",
    "/etc/openwrt_release",
    "/etc/board.json",
    "/usr/libexec/ndakit/pool-alive",
    "/usr/libexec/ndakit/check-script",
)
WORDS = [
    "{",
    "}",
    '"',
    "'",
    "\\",
    "0",
    "-1",
    "99999999999",
    "::",
    "192.0.2.300",
    "fe80::1%eth0",
    "x" * 300,
    "\x00",
    "é",
    "#",
    "if",
    "option",
    "config",
    "list",
    "bind",
    "server",
    "acl",
    "use_backend",
    "virtual_server",
    "real_server",
    "\u2028",
    "a.b/c",
]


@pytest.fixture(autouse=True)
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading and rendering take most of the time, and have properties of their own."""
    monkeypatch.setattr(refine, "_settled", lambda workspace, result: None)


def accounted(files: dict[str, bytes], other: dict[str, bytes] | None = None) -> Imported:
    nodes = [NodeFiles("one", files)] + ([NodeFiles("two", other)] if other is not None else [])
    result = importer.convert(Workspace(ROOT), "box", nodes)
    for file in result.ledger.files:
        assert {line for line, _, _ in file.account()} == set(range(1, len(file.lines) + 1))
    assert not [c for c in result.text if ord(c) < 32 and c != "\n"]
    return result


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=400))
def test_random_bytes_are_no_traceback(path: str, content: bytes) -> None:
    accounted({path: content})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_mutated_configurations_are_no_traceback(case: Path) -> None:
    chance = random.Random(case.name)
    from ndakit.operate.import_ import sources

    for node in (p for p in sorted(case.iterdir()) if p.is_dir()):
        whole = sources.read(str(node)).files
        for _ in range(12):
            accounted({path: mutated(content, chance) for path, content in whole.items()})


@pytest.mark.parametrize("name", ["kernel-all", "tls", "wildcard-shops", "handover", "fw3-1806"])
def test_mutated_files_of_ndakit_are_no_traceback(name: str) -> None:
    chance = random.Random(name)
    root = DATA / "golden" / name / ("lb1" if (DATA / "golden" / name / "lb1").is_dir() else "lb")
    whole = {f"/{p.relative_to(root)}": p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
    for _ in range(6):
        accounted({path: mutated(content, chance) for path, content in whole.items()}, whole)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Some lines dropped, doubled, swapped, cut; some words replaced by others, or by what is none."""
    lines = content.decode(errors="replace").split("\n")
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(lines))
        words = lines[at].split(" ")
        match chance.randrange(7):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[chance.randrange(len(lines))])
            case 2:
                lines[at] = lines[at][: chance.randrange(len(lines[at]) + 1)]
            case 3:
                words[chance.randrange(len(words))] = chance.choice(WORDS)
                lines[at] = " ".join(words)
            case 4:
                words.insert(chance.randrange(len(words) + 1), chance.choice(WORDS))
                lines[at] = " ".join(words)
            case 5:
                lines[at] = " ".join(words[: chance.randrange(len(words) + 1)])
            case _:
                chance.shuffle(words)
                lines[at] = " ".join(words)
        lines = lines or [""]
    return "\n".join(lines).encode(errors="replace")


def test_a_line_that_a_reader_forgets_is_reported() -> None:
    ledger = Ledger()
    file = ledger.open("lb1", "/etc/haproxy.cfg", "global\n  maxconn 5\n\n# why\n  forgotten\n")
    file.key(1, "x")
    file.same(2, "y")
    assert [(one.place, one.text, one.why) for one in ledger.unsaid()] == [
        ("lb1:/etc/haproxy.cfg:5", "forgotten", NOT_READ)
    ]
    assert ledger.counts() == {"key": 1, "same": 1, "unsaid": 1, "comment": 2}


def test_a_line_that_is_said_in_part_is_reported_too() -> None:
    ledger = Ledger()
    file = ledger.open("lb1", "/etc/haproxy.cfg", "server a 192.0.2.1 cookie x\n")
    file.key(1, "pools.web.servers.a")
    file.unsaid(1, "cookie: not carried yet")
    assert ledger.counts()["unsaid"] == 1
    assert [kind for _, kind, _ in file.account()] == ["key", "unsaid"]


def test_a_whole_file_that_nobody_reads_is_reported() -> None:
    result = accounted({"/etc/config/wireless": b"config wifi-device 'radio0'\n\toption channel '36'\n"})
    assert [one.place for one in result.unsaid] == ["lb1:/etc/config/wireless:1-2"]


@pytest.mark.parametrize(
    "line",
    [
        "auth_pass 1234",
        "option password 'hunter2'",
        "stats auth admin:hunter2",
        "list key 'abc'",
        "user x password hunter2",
        "option community 'geheim'",
        "server a https://x:y@192.0.2.1",
        "psk=hunter2",
        "option wpakey 'x'",
    ],
)
def test_what_can_be_a_secret_is_not_shown(line: str) -> None:
    file = Ledger().open("lb1", "/x", line + "\n")
    assert "not shown" in file.shown(1)
    assert not {"1234", "hunter2", "geheim", "abc"} & set(re.split(r"[ ':=]", file.shown(1)))


# -- uci, read as uci reads it -----------------------------------------------------------------------------------------


def test_the_last_of_two_options_counts_and_the_first_is_told() -> None:
    sections, faults = read_leniently("config a 'x'\n\toption b '1'\n\toption b '2'\n")
    assert (sections[0].get("b"), [f.line for f in faults]) == ("2", [2])


def test_a_section_that_is_stated_twice_is_one() -> None:
    sections, faults = read_leniently("config a 'x'\n\toption b '1'\nconfig a 'x'\n\toption c '2'\n")
    assert ([s.get("c") for s in sections], faults) == (["2"], [])


def test_a_line_that_uci_refuses_is_left_out_and_told() -> None:
    sections, faults = read_leniently("config a 'x'\n\toption c '2'\n\toption b 'open\n")
    assert [f.line for f in faults] == [3]
    assert sections[0].get("c") == "2"


def test_options_of_a_section_that_is_none_belong_to_no_other() -> None:
    sections, faults = read_leniently("config a\n\toption b '1'\nconfig b 'x' 'y'\n\toption c '2'\n")
    assert (sections[0].get("c"), [f.line for f in faults]) == (None, [3, 4])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="config option list'\"\\#\n \tab=1;", max_size=120))
def test_what_uci_takes_is_read_alike_by_both_readers(text: str) -> None:
    sections, faults = read_leniently(text)
    try:
        strict = read(text)
    except UciError:
        return
    assert [(s.type, s.name, s.options) for s in sections] == [(s.type, s.name, s.options) for s in strict]
    assert faults == []
