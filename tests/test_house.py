"""The rules of the house: style, types, direction of imports, one owner for processes and printing, quick starts."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import effort

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "ndakit"
WHOLE = ("model", "lab/host", "verify/claims")
DOORS = {"__init__", "__main__", "tasks"}
MODULES = sorted(
    p for p in SOURCE.rglob("*.py") if p.name != "__init__.py" or p.parent.relative_to(SOURCE).as_posix() in WHOLE
)


def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(a) for a in argv], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def module_name(path: Path) -> str:
    """`load/load.py` → `load/load`; the folders of WHOLE count as one module of the house."""
    return place(path.relative_to(SOURCE).with_suffix("").as_posix().removesuffix("/__init__"))


def place(name: str) -> str:
    return next((folder for folder in WHOLE if name.startswith(folder)), name)


def layers() -> dict[str, int]:
    """Module → its place in the order that docs/architecture.md lists."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    order: list[str] = []
    for row in re.findall(r"^\| (\d) \| (.+?) \|", text, re.M):
        order += re.findall(r"`([a-z0-9_/]+)`", row[1])
    return {name: place for place, name in enumerate(order)}


def imports_of(path: Path) -> set[str]:
    """The modules of ndakit that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ndakit."):
            base = SOURCE.joinpath(*node.module.split(".")[1:])
            for name in (alias.name for alias in node.names):
                module = base / name if (base / f"{name}.py").exists() or (base / name).is_dir() else base
                found.add(place(module.relative_to(SOURCE).as_posix()))
        elif isinstance(node, ast.Import):
            assert not [a.name for a in node.names if a.name.startswith("ndakit")], "from ndakit.x import y"
    return found


def wrong_imports(name: str, imported: set[str], order: dict[str, int]) -> list[str]:
    return [f"{name} imports {other}" for other in sorted(imported) if other != name and order[other] >= order[name]]


def test_every_module_has_a_place_in_the_architecture() -> None:
    listed = set(layers())
    present = {module_name(p) for p in MODULES} - DOORS
    assert present == listed


def test_modules_import_only_from_what_stands_before_them() -> None:
    order = layers()
    wrong = [
        line
        for path in MODULES
        if (name := module_name(path)) not in DOORS
        for line in wrong_imports(name, imports_of(path), order)
    ]
    assert wrong == []


def test_the_import_test_notices_an_import_against_the_direction() -> None:
    assert wrong_imports("core/errors", {"render/render"}, layers()) == ["core/errors imports render/render"]


def test_only_process_imports_subprocess() -> None:
    users = [module_name(p) for p in MODULES if re.search(r"^\s*(import|from) subprocess\b", p.read_text(), re.M)]
    assert users == ["core/process"]


def test_style() -> None:
    done = run(sys.executable, "-m", "ruff", "check", ".")
    assert done.returncode == 0, done.stdout


def test_format() -> None:
    done = run(sys.executable, "-m", "ruff", "format", "--check", ".")
    assert done.returncode == 0, done.stdout


def test_types() -> None:
    done = run(sys.executable, "-m", "mypy")
    assert done.returncode == 0, done.stdout


def shell_files() -> list[Path]:
    """Every shell script of the repository; rendered ones are in the goldens and have a test of their own."""
    tracked = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout.split("\0")
    files = [
        ROOT / name for name in tracked if name and (ROOT / name).is_file() and not name.startswith("tests/golden/")
    ]
    files = [f for f in files if f.suffix != ".j2"]  # templates are none before they are rendered
    return [f for f in files if re.match(rb"#!\s*/(usr/)?bin/(env )?(ba|a|da)?sh\b", f.read_bytes()[:40])]


def test_shell_files_pass_shellcheck() -> None:
    guests = [f for f in shell_files() if f.is_relative_to(ROOT / "lab") or f.is_relative_to(ROOT / "tests")]
    ours = [f for f in shell_files() if f not in guests]
    assert ROOT / "inv" in ours
    assert ROOT / "lab/base/packages/base-files/etc/rc.common" in guests
    done = run("shellcheck", *ours)
    assert done.returncode == 0, done.stdout
    # What runs in a guest is BusyBox's ash (as dash, it has `local`). Its libraries are sourced from the guest's root
    # (SC1091), and rc.common reads variables such as START that its scripts only set (SC2034).
    done = run("shellcheck", "--shell=dash", "--exclude=SC1091,SC2034", *guests)
    assert done.returncode == 0, done.stdout


def test_the_wrapper_starts_in_half_a_second() -> None:
    """It waits for nothing, so that its time is that of the processor."""
    assert run("./inv", "--version").returncode == 0
    assert min(effort.children_s(lambda: run("./inv", "--version")) for _ in range(5)) < 0.5


@pytest.mark.parametrize("name", ["requirements.lock", "README.md", "CONTRIBUTING.md", "inv", "pyproject.toml"])
def test_no_address_of_a_package_registry_is_in_the_repository(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"https?://[^\s)\"']*(pypi|pythonhosted|debian\.org|ubuntu\.com|npmjs)", text)


def test_every_pinned_package_has_hashes() -> None:
    entries = re.split(r"\n(?=[a-z])", (ROOT / "requirements.lock").read_text())
    assert all("==" in e and "--hash=sha256:" in e for e in entries if e.strip())


def test_every_dependency_says_why_it_is_there() -> None:
    section = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert section
    assert all("#" in line for line in section[1].splitlines() if line.strip())


def wrong_citations(text: str, headings: set[str]) -> list[str]:
    """Places that name no section of docs/facts.md, or a page that is not in the repository."""
    flat = re.sub(r"\s*\n\s*(?:# )?", " ", text)
    cited = re.findall(r"docs/facts\.md(?:, | \()([A-Z][A-Za-z0-9 ]*)", flat)
    wrong = [name for name in cited if not any(name.startswith(heading) for heading in headings)]
    return wrong + [word for word in ("openwrt.md", "verified-fragments", "project's reference") if word in flat]


def test_facts_that_docstrings_cite_are_in_the_repository() -> None:
    headings = set(re.findall(r"^## (.+)$", (ROOT / "docs" / "facts.md").read_text(), re.M))
    assert wrong_citations("as seen (docs/facts.md, Weather); openwrt.md, 5", headings) == ["Weather", "openwrt.md"]
    assert wrong_citations("as seen (docs/facts.md,\n    Firewall)", headings) == []
    wrong = {path.name: wrong_citations(path.read_text(), headings) for path in SOURCE.rglob("*.py")}
    assert {name: words for name, words in wrong.items() if words} == {}
