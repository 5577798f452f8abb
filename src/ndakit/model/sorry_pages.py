"""Sorry pages as HAProxy keeps them: a whole HTTP response in one buffer (configuration manual, "errorfile")."""

from __future__ import annotations

from collections.abc import Iterable

BUFFER_BYTES, LARGE_BUFFER_BYTES = 16 * 1024, 20 * 1024
"""HAProxy's tune.bufsize, as it comes and where a sorry page needs more."""
HEAD_BYTES_MAX = 256
"""The head of the response, beside the page."""
PAGE_BYTES_MAX = BUFFER_BYTES - HEAD_BYTES_MAX
"""The largest page that is taken: the profile language promises 16 KiB for page and head together."""
HTX_BYTES = 512
"""What HAProxy's own form of a response (HTX) needs of a buffer beside its bytes."""


def response(page: bytes) -> bytes:
    """The page as the HTTP response that HAProxy sends as it stands."""
    try:
        page.decode("utf-8")
        kind = "text/html; charset=utf-8"
    except UnicodeDecodeError:
        kind = "text/html"
    head = (
        "HTTP/1.1 503 Service Unavailable",
        f"Content-Type: {kind}",
        f"Content-Length: {len(page)}",
        "Cache-Control: no-store",
        "Retry-After: 10",
        "Connection: close",
    )
    return "".join(f"{line}\r\n" for line in (*head, "")).encode("ascii") + page


def buffer_bytes(pages: Iterable[bytes]) -> int:
    """The size of HAProxy's buffers in which each of these pages has room."""
    large = any(len(response(page)) > BUFFER_BYTES - HTX_BYTES for page in pages)
    return LARGE_BUFFER_BYTES if large else BUFFER_BYTES
