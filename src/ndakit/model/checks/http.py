"""`http` and `https`: a request is answered as expected."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator

from ndakit.core.names import HostName
from ndakit.core.release import OLDEST
from ndakit.model.base import Between, Int, Model, UrlPath, mistake
from ndakit.model.checks.base import Lie, Page, PortCheck, Speaks
from ndakit.model.engines import HAPROXY, IPVS, Branch, Engine, Refused

DIGESTS = frozenset({IPVS.name})
"""Engines whose checks compare the digest of a page."""
SUBSTITUTES = frozenset({IPVS.name})
"""Engines whose program replaces some words of its configuration."""
_NOT_IN_KEEPALIVED = re.compile(r"\$|~[A-Z]")
"""keepalived.conf replaces these (keepalived.conf(5), "PARAMETER SUBSTITUTION", "~SEQ"), and has no escape for them."""


def _digest(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{32}", value):
        raise mistake(
            "digest", "'{got}' is not an MD5 digest", got=value[:40],
            fix="write the 32 hex digits that md5sum prints for the page",
        )  # fmt: skip
    return value


class HttpExpect(Model):
    """What an http or https check takes for a good answer."""

    status: Annotated[Int, Between(100, 599)] | None = None
    """The status; without it any 2xx or 3xx is good."""
    digest: Annotated[str, AfterValidator(_digest)] | None = None
    """The MD5 digest of the answer's body. Services of topology nat, dr and tun only. `./inv verify` then wants the
    page: `--page FILE`."""


class HttpCheck(PortCheck):
    """A request is answered as expected."""

    carried: ClassVar[Mapping[str, Branch]] = {HAPROXY.name: OLDEST, IPVS.name: OLDEST}
    keepalived_answers: ClassVar[int] = 2

    type: Literal["http"] = "http"
    """`http`"""
    path: UrlPath | None = None
    """The path that is asked for, default `/`."""
    host: HostName | None = None
    """The Host header; by default the first of the service's `hostnames`."""
    expect: HttpExpect = HttpExpect()
    """What counts as a good answer."""

    @property
    def request_path(self) -> str:
        """The path that is asked for."""
        return self.path or "/"

    @property
    def encrypted(self) -> bool:
        """True if it is asked over TLS."""
        return False

    @property
    def states_encryption(self) -> bool:
        """True: `http` and `https` say it."""
        return True

    @property
    def unusual(self) -> bool:
        """True if the answer that is wanted is none that a client would take."""
        return self.expect.digest is not None or self.expect.status not in (None, 200)

    def refused(self, engine: Engine) -> Iterator[tuple[tuple[str, ...], Refused]]:
        """What an engine cannot do of this check, each with its place in the check."""
        if self.expect.digest is not None and engine.name not in DIGESTS:
            yield (
                ("expect", "digest"),
                Refused(
                    "digest-needs-kernel",
                    "pool {pool}'s check compares a digest, which keepalived does and HAProxy, behind service "
                    "{service}, does not",
                    "state expect: {{status: 200}}, or a pool of its own for the service",
                ),
            )
        yield from super().refused(engine)
        if engine.name in SUBSTITUTES and _NOT_IN_KEEPALIVED.search(self.request_path):
            yield (
                ("path",),
                Refused(
                    "path-of-keepalived",
                    "keepalived, behind service {service}, would read $ and ~ in the path "
                    f"{self.path} as something else",
                    "write %24 for $ and %7E for ~",
                ),
            )

    def offered(self, *, datagrams: bool) -> tuple[Speaks, ...]:
        """What a server of the lab that is well says."""
        stated = self.expect.status is not None or self.expect.digest is not None
        page = Page(self.request_path, self.expect.status or 200, self.expect.digest)
        return (Speaks("http", tls=self.encrypted, pages=(page,) if stated else ()),)

    def lie(self) -> Lie | None:
        """The page is there with another status; or, known by its digest, with another text."""
        status = 500 if self.expect.status != 500 else 200
        wrong = (self.expect.status or 200) if self.expect.digest is not None else status
        return Lie(Speaks("http", tls=self.encrypted, pages=(Page(self.request_path, wrong),)))


class HttpsCheck(HttpCheck):
    """A request over TLS is answered as expected; certificates are not looked at."""

    type: Literal["https"] = "https"  # type: ignore[assignment]  # the keys are those of http, the word is its own
    """`https`"""

    @property
    def encrypted(self) -> bool:
        """True if it is asked over TLS."""
        return True
