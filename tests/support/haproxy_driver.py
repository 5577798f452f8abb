"""Runs a rendered haproxy.cfg with a real HAProxy in a network namespace of its own, and tries one thing with it.

Called by `haproxy_live`, inside `unshare -Urnm`; standard library only. The order is JSON on stdin, the result JSON on
stdout. All addresses of the profile lie on the loopback: VIPs, nodes and servers.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import itertools
import json
import os
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Server: %s\r\nX-Peer: %s\r\n%s\r\n%s"
SAYS = b" /says/"
"""A request for `/says/Set-Cookie/ID=7` is answered with this header as well, as an application would."""


class Server(threading.Thread):
    """A server: http tells which request head it got, tcp only accepts and echoes; both can hold an answer back."""

    def __init__(self, name: str, address: str, port: int, protocol: str, tls: str | None = None) -> None:
        super().__init__(daemon=True)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if tls is not None else None
        if self.context is not None and tls is not None:
            self.context.load_cert_chain(tls)
            self.context.options |= ssl.OP_NO_TICKET  # so that a session of TLS 1.2 has an id
        self.name_, self.protocol = name, protocol
        self.connections = 0
        self.open: list[socket.socket] = []
        self.at = (address, port)
        self.listener = self._listening()
        self.start()

    def _listening(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.at[0] else socket.AF_INET
        return socket.create_server(self.at, family=family, backlog=1000)

    def die(self) -> None:
        """Refuse connections from now on."""
        self.listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`, which a mere close leaves waiting, and accepting
        self.listener.close()

    def live(self) -> None:
        """Accept connections again."""
        self.listener = self._listening()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        """Accept until the end."""
        listener = self.listener
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            if self.context is not None:
                try:
                    sock = self.context.wrap_socket(sock, server_side=True)
                except OSError:
                    sock.close()
                    continue
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        data = b""
        with contextlib.suppress(OSError), sock:
            while True:
                more = sock.recv(65536)
                if not more:
                    if isinstance(sock, ssl.SSLSocket):
                        sock.unwrap()  # whoever just hangs up ends the session as well
                    return
                if self.protocol == "tcp":
                    self.connections += 1
                    sock.sendall(b"+PONG\r\n" if b"PING" in more else self.name_.encode())
                    continue
                data += more
                while b"\r\n\r\n" in data:
                    head, _, data = data.partition(b"\r\n\r\n")
                    if self._answer(sock, head):
                        return

    def _answer(self, sock: socket.socket, head: bytes) -> bool:
        if b"\r\nupgrade: websocket" in head.lower():
            sock.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            )
            while more := sock.recv(1000):
                sock.sendall(more)
            return True
        if b" /slow" in head.partition(b"\r\n")[0]:
            self.connections += 1
            while True:
                time.sleep(60)
        peer, target = str(sock.getpeername()[0]), head.partition(b"\r\n")[0]
        name, _, value = target.partition(SAYS)[2].partition(b" ")[0].partition(b"/")
        more = name + b": " + value + b"\r\n" if name else b""
        sock.sendall(ANSWER % (len(head), self.name_.encode(), peer.encode(), more, head))
        return False


@contextlib.contextmanager
def running(order: dict[str, Any]) -> Iterator[dict[str, Server]]:
    """HAProxy and the servers, from the addresses up to the end of everything."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ip = order["ip"]
    subprocess.run([*ip, "link", "set", "lo", "up"], check=True)
    for address in order["addresses"]:
        more = ["nodad"] if ":" in address else []
        subprocess.run([*ip, "addr", "add", address, "dev", "lo", *more], check=True)
    servers = {s["name"]: Server(s["name"], s["address"], s["port"], s["protocol"], s["tls"]) for s in order["servers"]}
    argv = [*order["haproxy"], "-db", *order.get("haproxy_words", ())]
    process = subprocess.Popen([*argv, "-f", order["config"]], stderr=subprocess.PIPE)
    pound = subprocess.Popen([*order["pound"], "-F", "-f", order["pound_config"]]) if order.get("pound") else None
    stunnel = subprocess.Popen([*order["stunnel"], order["stunnel_config"]]) if order.get("stunnel") else None
    try:
        end_s = time.monotonic() + 20
        while True:
            if process.poll() is not None or time.monotonic() > end_s:
                process.kill()
                raise SystemExit((process.stderr.read() if process.stderr else b"").decode())
            with contextlib.suppress(OSError), socket.create_connection(tuple(order["ready"]), 1):
                break
            time.sleep(0.05)
        for front in (pound, stunnel):
            if front is not None:
                wait_for(order["address"], order["port"], front)
        yield servers
    finally:
        for one in (process, pound, stunnel):
            if one is not None:
                one.kill()
                one.wait()


