"""A port of this machine's loopback that leads into a lab: from one of its hosts to an address there."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

from ndakit.lab.host import Host
from ndakit.lab.host.channel import LabHostRefused
from ndakit.model import Address

_IDLE_S = 0.01


@contextlib.contextmanager
def relay(host: Host, source: Address, address: Address, port: int) -> Iterator[int]:
    """The port of loopback; every connection to it goes on from the lab's host."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()
    threads = []

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=_carry, args=(client, host, source, address, port, ended)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()
        listener.close()
        for thread in threads:
            thread.join()


def _carry(
    client: socket.socket, host: Host, source: Address, address: Address, port: int, ended: threading.Event
) -> None:
    """One connection, until one of its sides ends it."""
    client.setblocking(False)
    with client, host.call(address, port, source=str(source), timeout_s=20, unread=True) as call:
        while not ended.is_set():
            came = None
            with contextlib.suppress(BlockingIOError):
                came = client.recv(16384)
            if came == b"":
                return
            if came:
                with contextlib.suppress(LabHostRefused):  # it has ended; what came before is still to be read
                    call.say(came)
            answer, error = call.read()
            client.setblocking(True)
            client.sendall(answer)
            client.setblocking(False)
            if error:
                return
            if not came and not answer:
                time.sleep(_IDLE_S)
