"""Request headers in which a client could claim to be somebody: who it is, whom it asked, and how.

Servers and their frameworks believe these headers because a balancer or a CDN sets them. Ours takes them away before it
sets its own. A name may be written with other characters than `-`: in the environment of CGI, WSGI and PHP
`X_Forwarded_For` becomes the same `HTTP_X_FORWARDED_FOR` (RFC 3875, 4.1.18). Pure text; the template writes the rules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SEPARATOR = "[^a-z0-9]"
"""What may stand where a name has its hyphens."""
_ODD_SEPARATOR = "[^a-z0-9:]"


@dataclass(frozen=True)
class ClaimGroup:
    """Headers about one thing. `pattern` matches whole names in lower case, with `_` for any separator; `names` are
    those that are in use, which HAProxy before 2.4 deletes one by one."""

    about: str
    pattern: str
    names: tuple[str, ...]

    @property
    def expression(self) -> str:
        """The pattern as a regular expression for HAProxy."""
        return f"^({self.pattern.replace('_', SEPARATOR)})$"

    @property
    def disguised(self) -> str:
        """The names with other separators, in a list of header names with `:` between them. What is written with
        hyphens only has been deleted before this is asked."""
        words = "|".join(name.lower().replace("-", _ODD_SEPARATOR) for name in self.names if "-" in name)
        return f"(^|:)({words})(:|$)"


@dataclass(frozen=True)
class ClientClaims:
    """All of them."""

    groups: tuple[ClaimGroup, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that is in use."""
        return tuple(name for group in self.groups for name in group.names)

    def match(self, header: str) -> bool:
        """True if a header of this name is taken away."""
        return any(re.search(group.expression, header.lower()) for group in self.groups)


CLAIMS = ClientClaims(
    (
        ClaimGroup(
            "what it asked for, and through whom",
            "(x_)?(original_)?forwarded(_.*)?|(x_)?original_host|x_host|x_(url_)?scheme|front_end_https",
            (
                "Forwarded", "Forwarded-For", "Forwarded-Proto", "X-Forwarded", "X-Forwarded-For", "X-Forwarded-Proto",
                "X-Forwarded-Protocol", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Server", "X-Forwarded-By",
                "X-Forwarded-Prefix", "X-Forwarded-Path", "X-Forwarded-Scheme", "X-Forwarded-Ssl", "X-Forwarded-User",
                "X-Forwarded-Email", "X-Forwarded-Groups", "X-Forwarded-Preferred-Username", "X-Forwarded-Access-Token",
                "X-Forwarded-Client-Cert", "X-Forwarded-Tls-Client-Cert", "X-Forwarded-Tls-Client-Cert-Info",
                "X-Original-Forwarded-For", "X-Original-Host", "X-Host", "X-Scheme", "X-Url-Scheme", "Front-End-Https",
            ),
        ),
        ClaimGroup(
            "its address",
            "(.*_)?(client|connecting|external|originating|pseudo|real|remote|socket|source|src)_?"
            "(ip|ipv[46]|addr|address|host|port)|(.*_)?(proxy)?user_?ip",
            (
                "X-Real-IP", "X-Real-Port", "X-Client-IP", "X-ClientIP", "X-Client-Address", "X-Client-Port",
                "Client-IP", "True-Client-IP", "X-True-Client-IP", "Cluster-Client-IP", "X-Cluster-Client-IP",
                "X-Remote-IP", "X-Remote-Addr", "Remote-Addr", "X-Originating-IP", "X-Source-IP", "X-ProxyUser-IP",
                "Proxy-Client-IP", "WL-Proxy-Client-IP", "CF-Connecting-IP", "CF-Connecting-IPv6", "CF-Pseudo-IPv4",
                "Fastly-Client-IP", "Incap-Client-IP", "Ali-CDN-Real-IP", "CDN-Src-IP", "X-Azure-ClientIP",
                "X-Azure-SocketIP", "X-AppEngine-User-IP", "X-AppEngine-Remote-Addr", "X-Envoy-External-Address",
            ),
        ),
        ClaimGroup(
            "as whom it logged in",
            "(x_)?(remote|authenticated|webauth|auth_request)_(user|userid|groups?|email|preferred_username)",
            (
                "Remote-User", "X-Remote-User", "X-Remote-Groups", "X-Authenticated-User", "X-Authenticated-Userid",
                "X-Authenticated-Groups", "X-WebAuth-User", "X-Auth-Request-User", "X-Auth-Request-Email",
                "X-Auth-Request-Groups", "X-Auth-Request-Preferred-Username",
            ),
        ),
        ClaimGroup(
            "its certificate",
            "(x_)?(ssl_|tls_|arr_)?client_?(cert|certificate|verify|verified|dn|s_dn|i_dn|cn|serial|fingerprint)(_.*)?"
            "|(x_)?(ssl|tls)_client(_.*)?",
            (
                "Client-Cert", "Client-Cert-Chain", "X-Client-Cert", "X-Client-Certificate", "X-Client-Verify",
                "X-Client-DN", "SSL-Client-Cert", "SSL-Client-Verify", "SSL-Client-S-DN", "X-SSL-Client",
                "X-SSL-Client-Cert", "X-SSL-Client-Verify", "X-SSL-Client-DN", "X-SSL-Client-S-DN", "X-SSL-Client-CN",
                "X-SSL-Client-Serial", "X-SSL-Client-Fingerprint", "X-TLS-Client-Cert", "X-ARR-ClientCert",
            ),
        ),
    )
)  # fmt: skip
"""What is known of nginx, Apache, IIS, Traefik, Envoy, oauth2-proxy and the large CDNs; a test holds that each name
matches its group's pattern."""
