"""Every profile in invalid/ is refused with exactly the text beside it; every one in valid/ loads with its warnings.

After a change of wording: `python tests/load/test_load_corpus.py --accept` rewrites the texts; read the difference.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from ndakit.core.errors import ErrorGroup, InputError, NdakitError
from ndakit.core.mistakes import ProfileMistake
from ndakit.core.release import Release
from ndakit.core.workspace import Workspace
from ndakit.load import load
from ndakit.model.engines import ENGINES

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "data"
WORKSPACE = Workspace(HERE)
INVALID = sorted(p for p in (HERE / "invalid").glob("*.yaml") if not p.name.startswith("_"))
VALID = sorted(p for p in (HERE / "valid").glob("*.yaml") if not p.name.startswith("_"))
MODEL = ROOT / "src/ndakit/model"
CHECKS = [*sorted((MODEL / "rules").glob("*.py")), *sorted((MODEL / "checks").glob("*.py")), MODEL / "engines.py"]
"""Where the codes of cross-checks stand."""


def refusal(path: Path) -> InputError | ErrorGroup:
    with pytest.raises(NdakitError) as caught:
        load.load(WORKSPACE, str(path))
    assert isinstance(caught.value, InputError | ErrorGroup)
    return caught.value


def warnings_of(path: Path) -> str:
    return "".join(f"{w.text()}\n\n" for w in load.load(WORKSPACE, str(path)).warnings)


@pytest.mark.parametrize("path", INVALID, ids=lambda p: p.stem)
def test_an_invalid_profile_is_refused_with_this_text(path: Path) -> None:
    assert refusal(path).text() + "\n" == path.with_suffix(".txt").read_text()
    assert refusal(path).exit_code == 2


@pytest.mark.parametrize("path", INVALID, ids=lambda p: p.stem)
def test_nothing_is_told_twice(path: Path) -> None:
    told = path.with_suffix(".txt").read_text().strip().split("\n\n")
    assert len(told) == len(set(told))


@pytest.mark.parametrize("path", VALID, ids=lambda p: p.stem)
def test_a_valid_profile_loads_with_these_warnings(path: Path) -> None:
    expected = path.with_suffix(".txt")
    assert warnings_of(path) == (expected.read_text() if expected.exists() else "")


@pytest.mark.parametrize("path", INVALID, ids=lambda p: p.stem)
def test_no_word_of_the_libraries_reaches_the_user(path: Path) -> None:
    text = refusal(path).text().lower()
    for word in ("pydantic", "libyaml", "traceback", "validation", "input should", "extra inputs", "str_type"):
        assert word not in text


def test_a_release_that_a_fix_names_can_be_written_as_it_stands() -> None:
    named: set[str] = set()
    for path in (*INVALID, *VALID):
        text = path.with_suffix(".txt")
        fixes = re.findall(r"^  fix: +(.*)$", text.read_text(), re.MULTILINE) if text.exists() else []
        named |= {release for fix in fixes for release in re.findall(r"(?:release|write) (\d\d\.\d\d[^\s,;)]*)", fix)}
    assert len(named) > 5
    assert [release for release in sorted(named) if Release.parse(release).missing] == []


def test_a_value_that_a_fix_puts_into_its_mapping_is_the_one_that_was_written(tmp_path: Path) -> None:
    """Done as told, the profile has none of those mistakes any more."""
    text = (HERE / "invalid/kept-values.yaml").read_text()
    error = refusal(HERE / "invalid/kept-values.yaml")
    assert isinstance(error, ErrorGroup)
    kept = [e for e in error.errors if e.code == "wrong-kind" and "'yes'" not in e.what]
    assert len(kept) == 11
    lines = text.split("\n")
    for one in kept:
        assert one.fix is not None
        assert one.location is not None
        key, value = one.fix.removeprefix("write ").replace("NETWORK", "lan").split(": ", 1)
        row = one.location.line - 1
        lines[row], count = re.subn(rf"\b{key}: (\[[^]]*\]|[^\s,{{}}]+)", f"{key}: {value}", lines[row], count=1)
        assert count == 1
    path = tmp_path / "kept-values.yaml"
    path.write_text("\n".join(lines))
    (tmp_path / "page.html").write_text("sorry")
    left = refusal(path)
    assert [e.what for e in (left.errors if isinstance(left, ErrorGroup) else [left]) if e.code == "wrong-kind"] == [
        "'bond' is 'yes', and a mapping is needed"
    ]


def test_networks_that_join_the_same_cards_as_told_are_right(tmp_path: Path) -> None:
    text = (HERE / "invalid/vlan-of-bond.yaml").read_text()
    said = refusal(HERE / "invalid/vlan-of-bond.yaml").text()
    assert "add bond: {mode: 802.3ad}, as network lan" in said
    assert "write the same in both, bond: {mode: 802.3ad} or" in said
    text = text.replace("dmz: {nics: [eth0, eth1],", "dmz: {nics: [eth0, eth1], bond: {mode: 802.3ad},")
    path = tmp_path / "vlan-of-bond.yaml"
    path.write_text(text.replace("active-backup", "802.3ad"))
    load.load(WORKSPACE, str(path))


def codes_in_the_sources() -> set[str]:
    """Every code that a cross-check can give, read from the source."""
    codes: set[str] = set()
    for path in CHECKS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("error", "warning"):
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    codes.add(str(first.value))
                elif isinstance(first, ast.JoinedStr) and ast.unparse(first) == "f'check-of-{engine.name}'":
                    codes |= {f"check-of-{engine.name}" for engine in ENGINES}
                elif isinstance(first, ast.JoinedStr):
                    codes |= {f"{kind}-outside-subnet" for kind in ("vip", "node", "gateway", "route")}
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refused":
                assert isinstance(node.args[0], ast.Constant)
                codes.add(str(node.args[0].value))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "unknown":
                assert isinstance(node.args[0], ast.Constant)
                codes.add(f"unknown-{node.args[0].value!s}")
    return codes


def codes_in_the_corpus() -> set[str]:
    codes: set[str] = set()
    for path in INVALID:
        error = refusal(path)
        codes |= {e.code for e in (error.errors if isinstance(error, ErrorGroup) else (error,))}
    for path in VALID:
        codes |= {w.code for w in load.load(WORKSPACE, str(path)).warnings}
    return codes


def test_every_cross_check_has_a_profile_that_fails_it() -> None:
    assert len(codes_in_the_sources()) > 50
    assert codes_in_the_sources() - codes_in_the_corpus() == set()


def test_every_place_in_the_corpus_exists_in_its_file() -> None:
    for path in INVALID:
        error = refusal(path)
        for one in error.errors if isinstance(error, ErrorGroup) else (error,):
            assert isinstance(one, ProfileMistake)
            assert one.location is not None
            lines = (HERE / one.location.file).read_text().split("\n")
            assert one.location.line <= len(lines)
            if one.location.line:
                assert one.location.column <= len(lines[one.location.line - 1]) + 1


def accept() -> None:
    for path in INVALID:
        try:
            load.load(WORKSPACE, str(path))
        except NdakitError as error:
            path.with_suffix(".txt").write_text(error.text() + "\n")
        else:
            raise SystemExit(f"{path} is not refused")
    for path in VALID:
        text = warnings_of(path)
        target = path.with_suffix(".txt")
        if text:
            target.write_text(text)
        else:
            target.unlink(missing_ok=True)


if __name__ == "__main__" and "--accept" in sys.argv:
    accept()
