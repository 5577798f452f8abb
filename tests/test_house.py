"""The rules of the house: style, types, direction of imports, one owner for processes and printing, quick starts."""

from __future__ import annotations

import ast
import collections
import functools
import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath

import pytest

import effort
import planted

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "ndakit"
MODULES = sorted(SOURCE.rglob("*.py"))
DOORS = {"", "__main__", "tasks"}
"""Modules beside the folders: the package itself, `./inv`, and what a workspace's tasks.py imports."""
LAST = 10_000
"""The place of a folder's own `__init__`: behind its modules, which it may import."""
IO_MODULES = {
    *("glob", "http", "io", "os", "pathlib", "random", "requests", "select", "shutil", "signal", "socket", "ssl"),
    *("subprocess", "sys", "tempfile", "threading", "time", "urllib"),
}
IO_OF_OURS = {f"core/{name}" for name in ("process", "programs", "files", "locks", "workspace", "exposure", "terminal")}
IO_CALLS = {"open", "input", "read_text", "read_bytes", "write_text", "write_bytes", "iterdir", "rglob"}
STARTS = re.compile(r"(system|popen|fork|forkpty|posix_spawn|exec[lv]|spawn[lv])[a-z]*")
WALLS = {("verify/claims", "render"), ("lab", "render"), ("image", "lab"), ("model", "render"), ("operate", "cli")}
"""(folder, another that it does not know, neither itself nor through what it imports), besides what the order of the
folders says already."""


def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(a) for a in argv], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@functools.cache
def tracked() -> tuple[str, ...]:
    """The files of the repository, those that are new included."""
    names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout.split("\0")
    return tuple(name for name in names if name and (ROOT / name).is_file())


def module_name(path: Path) -> str:
    """`src/ndakit/lab/host/spec.py` → `lab/host/spec`; a folder's `__init__` has the folder's name."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return "/".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rooms() -> dict[str, list[str]]:
    """Folder → its modules and folders (with a slash), as the table of docs/architecture.md orders them; `*` are all
    its others, none of which imports another one."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `([a-z_/]+)/` \| (.+?) \|", text, re.M)
    return {folder: re.findall(r"`([a-z0-9_]+/?|\*)`", cell) for folder, cell in rows}


def place(name: str, table: dict[str, list[str]]) -> tuple[int, ...]:
    """Where a module stands, to be compared. Raises ValueError if the table does not have it."""
    folder, *rest = name.split("/")
    steps = [[one for one in table if "/" not in one].index(folder)]
    while rest:
        here = table[folder]
        wanted = rest[0] if f"{rest[0]}/" not in here else f"{rest[0]}/"
        beside = "*" in here and wanted not in here and is_module(f"{folder}/{wanted}")
        steps.append(here.index("*" if beside else wanted))
        folder = f"{folder}/{rest.pop(0)}"
    return (*steps, LAST) if folder in table else tuple(steps)


def imports_of(tree: ast.Module) -> set[str]:
    """The modules of ndakit that a module imports, wherever in the file."""
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "an import says the whole path: from ndakit.x import y"
            top, *parts = (node.module or "").split(".")
            if top == "ndakit":
                names = ("/".join([*parts, alias.name]) for alias in node.names)
                imported |= {n if is_module(n) else "/".join(parts) for n in names}
        elif isinstance(node, ast.Import):
            ours = [alias.name for alias in node.names if alias.name.split(".")[0] == "ndakit"]
            assert not ours, "from ndakit.x import y, so that the next reader sees what is used"
    return imported


def is_module(name: str) -> bool:
    return (SOURCE / f"{name}.py").exists() or (SOURCE / name / "__init__.py").exists()


