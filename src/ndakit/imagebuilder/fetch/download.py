"""Bytes from a mirror: http(s) or `file://`, streamed, resumed, and refused when they are not what was asked for.

Owns time limits, redirects, what may pass for an answer, and the state of a half-done download. Addresses and errors of
mirrors are in `mirrors`. Whether the bytes are the right ones is not known here: `fetch` compares them with a signed
checksum, and gives them to nobody before. HTTP: RFC 9110 (Range, If-Range, Content-Range), driven by requests.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ndakit.core import json_text
from ndakit.core.files import write_atomic
from ndakit.core.mistakes import clean
from ndakit.imagebuilder.fetch.mirrors import (
    MirrorHangs,
    MirrorRedirects,
    MirrorRefuses,
    MirrorUnreachable,
    NotThere,
    TlsFailed,
    WrongAnswer,
    shown,
    without_password,
)

if TYPE_CHECKING:
    import requests

    from ndakit.imagebuilder.fetch import http_limit

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and, if known, the bytes that there will be."""

_CHUNK = 256 * 1024
_MAX_REDIRECTS = 5
_MIB = 1024 * 1024


@dataclass(frozen=True)
class DownloadLimits:
    """How long and how often is tried."""

    connect_s: float = 15.0
    stall_s: float = 30.0
    """Less than `stall_bytes` of an archive in this time is a mirror that hangs."""
    stall_bytes: int = 30 * 16 * 1024
    whole_s: float = 60.0
    """From a request to the last byte of a small file, and to the last header line before a large one."""
    progress_bytes: int = 64 * 1024
    """A connection that broke off and brought less than this counts as a failed attempt."""
    attempts: int = 3
    pause_s: float = 1.0
    """Between two attempts."""


def small(url: str, *, max_bytes: int, limits: DownloadLimits) -> bytes:
    """A small file in memory. Raises MirrorFailed's kinds, NotThere among them."""
    for attempt in range(1, limits.attempts + 1):
        try:
            content = bytearray()
            end_s = time.monotonic() + limits.whole_s
            with _answer(url, 0, None, limits, end_s) as answer:
                _refuse_page(url, answer.type)
                for chunk in answer.chunks:
                    content += chunk
                    if time.monotonic() > end_s:
                        raise MirrorHangs(url, limits.whole_s, whole=True)
                    if len(content) > max_bytes:
                        raise WrongAnswer(url, f"it is longer than {max_bytes // 1024} KiB")
                _refuse_length(url, len(content), answer.total)
            return bytes(content)
        except (MirrorUnreachable, MirrorRefuses):
            if attempt == limits.attempts:
                raise
            time.sleep(limits.pause_s)
    raise AssertionError("the last attempt returns or raises")


def large(url: str, partial: Path, *, max_bytes: int, limits: DownloadLimits, progress: Progress) -> None:
    """Download into the file `partial`, going on where an earlier call ended; on return everything is there.

    A connection that breaks off is taken up again as long as each attempt brings enough. Beside the file lies
    `<partial>.json` with the address and the entity tag it began with. Raises MirrorFailed's kinds and OSError.
    """
    failures = 0
    while True:
        before = _size(partial)
        try:
            _once(url, partial, max_bytes, limits, progress)
            return
        except _CannotResume:
            forget(partial)
            failures += 1
            if failures >= limits.attempts:
                raise WrongAnswer(url, "its length is another one with each request") from None
        except (MirrorUnreachable, MirrorRefuses):
            failures = 1 if _size(partial) - before >= limits.progress_bytes else failures + 1
            if failures >= limits.attempts:
                raise
            time.sleep(limits.pause_s)


def forget(partial: Path) -> None:
    """Remove a half-done download."""
    partial.unlink(missing_ok=True)
    _facts_file(partial).unlink(missing_ok=True)


