"""The stand-in's uci: quoting, parser, verbs and messages as the real one's."""

from __future__ import annotations

import pytest

from labrig import MakeRoot

HOSTILE = {
    "apostrophe": "it's",
    "quotes": "\"double\" and 'single'",
    "only_apostrophes": "'''",
    "newline": "one\ntwo\n",
    "hash": "a#b # c",
    "semicolon": "a; option x 'y'",
    "shell": "$(reboot) `id` $HOME",
    "backslash": "trailing\\",
    "block": "x'\nconfig foo 'bar'\n\toption a 'b",
    "blank": " ",
    "umlaut": "Grüße",
    "equals": "a=b=c",
    "long": "x" * 10000,
}


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"


def test_hostile_values_are_read_back_unchanged(make_root: MakeRoot) -> None:
    root = make_root()
    lines = "".join(f"\toption {name} {_quoted(value)}\n" for name, value in HOSTILE.items())
    root.put("etc/config/hostile", f"config thing 'x'\n{lines}")
    script = "".join(f"printf '<'; uci get hostile.x.{name}; printf '>'\n" for name in HOSTILE)
    said = root.run(script)
    assert said.out == "".join(f"<{value}\n>" for value in HOSTILE.values())


def test_hostile_values_survive_export_and_import(make_root: MakeRoot) -> None:
    root = make_root()
    lines = "".join(f"\toption {name} {_quoted(value)}\n" for name, value in HOSTILE.items())
    root.put("etc/config/hostile", f"config thing 'x'\n{lines}")
    said = root.run(
        "uci export hostile >/tmp/a; uci import copy </tmp/a; uci show hostile >/tmp/1\n"
        "uci show copy | sed 's/^copy/hostile/' >/tmp/2; cmp /tmp/1 /tmp/2 && echo same"
    )
    assert said.out == "same\n", said.err


def test_hostile_values_survive_set_and_commit(make_root: MakeRoot) -> None:
    root = make_root()
    root.put("etc/config/hostile", "config thing 'x'\n")
    sets = "".join(f"uci set hostile.x.{name}={_quoted(value)}\n" for name, value in HOSTILE.items())
    gets = "".join(f"printf '<'; uci get hostile.x.{name}; printf '>'\n" for name in HOSTILE)
    wanted = "".join(f"<{value}\n>" for value in HOSTILE.values())
    assert root.run(sets + gets + "uci commit hostile\n" + gets).out == wanted * 2


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        ("config a 'x'\nbogus\n", "invalid command", 2),
        ("config a 'x'\n\toption bad-name '1'\n", "invalid character in name field", 2),
        ("config a 'x-y'\n", "invalid character in name field", 1),
        ("option a 'b'\n", "option/list command found before the first section", 1),
        ("config a 'x'\n\toption y 'open\n", "unterminated '", 2),
        ("config a 'x'\nconfig b 'x'\n", "section of different type overwrites prior section with same name", 2),
        ("config a 'x'\n\toption y one two\n", "too many arguments", 2),
    ],
)
def test_a_broken_file_is_refused_whole_with_the_place(make_root: MakeRoot, text: str, reason: str, line: int) -> None:
    root = make_root()
    root.put("etc/config/broken", text)
    said = root.run("uci show broken; echo rc=$?")
    assert said.out == "rc=1\n"
    assert said.err.startswith(f"uci: Parse error ({reason}) at line {line}, byte ")


def test_an_empty_option_is_an_absent_option(make_root: MakeRoot) -> None:
    root = make_root()
    root.put("etc/config/t", "config a 'x'\n\toption y ''\n\toption z '1'\n")
    said = root.run("uci get t.x.y; echo rc=$?; uci set t.x.z=; uci show t")
    assert said.out == "rc=1\nt.x=a\n"
    assert said.err == "uci: Entry not found\n"


def test_unquoted_hash_cuts_the_value_and_same_section_merges(make_root: MakeRoot) -> None:
    root = make_root()
    root.put("etc/config/t", "config a 'x'\n\toption y v#w\n\nconfig a 'x'\n\toption z '2'\n")
    assert root.run("uci show t").out == "t.x=a\nt.x.y='v'\nt.x.z='2'\n"


def test_verbs_do_what_their_names_say(make_root: MakeRoot) -> None:
    root = make_root()
    root.put(
        "etc/config/t", "config a 'x'\n\toption y '1'\n\nconfig b\n\tlist l 'one'\n\tlist l 'two words'\n\nconfig b\n"
    )
    said = root.run(
        "uci add_list t.@b[0].l=three; uci del_list t.@b[0].l=one; uci get t.@b[0].l\n"
        "uci show t.@b[0]; uci -X show t | grep =b\n"
        "n=$(uci add t c); uci set t.$n.k=v; uci rename t.$n=named; uci rename t.x.y=w; uci delete t.@b[-1]\n"
        "uci reorder t.named=0; uci changes t | wc -l; uci commit t; uci export t; uci changes t\n"
    )
    assert said.err == ""
    first, _, rest = said.out.partition("t.@b[0]=b\n")
    assert first == "'two words' three\n"
    assert rest.startswith("t.@b[0].l='two words' 'three'\nt.cfg")
    assert rest.endswith(
        "package t\n\nconfig c 'named'\n\toption k 'v'\n\nconfig a 'x'\n\toption w '1'\n\nconfig b\n"
        "\tlist l 'two words'\n\tlist l 'three'\n\n"
    )


def test_batch_applies_all_lines_and_revert_forgets(make_root: MakeRoot) -> None:
    root = make_root()
    root.put("etc/config/t", "config a 'x'\n")
    said = root.run(
        "uci -q batch <<END\nset t.x.one='1'\nset t.y=b\nadd_list t.y.l='a b'\nEND\n"
        "uci show t; uci revert t.x; uci show t.x; uci revert t; uci show t\n"
    )
    assert said.out == "t.x=a\nt.x.one='1'\nt.y=b\nt.y.l='a b'\nt.x=a\nt.x=a\n"


def test_shell_functions_see_what_uci_sees(make_root: MakeRoot) -> None:
    root = make_root()
    root.put(
        "etc/config/t",
        "config pool 'p'\n\toption name 'it'\\''s $HOME'\n\toption on 'yes'\n"
        "\tlist s 'one'\n\tlist s 'two words'\n\nconfig pool\n",
    )
    said = root.run(
        '. /lib/functions.sh\nconfig_load t\none() { config_get name $1 name none; echo "$1:$name"; }\n'
        'config_foreach one pool; item() { echo "<$1>"; }; config_list_foreach p s item\n'
        'config_get_bool on p on 0; echo "$on"; config_get missing p missing fallback; echo "$missing"'
    )
    lines = said.out.splitlines()
    assert lines[0] == "p:it's $HOME"
    assert lines[1].endswith(":none")
    assert lines[2:] == ["<one>", "<two words>", "1", "fallback"]
