"""Mirrors: their addresses, and what can go wrong with them. Passwords in addresses are never shown."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from urllib.parse import urlsplit, urlunsplit

from ndakit.core.errors import InputError, MachineError
from ndakit.core.mistakes import clean


class MirrorUnusable(InputError):
    """What was given as a mirror is no address."""

    def __init__(self, mirror: str, why: str) -> None:
        super().__init__(
            f"this is no address of a mirror: {why}",
            where=f"'{clean(without_password(mirror))[:200]}'",
            fix="write the part before releases/: --mirror https://downloads.openwrt.org, or file:///folder",
        )


class MirrorFailed(MachineError):
    """Base of what a mirror can do wrong; another mirror may do better."""


class NotThere(MirrorFailed):
    """The mirror says that it does not have this (HTTP 404 or 410, or no such file)."""

    def __init__(self, url: str) -> None:
        super().__init__(
            "the mirror does not have this", where=shown(url), fix="use another mirror: --mirror URL (or NDAKIT_MIRROR)"
        )


class MirrorUnreachable(MirrorFailed):
    """No connection came about, or it broke off."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            f"the connection to the mirror failed: {why}",
            where=shown(url),
            fix="look at this machine's network and proxy (https_proxy); then run it again: what came so far is kept."
            " Or use another mirror: --mirror URL",
        )


class MirrorHangs(MirrorFailed):
    """The mirror took the request and then said nothing, or next to nothing: of an archive, too little for a time;
    of a small file (`whole`), not all of it in its time."""

    def __init__(self, url: str, limit_s: float, *, whole: bool = False) -> None:
        what = "what should be small was not there whole after" if whole else "next to nothing came for"
        super().__init__(
            f"the mirror hangs: {what} {limit_s:g} s",
            where=shown(url),
            fix="run it again later (what came so far is kept), or use another mirror: --mirror URL",
        )


class MirrorRefuses(MirrorFailed):
    """An answer that is an error, other than "not there"."""

    def __init__(self, url: str, status: int, reason: str) -> None:
        super().__init__(
            f"the mirror answers {status} {clean(reason)[:80]}".rstrip(),
            where=shown(url),
            fix="run it again later, or use another mirror: --mirror URL",
        )


class MirrorRedirects(MirrorFailed):
    """It sends us round in circles, or to where we do not go."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            f"the mirror redirects {why}", where=shown(url), fix="use another mirror: --mirror URL (or NDAKIT_MIRROR)"
        )


class WrongAnswer(MirrorFailed):
    """Something came, and it cannot be what was asked for."""

    def __init__(self, url: str, what: str) -> None:
        super().__init__(
            f"what came is not what was asked for: {what}",
            where=shown(url),
            fix="if this network has a login page, log in with a browser first; else use another mirror: --mirror URL",
        )


class TlsFailed(MirrorFailed):
    """The mirror's certificate is not accepted here."""

    def __init__(self, url: str, why: str) -> None:
        clock = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
        date = any(words in why for words in ("expired", "not yet valid"))
        first = f"set this machine's clock (it says {clock} UTC)" if date else "install ca-certificates"
        super().__init__(
            f"the mirror's certificate is not accepted: {why}",
            where=shown(url),
            fix=f"{first}; or go without TLS, as in --mirror http://downloads.openwrt.org: signature and checksum vouch"
            " for the archive either way, and neither looks at the clock",
        )


def shown(url: str) -> str:
    """An address without the user and password that may be in it, for messages and records."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return clean(without_password(url))
    return clean(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))


def without_password(text: str) -> str:
    """A text with addresses in it, each cut from its `//` to the last `@` behind that.

    What is no right address is cut as well, whatever the password is made of: too much rather than too little.
    """
    begin, slashes, rest = text.partition("//")
    if "@" not in text or not slashes:
        return text.rpartition("@")[2]
    return "".join([begin, slashes, re.sub(r"\S*@", "", rest)])


def usable_mirror(text: str) -> str:
    """A mirror's address without a slash at the end. Raises MirrorUnusable."""
    try:
        parts = urlsplit(text.strip())
        _ = parts.port
    except ValueError:
        raise MirrorUnusable(text, "its host or port cannot be read") from None
    if parts.scheme not in ("http", "https", "file"):
        raise MirrorUnusable(text, "it begins with none of https://, http:// and file://")
    if parts.scheme != "file" and not parts.hostname:
        raise MirrorUnusable(text, "it names no host")
    if parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/")):
        raise MirrorUnusable(text, "after file:// comes an absolute path")
    if parts.query or parts.fragment:
        raise MirrorUnusable(text, "it has a ? or # in it")
    return text.strip().rstrip("/")