def _once(url: str, partial: Path, max_bytes: int, limits: DownloadLimits, progress: Progress) -> None:
    known = _facts(partial)
    have = _size(partial)
    tag = _tag(known.get("etag")) if known.get("url") == shown(url) else None
    with _answer(url, have, tag, limits) as answer:
        _refuse_page(url, answer.type)
        resumed = have > 0 and answer.start == have and known.get("total") in (None, answer.total)
        if have > 0 and not resumed and answer.start != 0:
            raise _CannotResume
        if answer.total is not None and answer.total > max_bytes:
            raise WrongAnswer(url, f"it has {answer.total // _MIB} MiB, and no ImageBuilder has")
        facts = {"url": shown(url), "etag": answer.etag, "total": answer.total}
        write_atomic(_facts_file(partial), json.dumps(facts).encode())
        done = have if resumed else 0
        with partial.open("ab" if resumed else "wb") as sink:
            for chunk in _timed(url, answer, limits):
                sink.write(chunk)
                done += len(chunk)
                if done > max_bytes:
                    raise WrongAnswer(url, f"it has more than {max_bytes // _MIB} MiB, and no ImageBuilder has")
                progress(done, answer.total)
            sink.flush()
            os.fsync(sink.fileno())
        _refuse_length(url, done, answer.total)


class _CannotResume(Exception):
    """What is there is part of another file, or longer than the whole: begin again, with a request for all of it."""


@dataclass(frozen=True)
class _Answer:
    """A mirror's answer: where in the file it starts, how long the whole is if that was said, and its bytes."""

    start: int
    total: int | None
    etag: str | None
    type: str
    chunks: Iterator[bytes]


@contextlib.contextmanager
def _answer(
    url: str, start: int, tag: str | None, limits: DownloadLimits, end_s: float | None = None
) -> Iterator[_Answer]:
    """The answer to a request; `end_s` (monotonic clock) is when its last byte has to be there."""
    if url.startswith("file:"):
        with _local(url, start) as answer:
            yield answer
    else:
        with _http(url, start, tag, limits, end_s) as answer:
            yield answer


@contextlib.contextmanager
def _local(url: str, start: int) -> Iterator[_Answer]:
    path = Path(unquote(urlsplit(url).path))
    try:
        source = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise NotThere(url) from None
    except (OSError, ValueError) as cause:
        raise MirrorUnreachable(url, str(getattr(cause, "strerror", cause))) from cause
    with source:
        facts = os.fstat(source.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise NotThere(url)
        size = facts.st_size
        begin = start if start <= size else 0
        source.seek(begin)
        yield _Answer(begin, size, None, "", iter(lambda: source.read(_CHUNK), b""))


@contextlib.contextmanager
def _http(url: str, start: int, tag: str | None, limits: DownloadLimits, end_s: float | None) -> Iterator[_Answer]:
    import requests

    from ndakit.imagebuilder.fetch import http_limit

    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if tag and not tag.startswith("W/"):
            headers["If-Range"] = tag
    limit = http_limit.Limit(end_s or time.monotonic() + limits.whole_s)
    with contextlib.closing(limit), requests.Session() as session:
        session.max_redirects = _MAX_REDIRECTS
        http_limit.bound(session, limit)
        with _told(url, limits, limit):
            answer = session.get(url, headers=headers, stream=True, timeout=(limits.connect_s, limits.stall_s))
        limit.until_s = end_s
        with answer:
            status = answer.status_code
            if status in (404, 410):
                raise NotThere(url)
            if status == 416:
                yield _Answer(-1, None, None, "", iter(()))
                return
            if status not in (200, 206):
                raise MirrorRefuses(url, status, answer.reason or "")
            begin, total = _range(answer) if status == 206 else (0, _number(answer.headers.get("Content-Length")))
            kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            yield _Answer(begin, total, _tag(answer.headers.get("ETag")), kind, _chunks(url, answer, limits, limit))


def _chunks(url: str, answer: requests.Response, limits: DownloadLimits, limit: http_limit.Limit) -> Iterator[bytes]:
    """The body as it was sent, in pieces as they come, so that a slow mirror is seen to be slow."""
    while True:
        with _told(url, limits, limit):
            chunk = answer.raw.read1(_CHUNK, decode_content=False)
        if not chunk:
            return
        yield chunk


@contextlib.contextmanager
def _told(url: str, limits: DownloadLimits, limit: http_limit.Limit) -> Iterator[None]:
    """Turn what requests and urllib3 raise into our errors."""
    import requests
    from urllib3.exceptions import HTTPError, ReadTimeoutError

    try:
        yield
    except requests.exceptions.TooManyRedirects:
        raise MirrorRedirects(url, f"more than {_MAX_REDIRECTS} times") from None
    except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL, requests.exceptions.MissingSchema):
        raise MirrorRedirects(url, "to an address that is neither http nor https") from None
    except requests.exceptions.SSLError as cause:
        raise TlsFailed(url, _innermost(cause)) from None
    except requests.exceptions.ConnectTimeout:
        raise MirrorUnreachable(url, f"no connection within {limits.connect_s:g} s") from None
    except (requests.exceptions.ReadTimeout, ReadTimeoutError):
        if limit.passed():
            raise MirrorHangs(url, limits.whole_s, whole=True) from None
        raise MirrorHangs(url, limits.stall_s) from None
    except (requests.exceptions.RequestException, HTTPError, OSError) as cause:
        raise MirrorUnreachable(url, _innermost(cause)) from None
    except ValueError:
        # urlsplit's, and that of a Location which is no UTF-8: requests lets both through.
        raise MirrorRedirects(url, "to an address that cannot be read") from None


