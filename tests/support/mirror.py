"""A mirror of OpenWrt's download server for tests: the real layout, signed with a test key, on this machine's loopback.

What it serves is small: an ImageBuilder double (`imagebuilder_fakes`) in a real archive. What it does wrong is chosen
per path with `faults`.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import http.server
import io
import json
import lzma
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from imagebuilder_fakes import fake
from ndakit.imagebuilder.fetch.download import DownloadLimits

QUICK = DownloadLimits(connect_s=10.0, stall_s=10.0, progress_bytes=1, attempts=2, pause_s=0.0)
HASTY = DownloadLimits(
    connect_s=10.0, stall_s=0.25, stall_bytes=100, whole_s=2.0, progress_bytes=1, attempts=2, pause_s=0.0
)
"""For mirrors that hang; a good one may be that slow as well on a busy machine."""

VERSIONS = ["25.12.5", "24.10.8", "24.10.7", "24.10.0-rc1", "23.05.6"]
TARGETS = {"x86/64": "x86_64", "x86/generic": "i386_pentium4", "kirkwood/generic": "arm_xscale"}

Fault = Callable[["Handler", bytes], None]
"""Answers a request for a file with this content in its own way."""


class TestKey:
    """A usign key pair."""

    __test__ = False

    def __init__(self, key_id: str = "0123456789abcdef", comment: str = "a test key") -> None:
        self.key_id = key_id
        self.comment = comment
        self._private = Ed25519PrivateKey.generate()

    def public(self) -> str:
        raw = b"Ed" + bytes.fromhex(self.key_id) + self._private.public_key().public_bytes_raw()
        return f"untrusted comment: {self.comment}\n{base64.b64encode(raw).decode()}\n"

    def sign(self, message: bytes) -> bytes:
        raw = b"Ed" + bytes.fromhex(self.key_id) + self._private.sign(message)
        return f"untrusted comment: signed by key {self.key_id}\n{base64.b64encode(raw).decode()}\n".encode()

    def into(self, folder: Path) -> Path:
        """Write the public key where `trust.keys_for` looks for it; the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.key_id).write_text(self.public())
        return folder


@functools.cache
def imagebuilder(stem: str, release: str, target: str, suffix: str) -> bytes:
    """The archive of an ImageBuilder double, unpacking to one folder `stem`. It works with the driver."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = fake(Path(scratch) / stem, release, target)
        board, _, subtarget = target.partition("/")
        with (folder / ".config").open("a") as config:
            config.write(f'CONFIG_TARGET_BOARD="{board}"\nCONFIG_TARGET_SUBTARGET="{subtarget}"\n')
        (folder / "staging_dir/host/bin").mkdir()
        (folder / "staging_dir/host/bin/awk").symlink_to("/usr/bin/gawk")
        (folder / "staging_dir/host/bin/lzma-old").symlink_to("lzma")
        # Something that does not compress, so that the archive takes several pieces to send.
        noise = b"".join(hashlib.sha256(f"{stem} {n}".encode()).digest() for n in range(16 * 1024))
        (folder / "packages/noise_1_all.ipk").write_bytes(noise)
        return packed(folder, suffix)


def packed(folder: Path, suffix: str) -> bytes:
    """A tar archive of a folder, compressed as the suffix says."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        tar.add(folder, folder.name)
    return compressed(plain.getvalue(), suffix)


def compressed(content: bytes, suffix: str) -> bytes:
    """Compressed as the suffix says: `.tar.xz` or `.tar.zst`."""
    if suffix == ".tar.xz":
        return lzma.compress(content, preset=0)
    done = subprocess.run(["zstd", "-qc", "-1"], input=content, capture_output=True, check=True, timeout=30)
    return done.stdout


