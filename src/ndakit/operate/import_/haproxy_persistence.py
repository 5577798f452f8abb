"""How a backend of haproxy.cfg keeps a client's server: cookies, tables, RDP and TLS sessions, as `persistence`."""

from __future__ import annotations

import re
from typing import Any

from ndakit.lint.config_text import Line
from ndakit.operate.import_.haproxy_text import ProxyPart, plain, seconds

_SOURCE = re.compile(r"src(,ipmask\(([0-9]{1,3})(?:,([0-9]{1,3}))?\))?")
_NAMED = (
    (re.compile(r"(?:req\.)?cook(?:ie)?\(([!-~]{1,64}?)\)(?:,sha1)?"), "cookie"),
    (re.compile(r"req\.f?hdr\(([A-Za-z0-9-]{1,64})\)(?:,sha1)?"), "header"),
    (re.compile(r"url_param\(([A-Za-z0-9_.-]{1,64})\)(?:,sha1)?"), "parameter"),
    (re.compile(r"(?:req\.)?rdp_cookie\((mstshash)\)(?:,sha1)?"), "rdp-cookie"),
)
_TLS_SESSION = "payload_lv(43,1)"
_USUAL_S = {"source": 300, "rdp-cookie": 28800}
_PLAIN_WORDS = {"insert", "prefix", "indirect", "nocache", "httponly", "secure"}


def read(part: ProxyPart, at: str) -> dict[str, Any] | None:
    """The keys of `persistence`; None if there is none, or one that no key says. `_secure`: the cookie says so."""
    facts = _cookie(part, at)
    if facts is None:
        facts = _table(part, at)
    if facts is None:
        return None
    refused = next(iter(part.own("no", "option", "redispatch")), None)
    if refused is not None:
        facts["on_failure"] = "refuse"
        part.key(refused, f"{at}.on_failure")
    return facts


def _cookie(part: ProxyPart, at: str) -> dict[str, Any] | None:
    line = next(iter(part.own("cookie")), None)
    if line is None or len(line.words) < 3 or part.mode != "http":
        return None
    words = list(line.words[2:])
    if "insert" not in words and "prefix" not in words:
        part.file.hint(line.number, "a cookie of the application is left as it is: write mode: existing, or prefix")
        return None
    facts: dict[str, Any] = {"type": "cookie", "name": line.words[1]}
    if "prefix" in words:
        facts["mode"] = "prefix"
    left: list[str] = []
    while words:
        word = words.pop(0)
        if word in ("maxidle", "maxlife") and words and (time_s := seconds(_with_unit(words[0]))) is not None:
            facts["max_idle_s" if word == "maxidle" else "max_life_s"] = plain(time_s)
            words.pop(0)
        elif word == "attr" and words and (site := re.fullmatch(r"SameSite=(Lax|Strict|None)", words[0])) is not None:
            facts["same_site"] = site[1].lower()
            words.pop(0)
        elif word not in _PLAIN_WORDS:
            left.append(word)
    if "secure" in line.words:
        facts["_secure"] = True
    part.key(line, at)
    if left:
        part.file.unsaid(line.number, f"persistence by cookie has no {' '.join(left)[:60]}")
    for word, why in (("indirect", "servers do not see the cookie"), ("httponly", "scripts do not see the cookie")):
        if facts.get("mode") != "prefix" and word not in line.words:
            part.file.unsaid(line.number, f"{why}: ndakit writes {word}, and here it is not")
    return facts


def _with_unit(text: str) -> str:
    """A time whose unit is the second where none is stated, as `maxidle` has it (configuration manual, "cookie")."""
    return f"{text}s" if text.isdigit() else text


def _table(part: ProxyPart, at: str) -> dict[str, Any] | None:
    table = next(iter(part.own("stick-table")), None)
    by = next((line for word in ("on", "match") for line in part.own("stick", word)), None)
    if table is None or by is None or len(by.words) < 3:
        return None
    words = dict(zip(table.words[1:], table.words[2:], strict=False))
    expire = seconds(words.get("expire", ""))
    facts = _kind(by, words.get("type", ""))
    if expire is None or facts is None:
        return None
    kind = facts["type"]
    if kind == "cookie":
        facts |= {"mode": "existing"} | ({"max_idle_s": plain(expire)} if expire != 3600 else {})
    elif expire != _USUAL_S.get(kind, 3600) or kind == "source":
        facts["timeout_s"] = plain(expire)
    for line in (table, by, *part.own("stick", "store-response"), *part.own("persist", "rdp-cookie")):
        part.key(line, at)
    if "store" in words:
        part.file.unsaid(
            table.number, "persistence counts nothing; what a service takes at most is services.NAME.limits"
        )
    return facts


def _kind(by: Line, table_type: str) -> dict[str, Any] | None:
    fetch, condition = by.words[2], by.words[3:]
    source = _SOURCE.fullmatch(fetch)
    if source is not None and not condition and table_type in ("ip", "ipv6"):
        facts: dict[str, Any] = {"type": "source"}
        if source[2]:
            facts["netmask"] = int(source[2])
        if source[3]:
            facts["netmask_ipv6"] = int(source[3])
        return facts
    if fetch == _TLS_SESSION:
        return {"type": "tls-session"}
    for pattern, kind in _NAMED:
        name = pattern.fullmatch(fetch)
        if name is not None and not condition:
            return {"type": kind} if kind == "rdp-cookie" else {"type": kind, "name": name[1]}
    return None
