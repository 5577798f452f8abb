"""Limits, pages for errors and maintenance in a frontend of haproxy.cfg: `limits`, `error_pages`, `maintenance`."""

from __future__ import annotations

import re
from typing import Any

from ndakit.lint.config_text import Line
from ndakit.model.limits import ERROR_STATUSES
from ndakit.operate.import_.draft import Draft, number
from ndakit.operate.import_.haproxy_text import ProxyPart, seconds
from ndakit.operate.import_.sources import NodeFiles

_CONNECTIONS = re.compile(r"if \{ (?:src_conn_cur|sc[012]_conn_cur|sc_conn_cur\([012]\)) (gt|ge) ([0-9]{1,7}) \}")
_RATE = r"(?:src_http_req_rate|sc[012]_http_req_rate|sc_http_req_rate\([012]\)) (gt|ge) ([0-9]{1,7})"
_QUEUE = re.compile(r" \{ queue\([A-Za-z0-9_.:-]+\) ge ([0-9]{1,7}) \}")
_BODY = re.compile(r"if \{ req\.body_size gt ([0-9]{1,14}) \}")


def read(draft: Draft, node: NodeFiles, part: ProxyPart, name: str, service: dict[str, Any]) -> None:
    """What a frontend takes at most, told as used for the service's keys."""
    limits: dict[str, Any] = {}
    at = f"services.{name}.limits"
    connections: dict[str, Any] = {}
    rate = next(iter(part.own("rate-limit", "sessions")), None)
    if rate is not None and len(rate.words) == 3 and number(rate.words[2], 1, 1_000_000) is not None:
        connections["per_s"] = int(rate.words[2])
        part.key(rate, f"{at}.connections.per_s")
    for line in (*part.own("tcp-request", "connection", "reject"), *part.own("tcp-request", "session", "reject")):
        most = _CONNECTIONS.fullmatch(" ".join(line.words[3:]))
        if most is not None:
            connections["per_client"] = int(most[2]) - (most[1] == "ge")
            part.key(line, f"{at}.connections.per_client")
            _tracked(part, f"{at}.connections.per_client")
    if connections:
        limits["connections"] = connections
    requests = _requests(part, f"{at}.requests")
    if requests is not None:
        limits["requests"] = requests
    for line in part.own("use_backend"):
        waiting = _QUEUE.search(" ".join(line.words))
        if waiting is not None:
            limits["queue"] = {"length": int(waiting[1])}
            part.key(line, f"{at}.queue")
    for line in part.own("http-request", "deny", "deny_status", "413"):
        largest = _BODY.fullmatch(" ".join(line.words[4:]))
        if largest is not None and int(largest[1]) % 1024 == 0:
            limits["body_kib"] = int(largest[1]) // 1024
            part.key(line, f"{at}.body_kib")
    if limits:
        service["limits"] = limits
    _maintenance(part, name, service)
    if service["protocol"] == "http":
        _pages(draft, node, part, name, service)


def _tracked(part: ProxyPart, key: str) -> None:
    """The table and the line that fills it go with what is asked of it."""
    for line in part.own("stick-table"):
        part.key(line, key)
    for stage in (("tcp-request", "connection"), ("tcp-request", "session"), ("http-request",)):
        for line in (*part.own(*stage, "track-sc0"), *part.own(*stage, "track-sc1")):
            part.key(line, key)


def _requests(part: ProxyPart, at: str) -> dict[str, Any] | None:
    """So many requests of a client in a time: the rate's time stands in the table, the number in a condition."""
    table = next(iter(part.own("stick-table")), None)
    period = re.search(r"http_req_rate\(([0-9]+[a-z]*)\)", " ".join(table.words)) if table is not None else None
    per_s = seconds(period[1]) if period is not None else None
    if table is None or per_s is None or per_s != int(per_s) or not 1 <= per_s <= 3600:
        return None
    named = {line.words[1]: match for line in part.own("acl") if len(line.words) > 2
             and (match := re.fullmatch(_RATE, " ".join(line.words[2:]))) is not None}  # fmt: skip
    for line in (*part.own("http-request"), *part.own("use_backend")):
        text = " ".join(line.words)
        inline = re.search(rf"if \{{ {_RATE} \}}$", text)
        by_name = next((named[word] for word in line.words if word in named), None)
        most = inline or by_name
        if most is None or re.search(r"\btrack-sc", text):
            continue
        status = line.words[line.words.index("deny_status") + 1] if "deny_status" in line.words[:-1] else "403"
        action = {"tarpit": "tarpit", "deny": "429"}.get(
            line.words[1] if line.words[0] == "http-request" else "", "sorry"
        )
        if line.words[0] == "http-request" and line.words[1] not in ("tarpit", "deny"):
            continue
        if action == "429" and status != "429":
            part.file.unsaid(
                line.number, f"a client that asks too often gets status 429 (on_excess), and here {status}"
            )
        part.key(line, at)
        _tracked(part, at)
        for other in part.own("acl"):
            if len(other.words) > 1 and other.words[1] in named:
                part.key(other, at)
        result: dict[str, Any] = {"count": int(most[2]) - (most[1] == "ge")}
        if per_s != 1:
            result["per_s"] = int(per_s)
        if action != "429":
            result["on_excess"] = action
        return result
    return None


def _maintenance(part: ProxyPart, name: str, service: dict[str, Any]) -> None:
    """ndakit's own form: everybody but access.sources is sent to what stands in for the pool."""
    spared = part.own("acl", "access-sources")
    for line in part.own("use_backend"):
        if spared and "!access-sources" in line.words:
            service["maintenance"] = True
            for told in (*spared, line):
                part.key(told, f"services.{name}.maintenance")


def _pages(draft: Draft, node: NodeFiles, part: ProxyPart, name: str, service: dict[str, Any]) -> None:
    """`errorfile` for the statuses that have pages."""
    lines: list[Line] = [*(part.defaults.all("errorfile") if part.defaults is not None else ()), *part.own("errorfile")]
    for line in lines:
        status = number(line.words[1], 400, 599) if len(line.words) == 3 else None
        own = line in part.own("errorfile")
        if status not in ERROR_STATUSES or (status == 503 and not own):  # of the defaults, 503 is the pools' sorry page
            continue
        content = node.files.get(line.words[2])
        if content is None:
            if own:
                draft.missing(
                    f"services: the page {line.words[2]} (errorfile {status}) is not in what was read: put it beside "
                    f"the profile, and write error_pages: {{{status}: FILE}}"
                )
            continue
        parts = re.split(rb"\r?\n\r?\n", content, maxsplit=1)
        page = parts[1] if len(parts) == 2 and content.startswith(b"HTTP/") else content
        if not page:
            continue
        beside = next((n for n, other in draft.attachments.items() if other == page), "")
        beside = beside or f"{draft.name}-error-{name}-{status}.html"
        draft.attachments[beside] = page
        service.setdefault("error_pages", {})[str(status)] = beside
        part.key(line, f"services.{name}.error_pages")