def foreign_imports(tree: ast.Module) -> set[str]:
    """The top names of other packages that a module imports."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
    return names


def calls(tree: ast.Module) -> set[str]:
    """What a module calls: `print`, `os.execv`, `x.read_text`."""
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def mistakes(name: str, text: str, table: dict[str, list[str]]) -> list[str]:
    """What a module of this name does that it may not do."""
    tree = ast.parse(text)
    imported, others, called = imports_of(tree) - DOORS, foreign_imports(tree), calls(tree)
    wrong = [f"{name} imports {other}" for other in sorted(imported) if place(other, table) >= place(name, table)]
    if name.startswith("model/"):
        wrong += [f"{name} reaches outside by {other}" for other in sorted(others & IO_MODULES | imported & IO_OF_OURS)]
        wrong += [f"{name} calls {c}" for c in sorted(called) if c.rpartition(".")[2] in IO_CALLS]
    if name != "core/process":
        starters = [c for c in called if c.startswith("os.") and STARTS.fullmatch(c.removeprefix("os."))]
        wrong += [f"{name} starts programs by {s}" for s in sorted([*starters, *(others & {"subprocess", "pty"})])]
    if name != "core/terminal":
        printing = {"print", "sys.stdout.write", "sys.stderr.write"}
        wrong += [f"{name} prints by {c}" for c in sorted(called & printing)]
    return wrong


def through_walls(graph: Mapping[str, Collection[str]]) -> list[str]:
    """Which modules know what stands behind one of their walls, each with the shortest way there. `graph`: module →
    the modules that it imports."""
    wrong = []
    for folder, unknown in sorted(WALLS):
        for name in sorted(n for n in graph if lies_in(n, folder)):
            way = next((way for way in ways_from(name, graph) if lies_in(way[-1], unknown)), None)
            if way is not None:
                wrong.append(f"{name} knows {way[-1]}" + "".join(f" through {other}" for other in way[1:-1]))
    return wrong


def lies_in(name: str, folder: str) -> bool:
    return f"{name}/".startswith(f"{folder}/")


def ways_from(name: str, graph: Mapping[str, Collection[str]]) -> Iterator[tuple[str, ...]]:
    """A shortest way to each module that is there once this one is imported: what it imports itself comes first. A
    folder's `__init__` is imported with each of its modules."""
    seen, ways = {name}, collections.deque[tuple[str, ...]]([(name,)])
    while ways:
        way = ways.popleft()
        yield way
        folders = [str(folder) for folder in PurePosixPath(way[-1]).parents]
        following = [n for n in (*sorted(graph.get(way[-1], ())), *folders) if n in graph and n not in seen]
        seen.update(following)
        ways += [(*way, n) for n in following]


def test_every_module_has_a_place_in_the_architecture() -> None:
    table = rooms()
    listed = {f"{folder}/{one}".removesuffix("/") for folder, names in table.items() for one in names if one != "*"}
    everything = {module_name(p) for p in MODULES} - DOORS
    listed |= {name for name in everything if "*" in table.get(name.rpartition("/")[0], ())}
    tops = {folder for folder in table if "/" not in folder}
    assert listed | tops == everything
    assert {f for f in table if "/" in f} == {one for one in listed if f"{one}/__init__.py" in existing()}


def existing() -> set[str]:
    return {p.relative_to(SOURCE).as_posix() for p in MODULES}


def test_modules_import_downwards_and_keep_to_their_walls() -> None:
    table = rooms()
    assert [line for name, text in named().items() if name not in DOORS for line in mistakes(name, text, table)] == []
    assert through_walls(imports()) == []


@functools.cache
def named() -> dict[str, str]:
    """Every module's text by its name."""
    return {module_name(path): path.read_text() for path in MODULES}


@functools.cache
def imports() -> dict[str, set[str]]:
    """Every module and what it imports."""
    return {name: imports_of(ast.parse(text)) - DOORS for name, text in named().items() if name not in DOORS}


