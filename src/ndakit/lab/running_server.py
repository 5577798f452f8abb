"""A server of the lab while it runs: its programs by port, how they lie, and how they end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ndakit.lab.host import Host, HostService, Web
from ndakit.lab.host.request import text
from ndakit.lab.server_ports import ServerPort
from ndakit.model import Address
from ndakit.model.checks.base import Speaks

GREETING = 220
"""How a mail server greets that is well (RFC 5321, 4.2.2)."""


@dataclass
class RunningServer:
    """A server's programs in the lab, by port. `label` is what it calls itself, `addresses` are its own."""

    host: Host
    label: str
    addresses: tuple[Address, ...]
    address: str
    ports: tuple[ServerPort, ...]
    pages: Mapping[str, bytes] = field(default_factory=dict)
    """MD5 digest → the page that a check knows by it."""
    certificate: str = ""
    """PEM with its key, for the ports that speak HTTPS."""
    services: dict[ServerPort, HostService] = field(default_factory=dict)
    lies: dict[ServerPort, tuple[ServerPort, HostService]] = field(default_factory=dict)
    """The ports on which it answers wrongly: what each says then, and who does so."""

    def lie(self, numbers: Sequence[int], what: Speaks) -> None:
        """Answer wrongly on these ports until `start`; a lie beside another one on a port joins it."""
        for port in (p for p in self.ports if p.number in numbers and p.datagrams == (what.kind == "udp")):
            now, service = self.lies.get(port, (port, self.services[port]))
            lying = now.lying(what)
            if isinstance(service, Web) and lying.exchanges == now.exchanges:
                service.set(pages=self._pages_of(lying))  # without a moment in which the port is shut
            else:
                service.stop()
                service = self._serve(lying)
            self.lies[port] = (lying, service)

    def start(self) -> None:
        for port, (_, liar) in self.lies.items():
            if liar is self.services.get(port) and isinstance(liar, Web):
                liar.set(pages=self._pages_of(port))
            else:
                liar.stop()
                self.services.pop(port, None)
        self.lies.clear()
        for port in self.ports:
            service = self.services.get(port)
            if isinstance(service, Web):
                service.set(mode="answer")
            elif service is None:
                self.services[port] = self._serve(port)

    def _serve(self, port: ServerPort) -> HostService:
        at, exchanges = self.address, port.exchanges
        if port.kind == "udp":
            return self.host.udp(port.number, address=at, name=self.label, exchanges=exchanges, dns_code=port.code or 0)
        if port.kind == "smtp":
            code = GREETING if port.code is None else port.code
            return self.host.smtp(port.number, address=at, name=self.label, exchanges=exchanges, code=code)
        if port.kind == "tcp":
            return self.host.tcp(port.number, address=at, banner=self.label, exchanges=exchanges, quiet=port.quiet)
        pages = self._pages_of(port)
        certificate = self.certificate if port.tls else ""
        return self.host.web(
            port.number, address=at, name=self.label, exchanges=exchanges, certificate=certificate, pages=pages
        )

    def _pages_of(self, port: ServerPort) -> dict[str, tuple[int, str | None]]:
        return {p.path: (p.status, None if p.digest is None else text(self.pages[p.digest])) for p in port.pages}

    def hear_pings(self, *, heard: bool) -> None:
        """Answer echo requests to the server's own addresses, or not. Several servers may live on one host (behind a
        router), so that the host's own switch for all of them will not do."""
        rules = [
            f"{'ip' if a.version == 4 else 'ip6'} daddr {a} icmp{'' if a.version == 4 else 'v6'} type echo-request drop"
            for a in self.addresses
        ]
        table = f"ndakit-{self.label}".replace(".", "-").replace(":", "-")
        # Made before it is deleted, so that it does not matter whether it was there.
        script = f"table inet {table}\ndelete table inet {table}\n"
        if not heard:
            body = "\n".join(["type filter hook input priority 0;", *rules])
            script += f"table inet {table} {{\nchain input {{\n{body}\n}}\n}}\n"
        self.host.run(["nft", "-f", "-"], stdin=script.encode())

    def stop(self) -> None:
        for port, service in list(self.services.items()):
            if isinstance(service, Web):
                service.set(mode="refuse")
            else:
                service.stop()
                del self.services[port]
