"""Request headers in which a client could claim to be somebody: who it is, whom it asked, and how.

Servers and their frameworks believe these headers because a balancer or a CDN sets them. Ours takes them away before it
sets its own. One list of names and families is for all releases: a header that is not on it reaches the servers. A name
may be written with other characters than `-`: in the environment of CGI, WSGI and PHP `X_Forwarded_For` becomes the
same `HTTP_X_FORWARDED_FOR` (RFC 3875, 4.1.18). Pure text; the template writes the rules.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field

SEPARATOR = "[^a-z0-9]"
"""What may stand where a name has its hyphens."""
_ODD_SEPARATOR = "[^a-z0-9:]"
_LISTED_COLUMNS = 108


@dataclass
class _Words:
    """Names that begin with the same words: what may follow, and whether a name may end here."""

    following: dict[str, _Words] = field(default_factory=dict)
    ends: bool = False

    def expression(self, separator: str) -> str:
        parts = [
            word + (f"({separator}{after})?" if words.ends else f"{separator}{after}") if after else word
            for word, words in self.following.items()
            for after in [words.expression(separator)]
        ]
        return parts[0] if len(parts) == 1 else f"({'|'.join(parts)})" if parts else ""


def _expression(names: Iterable[str], separator: str, anything: str) -> str:
    """A regular expression for exactly these names, in lower case, with `separator` for each hyphen and `anything` for
    a last word `*`. What names have in common at their beginning is written once."""
    root = _Words()
    for name in names:
        words = root
        for word in name.lower().split("-"):
            words = words.following.setdefault(word, _Words())
        words.ends = True
    return root.expression(separator).replace("*", anything)


@dataclass(frozen=True)
class ClaimGroup:
    """Headers about one thing, written with hyphens.

    `families`: how names begin of which every one is a claim, whatever follows the next hyphen. Their `names` are those
    in use: a HAProxy that cannot delete by pattern deletes these, and refuses what else is of the family.
    """

    about: str
    names: tuple[str, ...]
    families: tuple[str, ...] = ()

    @property
    def starred(self) -> tuple[str, ...]:
        """The families, as people write them: `X-Name-*`."""
        return tuple(f"{family}-*" for family in self.families)

    @property
    def alone(self) -> tuple[str, ...]:
        """The names that are of no family."""
        of_family = tuple(f"{family}-" for family in self.families)
        return tuple(name for name in self.names if not name.startswith(of_family))

    @property
    def expression(self) -> str:
        """The names and families in every spelling, as a regular expression for a HAProxy that deletes by pattern."""
        return f"^{_expression((*self.alone, *self.starred), SEPARATOR, '.*')}$"

    @property
    def disguised(self) -> str:
        """The names with other separators, and the families, in a list of header names with `:` between them. What is
        written with hyphens only has been deleted before this is asked. Empty if no name has a separator."""
        parted = (name for name in self.alone if "-" in name)
        words = _expression((*parted, *self.starred), _ODD_SEPARATOR, "[^:]*")
        return f"(^|:){words}(:|$)" if words else ""

    @property
    def listed(self) -> tuple[str, ...]:
        """The names and families for people, in lines."""
        return tuple(textwrap.wrap(", ".join((*self.alone, *self.starred)), _LISTED_COLUMNS, break_on_hyphens=False))


@dataclass(frozen=True)
class ClientClaims:
    """All of them."""

    groups: tuple[ClaimGroup, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Every name."""
        return tuple(name for group in self.groups for name in group.names)

    def covers(self, header: str) -> bool:
        """True if a header is taken away from every request."""
        return any(re.search(group.expression, header.lower()) for group in self.groups)