def test_every_folder_says_what_it_is_for() -> None:
    silent = [p for p in MODULES if p.name == "__init__.py" and not ast.get_docstring(ast.parse(p.read_text()))]
    assert silent == []


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("core/errors", "from ndakit.render import render", "core/errors imports render/render"),
        ("core/errors", "def f():\n    from ndakit.core.process import run", "core/errors imports core/process"),
        ("lab/frames", "from ndakit.lab.host import Host", "lab/frames imports lab/host"),
        ("lab/host/spec", "from ndakit.lab.host.hosts import Host", "lab/host/spec imports lab/host/hosts"),
        ("model/profile", "from ndakit.model import Profile", "model/profile imports model"),
        ("model/reach", "import os.path", "model/reach reaches outside by os"),
        ("model/reach", "from requests import get", "model/reach reaches outside by requests"),
        ("model/reach", "import socket", "model/reach reaches outside by socket"),
        ("model/reach", "from ndakit.core.workspace import cache", "model/reach reaches outside by core/workspace"),
        ("model/reach", "x = open('/etc/passwd')", "model/reach calls open"),
        ("model/checks/tcp", "from ndakit.model.checks.udp import x", "model/checks/tcp imports model/checks/udp"),
        ("model/reach", "def f(path):\n    return path.read_text()", "model/reach calls path.read_text"),
        ("lab/frames", "import subprocess", "lab/frames starts programs by subprocess"),
        ("lab/frames", "import os\nos.execvp('sh', ['sh'])", "lab/frames starts programs by os.execvp"),
        ("lab/frames", "print('x')", "lab/frames prints by print"),
        ("lab/frames", "import sys\nsys.stdout.write('x')", "lab/frames prints by sys.stdout.write"),
    ],
)
def test_each_wall_stops_who_goes_through_it(name: str, text: str, wrong: str) -> None:
    assert wrong in mistakes(name, text, rooms())


@pytest.mark.parametrize(
    ("name", "imported", "wrong"),
    [
        ("image/disk", "lab/plan", "image/disk knows lab/plan"),
        ("model/reach", "render/node", "model/reach knows render/node"),
        ("operate/flash", "cli/profiles", "operate/flash knows cli/profiles"),
        ("lab/network", "render/servers", "lab/network knows render/servers"),
        ("verify/claims/node", "render/overlay", "verify/claims/node knows render/overlay"),
        # by way of others
        ("verify/claims/node", "image/sidecars", "verify/claims/node knows render/render through image/sidecars"),
        ("lab/frames", "render/overlay", "verify/claims/forged knows render/overlay through lab/frames"),
        ("lab/boot", "render/overlay", "verify/claims/node knows render/overlay through lab/network through lab/boot"),
        ("image", "lab/plan", "image/disk knows lab/plan through image"),
    ],
)
def test_each_wall_stops_who_goes_around_it(name: str, imported: str, wrong: str) -> None:
    graph = {**imports(), name: imports()[name] | {imported}}
    assert wrong in through_walls(graph)


@pytest.mark.parametrize("text", ["from . import x", "import ndakit.core.errors"])
def test_an_import_says_whole_paths(text: str) -> None:
    with pytest.raises(AssertionError):
        imports_of(ast.parse(text))


ONE_NAME_TWICE = {
    "ImageMissing": "its name is the error's code, which scripts know: an image to boot, or to be built, is not there",
    "HostRoute": "the model's, and the same in a view for templates",
    "Server": "HAProxy's word for the model's server, in a view for templates",
    "VirtualServer": "keepalived's word: as a node tells of it, and as templates get it",
    "Ssh": "the profile's key `access.ssh`, and the shell on a node that is reached so",
}
"""Classes of one name in two modules, and why nobody takes one for the other."""


def classes() -> Counter[str]:
    """How many classes of the package have a name; private ones, which nobody sees elsewhere, are left out."""
    nodes = (node for path in MODULES for node in ast.walk(ast.parse(path.read_text())))
    return Counter(n.name for n in nodes if isinstance(n, ast.ClassDef) and not n.name.startswith("_"))


def test_no_two_classes_share_a_name_without_a_reason() -> None:
    twice = {name for name, count in classes().items() if count > 1}
    assert twice == set(ONE_NAME_TWICE)


EMPTY_NAMES = {
    *("found", "got", "res", "ret", "retval", "tmp", "temp", "obj", "val", "thing", "things", "stuff"),
    *("foo", "bar", "baz", "dummy", "misc", "x", "y", "z"),
}
"""Names that tell nothing about what they hold. `data` is right for bytes as they came, `result` for a …Result."""
EMPTY_NAMES_THAT_ARE_RIGHT = {
    ("src/ndakit/cli/bench/topologies.py", "x"): "a coordinate in an SVG",
    ("tests/conftest.py", "val"): "pytest's own name of this hook's parameter",
}