def _timed(url: str, answer: _Answer, limits: DownloadLimits) -> Iterator[bytes]:
    """The chunks, as long as enough of them come in time: a trickle never meets the socket's own time limit."""
    since_s, came = time.monotonic(), 0
    for chunk in answer.chunks:
        came += len(chunk)
        yield chunk
        now_s = time.monotonic()
        if now_s - since_s >= limits.stall_s:
            if came < limits.stall_bytes:
                raise MirrorHangs(url, limits.stall_s)
            since_s, came = now_s, 0


def _refuse_page(url: str, kind: str) -> None:
    if kind in ("text/html", "application/xhtml+xml"):
        raise WrongAnswer(url, "it is a web page")


def _refuse_length(url: str, arrived: int, total: int | None) -> None:
    if total is not None and arrived < total:
        raise MirrorUnreachable(url, f"the connection broke off after {arrived} of {total} bytes")
    if total is not None and arrived > total:
        raise WrongAnswer(url, f"{arrived} bytes came, {total} were announced")


def _range(answer: requests.Response) -> tuple[int, int | None]:
    """Start and length of the whole from `Content-Range: bytes 100-199/200`."""
    unit, _, rest = answer.headers.get("Content-Range", "").partition(" ")
    span, _, whole = rest.partition("/")
    start = _number(span.partition("-")[0])
    return (start if unit == "bytes" and start is not None else -1), _number(whole)


def _number(text: str | None) -> int | None:
    """A number of bytes; None for what is none, or more than any file has."""
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,18}", text) else None


def _tag(text: object) -> str | None:
    """An entity tag (RFC 9110, 8.8.3), if it is one that can be sent back."""
    return text if isinstance(text, str) and re.fullmatch(r'(W/)?"[\x21\x23-\x7e]{0,200}"', text) else None


def _innermost(cause: BaseException) -> str:
    """The last reason in a chain of wrapped exceptions: that is where the operating system or OpenSSL speaks."""
    seen: set[int] = set()
    error: Any = cause
    while id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "reason", None)
        following = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__
        if following is None and error.args and isinstance(error.args[-1], BaseException):
            following = error.args[-1]
        if following is None:
            break
        error = following
    words = getattr(error, "verify_message", None) or getattr(error, "strerror", None) or str(error)
    return clean(without_password(str(words).strip()))[:200] or type(error).__name__


def _facts_file(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _facts(partial: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return json_text.read(_facts_file(partial))
    return {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
