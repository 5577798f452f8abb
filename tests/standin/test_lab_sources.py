"""The lab's own sources: every script reads cleanly, every name in its tables exists."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import instantiate
from standin import busybox, debian_roots, families, resolve
from standin.targets import TARGETS
from standin.tools import Tools

from labrig import MakeRoot
from ndakit.core.workspace import cache
from ndakit.imagebuilder import sources as imagebuilder_sources
from places import LAB

# local is understood by busybox's ash; variables are used by whoever sources a file; files are found in the image only.
EXCLUDED = "SC3043,SC2034,SC1091"
SCRIPTS = sorted(
    p
    for p in (LAB / "base").rglob("*")
    if p.is_file() and not p.is_symlink() and p.read_bytes().startswith(b"#!/bin/sh")
)
LUA = sorted(
    p
    for p in (LAB / "base").rglob("*")
    if p.is_file() and not p.is_symlink() and (p.suffix == ".lua" or p.read_bytes().startswith(b"#!/usr/bin/lua"))
)


def test_every_shell_script_is_clean() -> None:
    done = subprocess.run(
        ["shellcheck", "-s", "dash", "-e", EXCLUDED, "-f", "gcc", *SCRIPTS], capture_output=True, text=True, check=False
    )
    assert done.stdout == ""
    assert len(SCRIPTS) > 25


def test_every_lua_file_compiles(make_root: MakeRoot) -> None:
    root = make_root(release="24.10.8")
    old = make_root(release="19.07.10")
    script = (
        "for f in $(find /usr/lib/lab /sbin /bin /usr/libexec -type f); do\n"
        "case $f in *.lua) ;; *) read -r l <$f; case $l in *lua5.4*) ;; *) continue ;; esac ;; esac\n"
        "echo checked; printf 'assert(loadfile(\"%s\"))' $f | lua5.4 - || echo BAD $f; done"
    )
    seen = 0
    for one in (root, old):
        said = one.run(script)
        assert "BAD" not in said.out, said.err
        seen += said.out.count("checked")
    assert seen >= len(LUA)


def test_no_module_of_the_lab_is_longer_than_400_lines() -> None:
    sources = [*LUA, *SCRIPTS, *(LAB / "imagebuilder").rglob("*.py"), LAB / "debian.py"]
    assert {str(p): n for p in sources if (n := len(p.read_text().splitlines())) > 400} == {}


def test_an_instantiated_imagebuilder_gets_every_module_of_the_lab() -> None:
    """One that is forgotten breaks every build, and nothing that runs from the clone itself."""
    modules = {path.name for path in LAB.glob("*.py")}
    assert modules <= set(instantiate._PARTS)
    assert imagebuilder_sources._LAB_PARTS == instantiate._PARTS


def test_every_dependency_and_component_in_the_table_exists() -> None:
    table = tomllib.loads((LAB / "imagebuilder/packages.toml").read_text())
    for name, entry in table.items():
        for other in (*entry.get("depends", ()), *entry.get("conflicts", ())):
            assert other in table, f"{name} names {other}"
        for folder in entry.get("base", ()):
            assert (LAB / "base/packages" / folder).is_dir(), f"{name} wants {folder}"
        assert set(entry.get("autoload", ())) <= set(entry.get("modules", ())), name
        assert entry.get("nothing", "absent") in ("absent", "part of the stand-in"), name
        useful = {"debian", "files", "modules", "modules-x86", "base", "depends", "nothing"} & set(entry)
        assert useful, f"{name} stands for nothing and does not say so"


def test_every_kernel_module_in_the_table_exists() -> None:
    folder = cache() / "lab"
    kernel = debian_roots.kernel(folder, TARGETS["x86/64"], Tools(folder))
    for release in ("19.07.10", "24.10.8"):
        feed = resolve.feed(LAB / "imagebuilder/packages.toml", families.family(release, "x86/64"))
        kernel.closure(m for p in feed.values() for m in p.modules)


def test_busybox_keeps_every_applet_openwrt_has_and_no_other(tmp_path: Path) -> None:
    program = (debian_roots.guest(cache() / "lab", TARGETS["x86/64"]) / "usr/bin/busybox").read_bytes()
    restricted, kept = busybox.restricted(program)
    target = tmp_path / "busybox"
    target.write_bytes(restricted)
    target.chmod(0o755)
    for name in busybox.applets(program):
        done = subprocess.run([target, name, "--help"], capture_output=True, text=True, check=False)
        assert ("applet not found" not in done.stderr) == (name in kept), name
    assert "ip" not in kept
    assert "base64" not in kept
    assert {"ash", "awk", "sed", "tar", "hexdump", "sha256sum", "killall", "pidof", "wget"} <= set(kept)


def test_no_mirror_and_no_place_of_this_machine_is_written_down() -> None:
    for path in LAB.rglob("*"):
        hidden = any(part.startswith((".", "__pycache__")) for part in path.relative_to(LAB).parts)
        if path.is_file() and not hidden:
            text = path.read_text(errors="replace")
            assert not re.search(r"deb\.debian\.org|/work/|snapshot\.debian", text), path