def bound_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of everything that a module names: assignments, parameters, loops, fields, what is caught."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield node.lineno, name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.alias(asname=str(name)):
                yield node.lineno, name


def empty_names(text: str) -> list[str]:
    return [name for _, name in sorted(bound_names(ast.parse(text))) if name in EMPTY_NAMES]


def test_names_tell_what_they_hold() -> None:
    """Rename what is told here after the thing that it holds: mistakes, matches, answer, rules, settings."""
    texts = {name: (ROOT / name).read_text() for name in tracked() if name.endswith(".py")}
    empty = {(file, name) for file, text in texts.items() for name in empty_names(text)}
    assert empty == set(EMPTY_NAMES_THAT_ARE_RIGHT)


@pytest.mark.parametrize(
    "text",
    [
        "found = 1",
        "found: int = 1",
        "found += 1",
        "(first, found) = 1, 2",
        "for found in (): pass",
        "with open(path) as found: pass",
        "if (found := 1): pass",
        "[found for found in ()]",
        "lambda found: 1",
        "def f(*, found): pass",
        "def f(*found): pass",
        "def found(): pass",
        "import re as found",
        "class Row:\n    found: int",
        "try: pass\nexcept ValueError as found: pass",
        "match 1:\n    case [int() as found, *rest]: pass",
        "match 1:\n    case [1, *found]: pass",
    ],
)
def test_a_name_that_tells_nothing_is_seen_wherever_it_stands(text: str) -> None:
    assert empty_names(text) == ["found"]


def test_every_test_lies_in_the_folder_of_what_it_tries() -> None:
    ours = {"data", "support", "vm", "standin"}  # standin: lab/, the stand-in for OpenWrt
    folders = {p.relative_to(ROOT / "tests").parts[0] for p in (ROOT / "tests").glob("*/**/*.py")}
    assert folders - ours <= {one for one in rooms() if "/" not in one}
    assert {p.name for p in (ROOT / "tests").glob("*.py")} == {"conftest.py", "test_house.py"}


def test_what_boots_machines_lies_in_vm_and_nothing_else_does() -> None:
    """Its mark comes from its path (tests/conftest.py); one that stands elsewhere would be run by --quick.

    This file is collected with them: the mark comes to what lies in vm, and to nothing else.
    """
    asked = ("-m", "pytest", "--collect-only", "-q", "-m", "vm", "tests/vm", Path(__file__))
    collected = run(sys.executable, *asked).stdout.splitlines()
    files = {line.split("::")[0] for line in collected if "::" in line}
    assert files == {p.relative_to(ROOT).as_posix() for p in (ROOT / "tests/vm").glob("test_*.py")}
    others = [p for p in (ROOT / "tests").rglob("*.py") if p.parent.name != "tests"]
    assert [p for p in others if re.search(r"mark\.vm\b", p.read_text())] == []


def test_what_a_module_says_that_it_offers_is_there() -> None:
    for path in SOURCE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                module = importlib.import_module("ndakit." + module_name(path).replace("/", "."))
                assert [name for name in ast.literal_eval(node.value) if not hasattr(module, name)] == [], path


def test_style() -> None:
    done = run(sys.executable, "-m", "ruff", "check", ".")
    assert done.returncode == 0, done.stdout


def test_format() -> None:
    done = run(sys.executable, "-m", "ruff", "format", "--check", ".")
    assert done.returncode == 0, done.stdout


@pytest.mark.long
def test_types() -> None:
    done = run(sys.executable, "-m", "mypy")
    assert done.returncode == 0, done.stdout


def shell_files() -> list[Path]:
    """Every shell script of the repository; rendered ones are in the goldens and have a test of their own."""
    files = [ROOT / name for name in tracked() if not name.startswith("tests/data/golden/")]
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


def test_faults_for_claims_are_planted_as_support_planted_says() -> None:
    files = sorted((ROOT / "tests/vm").glob("*.py"))
    assert {path.name: names for path in files if (names := planted.by_hand(path.read_text()))} == {}
