"""One template filter per syntax: it quotes the value, or refuses what that syntax cannot hold.

Every value in a template goes through one of them: `plain` (the environment's finalizer) stops a value that did not.
A filter's result is `Ready`, which is how text that may be written is told from text that may not; joining it with
anything makes it a plain text again, which is refused.
No filter guesses: what cannot be written so that the target reads it back unchanged raises ValueError.
"""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any

from jinja2 import Undefined

from ndakit.core import uci as uci_text
from ndakit.core.names import UNSEEN
from ndakit.core.release import Release

_SCALARS = (
    str, int, IPv4Address, IPv6Address, IPv4Network, IPv6Network, IPv4Interface, IPv6Interface, Release,
)  # fmt: skip
_WORD = re.compile(r"[A-Za-z0-9_.:/@+,=%~\[\]-]+")
_HAPROXY_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+,=%~^*\[\]{}()!<>|&?;-]+")


class Ready(str):
    """Text as it may stand in a file of the syntax that its filter is for."""

    __slots__ = ()


def said(value: object) -> str:
    """A value in a message: itself if it is short and plain, else its kind (a whole profile helps nobody)."""
    kind = type(value).__name__
    return f"{value!r:.60}" if isinstance(value, str | int | float) else f"a value of type {kind}"


def text(value: object) -> str:
    """A value as text: str, int, addresses and networks, a release, True as 1.

    Anything else, None above all, is a mistake in the template and raises ValueError.
    """
    if isinstance(value, Undefined):
        value._fail_with_undefined_error()
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, _SCALARS):
        return str(value)
    raise ValueError(f"{said(value)} is no value for a configuration file")


def _line(value: object) -> str:
    line = text(value)
    if not line:
        raise ValueError("an empty value")
    if bad := UNSEEN.search(line):
        raise ValueError(f"control character U+{ord(bad[0]):04X}")
    return line


def uci(value: object) -> Ready:
    """A UCI value in single quotes."""
    return Ready(uci_text.quote(text(value)))


def uci_name(value: object) -> Ready:
    """A UCI section or option name: letters, digits, `_`, without quotes."""
    name = text(value)
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise ValueError(f"not a UCI name: {name[:60]!r}")
    return Ready(name)


def shell(value: object) -> Ready:
    """One word of a POSIX shell."""
    return Ready(shlex.quote(_line(value)))


def powershell(value: object) -> Ready:
    """One value of a PowerShell script, in single quotes; typographic ones end a text there as well."""
    line = _line(value)
    if re.search("[\u2018-\u201b]", line):
        raise ValueError("typographic quotes cannot be written in PowerShell")
    return Ready("'" + line.replace("'", "''") + "'")


def haproxy(value: object) -> Ready:
    """One word of haproxy.cfg: plain where that is safe, else in strong quotes (configuration manual, 2.2)."""
    line = _line(value)
    if _HAPROXY_PLAIN.fullmatch(line):
        return Ready(line)
    return Ready("'" + line.replace("'", "'\"'\"'") + "'")


def is_word(text: str) -> bool:
    """True if `word` takes the text."""
    return _WORD.fullmatch(text) is not None


def word(value: object) -> Ready:
    """One word of a syntax without quoting (keepalived.conf, sysctl.conf): refused unless it is harmless there."""
    line = _line(value)
    if not _WORD.fullmatch(line):
        raise ValueError(f"{line[:60]!r} cannot be written without quotes")
    return Ready(line)


def comment(value: object) -> Ready:
    """The rest of a comment line, or of a line that only people read."""
    return Ready(_line(value))


def markdown(value: object) -> Ready:
    """Text in a line of Markdown that is shown as it stands: no HTML, no link, no emphasis, no table's column.

    CommonMark 0.31, 2.4: a backslash before ASCII punctuation. GitHub makes links of bare addresses, too.
    """
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~&!@])", r"\\\1", _line(value))
    escaped = re.sub(r"(?i)(https?|ftp|mailto|xmpp)(:)|(www)(\.)", lambda m: f"{m[1] or m[3]}\\{m[2] or m[4]}", escaped)
    return Ready(re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", escaped))


def xml(value: object) -> Ready:
    """Text, an attribute in double quotes, or part of a comment, where two hyphens in a row are not allowed."""
    escaped = html.escape(_line(value), quote=True)
    return Ready(escaped.replace("--", "-&#45;"))


def seconds(value: object) -> Ready:
    """A time in seconds for haproxy.cfg: `2s`, `500ms`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{type(value).__name__} is no time")
    milliseconds = round(value * 1000)
    if milliseconds <= 0:
        raise ValueError(f"{value} s is no time to wait")
    return Ready(f"{milliseconds // 1000}s" if milliseconds % 1000 == 0 else f"{milliseconds}ms")


def decimal(value: object) -> Ready:
    """A number with at most two decimals, as keepalived takes it: `1`, `0.1`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{type(value).__name__} is no number")
    return Ready(f"{value:.2f}".rstrip("0").rstrip("."))


def quoted(value: object) -> Ready:
    """A text in double quotes for keepalived.conf, which has no escapes: what would be replaced there (`$NAME`,
    `~SEQ(…)`, keepalived.conf(5)) is refused, as are quotes and backslashes."""
    line = _line(value)
    if bad := re.search(r'["\\$]|~[A-Z]', line):
        raise ValueError(f"{bad[0]!r} cannot be written in keepalived.conf")
    return Ready(f'"{line}"')


def pound(value: object) -> Ready:
    """Text inside double quotes of pound.cfg (pound(8)): what is escaped or replaced there is refused."""
    line = _line(value)
    if bad := re.search(r'["\\$%]', line):
        raise ValueError(f"{bad[0]!r} cannot be written in pound.cfg")
    return Ready(line)


def stunnel(value: object) -> Ready:
    """The value of an option in stunnel.conf: the rest of its line, without quotes or escapes (stunnel(8))."""
    line = _line(value)
    if not line or line != line.strip():
        raise ValueError("blanks at an end, or nothing, cannot be written in stunnel.conf")
    return Ready(line)


def words(value: object) -> Ready:
    """Several words of a syntax without quoting, a blank between two."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ValueError("a list of words is needed")
    written = [word(item) for item in value]
    if not written:
        raise ValueError("an empty list")
    return Ready(" ".join(written))


def authorized_key(value: object) -> Ready:
    """One line of authorized_keys: type, data, comment."""
    key = _line(value)
    if not re.match(r"[a-z0-9@.-]+ [A-Za-z0-9+/]+=*( |$)", key):
        raise ValueError("not an SSH public key")
    return Ready(key)


def plain(value: Any) -> Any:
    """The environment's finalizer: refuse a value that no filter has seen."""
    if isinstance(value, Undefined):
        value._fail_with_undefined_error()
    if isinstance(value, Ready):
        return value
    raise ValueError(f"{said(value)} was not put through a filter (| uci, | haproxy, | word, …)")


FILTERS: Mapping[str, Callable[[object], Ready]] = {
    f.__name__: f
    for f in (
        uci,
        uci_name,
        shell,
        powershell,
        haproxy,
        word,
        words,
        quoted,
        pound,
        stunnel,
        comment,
        markdown,
        xml,
        seconds,
        decimal,
        authorized_key,
    )
}
