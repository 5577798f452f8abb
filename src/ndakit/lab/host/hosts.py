"""The hosts of one lab machine and what they can be told to do: offer services, ask for them, measure.

`LabHosts` is the connection to one machine, `Host` one of its hosts (a network namespace with cards of its own). Failed
requests and closed ports are results, not exceptions; exceptions mean that the lab itself does not work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, Unpack

from ndakit.core import process
from ndakit.core.addresses import authority, literal
from ndakit.core.deadline import Deadline
from ndakit.core.errors import VerifyError
from ndakit.lab.host import request
from ndakit.lab.host.channel import MARGIN_S, OWN, QUICK_S, Channel
from ndakit.lab.host.connections import Call, Held
from ndakit.lab.host.measure import Answer, Clock, Load, Ping, ProgramResult, SshProbe, Try, WebStats
from ndakit.lab.host.poller import Poller
from ndakit.lab.host.request import PLAIN_WISH, Address, Exchanges, Headers, TlsWanted
from ndakit.lab.host.spec import Behaviour, HostSpec


class LabCommandFailed(VerifyError):
    """A program in a lab host ended with a failure."""

    def __init__(self, host: str, ran: ProgramResult) -> None:
        ended = "did not end in its time" if ran.timed_out else process.ending(ran.returncode)
        super().__init__(
            f"{ran.argv[0]} {ended}: {(ran.stderr or ran.stdout).strip()[-300:]}",
            where=f"host {host}, command: {' '.join(ran.argv)}",
            fix="its own words say why; run it again, and if they stay the same, report them together with the profile",
        )
        self.ran = ran


class LabHosts:
    """The hosts of one lab machine."""

    def __init__(self, channel: Channel, segments: Mapping[str, str]) -> None:
        self._channel = channel
        self._segments = dict(segments)
        self.hosts: dict[str, Host] = {}

    @classmethod
    def connect(cls, path: Path, *, segments: Mapping[str, str], timeout_s: float = 60.0) -> Self:
        """Connect to a machine's control socket and wait until it answers.

        `segments` maps a segment's name to the MAC address of the machine's card on it. Raises DeadlineExceeded.
        """
        return cls(Channel.open(path, Deadline(timeout_s, "the lab host to answer")), segments)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the hosts go on."""
        self._channel.close()

    def add(self, spec: HostSpec) -> Host:
        """Make a host and bring it up. Raises LabHostRefused."""
        given = asdict(spec)
        for card in given["interfaces"]:
            card["nic"] = self._segments[card["segment"]]
        gateways = [("default", gateway) for gateway in spec.gateways]
        given["routes"] = [*gateways, *spec.routes]
        self._channel.ask(OWN, "add", spec=given)
        host = Host(self._channel, spec)
        self.hosts[spec.name] = host
        return host

    def resumed(self) -> None:
        """Tell a machine that went on from a state what time it is, and random numbers that no other one has. Raises
        LabHostRefused."""
        self._channel.ask(OWN, "resumed", now_s=time.time(), seed=os.urandom(32).hex())

    def remove(self, name: str) -> None:
        """End a host at once: its services, its cards, its namespace."""
        self._channel.ask(OWN, "remove", name=name)
        self.hosts.pop(name, None)

    def clock(self, samples: int = 8) -> Clock:
        """Compare clocks: the quickest of some round trips bounds the error."""
        best: Clock | None = None
        for _ in range(samples):
            before_s = time.monotonic()
            theirs_ms = self._channel.ask(OWN, "clock")["now_ms"]
            after_s = time.monotonic()
            error_ms = 500 * (after_s - before_s)
            if best is None or error_ms < best.error_ms:
                best = Clock(theirs_ms - 500 * (before_s + after_s), error_ms)
        assert best is not None
        return best


