"""Sorry pages and pages for errors as HAProxy keeps them: a whole HTTP response in one buffer (configuration manual,
"errorfile")."""

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
RETRY = {429: 1, 503: 10}
"""After how many seconds clients may ask again, by status."""
REASONS = {
    403: "Forbidden", 413: "Payload Too Large", 421: "Misdirected Request", 429: "Too Many Requests",
    500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout",
}  # fmt: skip
"""The statuses that pages come with."""


def fault(page: bytes) -> tuple[str, str, str] | None:
    """Why HAProxy cannot send a page: the code and the end of an error, and what to do; None if it can."""
    if not page.strip():
        return "empty", "is empty", "write the page"
    if len(page) > PAGE_BYTES_MAX:
        size = f"{len(page)} bytes" if len(page) < 1_000_000 else "more than 1 MB"
        what = f"has {size}; HAProxy keeps page and header in a buffer of {BUFFER_BYTES // 1024} KiB"
        return "too-big", what, f"shorten it to {PAGE_BYTES_MAX} bytes (no embedded pictures)"
    return ("binary", "is no HTML text", "name an HTML file") if b"\0" in page else None


def response(page: bytes, status: int = 503) -> bytes:
    """The page as the HTTP response that HAProxy sends as it stands."""
    try:
        page.decode("utf-8")
        kind = "text/html; charset=utf-8"
    except UnicodeDecodeError:
        kind = "text/html"
    head = (
        f"HTTP/1.1 {status} {REASONS[status]}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(page)}",
        "Cache-Control: no-store",
        *((f"Retry-After: {RETRY[status]}",) if status in RETRY else ()),
        "Connection: close",
    )
    return "".join(f"{line}\r\n" for line in (*head, "")).encode("ascii") + page


def buffer_bytes(pages: Iterable[bytes]) -> int:
    """The size of HAProxy's buffers in which each of these pages has room."""
    large = any(len(response(page)) > BUFFER_BYTES - HTX_BYTES for page in pages)
    return LARGE_BUFFER_BYTES if large else BUFFER_BYTES
