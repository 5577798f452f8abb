"""Checks of keepalived.conf (`HTTP_GET`, `TCP_CHECK` and their kin) as `check`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ndakit.lint.config_text import Block, Line
from ndakit.load import foreign_words
from ndakit.operate.import_.draft import number
from ndakit.operate.import_.ledger import SourceFile

_CHECKS = {
    "TCP_CHECK": "tcp",
    "HTTP_GET": "http",
    "SSL_GET": "https",
    "SMTP_CHECK": "smtp",
    "DNS_CHECK": "dns",
    "UDP_CHECK": "udp",
    "PING_CHECK": "ping",
    "MISC_CHECK": "script",
}
_RETRIES = {"dns": 3, "script": 0}
_RETRY, _TIMEOUT_S, _INTERVAL_S = 1, "5", "60"
_DELAYS_S = {"http": "3", "https": "3"}
_DELAY_S = "1"
"""keepalived's own values where a file states none (keepalived.conf(5), 2.2.7: retry, connect_timeout, delay_loop,
delay_before_retry; the last one is delay_loop for DNS_CHECK)."""
_SCRIPT = re.compile(r"/usr/libexec/ndakit/check-script ([a-z][a-z0-9-]*) ")
_BINDING = re.compile(r"[0-9]{1,10}(\.[0-9]{1,6})?")


def told(file: SourceFile, line: Line | None, key: str) -> None:
    """A line, if it is there, was used for a key."""
    if line is not None:
        file.key(line.number, key)


def read(file: SourceFile, server: Block, virtual: Block, protocol: str) -> tuple[dict[str, Any], str | None]:
    """The check of a server as keys, and the host that it asks for. What the check does not state itself, its server or
    its virtual server may state for it."""
    blocks = [b for b in server.blocks if b.words[0] in _CHECKS]
    for other in server.blocks:
        if other not in blocks[:1]:
            for line_number in numbers(other):
                file.hint(line_number, "a pool has one check, of type tcp, http, https, smtp, dns, udp, ping or script")
    if not blocks:
        return {"type": "ping" if protocol == "udp" else "tcp"}, None
    block = blocks[0]
    kind = _CHECKS[block.words[0]]
    host: str | None = None
    check: dict[str, Any] = {"type": kind}
    file.key(block.number, "pools.NAME.check")

    def stated(*words: str) -> Line | None:
        lines = (place.first(word) for place in (block, server, virtual) for word in words)
        return next((line for line in lines if line is not None and len(line.words) > 1), None)

    def take(word: str, key: str, change: Callable[[str], Any] = lambda value: value) -> None:
        line = stated(word)
        if line is None:
            return
        if len(line.words) > 2:
            rest = " ".join(line.words[2:])[:60]
            file.unsaid(line.number, f"keepalived takes one word after {word}, and there follows: {rest}")
        value = change(line.words[1])
        if value is None:
            return
        check[key] = value
        file.key(line.number, f"pools.NAME.check.{key}")

    pace = stated("delay_loop")
    interval = pace.words[1] if pace is not None and _BINDING.fullmatch(pace.words[1]) else _INTERVAL_S
    check["interval_s"] = interval
    told(file, pace, "pools.NAME.check.interval_s")
    if kind == "script":
        return _script(file, block, check), None
    take("connect_port", "port", lambda v: number(v, 1, 65535))
    take("connect_timeout", "timeout_s", _seconds)
    take("delay_before_retry", "retry_delay_s", _seconds)
    retry = stated("retry", "nb_get_retry")
    if retry is not None and (times := number(retry.words[1], 0, 99)) is not None:
        check["fall"] = times + 1
        file.key(retry.number, "pools.NAME.check.fall")
    else:
        check["fall"] = 1 + _RETRIES.get(kind, _RETRY)
    check.setdefault("timeout_s", _TIMEOUT_S)
    check.setdefault("retry_delay_s", interval if kind == "dns" else _DELAYS_S.get(kind, _DELAY_S))
    if kind == "smtp":
        take("helo_name", "helo", _host)
    if kind == "dns":
        take("name", "query")
        take("type", "record", lambda v: v.upper())
    if kind == "udp":
        take("payload", "send", _bytes)
        reply = block.first("require_reply")
        if reply is not None and len(reply.words) > 1 and (wanted := _bytes(reply.words[1])) is not None:
            check["expect"] = {"reply": wanted}
            file.key(reply.number, "pools.NAME.check.expect")
    if kind in ("http", "https"):
        host = _url(file, block, check)
    for line in block.lines:
        file.hint(line.number, foreign_words.key(line.words[0]) or "there is no such key")
    return check, host


def numbers(block: Block) -> list[int]:
    """The lines of a block and of all in it."""
    return [block.number, *(line.number for line in block.lines), *(n for b in block.blocks for n in numbers(b))]


def _script(file: SourceFile, block: Block, check: dict[str, Any]) -> dict[str, Any]:
    path = block.value("misc_path") or ""
    ours = _SCRIPT.match(path)
    if ours is None:
        for line_number in numbers(block):
            file.fates.pop(line_number, None)
            file.hint(
                line_number,
                foreign_words.SCRIPT + "; it gets address, port and `arguments`, and this one is called otherwise",
            )
        return {"type": "ping"}
    check["script"] = ours[1]  # the pool; the file itself is looked for later
    for word, key, change in (
        ("misc_timeout", "timeout_s", _seconds),
        ("delay_before_retry", "retry_delay_s", _seconds),
        ("user", "run_as", str),
    ):
        value = block.value(word)
        if value is not None and change(value) is not None:
            check[key] = change(value)
            told(file, block.first(word), f"pools.NAME.check.{key}")
    times = number(block.value("retry"), 0, 99)
    if times is not None:
        check["fall"] = times + 1
        told(file, block.first("retry"), "pools.NAME.check.fall")
    told(file, block.first("misc_path"), "pools.NAME.check.script")
    return check


def _url(file: SourceFile, block: Block, check: dict[str, Any]) -> str | None:
    urls = block.inner("url")
    for other in urls[1:]:
        for line_number in numbers(other):
            file.unsaid(line_number, "a check asks for one path; make a pool of its own for another one")
    if not urls:
        return None
    url = urls[0]
    file.key(url.number, "pools.NAME.check.path")
    path = url.value("path")
    if path is not None and path.startswith("/"):
        check["path"] = path
        told(file, url.first("path"), "pools.NAME.check.path")
    asked, host = None, url.value("virtualhost")
    if host is not None and _host(host) is not None:
        asked = host
        told(file, url.first("virtualhost"), "services.NAME.hostnames")
    expect: dict[str, Any] = {}
    digest = url.value("digest")
    if digest is not None and re.fullmatch(r"[0-9a-fA-F]{32}", digest):
        expect["digest"] = digest.lower()
        told(file, url.first("digest"), "pools.NAME.check.expect.digest")
    status = url.value("status_code")
    if status is not None and number(status, 100, 599) is not None:
        expect["status"] = int(status)
    if status is not None and (status in ("200-399", "200-302") or "status" in expect):
        told(file, url.first("status_code"), "pools.NAME.check.expect.status")
    if expect:
        check["expect"] = expect
    for line in url.lines:
        file.hint(line.number, foreign_words.key(line.words[0]) or "there is no such key")
    return asked


def _seconds(text: str) -> str | None:
    if not _BINDING.fullmatch(text) or not 0.1 <= float(text) <= 600:
        return None
    return f"{float(text):.10g}"


def _host(text: str) -> str | None:
    return text if re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?", text) else None


def _bytes(text: str) -> str | None:
    r"""Hexadecimal as text of the profile, with its escapes (`\n`, `\x00`)."""
    try:
        content = bytes.fromhex(text)
    except ValueError:
        return None
    return escaped(content)


def escaped(content: bytes) -> str:
    r"""Bytes as text of the profile: `\r`, `\n`, `\t`, `\\`, `\x00`."""
    marks = {13: r"\r", 10: r"\n", 9: r"\t", 92: r"\\"}
    return "".join(marks.get(b) or (chr(b) if 32 <= b < 127 else f"\\x{b:02x}") for b in content)
