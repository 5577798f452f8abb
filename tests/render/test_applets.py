"""No program that no OpenWrt has: in what is rendered for nodes, and in what is typed on their consoles.

The names are BusyBox applets that are off in all releases from 18.06 to 25.12 (openwrt/openwrt,
package/utils/busybox/Config-defaults.in) and come with no package of ours. `nc` takes an address and a port there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import goldens

NOWHERE = (
    r"timeout|pkill|stat|base64|realpath|tac|shuf|od|xxd|diff|nohup|telnet|httpd|arping|watch|su|adduser|mkpasswd|chpasswd"
    r"|sha1sum|sha512sum|usleep|printenv|unzip|patch|stty|tty|bc|dc|socat|curl|python3?|perl|bash"
)
CALLED = re.compile(
    rf"(?:^|[;&|({{`\n]|\$\(|\b(?:then|do|else|exec|if|until|while)\b|!)\s*(?:{NOWHERE})(?=\s|$|;)"
    r"|\bnc\s+-[a-zA-Z]|\bdate\s+\S*%N|\$RANDOM"
)
TYPED = [
    *sorted((goldens.ROOT / "src/ndakit/verify/claims").glob("*.py")),
    *(goldens.ROOT / f"src/ndakit/{name}.py" for name in ("lab/nodes",)),
    *sorted((goldens.ROOT / "src/ndakit/node").glob("*.py")),
]


def scripts() -> Iterator[tuple[str, str]]:
    for name, node in goldens.cases():
        for path, file in goldens.tree(name, node).items():
            if file.content.startswith(b"#!"):
                yield f"{name}/{node}{path}", re.sub(r"^\s*#.*", "", file.text, flags=re.M)


def test_rendered_scripts_call_nothing_that_openwrt_lacks() -> None:
    calls = {where: match[0].strip() for where, text in scripts() if (match := CALLED.search(text))}
    assert calls == {}
    assert sum(1 for _ in scripts()) > 20


@pytest.mark.parametrize("path", TYPED, ids=lambda p: p.stem)
def test_nothing_is_typed_on_a_node_that_openwrt_lacks(path: Path) -> None:
    texts = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
    assert [t for t in texts if isinstance(t, str) and "\n\n" not in t and CALLED.search(t) and " " in t] == []


@pytest.mark.parametrize(
    "text", ["timeout 5 x", "a; pkill b", "x | od -c", "if stat /x; then", "nc -w 1 a 2", "y=$(base64 x)"]
)
def test_the_search_finds_what_it_is_for(text: str) -> None:
    assert CALLED.search(text)
