"""One host's process: the commands that a host understands.

A command takes its parameters and a function to call with the result, now or later. Wrong parameters and what the
system refuses become the answer's error; anything else ends the process with a traceback on the console.
"""

from __future__ import annotations

import binascii
import contextlib
import json
import os
from collections.abc import Callable

from guest import asking, system
from guest.datagrams import UdpServer
from guest.holding import Kept
from guest.loop import Lines, Loop
from guest.servers import StreamServer
from guest.tries import Target
from guest.web import Behaviour, WebServer
from guest.wire import request
from guest.words import EchoServer, SmtpServer

TYPE_CHECKING = False  # what typing says as well; importing it would cost a tenth of the start under emulation
if TYPE_CHECKING:
    from typing import Any

Given = dict[str, "Any"]
Done = Callable[["Any"], None]


class Worker:
    """The commands of one host, over one line channel."""

    def __init__(self, fd: int) -> None:
        self._loop = Loop()
        self._spec: Given = {"interfaces": []}
        self._servers: dict[int, StreamServer | UdpServer] = {}
        self._pollers: dict[int, asking.Poller] = {}
        self._kept = Kept(self._loop)
        self._number = 0
        self._lines = Lines(self._loop, fd, self._asked, self._loop.stop)

    def run(self) -> None:
        """Serve until the channel ends."""
        self._loop.run()

    def _asked(self, line: bytes) -> None:
        number, _, text = line.partition(b" ")

        def answer(kind: str, value: Any) -> None:
            self._lines.send(number + b" " + json.dumps({kind: value}).encode())

        try:
            given = json.loads(text)
            command = getattr(self, "do_" + str(given.pop("do")), None)
            if command is None:
                raise system.Refused("a host knows no such command")
            command(given, lambda result: answer("result", result))
        except (system.Refused, ValueError, KeyError, TypeError) as cause:
            answer("error", f"{cause}" if isinstance(cause, system.Refused) else f"{type(cause).__name__}: {cause}")
        except OSError as cause:
            answer("error", cause.strerror or str(cause))

    # -- the host itself

    def do_configure(self, given: Given, done: Done) -> None:
        """Addresses, routes, sysctls."""
        self._spec = given["spec"]
        system.configure(self._spec)
        done({})

    def do_link(self, given: Given, done: Done) -> None:
        """One card up or down."""
        index = int(given["index"])
        if not 0 <= index < len(self._spec["interfaces"]):
            raise ValueError(f"the host has no interface {index}")
        if given["up"]:
            system.connect(self._spec, index)
        else:
            system.disconnect(index)
        done({})

    def do_run(self, given: Given, done: Done) -> None:
        """A program."""
        stdin = binascii.a2b_base64(given.get("stdin", ""))
        system.Program(self._loop, given["argv"], stdin=stdin, timeout_s=given["timeout_s"], done=done)

    def do_ssh(self, given: Given, done: Done) -> None:
        """A command on another machine, with a private key."""
        system.ssh_with_key(self._loop, given, binascii.a2b_base64(given.get("stdin", "")), done)

    def do_ssh_probe(self, given: Given, done: Done) -> None:
        """What OpenSSH's client says when it may not authenticate by anything."""
        words = system.ssh_argv(given, ["-v", "-o", "PreferredAuthentications=none"])
        system.Program(self._loop, [*words, "true"], stdin=b"", timeout_s=given["timeout_s"], done=done)

    # -- what it offers

    def do_web(self, given: Given, done: Done) -> None:
        """Start a web server."""
        behaviour, certificate = Behaviour().changed(given.get("behaviour", {})), None
        if given["certificate"]:
            from guest.tls import Certificate  # large, and seldom needed

            certificate = Certificate(given["certificate"])
        place = (given["name"], given["address"], given["port"])
        self._keep(WebServer(self._loop, *place, behaviour, _exchanges(given), certificate), done)

    def do_web_set(self, given: Given, done: Done) -> None:
        """Change how a web server behaves."""
        server = self._servers[given["server"]]
        if not isinstance(server, WebServer):
            raise ValueError("that is not a web server")
        server.behave(server.behaviour.changed(given["behaviour"]))
        done({})

    def do_tcp(self, given: Given, done: Done) -> None:
        """Start a TCP server that greets and echoes."""
        place = (given["name"], given["address"], given["port"])
        self._keep(EchoServer(self._loop, *place, given["banner"], _exchanges(given), quiet=given["quiet"]), done)

    def do_smtp(self, given: Given, done: Done) -> None:
        """Start a mail server."""
        place = (given["name"], given["address"], given["port"])
        self._keep(SmtpServer(self._loop, *place, _exchanges(given), given["code"]), done)

    def do_udp(self, given: Given, done: Done) -> None:
        """Start a UDP server that echoes, and answers as a name server does."""
        place = (given["name"], given["address"], given["port"])
        self._keep(UdpServer(self._loop, *place, _exchanges(given), given["dns_code"]), done)

    def do_stats(self, given: Given, done: Done) -> None:
        """A server's figures."""
        done(self._servers[given["server"]].stats())

    def do_stop(self, given: Given, done: Done) -> None:
        """Stop a server."""
        self._servers.pop(given["server"]).stop()
        done({})

    def _keep(self, server: StreamServer | UdpServer, done: Done) -> None:
        self._number += 1
        self._servers[self._number] = server
        done({"server": self._number, "port": server.port})

    # -- what it asks of others

    def do_ask(self, given: Given, done: Done) -> None:
        """One try, in full."""
        asking.ask(self._loop, _target(given), given["timeout_s"], done)

    def do_hold(self, given: Given, done: Done) -> None:
        """One request over a connection that is kept."""
        self._kept.ask(_target(given), given["connection"], given["timeout_s"], done)

    def do_call(self, given: Given, done: Done) -> None:
        """Open a connection over which anything can be said."""
        done({"connection": self._kept.call(_target(given), given["timeout_s"], unread=given["unread"])})

    def do_say(self, given: Given, done: Done) -> None:
        """Say something over it."""
        self._kept[given["connection"]].say(binascii.a2b_base64(given["payload"]))
        done({})

    def do_heard(self, given: Given, done: Done) -> None:
        """What came over it."""
        done(self._kept[given["connection"]].facts(anew=given["anew"]))

    def do_read(self, given: Given, done: Done) -> None:
        """All that came over it since this was asked last, and why it ended."""
        call = self._kept[given["connection"]]
        text = binascii.b2a_base64(call.read(), newline=False).decode()
        done({"payload": text, "error": call.outcome.error})

    def do_close(self, given: Given, done: Done) -> None:
        """End a kept connection, of either kind."""
        self._kept.close(given["connection"], reset=given["reset"])
        done({})

    def do_load(self, given: Given, done: Done) -> None:
        """Many requests."""
        asking.Load(
            self._loop,
            _target(given),
            requests=given["requests"],
            at_once=given["at_once"],
            keep_alive=given["keep_alive"],
            sources=given["sources"],
            timeout_s=given["timeout_s"],
            done=done,
        )

    def do_scan(self, given: Given, done: Done) -> None:
        """A port scan."""
        asking.Scan(self._loop, _target(given), given["ports"], given["timeout_s"], done)

    def do_ping(self, given: Given, done: Done) -> None:
        """Echo requests."""
        asking.ping(self._loop, _target(given), given["count"], given["interval_s"], given["timeout_s"], done)

    def do_poll(self, given: Given, done: Done) -> None:
        """Start a poller."""
        self._number += 1
        self._pollers[self._number] = asking.Poller(
            self._loop, _target(given), given["interval_s"], given["timeout_s"], given.get("count", 0)
        )
        done({"poller": self._number})

    def do_polled(self, given: Given, done: Done) -> None:
        """What a poller has found so far."""
        done(self._pollers[given["poller"]].facts(given["since"]))

    def do_poll_stop(self, given: Given, done: Done) -> None:
        """Stop a poller; answered once its last try has ended."""
        poller = self._pollers[given["poller"]]
        poller.stop(lambda: done(poller.facts(given["since"])))


def _exchanges(given: Given) -> list[tuple[bytes, bytes]]:
    return [(binascii.a2b_base64(said), binascii.a2b_base64(answer)) for said, answer in given["exchanges"]]


def _target(given: Given) -> Target:
    """The target of a request, its HTTP bytes made once."""
    head_only = given.get("method") == "HEAD"
    payload = binascii.a2b_base64(given.get("payload", ""))
    if given["kind"] == "http":
        headers = [(str(name), str(value)) for name, value in given["headers"]]
        payload = request(given["method"], given["path"], headers, payload)
    low, high = given.get("accept", (0, 999))
    return Target(
        given["kind"],
        given["address"],
        given.get("port", 0),
        payload,
        given.get("source", ""),
        given.get("lines", 0),
        head_only,
        (low, high),
        given.get("tls"),
    )


def serve(fd: int, *, urgent: bool) -> None:
    """Be a host until the channel ends; `urgent` gets three times the share of the others (a poller's process).

    Not real-time priority: on a machine that is short of CPU that would starve the servers it asks, and show failures
    that are none. So it comes late instead, which its result says.
    """
    if urgent:
        with contextlib.suppress(PermissionError):
            os.nice(-5)
    Worker(fd).run()
