"""One list of programs: ./inv installs from it, the driver asks by it, and nothing else is started anywhere."""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndakit.core import process, programs
from ndakit.imagebuilder import failures, prerequisites
from places import ROOT

# What every Debian has: packages marked as essential.
ESSENTIAL = {
    *(
        "sh",
        "dash",
        "bash",
        "cat",
        "cp",
        "df",
        "echo",
        "false",
        "gzip",
        "ldd",
        "rm",
        "sha256sum",
        "sleep",
        "test",
        "true",
    ),
}
# Inside a lab host or on a balancer, words of XML and task names, and a name that nothing has.
ELSEWHERE = {"busybox", "sysupgrade", "img", "os", "inv", "no-such-program"}
STARTERS = {
    "run",
    "Popen",
    "check_call",
    "check_output",
    "spawn",
    "find",
    "require",
    "which",
    "_run",
    "_require",
    "bench",
}


def _started(path: Path) -> Iterator[tuple[str, int]]:
    """The names of programs in a module: first words of command lines, and programs that are looked for."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if function not in STARTERS:
            continue
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else "process"
        if function in ("find", "require") and owner != "process":
            continue  # a text, or a part of a file, is looked into
        first = node.args[0]
        if isinstance(first, ast.List | ast.Tuple) and first.elts:
            first = first.elts[0]
        elif function in ("run", "Popen", "check_call", "check_output", "spawn", "_run", "bench"):
            continue  # a text: a command for somebody else's shell, such as a node's
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            name = first.value
            if name.replace("-", "").replace("_", "").isalnum() and name.islower():
                yield name, node.lineno


def test_every_program_that_is_started_stands_in_the_list() -> None:
    listed = {Path(name).name for row in programs.needed() for name in row.names} | ESSENTIAL | ELSEWHERE
    unlisted = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for folder in ("src", "lab", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name, line in _started(path)
        if name not in listed
    ]
    assert unlisted == [], "add them to src/ndakit/core/programs.txt, with the Debian package and what they are for"


def test_the_scan_sees_programs(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text("process.run(['jq', '.'], timeout_s=1)\nprocess.require('socat', package='socat', reason='x')\n")
    assert [name for name, _ in _started(code)] == ["jq", "socat"]


def test_every_row_says_what_it_is_for() -> None:
    for row in programs.needed():
        assert row.names and row.package and row.use, row
        assert row.who and row.who <= {"driver", "ndakit", "lab", "tests"}, row
    names = [row.names for row in programs.needed()]
    assert len(names) == len(set(names))


def test_the_driver_asks_for_what_the_list_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known = process.find
    monkeypatch.setattr(process, "find", lambda tool: None if tool in ("gawk", "shellcheck") else known(tool))
    with pytest.raises(failures.PrerequisitesMissing, match=r"gawk \(reads package lists\)") as missing:
        prerequisites.check("here")
    assert "shellcheck" not in str(missing.value)


def _missing(folder: Path, *there: str) -> list[str]:
    """What ./inv would install on a machine whose only programs are `there`, beside those that ./inv itself needs."""
    for name in ("tr", "sort", "sed", "dirname", *there):
        (folder / name).symlink_to(f"/usr/bin/{name}" if Path(f"/usr/bin/{name}").exists() else "/bin/true")
    text = (ROOT / "inv").read_text()
    functions = text[text.index("home=") : text.index("install_packages() {")]
    script = folder / "inv"
    script.write_text(f"#!/bin/sh\nset -eu\n{functions}\nmissing_packages\n".replace("PATH=$PATH:/usr/sbin:/sbin", ""))
    script.write_text(script.read_text().replace("needed=$home", f"needed={ROOT}"))
    done = subprocess.run(
        ["sh", str(script)], env={"PATH": str(folder)}, capture_output=True, text=True, check=True, executable="/bin/sh"
    )
    return done.stdout.split()


def test_inv_installs_the_packages_of_the_list_that_are_missing(tmp_path: Path) -> None:
    files = {row.package for row in programs.needed() if row.names[0].startswith("/")}
    wanted = {row.package for row in programs.needed()} | {"python3", "python3-venv"}
    (tmp_path / "bare").mkdir()
    missing = set(_missing(tmp_path / "bare"))
    assert missing | files | {"perl"} == wanted | {"perl"}
    (tmp_path / "with").mkdir()
    assert "gawk" in missing and "gawk" not in _missing(tmp_path / "with", "gawk")


def test_this_machine_has_all_of_it() -> None:
    """Where a test needs a program that the list lacks, it fails in a bare root; where the list has too much, here."""
    environment_path = process.environment()["PATH"].split(os.pathsep)
    for row in programs.needed():
        there = [
            name
            for name in row.names
            if (
                any(Path("/").glob(name[1:]))
                if name.startswith("/")
                else any((Path(f) / name).exists() for f in environment_path)
            )
        ]
        assert there, f"{row.package} has none of {' '.join(row.names)}"
