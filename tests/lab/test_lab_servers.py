"""What the lab's servers say to every kind of check, to plain clients beside it, and to what is neither."""

from __future__ import annotations

import base64
import json
import smtplib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from guest.datagrams import UdpServer, dns_answer
from guest.loop import Loop
from guest.tls import Certificate
from guest.web import Behaviour, WebServer
from guest.words import EchoServer, SmtpServer

from ndakit.lab.host import certificate

HERE = "127.0.0.1"
PEM = certificate()
Start = Callable[..., Any]


@pytest.fixture
def start() -> Iterator[Start]:
    """Make servers of a class, on a port of their own, and let them serve."""
    loop, made = Loop(), []

    def tick() -> None:
        loop.after(0.01, tick)

    def add(kind: Callable[..., Any], *more: Any, **named: Any) -> Any:
        made.append(kind(loop, "me", HERE, 0, *more, **named))
        if not thread.is_alive():
            thread.start()
        return made[-1]

    thread = threading.Thread(target=loop.run)
    tick()
    yield add
    loop.stop()
    thread.join(5)
    for server in made:
        server.stop()


def connect(server: Any) -> socket.socket:
    return socket.create_connection((HERE, server.port), timeout=5)


def encrypted(server: Any) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(connect(server))


def get(sock: socket.socket, path: str = "/") -> tuple[int, bytes]:
    """Status and body of an answer after which the connection ends."""
    with sock, sock.makefile("rwb") as file:
        file.write(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        file.flush()
        head, _, body = file.read().partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def ask(server: Any, data: bytes) -> bytes:
    """A datagram's answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.sendto(data, (HERE, server.port))
        return sock.recv(65536)


def web(start: Start, *exchanges: tuple[bytes, bytes], pem: str = "", **behaviour: Any) -> Any:
    return start(WebServer, Behaviour().changed(behaviour), exchanges, Certificate(pem) if pem else None)


def test_one_port_speaks_http_and_https(start: Start) -> None:
    server = web(start, pem=PEM, body_size=300_000)
    for sock, through in ((connect(server), False), (encrypted(server), True)):
        status, body = get(sock)
        assert (status, len(body), json.loads(body)["encrypted"]) == (200, 300_001, through)


def test_an_encrypted_connection_is_kept_and_ends_as_it_should(start: Start) -> None:
    with encrypted(web(start, pem=PEM)) as sock:
        for number in (1, 2):
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            data = sock.recv(65536)
            while not data.endswith(b"}\n"):
                data += sock.recv(65536)
            assert json.loads(data.partition(b"\r\n\r\n")[2])["request"] == number
        assert sock.unwrap().fileno() >= 0


def test_a_server_without_a_certificate_speaks_no_tls_and_goes_on(start: Start) -> None:
    server = web(start)
    with pytest.raises(ssl.SSLError):
        encrypted(server)
    assert get(connect(server))[0] == 200


def test_a_client_that_breaks_tls_off_does_no_harm(start: Start) -> None:
    server = web(start, pem=PEM)
    for rubbish in (b"\x16rubbish that is not a handshake at all\x00\x00\x00", b"\x16\x03\x01"):
        with connect(server) as sock:
            sock.sendall(rubbish)
    assert get(encrypted(server))[0] == 200


def test_a_path_may_have_a_status_and_a_body_of_its_own(start: Start) -> None:
    page = base64.b64encode(b"<p>all well</p>\n").decode()
    server = web(start, pages={"/health": (418, None), "/page": (200, page), "/x?y": (101, None)})
    assert get(connect(server), "/health?now")[0] == 418
    assert get(connect(server), "/page") == (200, b"<p>all well</p>\n")
    assert get(connect(server), "/x?y") == (101, b"")
    assert get(connect(server), "/x")[0] == 200
    with pytest.raises(ValueError, match="100 to 999"):
        Behaviour().changed({"pages": {"/": (42, None)}})


def test_what_a_check_says_is_answered_as_it_expects_and_others_as_ever(start: Start) -> None:
    talk = (b"status?\r\n", b"+OK \x00\xff")
    for server in (start(EchoServer, "", [talk]), web(start, talk)):
        with connect(server) as sock:
            for piece in (b"sta", b"tus?\r\n"):
                sock.sendall(piece)
            assert sock.recv(100) == talk[1]
    with connect(start(EchoServer, "", [talk])) as sock:
        sock.sendall(b"stat")
        sock.sendall(b"ue\n")
        assert sock.recv(100) == b"statue\n"
        sock.sendall(talk[0])
        assert sock.recv(100) == talk[0], "only what is said first"
    assert get(connect(web(start, (b"GET / HTTP/1.0\r\n\r\n", b"no"))))[0] == 200


def test_what_was_held_back_is_not_lost_when_the_client_ends(start: Start) -> None:
    with connect(start(EchoServer, "", [(b"status?\r\n", b"+OK")])) as sock:
        sock.sendall(b"sta")
        sock.shutdown(socket.SHUT_WR)
        assert sock.makefile("rb").read() == b"sta"


def test_a_quiet_server_waits_to_be_spoken_to_and_says_who_it_is_with_its_first_echo(start: Start) -> None:
    server = start(EchoServer, "me", [(b"PING\r\n", b"+PONG\r\n")], quiet=True)
    with connect(server) as sock:
        sock.sendall(b"PING\r\n")
        assert sock.recv(100) == b"+PONG\r\n", "what a check expects comes first, and alone"
    with connect(server) as sock:
        lines = sock.makefile("rb")
        for _ in range(2):
            sock.sendall(b"who\n")
        assert [lines.readline() for _ in range(3)] == [b"me\n", b"who\n", b"who\n"]


def test_a_greeting_has_the_name_first_and_what_a_check_waits_for(start: Start) -> None:
    with connect(start(EchoServer, "me", [(b"", b"+OK ready"), (b"", b"\x01")])) as sock:
        assert sock.recv(100) == b"me +OK ready \x01\n"
        sock.sendall(b"client?\n")
        assert sock.recv(100) == b"you are 127.0.0.1\n"


def test_the_mail_server_does_what_a_mail_client_wants(start: Start) -> None:
    server = start(SmtpServer)
    with smtplib.SMTP(HERE, server.port, "client.example", timeout=5) as client:
        assert client.helo("client.example") == (250, b"me sees 127.0.0.1")
        assert client.noop()[0] == client.mail("a@example.com")[0] == client.rset()[0] == 250
        assert client.docmd("VRFY", "a")[0] == 500
        assert client.quit()[0] == 221
    with connect(server) as sock:
        sock.sendall(b"QUIT\r\nNOOP\r\n")
        lines = sock.makefile("rb").read().splitlines()
    assert lines == [b"220 me ESMTP", b"221 me closes"]


def test_a_mail_server_may_refuse_everybody(start: Start) -> None:
    with pytest.raises(smtplib.SMTPConnectError) as refused:
        smtplib.SMTP(HERE, start(SmtpServer, code=554).port, timeout=5)
    assert refused.value.smtp_code == 554


def question(name: str, kind: int, flags: int = 0x0100) -> bytes:
    labels = b"".join(bytes([len(w)]) + w.encode() for w in name.split(".") if w)
    return struct.pack("!HHHHHH", 4711, flags, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


@pytest.mark.parametrize("name", [".", "example.com"])
@pytest.mark.parametrize(("kind", "size"), [(1, 4), (2, 13), (5, 13), (6, 46), (15, 15), (16, 3), (28, 16), (99, None)])
def test_a_question_to_a_name_server_gets_one_record_of_its_kind(
    start: Start, name: str, kind: int, size: int | None
) -> None:
    asked = question(name, kind)
    answer = ask(start(UdpServer), asked)
    assert struct.unpack_from("!HHHHHH", answer) == (4711, 0x8500, 1, int(size is not None), 0, 0)
    assert answer[12 : len(asked)] == asked[12:]
    if size is None:
        assert len(answer) == len(asked)
    else:
        assert struct.unpack_from("!HHHIH", answer, len(asked)) == (0xC00C, kind, 1, 60, size)
        assert len(answer) == len(asked) + 12 + size


def test_a_name_server_may_fail(start: Start) -> None:
    answer = ask(start(UdpServer, dns_code=2), question(".", 6))
    assert struct.unpack_from("!HHHHHH", answer) == (4711, 0x8502, 1, 0, 0, 0)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"who\n", bytes(11), question(".", 6, flags=0x8100), question(".", 6, flags=0x2800)),
        *(question(".", 6)[:-1], question("a" * 63, 6)[:40], b"\xff" * 40),
    ],
)
def test_what_is_no_question_is_echoed(start: Start, data: bytes) -> None:
    assert dns_answer(data, "me", 0) == b""
    assert ask(start(UdpServer), data) == b"me " + data


def test_datagrams_are_answered_as_a_check_expects_and_others_as_ever(start: Start) -> None:
    server = start(UdpServer, [(b"ping", b"pong\0")])
    assert ask(server, b"ping") == b"pong\0"
    assert ask(server, b"pin") == b"me pin"
    without = start(UdpServer, [(b"", b"pong")])
    assert ask(without, bytes(32)) == b"pong"
    assert ask(without, b"who\n") == b"me who\n"
