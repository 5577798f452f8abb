"""What `ipvsadm-save` prints, as virtual servers: `-A -t 192.0.2.10:80 -s wrr`, `-a -t … -r 10.0.0.1:80 -m -w 1`.

The options are ipvsadm(8)'s. Checks are not in it: keepalived (or whoever wrote the rules) knows those.
"""

from __future__ import annotations

import shlex

from ndakit.model import Address
from ndakit.operate.import_.draft import address, number
from ndakit.operate.import_.ledger import SourceFile
from ndakit.operate.import_.virtual_servers import BALANCE, RealServerDraft, VirtualDraft

_METHODS = {"-m": "nat", "--masquerading": "nat", "-g": "dr", "--gatewaying": "dr", "-i": "tun", "--ipip": "tun"}
_SERVICES = {"-t": "tcp", "--tcp-service": "tcp", "-u": "udp", "--udp-service": "udp"}
_LONG = {
    "--scheduler": "-s",
    "--persistent": "-p",
    "--netmask": "-M",
    "--real-server": "-r",
    "--weight": "-w",
    "--u-threshold": "-x",
    "--l-threshold": "-y",
    "--fwmark-service": "-f",
    "--add-service": "-A",
    "--add-server": "-a",
}


_NOT_SAID = {
    **dict.fromkeys(("-o", "--ops"), "every datagram by itself is not carried yet (services.NAME.one_packet)"),
    **dict.fromkeys(("-b", "--sched-flags"), "flags of a scheduler are ndakit's"),
    "-M": "write pools.NAME.persistence.netmask",
    "--pe": "persistence is by the client's address",
}


def read(file: SourceFile, known: list[VirtualDraft]) -> list[VirtualDraft]:
    """The virtual servers that are not in `known` (keepalived.conf has those, with their checks)."""
    made: dict[str, VirtualDraft] = {}
    theirs = {(v.address, v.port, v.mark, v.protocol): v for v in known}
    for line, text in enumerate(file.lines, 1):
        if file.is_comment(line):
            continue
        try:
            words = [_LONG.get(w, w) for w in shlex.split(text)]
        except ValueError:
            file.unsaid(line, "it is no line of ipvsadm-save")
            continue
        command, options = words[0] if words else "", words[1:]
        place = _place(options)
        if command not in ("-A", "-a") or place is None:
            file.unsaid(line, "it is no virtual server and no server of one that a profile could have")
            continue
        key, one = place
        one.file, one.line = file, line
        other = theirs.get((one.address, one.port, one.mark, one.protocol))
        if other is not None:
            _compare(file, line, command, options, other)
        elif command == "-A":
            made[key] = one
            _settings(file, line, options, one)
        elif key in made:
            _server(file, line, options, made[key])
        else:
            file.unsaid(line, "its virtual server is not there")
    for one in made.values():
        if one.servers:
            one.pool["check"] = {"type": "ping" if one.protocol == "udp" else "tcp"}
    return [one for one in made.values() if one.servers]


def _after(options: list[str], word: str) -> str | None:
    at = options.index(word) + 1 if word in options else len(options)
    return options[at] if at < len(options) else None


def _socket(text: str) -> tuple[Address, int] | None:
    host, _, port = text.rpartition(":")
    ip, number_ = address(host), number(port, 1, 65535)
    return (ip, number_) if ip is not None and number_ is not None else None


def _place(options: list[str]) -> tuple[str, VirtualDraft] | None:
    nowhere = SourceFile("", "", [])
    for word, protocol in _SERVICES.items():
        text = _after(options, word)
        if text is not None and (socket := _socket(text)) is not None:
            return f"{protocol} {text}", VirtualDraft(*socket, None, socket[0].version, nowhere, 0, protocol=protocol)
    mark = number(_after(options, "-f"), 1)
    if mark is not None:
        version = 6 if "-6" in options else 4
        return f"mark {mark} {version}", VirtualDraft(None, None, mark, version, nowhere, 0)
    return None


def _settings(file: SourceFile, line: int, options: list[str], one: VirtualDraft) -> None:
    file.key(line, "services")
    scheduler = _after(options, "-s") or "wlc"
    if scheduler in BALANCE:
        one.pool["balance"] = BALANCE[scheduler]
    else:
        file.unsaid(line, f"pools.NAME.balance has no {scheduler[:20]}")
    if "-p" in options:
        one.pool["persistence"] = {"type": "source", "timeout_s": number(_after(options, "-p"), 1, 86400) or 300}
    for word, why in _NOT_SAID.items():
        if word in options:
            file.unsaid(line, f"{word}: {why}")


def _server(file: SourceFile, line: int, options: list[str], one: VirtualDraft) -> None:
    text = _after(options, "-r") or ""
    socket = _socket(text)
    ip = socket[0] if socket is not None else address(text)
    if ip is None:
        file.unsaid(line, "a server is an address, and a port")
        return
    method = next((t for w, t in _METHODS.items() if w in options), "dr")
    if one.servers and method != one.topology:
        file.unsaid(line, f"the servers of a service have one topology, and it is {one.topology}")
    elif not one.servers:
        one.topology = method
    server = RealServerDraft(ip, socket[1] if socket is not None else None)
    weight = number(_after(options, "-w"), 0, 256)
    server.weight = 1 if weight is None else weight
    server.upper = number(_after(options, "-x"), 1, 1_000_000)
    server.lower = number(_after(options, "-y"), 1, 1_000_000) if server.upper else None
    one.servers.append(server)
    file.key(line, "pools.NAME.servers")


def _compare(file: SourceFile, line: int, command: str, options: list[str], other: VirtualDraft) -> None:
    """keepalived.conf says this as well: what is different is told."""
    if command == "-A":
        file.same(line, "keepalived.conf has this virtual server")
        return
    socket = _socket(_after(options, "-r") or "")
    ip = socket[0] if socket is not None else address(_after(options, "-r") or "")
    server = next((s for s in other.servers if s.address == ip), None)
    weight = number(_after(options, "-w"), 0, 256)
    if server is None:
        file.unsaid(line, "the kernel has this server, and keepalived.conf has not")
    elif weight is not None and weight != server.weight:
        file.unsaid(line, f"the kernel has weight {weight}, and keepalived.conf {server.weight}: that one is used")
    else:
        file.same(line, "keepalived.conf has this server")
