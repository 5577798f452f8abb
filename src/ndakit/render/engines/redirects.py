"""Redirects in HAProxy's words: what a frontend answers that sends all its clients elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from ndakit.model import Profile
from ndakit.render.engines.host_names import HOST


@dataclass(frozen=True)
class RedirectRule:
    """One `http-request redirect` line: `prefix` (path and query go on behind it) or `location`, a text in the log
    format of HAProxy, and for which requests."""

    keyword: str
    text: str
    status: int
    by_address: bool = False
    """For requests that name an IPv6 address as their host, whose brackets and colons are not to be taken apart."""


def redirect_rules(profile: Profile, name: str) -> tuple[RedirectRule, ...]:
    """The redirects of a service in order; none if it has servers.

    The name that the client asked for stays (`host_names.HostForm` says what a name is); its port is that of the
    service with TLS. A host without a name is the address that the client has reached.
    """
    redirect = profile.services[name].redirect
    if redirect is None:
        return ()
    keyword, end = ("prefix", "") if redirect.keep_path else ("location", "/")
    if not redirect.to_https:
        text = redirect.to.rstrip("/") if redirect.keep_path else redirect.to
        return (RedirectRule(keyword, text, redirect.status),)
    port = next(filter(None, (profile.https_port(e.address) for e in profile.endpoints(name))), 443)
    end = f"{'' if port == 443 else f':{port}'}{end}"
    return (
        RedirectRule(keyword, f"https://[%[dst]]{end}", redirect.status, by_address=True),
        RedirectRule(keyword, f"https://%[{HOST}]{end}", redirect.status),
    )
