"""Why no key of the profile language says a line of haproxy.cfg, by its first words."""

from __future__ import annotations

from ndakit.load import foreign_words

LATER = {
    "send-proxy": "the PROXY protocol towards servers is not carried yet (to_servers.proxy_protocol)",
    "send-proxy-v2": "the PROXY protocol towards servers is not carried yet (to_servers.proxy_protocol)",
    "resolvers": "servers found by DNS are not carried yet (servers.NAME.resolve)",
    "init-addr": "servers found by DNS are not carried yet (servers.NAME.resolve)",
    "on-marked-down": "what becomes of a dead server's connections is not carried yet (pools.NAME.on_down)",
    "on-marked-up": "what becomes of a dead server's connections is not carried yet (pools.NAME.on_down)",
    "disabled": "write weight: 0, or leave the server out",
    "minconn": "there is no such key: max_connections is the limit",
    "downinter": "leave it out: there is no such key",
    "observe": "leave it out: servers are judged by their checks",
    "agent-check": "leave it out: a server does not say itself what share it gets",
    "maxqueue": "the queue is limited for the whole service: services.NAME.limits.queue",
}
"""A word of a `server` line → why no key says it."""
_AS_NDAKIT = "ndakit writes what is needed of this itself"


def reason(words: tuple[str, ...]) -> str:
    """Why no key says a line of haproxy.cfg."""
    for length in (3, 2, 1):
        if words[:length] in _REASONS:
            return _REASONS[words[:length]]
    if words[:1] == ("option",) and len(words) > 1:
        return foreign_words.key(words[1]) or "there is no key for this option"
    return foreign_words.key(words[0]) or "there is no such key"


_HEADERS = "changing headers is not carried yet (services.NAME.headers)"
_ACLS = "only names of hosts choose a pool so far: services.NAME.routes with host or host_regex"
_REASONS: dict[tuple[str, ...], str] = {
    ("cookie",): "a cookie keeps a client's server with insert, prefix, or in a table: pools.NAME.persistence",
    ("appsession",): "a cookie keeps a client's server with insert, prefix, or in a table: pools.NAME.persistence",
    ("mode",): "each service says its protocol itself",
    ("acl",): _ACLS,
    ("use_backend",): _ACLS,
    ("use-server",): "a server is chosen by balance and persistence alone",
    ("http-request", "set-header"): _HEADERS,
    ("http-request", "add-header"): _HEADERS,
    ("http-request", "del-header"): _HEADERS,
    ("http-response",): _HEADERS,
    ("http-after-response",): _HEADERS,
    ("reqadd",): _HEADERS,
    ("rspadd",): _HEADERS,
    (
        "http-request",
        "deny",
    ): "who may use a service is not carried yet (services.NAME.sources)",
    ("http-request", "track-sc0"): "requests are limited by client alone: services.NAME.limits.requests",
    ("http-request", "set-path"): "changing paths and hosts is not carried yet (services.NAME.rewrite)",
    ("http-request", "replace-path"): "changing paths and hosts is not carried yet (services.NAME.rewrite)",
    ("http-request", "set-uri"): "changing paths and hosts is not carried yet (services.NAME.rewrite)",
    ("http-request", "redirect"): "only a redirect of all requests is carried: services.NAME.redirect",
    ("redirect",): "only a redirect of all requests is carried: services.NAME.redirect",
    ("http-request", "auth"): "the balancer logs nobody in",
    ("http-request", "return"): "answers of the balancer's own are not carried yet (routes.respond)",
    (
        "tcp-request",
    ): "who may use a service is not carried yet (services.NAME.sources); limits are services.NAME.limits",
    (
        "stick-table",
    ): "what a table can keep a client by is in pools.NAME.persistence, and what it can count in services.NAME.limits",
    (
        "stick",
    ): "what a table can keep a client by is in pools.NAME.persistence, and what it can count in services.NAME.limits",
    ("compression",): "compressed answers are not carried yet (services.NAME.compression)",
    (
        "errorfile",
    ): "a page for 503 is pools.NAME.sorry, and pages for what HAProxy itself answers are services.NAME.error_pages",
    (
        "http-error",
    ): "a page for 503 is pools.NAME.sorry, and pages for what HAProxy itself answers are services.NAME.error_pages",
    ("option", "httpclose"): _AS_NDAKIT,
    ("option", "allbackups"): "it is about backup servers, and there are none",
    ("maxconn",): "the balancer's own limit is computed from sizing; a service's own is limits.connections",
    ("filter",): "there is no key for filters",
    ("log",): "remote logs are not carried yet (monitoring.syslog)",
    ("email-alert",): "leave it out: calling a program at a change is not carried yet",
    ("bind",): "a service is on a VIP: services.NAME.vip",
    ("dispatch",): "write pools.NAME.servers",
    ("server-template",): "servers found by DNS are not carried yet (servers.NAME.resolve)",
    ("external-check",): "a check by a program is not there with topology proxy",
    (
        "timeout",
    ): "time-outs of a service are connect_s, client_s, server_s, queue_s and tunnel_s; the others are ndakit's",
}