@dataclass
class Files:
    """What a mirror has: paths below its root with their content."""

    key: TestKey
    content: dict[str, bytes] = field(default_factory=dict)

    def folder(self, release: str = "24.10.8", target: str = "x86/64") -> str:
        return f"/releases/{release}/targets/{target}"

    def add(self, release: str = "24.10.8", target: str = "x86/64", suffix: str = ".tar.zst", stem: str = "") -> str:
        """A release's target as OpenWrt publishes it; the path of its ImageBuilder."""
        stem = stem or f"openwrt-imagebuilder-{release}-{target.replace('/', '-')}.Linux-x86_64"
        return self.put(stem + suffix, imagebuilder(stem, release, target, suffix), release, target)

    def put(self, name: str, content: bytes, release: str = "24.10.8", target: str = "x86/64") -> str:
        """Any archive, properly listed and signed; its path."""
        folder = self.folder(release, target)
        self.content[f"{folder}/{name}"] = content
        self.content["/.versions.json"] = json.dumps(
            {"stable_version": "25.12.5", "oldstable_version": "24.10.8", "versions_list": VERSIONS}
        ).encode()
        self.content[f"/releases/{release}/.targets.json"] = json.dumps(TARGETS).encode()
        self.list(folder, {name: hashlib.sha256(content).hexdigest()})
        return f"{folder}/{name}"

    def list(self, folder: str, sums: dict[str, str]) -> None:
        """Write and sign sha256sums, with images beside the ImageBuilder as there are in a real one."""
        image = "openwrt-24.10.8-x86-64-generic-ext4-combined.img.gz"
        lines = [f"{hashlib.sha256(b'').hexdigest()} *{image}"] + [f"{value} *{name}" for name, value in sums.items()]
        listing = "".join(f"{line}\n" for line in lines).encode()
        self.content[f"{folder}/sha256sums"] = listing
        self.content[f"{folder}/sha256sums.sig"] = self.key.sign(listing)

    def write(self, root: Path) -> Path:
        """The same as a folder, for file:// mirrors."""
        for path, content in self.content.items():
            target = root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return root


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one mirror's files: whole, or from where a Range asks for, with entity tags."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range", "")))
        content = self.server.files.content.get(self.path)
        fault = next((f for end, f in self.server.faults.items() if self.path.endswith(end)), None)
        if fault is not None:
            fault(self, content or b"")
        elif content is None:
            self.send_error(404)
        else:
            self.serve(content)

    def serve(self, content: bytes, *, kind: str = "application/octet-stream", length: int | None = None) -> None:
        """A right answer; with `length` one that announces a wrong one."""
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        start = 0
        wanted = self.headers.get("Range", "")
        if wanted and self.headers.get("If-Range", tag) == tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(length if length is not None else len(content) - start))
        self.send_header("Content-Type", kind)
        self.send_header("ETag", tag)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content[start:])

    def redirect(self, where: str) -> None:
        self.send_response(302)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on standard error."""


class Server(http.server.ThreadingHTTPServer):
    """The mirror; `asked` holds the paths that were asked for with their Range, `faults` maps ends of paths."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, files: Files) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.asked: list[tuple[str, str]] = []
        self.faults: dict[str, Fault] = {}
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is part of the tests."""


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """Serve until the block ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


# -- faults ------------------------------------------------------------------------------------------------------------


def status(code: int) -> Fault:
    return lambda handler, content: handler.send_error(code)


def page(handler: Handler, content: bytes) -> None:
    """A login page, with a friendly 200."""
    handler.serve(b"<html><body>Please accept our terms</body></html>", kind="text/html; charset=utf-8")


def other(replacement: bytes) -> Fault:
    return lambda handler, content: handler.serve(replacement)


def silent(handler: Handler, content: bytes) -> None:
    """Takes the request and never answers."""
    server = handler.server
    server.closing.wait(10)


def stops(after: int) -> Fault:
    """Sends some bytes of the right answer, then nothing any more, the connection left open."""

    def fault(handler: Handler, content: bytes) -> None:
        _headers(handler, content)
        handler.wfile.write(content[:after])
        handler.wfile.flush()
        handler.server.closing.wait(10)

    return fault


def trickles(handler: Handler, content: bytes) -> None:
    """A byte now and then, which is enough for a socket's own time limit never to be met."""
    _headers(handler, content)
    for byte in content:
        with contextlib.suppress(OSError):
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
        if handler.server.closing.wait(0.05):
            return


def breaks_off(*sizes: int) -> Fault:
    """The connection breaks off after so many bytes, once for each number; then all is well."""
    left = list(sizes)

    def fault(handler: Handler, content: bytes) -> None:
        if not left:
            handler.serve(content)
            return
        start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        _headers(handler, content, start)
        handler.wfile.write(content[start : start + left.pop(0)])
        handler.wfile.flush()
        handler.connection.shutdown(2)

    return fault


def slowly(pause_s: float, piece: int = 64 * 1024) -> Fault:
    """All of it, in pieces with a pause between them; resumes as asked."""

    def fault(handler: Handler, content: bytes) -> None:
        start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        _headers(handler, content, start)
        with contextlib.suppress(OSError):
            for at in range(start, len(content), piece):
                handler.wfile.write(content[at : at + piece])
                handler.wfile.flush()
                time.sleep(pause_s)

    return fault


def _headers(handler: Handler, content: bytes, start: int = 0) -> None:
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    handler.send_header("Content-Length", str(len(content) - start))
    handler.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()[:16]}"')
    handler.end_headers()