class Host:
    """One host."""

    def __init__(self, channel: Channel, spec: HostSpec) -> None:
        self._channel = channel
        self.spec = spec

    @property
    def name(self) -> str:
        """Its name."""
        return self.spec.name

    def link(self, *, up: bool, index: int = 0) -> None:
        """Take card `index` down, or up again with its addresses and routes."""
        self._ask("link", index=index, up=up)

    # -- what it offers

    def web(
        self,
        port: int = 80,
        *,
        address: Address = "",
        name: str = "",
        exchanges: Exchanges = (),
        certificate: str = "",
        **behaviour: Unpack[Behaviour],
    ) -> Web:
        """Start a web server (both families unless an address is given); its answers name `name`, or the host.

        With a `certificate` (PEM, with its key) it speaks HTTPS on the same port as well.
        """
        place = self._place(port, address, name, exchanges)
        given = self._ask("web", **place, certificate=certificate, behaviour=behaviour)
        return Web(self, given["server"], given["port"])

    def tcp(
        self,
        port: int,
        *,
        address: Address = "",
        banner: str | None = None,
        exchanges: Exchanges = (),
        quiet: bool = False,
    ) -> HostService:
        """Start a TCP server: says `banner` (the host's name; "" for nothing) and a newline, then echoes.

        The line `client?` is answered with the client's address, what is in `exchanges` as they say. `quiet`: it waits
        to be spoken to, and says the banner before its first echo.
        """
        text = self.name if banner is None else banner
        given = self._ask("tcp", **self._place(port, address, "", exchanges), banner=text, quiet=quiet)
        return HostService(self, given["server"], given["port"])

    def smtp(
        self, port: int, *, address: Address = "", name: str = "", exchanges: Exchanges = (), code: int = 220
    ) -> HostService:
        """Start a mail server that takes no mail: it greets with `code` and its name, HELO is told the client's
        address."""
        given = self._ask("smtp", **self._place(port, address, name, exchanges), code=code)
        return HostService(self, given["server"], given["port"])

    def udp(
        self, port: int, *, address: Address = "", name: str = "", exchanges: Exchanges = (), dns_code: int = 0
    ) -> HostService:
        """Start a UDP server: sends each datagram back with its name and a space before it.

        Questions to a name server are answered as one does, with the status `dns_code` (0: no error); what is in
        `exchanges` as they say.
        """
        given = self._ask("udp", **self._place(port, address, name, exchanges), dns_code=dns_code)
        return HostService(self, given["server"], given["port"])

    def _place(self, port: int, address: Address, name: str, exchanges: Exchanges) -> dict[str, Any]:
        return {
            "port": port, "address": str(address), "name": name or self.name, "exchanges": request.exchanges(exchanges),
        }  # fmt: skip

    # -- what it asks of others

    def get(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Headers = (),
        body: bytes = b"",
        address: Address | None = None,
        source: Address = "",
        timeout_s: float = 5.0,
        tls: TlsWanted = PLAIN_WISH,
    ) -> Answer:
        """One HTTP request over a fresh connection; a status is an answer, whichever it is.

        `address` is where to connect if the URL names a host; `source` the client's own address to use; `tls` how an
        https:// URL is asked for.
        """
        target = request.http(url, method, headers, body, address, source, tls=tls)
        return self._in_full(target, timeout_s)

    def ask(
        self,
        url: str,
        payload: bytes = b"",
        *,
        source: Address = "",
        lines: int = 1,
        timeout_s: float = 5.0,
        tls: TlsWanted = PLAIN_WISH,
    ) -> Answer:
        """One exchange: `tcp://…` (answered by `lines` lines; 0: being connected is enough), `tls://…` (the same inside
        of TLS), `udp://…`, `icmp://…`."""
        return self._in_full(request.target(url, source, lines=lines, payload=payload, tls=tls), timeout_s)

    def hold(self, url: str, *, source: Address = "", timeout_s: float = 5.0) -> Held:
        """Open a connection by one HTTP request, and keep it."""
        return Held(self._ask, request.http(url, "GET", (), b"", None, source, keep_alive=True), timeout_s)

    def call(
        self,
        address: Address,
        port: int,
        *,
        payload: bytes = b"",
        source: Address = "",
        timeout_s: float = 5.0,
        unread: bool = False,
    ) -> Call:
        """Open a TCP connection that lasts, and say something; whether it came about is told by what is heard.

        `unread`: everything that comes is kept, to be read.
        """
        url = f"tcp://{authority(address, port)}"
        return Call(self._ask, request.target(url, source, payload=payload), timeout_s, unread=unread)

    def load(
        self,
        url: str,
        requests: int,
        *,
        at_once: int = 8,
        keep_alive: bool = False,
        method: str = "GET",
        headers: Headers = (),
        address: Address | None = None,
        sources: Iterable[Address] = (),
        accept: tuple[int, int] = (100, 599),
        timeout_s: float = 5.0,
        give_up_s: float = 300.0,
        tls: TlsWanted = PLAIN_WISH,
    ) -> Load:
        """That many requests, `at_once` at a time, over fresh connections or kept ones, from `sources` in turn."""
        target = request.http(url, method, headers, b"", address, "", keep_alive=keep_alive, accept=accept, tls=tls)
        given = self._ask(
            "load",
            within_s=give_up_s,
            **target,
            requests=requests,
            at_once=at_once,
            keep_alive=keep_alive,
            sources=[str(s) for s in sources],
            timeout_s=timeout_s,
        )
        return Load(tuple(Try.of(row) for row in given["rows"]))

    def poller(
        self,
        url: str,
        *,
        interval_s: float = 0.02,
        timeout_s: float = 0.25,
        method: str = "GET",
        headers: Headers = (),
        address: Address | None = None,
        source: Address = "",
        accept: tuple[int, int] = (200, 399),
        lines: int = 0,
        tls: TlsWanted = PLAIN_WISH,
    ) -> Poller:
        """Start polling `http://…`, `https://…`, `tcp://…` or `tls://…` (`lines` as in `ask`), `udp://…` or `icmp://…`;
        see Poller.

        `accept` is the range of HTTP statuses that count as an answer.
        """
        if url.startswith("http"):
            target = request.http(url, method, headers, b"", address, source, accept=accept, tls=tls)
        else:
            target = request.target(url, source, lines=lines, payload=b"poll\n", tls=tls)
        who = self._channel.ask(OWN, "fork", host=self.name, urgent=True)["who"]
        return Poller(self._channel, who, target, interval_s, timeout_s)

    def scan(
        self,
        address: Address,
        ports: Iterable[int],
        *,
        protocol: Literal["tcp", "udp"] = "tcp",
        timeout_s: float = 0.5,
        source: Address = "",
    ) -> dict[int, str]:
        """Port → open, closed (refused), filtered (nothing came), unreachable or prohibited.

        A UDP port that keeps silent counts as filtered: so does a service that does not know what to say, and a closed
        port after the first six (Linux limits the ICMP messages that it sends to one address: icmp_ratelimit).
        """
        wanted = sorted(set(ports))
        within_s = MARGIN_S + timeout_s * (1 + len(wanted) / 64)
        target = {"kind": protocol, "address": str(address), "source": str(source), "payload": request.text(b"scan\n")}
        states = self._ask("scan", within_s=within_s, **target, ports=wanted, timeout_s=timeout_s)
        return {port: states[str(port)] for port in wanted}

    def ping(
        self,
        address: Address,
        *,
        count: int = 1,
        interval_s: float = 0.02,
        timeout_s: float = 1.0,
        size: int = 56,
        source: Address = "",
    ) -> Ping:
        """Echo requests, one per interval, each with `size` bytes of payload."""
        target = request.target(f"icmp://{literal(address)}", source, payload=bytes(size))
        within_s = MARGIN_S + count * interval_s + timeout_s
        given = self._ask("ping", within_s=within_s, **target, count=count, interval_s=interval_s, timeout_s=timeout_s)
        return Ping(tuple(Try.of(row) for row in given["rows"]))

    # -- programs

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0, check: bool = True
    ) -> ProgramResult:
        """Run a program in the host's namespace. Raises LabCommandFailed (with `check`), LabHostRefused."""
        given = self._ask(
            "run", within_s=timeout_s + MARGIN_S, argv=list(argv), stdin=request.text(stdin), timeout_s=timeout_s
        )
        ran = ProgramResult(tuple(argv), **given)
        if check and (ran.returncode != 0 or ran.timed_out):
            raise LabCommandFailed(self.name, ran)
        return ran

    def ssh_probe(
        self, address: Address, port: int = 22, *, user: str = "root", source: Address = "", timeout_s: float = 10.0
    ) -> SshProbe:
        """What an SSH server shows to somebody without a key: asked by OpenSSH's client, authenticating by nothing."""
        given = self._ask(
            "ssh_probe",
            within_s=timeout_s + MARGIN_S,
            address=str(address),
            port=port,
            user=user,
            source=str(source),
            timeout_s=timeout_s,
        )
        return SshProbe.of(given["stderr"])

    def ssh_run(
        self,
        address: Address,
        key: str,
        argv: Sequence[str],
        *,
        port: int = 22,
        user: str = "root",
        source: Address = "",
        stdin: bytes = b"",
        timeout_s: float = 15.0,
    ) -> ProgramResult:
        """Run a command over SSH with a private key (its text; it lies in memory, readable by root alone, meanwhile).

        Exit code 255 is SSH's own failure, with its reason on stderr.
        """
        given = self._ask(
            "ssh",
            within_s=timeout_s + MARGIN_S,
            address=str(address),
            port=port,
            user=user,
            source=str(source),
            key=key,
            argv=list(argv),
            stdin=request.text(stdin),
            timeout_s=timeout_s,
        )
        return ProgramResult(tuple(argv), **given)

    def _in_full(self, target: dict[str, Any], timeout_s: float) -> Answer:
        return Answer.of(self._ask("ask", within_s=timeout_s + MARGIN_S, **target, timeout_s=timeout_s))

    def _ask(self, do: str, *, within_s: float = QUICK_S, **given: Any) -> Any:
        return self._channel.ask(self.name, do, within_s=within_s, **given)


class HostService:
    """A server that runs in a host."""

    def __init__(self, host: Host, number: int, port: int) -> None:
        self._host = host
        self._number = number
        self.port = port

    def stop(self) -> None:
        """Close its port, reset its clients."""
        self._host._ask("stop", server=self._number)

    def counts(self) -> Mapping[str, Any]:
        """Its figures since its start."""
        return dict(self._host._ask("stats", server=self._number))


class Web(HostService):
    """A web server."""

    def set(self, **changes: Unpack[Behaviour]) -> None:
        """Behave differently from now on.

        `mode`: answer; hang (take the request and never answer); refuse (port closed, open connections reset); reset
        (accept, then reset). `status` of the answers; `delay_ms` before each; `body_size` in bytes at least;
        `keep_alive` or one request per connection; `pages` are paths with a status of their own, and a body of their
        own (`page_body`) or None.
        """
        self._host._ask("web_set", server=self._number, behaviour=changes)

    def stats(self) -> WebStats:
        """Connections and requests since its start."""
        return WebStats(**self.counts())
