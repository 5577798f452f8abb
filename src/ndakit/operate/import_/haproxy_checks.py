"""Health checks of a backend of haproxy.cfg: `option httpchk`, `tcp-check` and their kin, as `check`."""

from __future__ import annotations

import re
from typing import Any

from ndakit.lint.config_text import Line
from ndakit.operate.import_.draft import number
from ndakit.operate.import_.haproxy_text import ProxyPart, plain
from ndakit.operate.import_.keepalived_checks import escaped


def read(part: ProxyPart, at: str) -> tuple[dict[str, Any], str | None]:
    """The check of all servers, beside its pace (that stands on their lines), and the Host of an http check."""
    check: dict[str, Any] = {"type": "tcp"}
    host = None
    timeout = part.seconds(f"{at}.timeout_s", "timeout", "check", high=600.0)
    if timeout is not None:
        check["timeout_s"] = plain(timeout)
    for kind, words in (
        ("smtp", ("option", "smtpchk")),
        ("redis", ("option", "redis-check")),
        ("tcp", ("option", "tcp-check")),
    ):
        line = part.find(*words)
        if line is not None:
            check["type"] = kind
            part.key(line, at)
            if kind == "smtp" and len(line.words) > 3 and re.fullmatch(r"[a-z0-9.-]+", line.words[3]):
                check["helo"] = line.words[3]
    line = part.find("option", "httpchk")
    if line is not None:
        host = _http_check(part, check, line, at)
    if check["type"] == "tcp" and part.find("option", "tcp-check") is not None:
        _exchange(part, check, at)
    for word in ("mysql-check", "pgsql-check", "ldap-check", "ssl-hello-chk", "spop-check"):
        other = part.find("option", word)
        if other is not None:
            part.file.hint(other.number, "there is no such check: write check: tcp, or one with send and expect")
    return check, host


def _http_check(part: ProxyPart, check: dict[str, Any], line: Line, at: str) -> str | None:
    """Path and status as keys; the Host that is asked for."""
    check["type"] = "http"
    part.key(line, at)
    words = line.words[2:]
    method, path, rest = "GET" if len(words) > 1 else "", "", ""
    if len(words) == 1:
        path = words[0]
    elif len(words) > 1:
        method, path, rest = words[0], words[1], " ".join(words[2:])
    host = re.search(r"[Hh]ost:\\? ?([a-z0-9.:\[\]-]+)", rest.replace("\\", " "))
    for send in part.own("http-check", "send") or of_defaults(part, "http-check", "send"):
        facts = list(send.words[2:])
        method = facts[facts.index("meth") + 1] if "meth" in facts[:-1] else method
        path = facts[facts.index("uri") + 1] if "uri" in facts[:-1] else path
        for position, word in enumerate(facts[:-2]):
            if word == "hdr" and facts[position + 1].lower() == "host":
                host = re.fullmatch(r"([a-z0-9.:\[\]-]+)", facts[position + 2])
            elif word == "hdr":
                part.file.unsaid(send.number, f"a check sends no header {facts[position + 1][:40]}")
        part.key(send, f"{at}.path")
    if method != "GET":
        asked = method[:20] or "OPTIONS (HAProxy's default)"
        part.file.unsaid(line.number, f"checks ask with GET, and this one with {asked}")
    if path.startswith("/"):
        check["path"] = path
    for expect in part.own("http-check", "expect") or of_defaults(part, "http-check", "expect"):
        status = (
            number(expect.words[3], 100, 599) if expect.words[2:3] == ("status",) and len(expect.words) == 4 else None
        )
        if status is not None:
            check["expect"] = {"status": status}
            part.key(expect, f"{at}.expect.status")
        elif expect.words[2:] in (("rstatus", "(2|3)[0-9][0-9]"), ("status", "200-399")):
            part.key(expect, f"{at}.expect")
        else:
            part.file.hint(expect.number, "an http check expects one status, or any 2xx and 3xx")
    return host[1] if host is not None else None


def of_defaults(part: ProxyPart, *keyword: str) -> list[Line]:
    """The lines of its defaults that begin with these words."""
    return list(part.defaults.all(*keyword)) if part.defaults is not None else []


def _exchange(part: ProxyPart, check: dict[str, Any], at: str) -> None:
    """`tcp-check send`, `expect`: one of each, in this order."""
    sent: list[tuple[Line, str | None]] = []
    reply: list[tuple[Line, str | None]] = []
    for line in part.own("tcp-check"):
        kind, rest = line.words[1:2], line.words[2:]
        if kind in (("send-binary",), ("send",)) and len(rest) == 1 and not reply and not sent:
            sent.append((line, _talk(kind[0], rest[0])))
        elif kind == ("expect",) and len(rest) == 2 and rest[0] in ("string", "binary") and not reply:
            reply.append((line, _talk("send-binary" if rest[0] == "binary" else "send", rest[1])))
        elif line.words == ("tcp-check", "connect"):
            part.key(line, at)
        else:
            part.file.hint(line.number, "a tcp check sends one text and expects one that is contained in the answer")
    if sent and sent[0][1] is not None:
        check["send"] = sent[0][1]
        part.key(sent[0][0], f"{at}.send")
    if reply and reply[0][1] is not None:
        check["expect"] = {"reply": reply[0][1]}
        part.key(reply[0][0], f"{at}.expect")


def _talk(kind: str, text: str) -> str | None:
    if kind == "send":
        return escaped(text.encode().replace(rb"\r", b"\r").replace(rb"\n", b"\n"))
    try:
        return escaped(bytes.fromhex(text))
    except ValueError:
        return None