def wait_for(address: str, port: int, process: subprocess.Popen[bytes]) -> None:
    """Until somebody listens there."""
    end_s = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
            return
        if process.poll() is not None or time.monotonic() > end_s:
            raise SystemExit(f"nobody listens on {address} port {port}")
        time.sleep(0.05)


def say(
    address: str, port: int, text: str, timeout_s: float = 5, tls_name: str = "", source: str = ""
) -> socket.socket:
    """A connection over which something was said, with a name over TLS, from an address."""
    sock = socket.create_connection((address, port), timeout_s, (source, 0) if source else None)
    if tls_name:
        sock = trusting().wrap_socket(sock, server_hostname=tls_name)
    sock.sendall(text.encode("latin-1"))
    return sock


def heard(sock: socket.socket) -> str:
    """What comes next; empty at the end."""
    try:
        return sock.recv(65536).decode("latin-1")
    except ConnectionError:
        return ""


def all_heard(sock: socket.socket) -> str:
    """All that comes until the end, for answers that come in pieces."""
    pieces = []
    while piece := heard(sock):
        pieces.append(piece)
    return "".join(pieces)


def page(address: str, port: int, path: str, timeout_s: float = 3) -> dict[str, Any]:
    """One request as a monitor makes it: the status (0: no answer) and how long it took."""
    started_s = time.monotonic()
    connection = http.client.HTTPConnection(address, port, timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        status = 0
    finally:
        connection.close()
    return {"status": status, "seconds": time.monotonic() - started_s}


def requests(order: dict[str, Any], servers: dict[str, Server]) -> Any:
    """Raw requests, each over a connection of its own, from `source`, or from `sources` in turn; what comes back."""
    answers = []
    time.sleep(order.get("wait_s", 0))
    sources = itertools.cycle(order.get("sources") or [order.get("source", "")])
    for text, source in zip(order["requests"], sources, strict=False):
        sock = say(order["address"], order["port"], text, tls_name=order.get("tls_name", ""), source=source)
        answers.append(all_heard(sock) if order.get("tls_name") and not order.get("once") else heard(sock))
        sock.close()
    return answers


def trusting() -> ssl.SSLContext:
    """A client that takes every certificate, and speaks every version that there is."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def handshakes(order: dict[str, Any], servers: dict[str, Server]) -> Any:
    """TLS handshakes with names, highest versions and protocols: what came of each."""
    outcomes = []
    for name, version, protocols in order["handshakes"]:
        context = trusting()
        context.minimum_version = ssl.TLSVersion.TLSv1
        if version:
            context.maximum_version = ssl.TLSVersion[version]
        if protocols:
            context.set_alpn_protocols(protocols)
        try:
            raw = socket.create_connection((order["address"], order["port"]), 5)
            with context.wrap_socket(raw, server_hostname=name) as sock:
                der = sock.getpeercert(binary_form=True) or b""
                outcomes.append([hashlib.sha256(der).hexdigest(), sock.version(), sock.selected_alpn_protocol()])
        except OSError as cause:
            outcomes.append(["", type(cause).__name__, None])
    return outcomes


def tls(order: dict[str, Any], servers: dict[str, Server]) -> Any:
    """TLS clients, one after the other: what each gets (version, protocol, certificate, answer), or the error."""
    time.sleep(order.get("wait_s", 0))
    return [tls_client(one) for one in order["clients"]]


def tls_client(one: dict[str, Any]) -> dict[str, Any]:
    """A handshake with what the client offers, and a request if there is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    versions = {"1.0": ssl.TLSVersion.TLSv1, "1.1": ssl.TLSVersion.TLSv1_1}
    versions |= {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
    context.minimum_version, context.maximum_version = versions[one.get("min", "1.0")], versions[one.get("max", "1.3")]
    if one.get("alpn"):
        context.set_alpn_protocols(one["alpn"])
    if one.get("certificate"):
        context.load_cert_chain(one["certificate"])
    try:
        plain = socket.create_connection((one["address"], one["port"]), 5)
        with context.wrap_socket(plain, server_hostname=one.get("name")) as sock:
            answer = ""
            if one.get("h2"):
                sock.sendall(h2_request(one["h2"]))
                answer = h2_status(sock)
            elif one.get("request"):
                sock.sendall(one["request"].encode("latin-1"))
                while more := sock.recv(65536):
                    answer += more.decode("latin-1")
                    if one.get("once"):
                        break
            certificate = hashlib.sha256(sock.getpeercert(binary_form=True) or b"").hexdigest()
            cipher = (sock.cipher() or ("",))[0]
            facts = {"version": sock.version(), "alpn": sock.selected_alpn_protocol(), "cipher": cipher}
            return facts | {"certificate": certificate, "answer": answer}
    except OSError as cause:
        return {"error": str(cause)}


def hellos(order: dict[str, Any], servers: dict[str, Server]) -> Any:
    """TLS clients whose hello comes in pieces: what each gets (certificate, server), or the error, and after how long.
    `plain`: said instead of a hello."""
    return [hello_in_pieces(order, one) for one in order["clients"]]


def hello_in_pieces(order: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    """One of them: `segments` are the places where its hello is cut into TCP segments, `records` into TLS records."""
    started_s = time.monotonic()
    arriving, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = trusting()
    if one.get("max"):
        context.maximum_version = ssl.TLSVersion[one["max"]]
    session = context.wrap_bio(arriving, leaving, server_hostname=one.get("name") or None)
    try:
        with socket.create_connection((order["address"], order["port"]), 8) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if "plain" in one:
                sock.sendall(one["plain"].encode())
                return {"error": "" if sock.recv(1000) else "ended", "took_s": time.monotonic() - started_s}
            with contextlib.suppress(ssl.SSLWantReadError):
                session.do_handshake()
            hello = leaving.read()
            for at in one.get("records", ()):
                head, body = hello[:3], hello[5:]
                hello = head + at.to_bytes(2) + body[:at] + head + (len(body) - at).to_bytes(2) + body[at:]
            places = [0, *one.get("segments", ()), len(hello)]
            for begin, end in itertools.pairwise(places):
                time.sleep(0.3 if begin else 0)
                sock.sendall(hello[begin:end])
            said = b""
            agreed = False
            while True:
                try:
                    if not agreed:
                        session.do_handshake()
                        agreed = True
                        session.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                    said += session.read(65536)
                    if b"\r\n\r\n" in said:
                        break
                except ssl.SSLWantReadError:
                    pass
                if leaving.pending:
                    sock.sendall(leaving.read())
                if not said:
                    data = sock.recv(65536)
                    if not data:
                        return {"error": "ended", "took_s": time.monotonic() - started_s}
                    arriving.write(data)
            server = said.decode("latin-1").lower().partition("x-server: ")[2].partition("\r\n")[0]
            certificate = hashlib.sha256(session.getpeercert(binary_form=True) or b"").hexdigest()
            return {"server": server, "certificate": certificate, "error": ""}
    except OSError as cause:
        return {"error": type(cause).__name__, "took_s": time.monotonic() - started_s}


H2_HEADERS, H2_STATUS = 1, {8: "200", 12: "400", 13: "404", 14: "500"}


def h2_request(headers: list[list[str]]) -> bytes:
    """A GET over HTTP/2 with these headers, in this order, each one written out (RFC 9113, 3.4 and 4.1; RFC 7541,
    6.2.2)."""
    block = b"".join(
        b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in pair)
        for pair in [[":method", "GET"], [":scheme", "https"], [":path", "/"], *headers]
    )
    settings = b"\0\0\0\4\0\0\0\0\0"
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + len(block).to_bytes(3) + b"\1\5\0\0\0\1" + block


def h2_status(sock: socket.socket) -> str:
    """The status of the first answer; `reset` for a request that is refused as such."""
    data = b""
    while True:
        while len(data) >= 9 and len(data) >= 9 + (size := int.from_bytes(data[:3])):
            kind, block, data = data[3], data[9 : 9 + size], data[9 + size :]
            if kind == H2_HEADERS:  # an entry of the static table, or its name and three digits
                return H2_STATUS[block[0] & 0x7F] if block[0] & 0x80 else block[2:5].decode()
            if kind in (3, 7):  # RST_STREAM, GOAWAY
                return "reset"
        more = sock.recv(65536)
        if not more:
            return "reset"
        data += more


def websocket(order: dict[str, Any], servers: dict[str, Server]) -> Any:
    """An upgrade, and what the tunnel gives back."""
    head = (
        "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    sock = say(order["address"], order["port"], head)
    answer = heard(sock)
    sock.sendall(b"hello")
    return [answer, heard(sock)]


def idle(order: dict[str, Any], servers: dict[str, Server]) -> Any:
    """How long connections live on which nothing is said any more, in seconds; None beyond the limit."""
    idle_s: list[float | None] = [None] * len(order["ports"])

    def watch(number: int, port: int) -> None:
        sock = say(order["address"], port, "hello", order["limit_s"])
        heard(sock)
        started_s = time.monotonic()
        with contextlib.suppress(TimeoutError):
            if heard(sock) == "":
                idle_s[number] = time.monotonic() - started_s

    threads = [threading.Thread(target=watch, args=pair) for pair in enumerate(order["ports"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return idle_s


def flood(order: dict[str, Any], servers: dict[str, Server]) -> Any:
    """Half-open requests to every port, and then the pages that still have to answer."""
    held = []
    for port in order["ports"]:
        for _ in range(order["count"]):
            with contextlib.suppress(OSError):
                sock = socket.socket()
                sock.setblocking(False)
                sock.connect_ex((order["address"], port))
                held.append(sock)
    time.sleep(1)
    for sock in held:
        with contextlib.suppress(OSError):
            sock.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
    time.sleep(0.5)
    refused = 0
    for sock in held:
        try:
            refused += sock.recv(1) == b""
        except BlockingIOError:
            pass
        except OSError:
            refused += 1
    return {"refused": refused, "pages": [page(*p) for p in order["pages"]]}


def shares(order: dict[str, Any], servers: dict[str, Server]) -> Any:
    """Who gets requests: `count` one after the other (for each path and source), or held open all at once."""
    counts: dict[str, int] = {}
    sources = order.get("sources") or [None]
    if order.get("held"):
        socks = []
        for _ in range(order["count"]):
            before = {n: s.connections for n, s in servers.items()}
            socks.append(say(order["address"], order["port"], order["held"]))
            end_s = time.monotonic() + 5
            while (now := {n: s.connections for n, s in servers.items()}) == before and time.monotonic() < end_s:
                time.sleep(0.002)
            for name in now:
                counts[name] = counts.get(name, 0) + now[name] - before[name]
        return counts
    keys: dict[str, list[str]] = {}
    for source in sources:
        for path in order.get("paths") or ["/"]:
            for _ in range(order["count"]):
                at = (source, 0) if source else None
                sock = socket.create_connection((order["address"], order["port"]), 5, source_address=at)
                sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
                answer = ""
                while more := heard(sock):
                    answer += more
                sock.close()
                # HAProxy counts the request until it has seen its end.
                server = answer.lower().partition("x-server: ")[2].partition("\r\n")[0] or answer[:40]
                counts[server] = counts.get(server, 0) + 1
                keys.setdefault(f"{source} {path}", []).append(server)
    return {"shares": counts, "keys": keys}


def silent(order: dict[str, Any], servers: dict[str, Server]) -> Any:
    """The status of a request while no server takes connections, and what HAProxy counted in some columns then."""
    shown = page(order["address"], order["port"], "/", 30)
    connection = http.client.HTTPConnection(order["ready"][0], order["ready"][1], timeout=3)
    connection.request("GET", "/;csv")
    head, *lines = [line.split(",") for line in connection.getresponse().read().decode().splitlines()]
    rows = [dict(zip(head, line, strict=False)) for line in lines]
    return shown | {
        "counted": {
            row["svname"]: {column: row[column] for column in order["columns"]}
            for row in rows
            if row["# pxname"] == order["proxy"]
        }
    }


def overload(order: dict[str, Any], servers: dict[str, Server]) -> Any:
    """Requests while others are held open; the next one is held as soon as HAProxy counts the one before."""
    held = []
    for number, text in enumerate(order["held"], 1):
        held.append(say(order["address"], order["port"], text, 30))
        end_s = time.monotonic() + 5
        while counted(order, order["frontend"], "FRONTEND") < number and time.monotonic() < end_s:
            time.sleep(0.01)
    time.sleep(0.2)
    if order.get("gone"):
        for sock in held:
            sock.close()
        time.sleep(0.5)
    return requests(order, servers)


def statistics(address: str, port: int) -> list[dict[str, str]]:
    """The rows of the statistics."""
    connection = http.client.HTTPConnection(address, port, timeout=3)
    connection.request("GET", "/;csv")
    head, *lines = [line.split(",") for line in connection.getresponse().read().decode().splitlines()]
    connection.close()
    return [dict(zip(head, line, strict=False)) for line in lines]


def counted(order: dict[str, Any], proxy: str, name: str, column: str = "scur") -> int:
    """A number of the statistics."""
    rows = statistics(*order["ready"])
    return next(int(row[column]) for row in rows if row["# pxname"] == proxy and row["svname"] == name)


def slow(order: dict[str, Any], servers: dict[str, Server]) -> Any:
    """What a client gets, and after how long, while another one holds connections on which it goes on sending bits of
    a request; and how many of those were closed at once."""
    held = []
    for _ in range(order["count"]):
        with contextlib.suppress(OSError):
            held.append(say(order["address"], order["port"], "GET / HTTP/1.1\r\nHost: a\r\n", source=order["source"]))
    time.sleep(0.5)
    refused = order["count"] - len(held)
    for sock in held:
        sock.setblocking(False)
        try:
            refused += sock.recv(1) == b""
        except BlockingIOError:
            pass
        except OSError:
            refused += 1

    def feed() -> None:
        while True:
            for sock in held:
                with contextlib.suppress(OSError):
                    sock.send(b"X-Slow: 1\r\n")
            time.sleep(0.5)

    threading.Thread(target=feed, daemon=True).start()
    return page(order["address"], order["port"], "/", 20) | {"refused": refused}


def side_by_side(order: dict[str, Any], servers: dict[str, Server]) -> Any:
    """Connections that stay open, from each of `sources` in turn, with `request` said over TLS: whether each one was
    answered."""
    held, answered = [], []
    for source in order["sources"]:
        try:
            sock = say(order["address"], order["port"], order["request"], tls_name=order["tls_name"], source=source)
            answered.append(heard(sock) != "")
            held.append(sock)
        except OSError:
            answered.append(False)
    return answered


def waits(order: dict[str, Any], servers: dict[str, Server]) -> Any:
    """Connections that are held with one answer each, one more that asks, and the same after one has gone."""
    ask = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    held = [say(order["address"], order["port"], ask) for _ in range(order["count"])]
    answers = [heard(sock)[:12] for sock in held]
    late = say(order["address"], order["port"], ask, 1)
    try:
        early = heard(late)[:12]
    except TimeoutError:
        early = ""
    held.pop().close()
    late.settimeout(5)
    return [answers, early, early or heard(late)[:12]]


def paced(order: dict[str, Any], servers: dict[str, Server]) -> Any:
    """How long it takes until so many new connections have an answer, in seconds."""
    started_s = time.monotonic()
    for _ in range(order["count"]):
        page(order["address"], order["port"], "/", 20)
    return time.monotonic() - started_s


def told(address: str, port: int, server: str) -> str:
    """What HAProxy says of a server's state; empty while it says nothing."""
    try:
        rows = statistics(address, port)
    except (OSError, http.client.HTTPException, ValueError):
        return ""
    return next((row["status"] for row in rows if row["svname"] == server), "")


def until(order: dict[str, Any], server: str, state: str) -> None:
    """Wait until every HAProxy says this of a server."""
    pages = [order["ready"], *([order["other_ready"]] if order.get("other_ready") else [])]
    end_s = time.monotonic() + 20
    while not all(told(at[0], at[1], server).startswith(state) for at in pages):
        if time.monotonic() > end_s:
            raise SystemExit(f"{server} does not become {state}")
        time.sleep(0.05)


def steps(order: dict[str, Any], servers: dict[str, Server]) -> Any:
    """One thing after the other: words to a service (what comes back), a server that dies or lives again, a command for
    HAProxy, another HAProxy beside the first."""
    outcomes: list[Any] = []
    sessions: dict[str, ssl.SSLSession | None] = {}
    with contextlib.ExitStack() as stack:
        for kind, *words in order["steps"]:
            if kind == "ask":
                text, options = words
                sock = say(options.get("address", order["address"]), order["port"], text,
                           source=options.get("source", ""))  # fmt: skip
                with sock:
                    outcomes.append(all_heard(sock) if options.get("whole", True) else heard(sock))
            elif kind == "session":
                outcomes.append(session(order, sessions, *words))
            elif kind in ("die", "live"):
                getattr(servers[words[0]], kind)()
                until(order, words[0], "DOWN" if kind == "die" else "UP")
            elif kind == "break":  # it is not waited until HAProxy notices
                servers[words[0]].die()
            elif kind == "tell":
                outcomes.append(command(order["cli"], words[0]))
            elif kind == "known":  # so many clients in the other HAProxy's table
                end_s = time.monotonic() + 20
                while f"used:{words[1]}\n" not in command(order["other_cli"], f"show table {words[0]}"):
                    if time.monotonic() > end_s:
                        raise SystemExit(f"the other HAProxy was not told of {words[1]} clients")
                    time.sleep(0.05)
            elif kind == "second":
                argv = [*order["haproxy"], "-db", "-L", order["other_name"], "-f", order["other_config"]]
                second = subprocess.Popen(argv)
                stack.callback(second.wait)
                stack.callback(second.kill)
                wait_for(order["other_ready"][0], order["other_ready"][1], second)
            elif kind == "pause":
                time.sleep(words[0])
    return outcomes


def command(path: str, text: str) -> str:
    """What HAProxy says to a command."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(f"{text}\n".encode())
        return all_heard(sock)


def session(order: dict[str, Any], sessions: dict[str, ssl.SSLSession | None], client: str) -> list[Any]:
    """A client of TLS 1.2 that goes on with the session it had, if any: who answers, and whether it could go on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET
    had = sessions.get(client)
    plain = socket.create_connection((order["address"], order["port"]), 5)
    try:
        with contexts.setdefault(client, context).wrap_socket(plain, session=had) as sock:
            sock.sendall(b"who")
            answered = [heard(sock), sock.session_reused]
            sessions[client] = sock.session
            with contextlib.suppress(OSError):
                sock.unwrap()  # as the server: a session whose connection breaks off is forgotten
            return answered
    except OSError as cause:
        return [type(cause).__name__, None]


contexts: dict[str, ssl.SSLContext] = {}
"""A session belongs to the context in which it began."""


TRIES: dict[str, Callable[[dict[str, Any], dict[str, Server]], Any]] = {
    f.__name__: f
    for f in (
        requests,
        handshakes,
        hellos,
        tls,
        websocket,
        idle,
        flood,
        shares,
        silent,
        overload,
        slow,
        side_by_side,
        waits,
        paced,
        steps,
    )
}

if __name__ == "__main__":
    os.umask(0o077)
    given = json.load(sys.stdin)
    with running(given) as there:
        json.dump(TRIES[given["try"]](given, there), sys.stdout)
