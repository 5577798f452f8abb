"""A mirror that answers with nonsense or slowly ends in a text, in a time that is limited as a whole."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import mirror
from ndakit.imagebuilder.fetch import download, mirrors
from ndakit.imagebuilder.fetch.download import DownloadLimits
from ndakit.imagebuilder.fetch.mirrors import MirrorFailed, MirrorHangs, MirrorUnusable

QUICK = replace(mirror.QUICK, connect_s=2.0, attempts=1)
SLOW = DownloadLimits(
    connect_s=2.0, stall_s=1.0, stall_bytes=2000, whole_s=1.0, progress_bytes=1000, attempts=2, pause_s=0.0
)


@contextlib.contextmanager
def speaking(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that answers every request as `answer` does, byte for byte; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    closing = threading.Event()

    def serve() -> None:
        while not closing.is_set():
            with contextlib.suppress(OSError):
                wire, _ = listener.accept()
                with wire:
                    wire.settimeout(5)
                    while not wire.recv(65536).endswith(b"\r\n\r\n"):
                        pass
                    answer(wire)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        closing.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def head(*lines: bytes) -> Callable[[socket.socket], None]:
    return lambda wire: wire.sendall(b"\r\n".join([*lines, b"", b""]))


DIGITS = b"Content-Length: " + b"9" * 5000
FOUND = b"HTTP/1.1 302 Found"
NONSENSE = {
    "redirect-half-ipv6": [FOUND, b"Location: http://[::"],
    "redirect-latin-1": [FOUND, b"Location: http://a.example/\xff\xfe"],
    "redirect-no-port": [FOUND, b"Location: http://a.example:port/"],
    "redirect-file": [FOUND, b"Location: file:///etc/passwd"],
    "redirect-empty-host": [FOUND, b"Location: http:///x"],
    "redirect-wide-host": [FOUND, b"Location: http://" + b"a" * 5000 + b".example/"],
    "redirect-control": [FOUND, b"Location: http://a.example/\x1b[2J"],
    "length-of-5000-digits": [b"HTTP/1.1 200 OK", DIGITS],
    "two-lengths": [b"HTTP/1.1 200 OK", b"Content-Length: 1, 2"],
    "negative-length": [b"HTTP/1.1 200 OK", b"Content-Length: -1"],
    "range-of-5000-digits": [b"HTTP/1.1 206 Partial", b"Content-Range: bytes " + b"9" * 5000 + b"-1/2"],
    "range-that-is-none": [b"HTTP/1.1 206 Partial", b"Content-Range: \xff\xff"],
    "status-0": [b"HTTP/1.1 000 x"],
    "status-text": [b"HTTP/1.1 abc x"],
    "no-http": [b"220 mail.example ESMTP"],
    "reason-with-escapes": [b"HTTP/1.1 500 \x1b[2J\x9b31m"],
    "header-of-70000": [b"HTTP/1.1 200 OK", b"X: " + b"x" * 70_000],
    "300-headers": [b"HTTP/1.1 200 OK", *[b"X: y"] * 300],
    "chunks-that-are-none": [b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked", b"", b"zz"],
    "gzip-that-is-none": [b"HTTP/1.1 200 OK", b"Content-Encoding: gzip", b"Content-Length: 3", b"", b"abc"],
    "tag-latin-1": [b"HTTP/1.1 200 OK", b'ETag: "\xff\xff"', b"Content-Length: 9"],
}


@pytest.mark.parametrize("name", NONSENSE)
def test_an_answer_that_is_nonsense_is_content_or_an_error_with_a_text(name: str, tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    with speaking(head(*NONSENSE[name])) as url:
        for attempt in (
            lambda: download.small(f"{url}/x", max_bytes=1000, limits=QUICK),
            lambda: download.large(f"{url}/x", partial, max_bytes=1000, limits=QUICK, progress=lambda *_: None),
            lambda: download.large(f"{url}/x", partial, max_bytes=1000, limits=QUICK, progress=lambda *_: None),
        ):
            try:
                attempt()
            except MirrorFailed as error:
                assert error.text().count("\n") == 2
                assert error.text().replace("\n", "").isprintable()
                assert len(error.text()) < 1000
            partial.write_bytes(b"abc")  # so that the next one asks for the rest


def trickle(wire: socket.socket, data: bytes, at_once: bytes = b"", pause_s: float = 0.02) -> None:
    wire.sendall(at_once)
    for byte in data:
        wire.sendall(bytes([byte]))
        time.sleep(pause_s)


BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
TRICKLES: dict[str, Callable[[socket.socket], None]] = {
    "status-line": lambda wire: trickle(wire, b"HTTP/1.1 200 " + b"O" * 10_000),
    "header-lines": lambda wire: trickle(wire, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 2000),
    "redirect": lambda wire: trickle(wire, b"HTTP/1.1 302 Found\r\nLocation: /y\r\n" + b"X: y\r\n" * 2000),
    "body": lambda wire: trickle(wire, b"x" * 10_000, BODY),
}


@pytest.mark.parametrize("where", TRICKLES)
def test_a_small_file_has_to_come_whole_in_time(where: str) -> None:
    started_s = time.monotonic()
    with speaking(TRICKLES[where]) as url, pytest.raises(MirrorHangs):
        download.small(f"{url}/x", max_bytes=1_000_000, limits=SLOW)
    assert time.monotonic() - started_s < 10


@pytest.mark.parametrize("where", TRICKLES)
def test_an_archive_has_to_come_at_a_rate(where: str, tmp_path: Path) -> None:
    started_s = time.monotonic()
    with speaking(TRICKLES[where]) as url, pytest.raises(MirrorHangs):
        download.large(f"{url}/x", tmp_path / "partial", max_bytes=1_000_000, limits=SLOW, progress=lambda *_: None)
    assert time.monotonic() - started_s < 10


def test_the_headers_limit_does_not_end_an_archive_that_comes(tmp_path: Path) -> None:
    def steadily(wire: socket.socket) -> None:
        wire.sendall(BODY)
        for _ in range(100):
            wire.sendall(b"x" * 1000)
            time.sleep(0.02)

    limits = replace(SLOW, whole_s=0.5)
    with speaking(steadily) as url:
        download.large(f"{url}/x", tmp_path / "partial", max_bytes=1_000_000, limits=limits, progress=lambda *_: None)
    assert (tmp_path / "partial").stat().st_size == 100_000


def test_a_few_bytes_with_each_connection_are_no_progress(tmp_path: Path) -> None:
    asked: list[float] = []

    def some(wire: socket.socket) -> None:
        asked.append(time.monotonic())
        wire.sendall(BODY + b"x" * 100)

    with speaking(some) as url, pytest.raises(mirrors.MirrorUnreachable, match=r"IncompleteRead|broke off"):
        download.large(f"{url}/x", tmp_path / "partial", max_bytes=1_000_000, limits=SLOW, progress=lambda *_: None)
    assert len(asked) == SLOW.attempts


def test_the_limits_that_are_used_end_a_build_in_minutes() -> None:
    used = DownloadLimits()
    assert used.whole_s <= 120
    assert used.stall_bytes / used.stall_s >= 16 * 1024


@pytest.mark.parametrize("text", ["http://[::1", "http://[::1]:port/", "http://a b/", "http://me:hush@[::1"])
def test_half_an_address_of_a_mirror_is_refused(text: str) -> None:
    with contextlib.suppress(MirrorUnusable):
        mirrors.usable_mirror(text)
        assert text == "http://a b/"  # the resolver's business


SECRET = "hu#s/h?-:hush"


@pytest.mark.parametrize(
    "text",
    [
        f"http://me:{SECRET}@a.example/openwrt", f"http://me:{SECRET}@[::1", f"ftp://me:{SECRET}@a.example",
        f"me:{SECRET}@a.example", f"//me:{SECRET}@a.example", f"http://me:{SECRET}@a.example:port/",
        f"http://me:{SECRET}@a.example/?q=1", f"http://me@x:{SECRET}@a.example", f"http:// me:{SECRET}@a.example",
    ],
)  # fmt: skip
def test_a_password_is_in_no_refusal_of_an_address(text: str) -> None:
    with pytest.raises(MirrorUnusable) as caught:
        mirrors.usable_mirror(text)
    for part in ("hu#s", "s/h", "hush", "h?-"):
        assert part not in caught.value.text()
    assert "a.example" in caught.value.text() or "[::1" in caught.value.text()


def test_a_password_in_what_the_library_says_is_left_out() -> None:
    class Wrapped(OSError):
        pass

    error = Wrapped(f"cannot connect to proxy http://me:{SECRET}@proxy.example:3128 (and http://you:pw2@b.example)")
    said = download._innermost(error)
    assert "hush" not in said
    assert "pw2" not in said
    assert "proxy.example" in said


def test_a_folder_or_a_pipe_of_a_local_mirror_is_not_there(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("", "/pipe", "/nothing", "/a%00b"):
        with pytest.raises(MirrorFailed):
            download.small(f"{tmp_path.as_uri()}{path}", max_bytes=10, limits=QUICK)