CLAIMS = ClientClaims(
    (
        ClaimGroup(
            "through whom it came, and what host it asked for",
            (
                "Forwarded", "X-Forwarded", "X-Forwarded-By", "X-Forwarded-Server", "X-Forwarded-Host",
                "X-Forwarded-Port", "X-Forward-Host", "X-Forward-Port", "X-Original-Host", "X-Original-Port", "X-Host",
                "X-HTTP-Host-Override",
            ),
        ),
        ClaimGroup(
            "that it came by https",
            (
                "HTTPS", "X-HTTPS", "Forwarded-Proto", "X-Forwarded-Proto", "X-Forwarded-Protocol",
                "X-Forwarded-Scheme", "X-Forwarded-Ssl", "X-Forwarded-Https", "X-Forward-Proto", "X-Forward-Scheme",
                "X-Forward-Ssl", "X-Original-Proto", "X-Original-Scheme", "X-Real-Proto", "X-Scheme", "X-Url-Scheme",
                "Front-End-Https", "X-Front-End-Https", "X-ARR-SSL", "X-SSL-Request", "X-SSL-Cipher",
                "WL-Proxy-SSL", "Fastly-SSL", "CF-Visitor",
                "CloudFront-Forwarded-Proto", "X-AppEngine-Https",
            ),
        ),
        ClaimGroup(
            "its address",
            (
                "Forwarded-For", "X-Forwarded-For", "X-ForwardedFor", "X-Forwarded-For-Original", "X-Forward-For",
                "X-Original-Forwarded-For", "X-Original-For", "X-Vercel-Forwarded-For", "X-Real-IP", "X-Real-Port",
                "Client-IP", "X-Client-IP", "X-ClientIP", "X-Client-Address", "X-Client-Addr", "X-Client-Port",
                "True-Client-IP", "X-True-Client-IP", "Cluster-Client-IP", "X-Cluster-Client-IP", "Remote-Addr",
                "X-Remote-Addr", "X-Remote-IP", "X-Originating-IP", "X-Source-IP", "X-Visitor-IP", "X-ProxyUser-IP",
                "Proxy-Client-IP", "WL-Proxy-Client-IP", "CF-Connecting-IP", "CF-Connecting-IPv6", "CF-Pseudo-IPv4",
                "CloudFront-Viewer-Address", "DO-Connecting-IP", "Fastly-Client-IP", "Fly-Client-IP",
                "Incap-Client-IP", "Ali-CDN-Real-IP", "CDN-Src-IP", "X-Nf-Client-Connection-IP", "X-Azure-ClientIP",
                "X-Azure-SocketIP", "X-AppEngine-User-IP", "X-AppEngine-Remote-Addr", "X-Envoy-External-Address",
            ),
        ),
        ClaimGroup(
            "as whom it logged in",
            (
                "Remote-User", "Remote-Name", "Remote-Email", "Remote-Groups", "X-Remote-User", "X-Remote-Name",
                "X-Remote-Email", "X-Remote-Group", "X-Remote-Groups", "X-Forwarded-User", "X-Forwarded-Email",
                "X-Forwarded-Groups", "X-Forwarded-Preferred-Username", "X-Forwarded-Access-Token",
                "X-Authenticated-User", "X-Authenticated-Userid", "X-Authenticated-Email", "X-Authenticated-Groups",
                "X-WebAuth-User", "X-WebAuth-Userid", "X-WebAuth-Name", "X-WebAuth-Email", "X-WebAuth-Role",
                "X-WebAuth-Groups", "X-Auth-Request-User", "X-Auth-Request-Email", "X-Auth-Request-Groups",
                "X-Auth-Request-Preferred-Username", "X-Auth-Request-Access-Token",
            ),
            ("X-Auth-Request",),
        ),
        ClaimGroup(
            "as whom it logged in at a service that logs people in",
            (
                "X-Goog-Authenticated-User-Email", "X-Goog-Authenticated-User-ID", "Cf-Access-Authenticated-User-Email",
                "X-MS-Client-Principal", "X-MS-Client-Principal-ID", "X-MS-Client-Principal-Name",
                "X-MS-Client-Principal-IdP", "X-Amzn-Oidc-Identity", "X-authentik-username", "X-authentik-name",
                "X-authentik-uid", "X-authentik-email", "X-authentik-groups", "X-authentik-entitlements",
                "Tailscale-User-Login", "Tailscale-User-Name", "Tailscale-User-Profile-Pic",
                "Tailscale-App-Capabilities", "X-Vouch-User", "X-Vouch-Success", "X-Pomerium-Claim-User",
                "X-Pomerium-Claim-Email", "X-Pomerium-Claim-Groups", "OIDC-Claim-Sub", "OIDC-Claim-Name",
                "OIDC-Claim-Email", "OIDC-Claim-Groups", "OIDC-Claim-Upn", "OIDC-Claim-Preferred-Username",
                "Shib-Session-ID", "Shib-Identity-Provider", "SM-User", "SM-UserDN", "OAM-Remote-User",
                "iv-user", "iv-groups", "iv-creds",
            ),
            ("X-MS-Client-Principal", "X-authentik", "X-Pomerium-Claim", "OIDC-Claim"),
        ),
        ClaimGroup(
            "its certificate",
            (
                "Client-Cert", "Client-Cert-Chain", "X-Client-Cert", "X-Client-Certificate", "X-Clientcert",
                "X-Client-Verify", "X-Client-Verified", "X-Client-DN", "X-Client-S-DN", "X-Client-I-DN",
                "X-ARR-ClientCert", "WL-Proxy-Client-Cert", "X-Forwarded-Client-Cert", "X-Forwarded-Tls-Client-Cert",
                "X-Forwarded-Tls-Client-Cert-Info", "X-Amzn-Mtls-Clientcert", "X-Amzn-Mtls-Clientcert-Leaf",
                "X-Amzn-Mtls-Clientcert-Subject", "X-Amzn-Mtls-Clientcert-Issuer",
                "X-Amzn-Mtls-Clientcert-Serial-Number", "X-Amzn-Mtls-Clientcert-Validity", "SSL-Cert", "X-SSL-Cert",
                "X-SSL-Issuer", "X-SSL-Subject", "X-SSL-Verify", "X-SSL-Verified", "TLS-Client-Cert",
                "X-TLS-Client-Cert", "X-TLS-Client-Verify", "X-TLS-Client-DN",
            ),
            ("X-Amzn-Mtls",),
        ),
        ClaimGroup(
            "its certificate, by the names of mod_ssl, nginx and HAProxy",
            tuple(
                f"{first}SSL-Client{more}"
                for first in ("", "X-")
                for more in (
                    "", "-Cert", "-Cert-Chain", "-Certificate", "-Verify", "-Verified", "-Used", "-DN", "-CN", "-S-DN",
                    "-S-DN-CN", "-S-DN-O", "-S-DN-OU", "-S-DN-Email", "-I-DN", "-I-DN-CN", "-I-DN-O", "-Subject",
                    "-Subject-DN", "-Issuer", "-Issuer-DN", "-Serial", "-M-Serial", "-Fingerprint", "-SHA1",
                    "-NotBefore", "-NotAfter", "-V-Start", "-V-End",
                )
            ),
            ("SSL-Client", "X-SSL-Client"),
        ),
        ClaimGroup(
            "what path it asked for (rules about paths would be passed by)",
            (
                "X-Original-URL", "X-Original-URI", "X-Original-Method", "X-Rewrite-URL", "X-Forwarded-Path",
                "X-Forwarded-Prefix", "X-Forwarded-Uri", "X-Forwarded-Method", "X-Envoy-Original-Path",
                "X-Script-Name",
            ),
        ),
        ClaimGroup(
            "what proxy a CGI program has to use (httpoxy: it becomes HTTP_PROXY)",
            ("Proxy",),
        ),
    )
)  # fmt: skip
"""What is known of nginx, Apache, IIS, Traefik, Envoy, WebLogic, oauth2-proxy and other programs that log people in,
and the large CDNs and clouds. X-Forwarded-* is no family: programs send names of their own there. Left out on purpose:
names that ordinary clients send (X-Auth-User is a login at OpenStack Swift, X-HTTP-Method-Override a choice of the
client's), and signed ones (Cf-Access-Jwt-Assertion), which servers check."""
