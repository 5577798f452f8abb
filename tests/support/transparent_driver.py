"""Runs rendered files of topology tproxy between a client and servers, each in a network namespace of its own.

Called by `test_transparent_live`, inside `unshare -Urnm`; standard library only. The order is JSON on stdin, the result
JSON on stdout. The namespace in which it starts is the balancer's; no packet is forwarded there.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

CLONE_NEWNET = 0x40000000
FIREWALL = """\
table inet fw4 {
	include "%s"
	chain input {
		type filter hook input priority filter; policy drop;
		iif lo accept
		ct state established,related accept
		meta l4proto 58 accept
		iifname client tcp dport 80 accept
	}
}
"""
_T = TypeVar("_T")


def inside(namespace: str, act: Callable[[], _T]) -> _T:
    """Do something in a thread of another namespace; what it opens stays there."""
    results: list[_T] = []

    def run() -> None:
        with Path("/run/netns", namespace).open() as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        results.append(act())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def serve(listener: socket.socket, asked_by: set[str]) -> None:
    """Answer every request with the address and port in the packets that brought it; checks are noted instead."""

    def answer(sock: socket.socket, peer: tuple[Any, ...]) -> None:
        with sock:
            while head := sock.recv(65536):
                if head.startswith(b"GET /health"):
                    asked_by.add(peer[0])
                body = f"{peer[0]} {peer[1]}".encode()
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    while True:
        threading.Thread(target=answer, args=listener.accept(), daemon=True).start()


def ask(order: Any, address: str, source: str, times: int) -> list[str]:
    """Requests over one connection of a client's address: what the server saw at each, or the error."""
    connection = inside(
        "client", lambda: socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    )
    connection.settimeout(order["patience_s"])
    answers = []
    try:
        connection.bind((source, 0))
        connection.connect((address, 80))
        for _ in range(times):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n")
            response = http.client.HTTPResponse(connection)
            response.begin()
            answers.append(response.read().decode() if response.status == 200 else f"status {response.status}")
    except TimeoutError:
        answers.append("time-out")
    connection.close()
    return answers


def main() -> None:
    """Build it, and ask."""
    order = json.load(sys.stdin)

    def run(*words: str, stdin: str = "") -> None:
        subprocess.run([*order["programs"][words[0]], *words[1:]], check=True, input=stdin, text=True)

    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
    run("ip", "link", "set", "lo", "up")
    for side in ("client", "servers"):
        run("ip", "netns", "add", side)
        run("ip", "link", "add", side, "type", "veth", "peer", "name", "card", "netns", side)
        for address in order[side]:
            run("ip", "-n", side, "addr", "add", address, "dev", "card", *(("nodad",) if ":" in address else ()))
        run("ip", "-n", side, "link", "set", "card", "up")
        for address in order["balancer"][side]:
            run("ip", "addr", "add", *address.split(), "dev", side, *(("nodad",) if ":" in address else ()))
        run("ip", "link", "set", side, "up")
    for gateway in order["gateways"]:
        run("ip", "-n", "servers", "-6" if ":" in gateway else "-4", "route", "add", "default", "via", gateway)
    for words in order["commands"]:
        run("ip", *words)
    run("nft", "-f", "-", stdin=FIREWALL % order["nft"])
    checked_by: set[str] = set()
    listener = inside("servers", lambda: socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True))
    threading.Thread(target=serve, args=(listener, checked_by), daemon=True).start()
    for key in ("net.ipv4.ip_nonlocal_bind", "net.ipv6.ip_nonlocal_bind"):
        Path("/proc/sys", *key.split(".")).write_text("1")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    haproxy = subprocess.Popen([*order["programs"]["haproxy"], "-db", "-f", order["config"]], stderr=subprocess.PIPE)
    end_s = time.monotonic() + 20
    while len(checked_by) < order["checks"] and haproxy.poll() is None and time.monotonic() < end_s:
        time.sleep(0.05)
    if len(checked_by) < order["checks"]:
        haproxy.terminate()
        raise SystemExit(f"no checks came: {haproxy.communicate()[1].decode()}")
    time.sleep(0.5)  # a check that was answered becomes a server that is up
    seen = [ask(order, *one) for one in order["asked"]]
    haproxy.terminate()
    _, said = haproxy.communicate()
    json.dump({"seen": seen, "checked_by": sorted(checked_by), "said": said.decode()}, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # threads that serve have no end


if __name__ == "__main__":
    main()
