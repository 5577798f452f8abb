"""Lab hosts: what they offer, ask and measure. In network namespaces of this machine."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path

import pytest

import lab_hosts
from ndakit.core.deadline import Deadline, DeadlineExceeded
from ndakit.lab.host import (
    Host,
    HostInterface,
    HostSpec,
    LabCommandFailed,
    LabHostLost,
    LabHostRefused,
    LabHosts,
    TlsWanted,
    certificate,
)
from ndakit.lab.running_server import RunningServer

V4, V6 = "192.0.2.1", "2001:db8::1"
BOTH = pytest.mark.parametrize("at", [V4, f"[{V6}]"])


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHosts]:
    with lab_hosts.lab(tmp_path_factory.mktemp("lab")) as hosts:
        hosts.add(lab_hosts.spec("web", 1))
        hosts.add(lab_hosts.spec("client", 2, loopback=("203.0.113.9/32", "2001:db8:9::9/128")))
        yield hosts


@pytest.fixture
def web(lab: LabHosts) -> Host:
    return lab.hosts["web"]


@pytest.fixture
def client(lab: LabHosts) -> Host:
    return lab.hosts["client"]


@BOTH
def test_a_web_server_tells_who_asked_and_what(web: Host, client: Host, at: str) -> None:
    server = web.web(0, name="apache-1")
    answer = client.get(f"http://{at}:{server.port}/a?b=c", method="POST", headers={"X-Test": "yes"}, body=b"12345")
    assert (answer.status, answer.server, answer.error) == (200, "apache-1", "")
    seen = answer.seen
    assert (seen["client"], seen["client_port"]) == answer.local
    assert answer.local[0] == ("192.0.2.2" if at == V4 else "2001:db8::2")
    assert (seen["local"], seen["method"], seen["path"], seen["body_length"]) == (at.strip("[]"), "POST", "/a?b=c", 5)
    assert answer.seen_header("x-test") == "yes"
    assert server.stats().by_client == {answer.local[0]: 1}
    assert server.stats().by_path == {"/a?b=c": 1}
    server.stop()
    assert client.get(f"http://{at}:{server.port}/").error == "refused"


def test_a_head_request_gets_no_body(web: Host, client: Host) -> None:
    server = web.web(0)
    answer = client.get(f"http://{V4}:{server.port}/", method="HEAD")
    assert (answer.status, answer.body) == (200, "")
    assert int(answer.header("content-length") or 0) > 0


def test_servers_of_one_host_may_share_a_port_on_different_addresses(web: Host, client: Host) -> None:
    first = web.web(8090, address=V4, name="one")
    second = web.web(8090, address=V6, name="two")
    assert client.get(f"http://{V4}:8090/").server == "one"
    assert client.get(f"http://[{V6}]:8090/").server == "two"
    first.stop()
    second.stop()


def test_a_web_server_behaves_as_told(web: Host, client: Host) -> None:
    server = web.web(0, status=503, delay_ms=30.0, body_size=50_000, pages={"/health": (200, None)})
    url = f"http://{V4}:{server.port}"
    started_s = time.monotonic()
    answer = client.get(f"{url}/")
    assert (answer.status, len(answer.body)) == (503, 50_001)
    assert 30 <= answer.took_ms < 1000 * (time.monotonic() - started_s)
    assert client.get(f"{url}/health?x").status == 200
    server.set(pages={"/health": (404, None)}, delay_ms=0)
    assert client.get(f"{url}/health").status == 404
    server.set(mode="hang")
    assert client.get(f"{url}/", timeout_s=0.1).error == "time-out after connecting"
    server.set(mode="reset")
    assert client.get(f"{url}/").error == "reset"
    server.set(mode="refuse")
    assert client.get(f"{url}/").error == "refused"
    server.set(mode="answer", status=204)
    assert (client.get(f"{url}/").status, client.get(f"{url}/").body) == (204, "")
    server.stop()


def test_refusing_resets_the_connections_that_are_open(web: Host, client: Host) -> None:
    server = web.web(0, mode="hang")
    answers = []
    asking = threading.Thread(target=lambda: answers.append(client.get(f"http://{V4}:{server.port}/")))
    asking.start()
    Deadline(5, "the connection").wait_until(lambda: server.stats().open == 1)
    server.set(mode="refuse")
    asking.join(5)
    assert answers[0].error == "reset"


def test_behaviour_that_does_not_exist_is_refused(web: Host) -> None:
    with pytest.raises(LabHostRefused, match="no colour"):
        web.web(0, colour="red")  # type: ignore[call-arg]  # that is the point
    server = web.web(0)
    with pytest.raises(LabHostRefused, match="no such mode: sulk"):
        server.set(mode="sulk")  # type: ignore[arg-type]  # that is the point
    server.stop()


def test_a_port_that_is_taken_is_refused_with_the_reason(web: Host) -> None:
    server = web.web(0)
    with pytest.raises(LabHostRefused, match="Address already in use"):
        web.tcp(server.port)
    server.stop()


def test_a_load_counts_who_answered_over_fresh_and_over_kept_connections(web: Host, client: Host) -> None:
    server = web.web(0, name="w")
    url = f"http://{V4}:{server.port}/"
    fresh = client.load(url, 50, at_once=5)
    assert dict(fresh.share) == {"w": 50}
    assert server.stats().connections == 50
    kept = client.load(url, 50, at_once=5, keep_alive=True)
    assert dict(kept.share) == {"w": 50}
    assert server.stats().connections == 55
    assert sum(t.reused for t in kept.tries) == 45
    server.set(keep_alive=False)
    assert dict(client.load(url, 20, keep_alive=True).share) == {"w": 20}
    assert server.stats().connections == 75


def test_a_held_connection_is_asked_over_again_until_it_is_closed(web: Host, client: Host) -> None:
    server = web.web(0, name="w")
    held = client.hold(f"http://{V4}:{server.port}/", source="192.0.2.2")
    assert (held.server, held.first.local[0], held.is_open) == ("w", "192.0.2.2", True)
    assert (held.again().server, held.again().seen["request"]) == ("w", 3)
    assert (server.stats().connections, server.stats().open) == (1, 1)
    held.close()
    Deadline(5, "the end").wait_until(lambda: server.stats().open == 0)
    with pytest.raises(LabHostRefused, match="that connection has ended"):
        held.again()
    server.stop()


def test_a_held_connection_that_the_server_ends_is_noticed(web: Host, client: Host) -> None:
    server = web.web(0)
    held = client.hold(f"http://{V4}:{server.port}/")
    server.set(mode="refuse")
    assert held.again().error == "reset"
    assert not held.is_open
    refused = client.hold(f"http://{V4}:{server.port}/")
    assert (refused.first.error, refused.server, refused.is_open) == ("refused", "", False)
    server.stop()


@pytest.mark.parametrize(("kind", "asking", "more"), [
    ("web", b"GET /lab-stream HTTP/1.1\r\nHost: x\r\n\r\n", b""),
    ("web", b"GET /lab-stream?10 HTTP/1.1\r\nHost: x\r\n\r\n", b""),
    ("tcp", b"stream\n", b""),
    ("tcp", b"hello\n", b"again\n"),
    ("web", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
])  # fmt: skip
def test_a_call_lasts_and_tells_what_it_hears(web: Host, client: Host, kind: str, asking: bytes, more: bytes) -> None:
    server = web.web(0, name="w") if kind == "web" else web.tcp(0, banner="w")
    with client.call(V4, server.port, payload=asking, source="192.0.2.2") as call:
        Deadline(5, "an answer").wait_until(lambda: call.heard().heard > len("w\nhello\n") - 1, every_s=0.01)
        before = call.heard(anew=True)
        assert ("X-Lab-Server: w" if kind == "web" else "w\n") in before.first
        if more:
            call.say(more)
        Deadline(5, "more").wait_until(lambda: call.heard().heard > before.heard, every_s=0.01)
        after = call.heard()
        assert after.error == ""
        assert after.silent_ms <= after.longest_ms < 1000
    server.stop()


def test_a_call_that_the_other_side_ends_says_so_and_takes_nothing_more(web: Host, client: Host) -> None:
    server = web.tcp(0)
    with client.call(V4, server.port) as call:
        Deadline(5, "the greeting").wait_until(lambda: call.heard().heard > 0, every_s=0.01)
        server.stop()
        Deadline(5, "its end").wait_until(lambda: call.heard().error == "reset", every_s=0.01)
        with pytest.raises(LabHostRefused, match="that connection has ended: reset"):
            call.say(b"hello\n")
    with client.call(V4, server.port) as call:
        Deadline(5, "refusal").wait_until(lambda: call.heard().error == "refused", every_s=0.01)
    with pytest.raises(LabHostRefused, match="that connection has ended"):
        call.heard()


@pytest.mark.parametrize("reset", [True, False])
def test_a_kept_connection_ends_in_the_way_that_is_wanted(web: Host, client: Host, reset: bool) -> None:
    # The kernel's own count: a connection that was reset is gone at once, one that was ended waits (TIME-WAIT).
    server = web.web(0)
    held, call = client.hold(f"http://{V4}:{server.port}/"), client.call(V4, server.port, payload=b"GET ")
    Deadline(5, "both").wait_until(lambda: server.stats().open == 2, every_s=0.01)
    for kept in (held, call):
        kept.close(reset=reset)
        kept.close()
    Deadline(5, "their ends").wait_until(lambda: server.stats().open == 0, every_s=0.01)
    left = client.run(["ss", "-Htan", "state", "time-wait", f"dport = :{server.port}"]).stdout.splitlines()
    assert len(left) == (0 if reset else 2)
    server.stop()


def test_a_page_that_a_check_may_ask_for_ends(web: Host, client: Host) -> None:
    server = web.web(0)
    assert client.get(f"http://{V4}:{server.port}/stream").seen["path"] == "/stream"
    server.stop()


def test_a_load_counts_failures(web: Host, client: Host) -> None:
    server = web.web(0, status=503)
    url = f"http://{V4}:{server.port}/"
    assert dict(client.load(url, 10).statuses) == {503: 10}
    assert dict(client.load(url, 10, accept=(200, 399)).errors) == {"status 503": 10}
    server.stop()
    assert dict(client.load(url, 300).errors) == {"refused": 300}


def test_a_client_can_use_several_addresses(web: Host, client: Host) -> None:
    web.run(["ip", "route", "replace", "203.0.113.9", "via", "192.0.2.2"])
    server = web.web(0)
    load = client.load(f"http://{V4}:{server.port}/", 20, sources=["192.0.2.2", "203.0.113.9"])
    assert load.share.total() == 20
    assert server.stats().by_client == {"192.0.2.2": 10, "203.0.113.9": 10}
    assert client.get(f"http://{V4}:{server.port}/", source="203.0.113.9").seen["client"] == "203.0.113.9"
    server.stop()


@BOTH
def test_tcp_and_udp_servers_say_their_name_and_echo(web: Host, client: Host, at: str) -> None:
    tcp, udp = web.tcp(0), web.udp(0)
    assert client.ask(f"tcp://{at}:{tcp.port}").server == "web"
    assert client.ask(f"tcp://{at}:{tcp.port}", b"hello\n", lines=2).body == "web\nhello\n"
    assert client.ask(f"tcp://{at}:{tcp.port}", b"hello\n", lines=3, timeout_s=0.1).error == "time-out after connecting"
    answer = client.ask(f"udp://{at}:{udp.port}", b"hello there")
    assert (answer.server, answer.body) == ("web", "web hello there")
    assert udp.counts() == {"datagrams": 1}
    tcp.stop()
    udp.stop()
    assert client.ask(f"udp://{at}:{udp.port}", b"hello").error == "refused"


def test_what_checks_say_and_the_names_of_all_kinds_of_servers_reach_the_host(web: Host, client: Host) -> None:
    tcp = web.tcp(0, exchanges=[(b"", b"+OK"), (b"a?", b"a!\n")])
    mail = web.smtp(0, name="mx")
    bad = web.smtp(0, code=554)
    udp = web.udp(0, name="ns", exchanges=[(b"a?", b"a!")], dns_code=2)
    secure = web.web(0, name="tls", certificate=certificate(), exchanges=[(b"a?", b"a!\n")])
    line = client.ask(f"tcp://{V4}:{tcp.port}", b"a?", lines=2)
    assert (line.server, line.body) == ("web", "web +OK\na!\n")
    assert client.ask(f"tcp://{V4}:{mail.port}", b"HELO x\r\n", lines=2).body.split()[-1] == "192.0.2.2"
    assert client.ask(f"tcp://{V4}:{mail.port}").server == "mx"
    assert client.ask(f"tcp://{V4}:{bad.port}").body.startswith("554 ")
    assert client.ask(f"udp://{V4}:{udp.port}", b"a?").body == "a!"
    assert client.ask(f"tcp://{V4}:{secure.port}", b"a?").body == "a!\n"
    hello = "import socket, ssl, sys; c = ssl._create_unverified_context(); s = socket.create_connection((sys.argv[1], "
    hello += "int(sys.argv[2]))); print(c.wrap_socket(s).version())"
    assert "TLS" in client.run([sys.executable, "-c", hello, V4, str(secure.port)]).stdout
    for server in (tcp, mail, bad, udp, secure):
        server.stop()


def test_a_dead_server_answers_no_ping_and_the_others_on_its_host_do(web: Host, client: Host) -> None:
    web.run(["ip", "address", "replace", "192.0.2.40", "dev", "lo"])
    dead = RunningServer(web, "192.0.2.40", (ip_address("192.0.2.40"), ip_address(V6)), "", ())
    for heard in (False, False, True, True):
        dead.hear_pings(heard=heard)
        for address in ("192.0.2.40", V6):
            assert client.ping(address, timeout_s=1 if heard else 0.1).ok == heard
        assert client.ping(V4).ok


@pytest.mark.parametrize(("address", "via"), [("203.0.113.77", "192.0.2.1"), ("2001:db8:77::77", V6)])
def test_a_udp_answer_comes_from_the_address_that_was_asked(
    lab: LabHosts, web: Host, client: Host, address: str, via: str
) -> None:
    # A connected client's socket takes nothing from another address, so an answer is the proof.
    web.run(["ip", "address", "replace", address, "dev", "lo"])
    client.run(["ip", "route", "replace", address, "via", via])
    udp = web.udp(0)
    literal = f"[{address}]" if ":" in address else address
    assert client.ask(f"udp://{literal}:{udp.port}", b"x", timeout_s=1).ok
    udp.stop()


_FILTERS = b"""
table inet t {
    chain c {
        type filter hook input priority 0
        meta l4proto { tcp, udp } th dport 7002 drop
        meta l4proto tcp th dport 7003 reject with icmpx type admin-prohibited
    }
}
"""


def test_a_scan_tells_open_closed_filtered_and_prohibited_ports(web: Host, client: Host) -> None:
    web.run(["nft", "-f", "-"], stdin=_FILTERS)
    tcp, udp = web.tcp(7000), web.udp(7000)
    try:
        for address in (V4, V6):
            states = client.scan(address, range(7000, 7004), timeout_s=0.2)
            assert list(states.values())[:3] == ["open", "closed", "filtered"]
            assert states[7003] == "unreachable" or address == V6  # IPv6 keeps trying for a while
            states = client.scan(address, range(7000, 7003), protocol="udp", timeout_s=0.2)
            assert states == {7000: "open", 7001: "closed", 7002: "filtered"}
        assert client.scan(V4, []) == {}
        many = client.scan(V4, range(20000, 20500))
        assert set(many.values()) == {"closed"}
    finally:
        web.run(["nft", "delete", "table", "inet", "t"])
        tcp.stop()
        udp.stop()


def test_ping_tells_who_is_there(client: Host) -> None:
    for address in (V4, V6):
        started_s = time.monotonic()
        pinged = client.ping(address, count=3, size=1000)
        assert pinged.ok
        assert len(pinged.tries) == 3
        assert max(t.took_ms for t in pinged.tries) < 1000 * (time.monotonic() - started_s)
    nobody = client.ping("192.0.2.200", count=2, timeout_s=0.1)
    assert (nobody.ok, nobody.answered) == (False, 0)


def test_programs_run_in_the_host_s_namespace(client: Host) -> None:
    ran = client.run(["sh", "-c", "cat; echo err >&2; exit 3"], stdin=b"in\xff", check=False)
    assert (ran.returncode, ran.stdout.encode(errors="surrogateescape"), ran.stderr) == (3, b"in\xff", "err\n")
    addresses = json.loads(client.run(["ip", "-j", "address", "show", "eth0"]).stdout)
    assert addresses[0]["address"] == "02:00:00:00:00:02"
    with pytest.raises(LabCommandFailed, match="exit code 1") as failure:
        client.run(["false"])
    assert failure.value.exit_code == 5
    with pytest.raises(LabHostRefused, match="No such file"):
        client.run(["no-such-program"])


def test_a_program_is_ended_after_its_time_with_all_it_started(client: Host) -> None:
    started_s = time.monotonic()
    ran = client.run(["sh", "-c", "echo begun; sleep 61 | sleep 61"], timeout_s=0.2, check=False)
    assert time.monotonic() - started_s < 30, "it waited for `sleep 61`"
    assert (ran.timed_out, ran.stdout) == (True, "begun\n")
    Deadline(30, "the end of all").wait_until(lambda: "sleep 61" not in client.run(["ps", "ax"]).stdout)


def test_what_a_program_leaves_in_the_background_does_not_delay_its_answer(client: Host) -> None:
    started_s = time.monotonic()
    assert client.run(["sh", "-c", "sleep 60 & echo done"]).stdout == "done\n"
    assert time.monotonic() - started_s < 30, "it waited for `sleep 60`"


def test_large_output_comes_whole(client: Host) -> None:
    ran = client.run(["sh", "-c", "seq 100000"])
    assert ran.stdout.splitlines()[-1] == "100000"


def test_a_link_that_was_down_comes_back_with_addresses_and_routes(lab: LabHosts, client: Host) -> None:
    host = lab.add(lab_hosts.spec("cable", 3, gateways=(V4, V6)))
    before = [host.run(["ip", v, "route"]).stdout for v in ("-4", "-6")]
    assert "default via" in before[0] and "default via" in before[1]
    host.link(up=False)
    assert not client.ping("192.0.2.3", timeout_s=0.1).ok
    host.link(up=True)
    assert client.ping("192.0.2.3").ok and client.ping("2001:db8::3").ok
    after = [host.run(["ip", v, "route"]).stdout for v in ("-4", "-6")]
    assert [sorted(t.splitlines()) for t in after] == [sorted(t.splitlines()) for t in before]
    with pytest.raises(LabHostRefused, match="no interface 1"):
        host.link(up=False, index=1)
    lab.remove("cable")


def test_a_removed_host_is_gone_and_its_name_and_address_are_free(lab: LabHosts, client: Host) -> None:
    lab.add(lab_hosts.spec("short", 4)).web(80)
    assert client.get("http://192.0.2.4/").ok
    with pytest.raises(LabHostRefused, match="there is a host short already"):
        lab.add(lab_hosts.spec("short", 4))
    assert client.get("http://192.0.2.4/").ok
    lab.remove("short")
    assert not client.ping("192.0.2.4", timeout_s=0.1).ok
    lab.add(lab_hosts.spec("short", 4))
    assert client.ping("192.0.2.4").ok
    lab.remove("short")
    with pytest.raises(LabHostRefused, match="there is no short"):
        lab.remove("short")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (HostSpec("odd", (HostInterface("lan", "02:00:00:00:00:0a", ("192.0.2.300/24",)),)), "192.0.2.300"),
        (
            HostSpec("odd", (HostInterface("lan", "02:00:00:00:00:0a", ()),), sysctls={"net.nonsense": "1"}),
            "net.nonsense",
        ),
        (HostSpec("odd", (HostInterface("lan", "03:00:00:00:00:0a", ()),)), "ip:"),
        (HostSpec("odd", (HostInterface("lan", "02:00:00:00:00:0a", ()),), gateways=("192.0.2.300",)), "ip:"),
        (HostSpec("Odd/..", (HostInterface("lan", "02:00:00:00:00:0a", ()),)), "not a host name"),
    ],
)
def test_a_host_that_cannot_be_made_leaves_nothing_behind(lab: LabHosts, bad: HostSpec, reason: str) -> None:
    with pytest.raises(LabHostRefused, match=reason):
        lab.add(bad)
    lab.add(lab_hosts.spec("odd", 10))
    lab.remove("odd")


@pytest.mark.parametrize("forwarding", [True, False])
def test_a_router_forwards_between_segments_and_others_do_not(lab: LabHosts, client: Host, forwarding: bool) -> None:
    cards = (
        HostInterface("lan", "02:00:00:00:01:01", ("192.0.2.254/24", "2001:db8::fe/64")),
        HostInterface("wan", "02:00:00:00:01:02", ("198.51.100.254/24", "2001:db8:1::fe/64")),
    )
    lab.add(HostSpec("router", cards, forwarding=forwarding))
    far = lab.add(lab_hosts.spec("far", 20, segment="wan", gateways=("198.51.100.254", "2001:db8:1::fe")))
    far.web(80)
    near = lab.add(
        lab_hosts.spec("near", 21, routes=(("198.51.100.0/24", "192.0.2.254"), ("2001:db8:1::/64", "2001:db8::fe")))
    )
    for url, seen in (("http://198.51.100.20/", "192.0.2.21"), ("http://[2001:db8:1::20]/", "2001:db8::21")):
        answer = near.get(url, timeout_s=3 if forwarding else 0.2)
        assert answer.ok is forwarding
        assert answer.seen.get("client") == (seen if forwarding else None)
    for name in ("router", "far", "near"):
        lab.remove(name)


def test_a_host_whose_process_dies_fails_its_requests_and_no_other(lab: LabHosts, client: Host) -> None:
    host = lab.add(lab_hosts.spec("mortal", 40))
    with pytest.raises(LabHostRefused, match="ended before it answered"):
        host.run(["sh", "-c", "kill -9 $PPID; sleep 5"])
    with pytest.raises(LabHostRefused, match="there is no host mortal"):
        host.run(["true"])
    assert client.run(["true"]).returncode == 0
    lab.add(lab_hosts.spec("mortal", 40))
    lab.remove("mortal")


def test_many_threads_get_their_own_answers_and_a_slow_host_delays_no_other(web: Host, client: Host) -> None:
    with ThreadPoolExecutor(12) as pool:
        slow = pool.submit(web.run, ["sleep", "1"])
        said = list(pool.map(lambda n: client.run(["echo", str(n)]).stdout, range(60)))
        assert not slow.done()
    assert said == [f"{n}\n" for n in range(60)]


def test_the_clocks_are_compared(lab: LabHosts) -> None:
    clock = lab.clock()
    assert clock.error_ms < 50
    assert abs(clock.offset_ms) <= 50  # the same machine, hence the same clock
    assert clock.theirs_ms(10.0) == pytest.approx(10_000, abs=50)


def test_a_second_caller_takes_over_and_finds_the_hosts(tmp_path: Path) -> None:
    with lab_hosts.running(tmp_path) as path:
        first = LabHosts.connect(path, segments=lab_hosts.SEGMENTS)
        first.add(lab_hosts.spec("one", 1))
        with LabHosts.connect(path, segments=lab_hosts.SEGMENTS) as second:
            with pytest.raises(LabHostLost):
                first.clock()
            with pytest.raises(LabHostRefused, match="there is a host one already"):
                second.add(lab_hosts.spec("one", 1))
            second.remove("one")
        first.close()


def test_rubbish_on_the_channel_does_not_disturb_it(tmp_path: Path) -> None:
    with lab_hosts.running(tmp_path) as path:
        Deadline(10, "the socket").wait_until(path.exists)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b'\n \n x\n1 - {\n2 - []\n3 - {}\n4 nobody {}\n\xff\xfe\n5 - {"do": "hello"}\n6 - {"do":')
            said = b""
            while said.count(b"\n") < 5:
                said += sock.recv(65536)
        answers = dict(line.split(b" ", 1) for line in said.splitlines())
        assert all("error" in json.loads(answers[n]) for n in (b"1", b"2", b"3", b"4"))
        assert json.loads(answers[b"5"])["result"]["protocol"] == 1
        with LabHosts.connect(path, segments={}) as lab:
            lab.clock()


def test_the_end_of_the_program_fails_what_is_under_way(tmp_path: Path) -> None:
    with lab_hosts.running(tmp_path) as path:
        lab = LabHosts.connect(path, segments=lab_hosts.SEGMENTS)
        host = lab.add(lab_hosts.spec("one", 1))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(host.run, ["sleep", "30"], timeout_s=60)
            lab.add(lab_hosts.spec("two", 2))
            lab._channel._sock.shutdown(socket.SHUT_RDWR)
            with pytest.raises(LabHostLost, match="cannot be reached any more"):
                waiting.result(10)
        with pytest.raises(LabHostLost):
            lab.clock()
        lab.close()


def test_a_lab_host_that_never_answers_is_given_up_in_time(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen()
        for name in ("silent", "missing"):
            started_s = time.monotonic()
            with pytest.raises(DeadlineExceeded, match="lab host to answer"):
                LabHosts.connect(tmp_path / name, segments={}, timeout_s=0.6)
            assert time.monotonic() - started_s < 30, "it waited as long as for a lab host that boots"


def test_clients_speak_tls_and_tell_what_was_agreed(web: Host, client: Host) -> None:
    made = certificate()
    server = web.web(0, name="tls", certificate=made)
    port = server.port
    sha256 = hashlib.sha256(ssl.PEM_cert_to_DER_cert(made[: made.index("-----BEGIN PRIVATE")])).hexdigest()
    for wish in (TlsWanted("shop.example"), TlsWanted(lowest="1.2", highest="1.2"), TlsWanted(alpn=("h2", "http/1.1"))):
        answer = client.get(f"https://{V4}:{port}/x", tls=wish)
        assert (answer.status, answer.server, answer.seen["path"]) == (200, "tls", "/x")
        assert answer.tls["sha256"] == sha256
        assert answer.tls["version"] == (wish.highest or "1.3")
    assert client.ask(f"tls://[{V6}]:{port}", lines=0).ok
    assert client.get(f"http://{V4}:{port}/").tls == {}
    loaded = client.load(f"https://{V4}:{port}/", 30, keep_alive=True)
    assert len(loaded.tries) == 30 and all(t.ok and t.server == "tls" for t in loaded.tries)
    assert any(t.reused for t in loaded.tries)
    with client.hold(f"https://{V4}:{port}/") as held:
        assert held.first.ok and held.again().status == 200 and held.again().tls == held.first.tls
    with client.poller(f"https://{V4}:{port}/", interval_s=0.05, timeout_s=2) as poller:
        time.sleep(0.4)
        polled = poller.read()
    assert polled.tries and all(t.ok for t in polled.tries)
    server.stop()


def test_a_handshake_that_fails_is_told_in_its_own_words(web: Host, client: Host) -> None:
    server = web.web(0, name="tls", certificate=certificate())
    plain = web.tcp(0, banner="hello")
    assert client.get(f"https://{V4}:{plain.port}/").error.startswith("tls: ")
    refused = client.ask(f"tls://{V4}:{server.port}", lines=0, tls=TlsWanted(lowest="1.0", highest="1.0"))
    assert refused.error.startswith("tls: "), refused
    for one in (server, plain):
        one.stop()
