"""The poller against outages of known length: the figure that failover is judged by."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import lab_hosts
from ndakit.core.deadline import Deadline
from ndakit.lab.host import Host, LabHosts, Polled

OUTAGE_S = 0.6
_SILENCE = b"table netdev silence {\n chain c {\n type filter hook ingress device eth0 priority 0\n drop\n }\n}\n"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHosts]:
    with lab_hosts.lab(tmp_path_factory.mktemp("lab")) as hosts:
        hosts.add(lab_hosts.spec("web", 1)).web(80)
        hosts.hosts["web"].tcp(7000)
        hosts.add(lab_hosts.spec("client", 2))
        yield hosts


def outage(lab: LabHosts, url: str, *, interval_s: float, forget: bool = False) -> tuple[Polled, float, float]:
    """Poll while the server hears nothing for OUTAGE_S; what was found, and the outage's bounds in milliseconds."""
    web, client = lab.hosts["web"], lab.hosts["client"]
    with client.poller(url, interval_s=interval_s, lines=1 if url.startswith("tcp") else 0) as poller:
        poller.wait_until(lambda p: p.answers_in_a_row() >= 5, Deadline(5, "answers"))
        before_s = time.monotonic()
        web.run(["nft", "-f", "-"], stdin=_SILENCE)
        silent_s = time.monotonic()
        if forget:
            client.run(["ip", "neigh", "flush", "all"])
        time.sleep(max(0.0, silent_s + OUTAGE_S - time.monotonic()))
        still_s = time.monotonic()
        web.run(["nft", "delete", "table", "netdev", "silence"])
        after_s = time.monotonic()
        poller.wait_until(lambda p: p.answers_in_a_row() >= 5, Deadline(5, "answers again"))
    return poller.read(), 1000 * (still_s - silent_s), 1000 * (after_s - before_s)


@pytest.mark.parametrize(
    ("url", "interval_s"),
    [
        ("http://192.0.2.1/", 0.02),
        ("http://[2001:db8::1]/", 0.01),
        ("tcp://192.0.2.1:7000", 0.02),
        ("icmp://[2001:db8::1]", 0.005),
    ],
)
def test_a_gap_is_as_long_as_the_outage_within_the_resolution(lab: LabHosts, url: str, interval_s: float) -> None:
    result, at_least_ms, at_most_ms = outage(lab, url, interval_s=interval_s)
    gap = result.longest_gap
    assert gap is not None
    assert gap.closed
    assert at_least_ms <= gap.length_ms <= at_most_ms + result.resolution_ms
    assert gap.at_least_ms <= at_most_ms
    # Shorter than two time-outs (250 ms) more than the outage: the client's own patience is not in it.
    assert gap.length_ms < at_most_ms + result.late_ms + 200
    assert set(gap.errors) <= {"time-out", "time-out after connecting"}


def test_a_forgotten_neighbour_does_not_lengthen_the_gap_by_a_second(lab: LabHosts) -> None:
    result, _, at_most_ms = outage(lab, "http://192.0.2.1/", interval_s=0.02, forget=True)
    # Neighbours are asked for every 20 ms here; as usual (1000 ms) the gap would end up to a second late.
    assert result.gap_ms <= at_most_ms + result.resolution_ms + 40


def test_the_usual_neighbour_retry_would_be_noticed(lab: LabHosts) -> None:
    client = lab.hosts["client"]
    client.run(["ip", "ntable", "change", "name", "arp_cache", "dev", "eth0", "retrans", "1000"])
    try:
        result, _, at_most_ms = outage(lab, "http://192.0.2.1/", interval_s=0.02, forget=True)
    finally:
        client.run(["ip", "ntable", "change", "name", "arp_cache", "dev", "eth0", "retrans", "20"])
    assert result.gap_ms > at_most_ms + result.resolution_ms + 40


def test_refusals_and_wrong_statuses_are_failures_and_hanging_servers_time_out(lab: LabHosts) -> None:
    server = lab.hosts["web"].web(81)
    with lab.hosts["client"].poller("http://192.0.2.1:81/", interval_s=0.01, timeout_s=0.1) as poller:
        for change, word in (("refuse", "refused"), ("hang", "time-out after connecting"), ("reset", "reset")):
            poller.wait_until(lambda p: p.answers_in_a_row() >= 3, Deadline(5, "answers"))
            server.set(mode=change)  # type: ignore[arg-type]  # the three are modes
            poller.wait_until(lambda p, word=word: p.errors[word] >= 3, Deadline(5, word))  # type: ignore[misc]  # bound
            server.set(mode="answer")
        poller.wait_until(lambda p: p.answers_in_a_row() >= 3, Deadline(5, "answers"))
        server.set(status=503)
        poller.wait_until(lambda p: p.errors["status 503"] >= 3, Deadline(5, "503"))
        result = poller.stop()
    assert len([g for g in result.gaps() if g.length_ms > 30]) == 4
    longest = result.gaps()[-1]
    assert not longest.closed
    assert set(result.servers) == {"web"}
    server.stop()


def test_every_try_starts_on_time_however_long_the_others_wait(lab: LabHosts) -> None:
    with lab.hosts["client"].poller("http://192.0.2.99/", interval_s=0.02, timeout_s=0.25) as poller:
        time.sleep(1.0)
        result = poller.stop()
    starts = sorted(t.started_ms for t in result.tries)
    steps = [b - a for a, b in itertools.pairwise(starts)]
    # One after the other there would be four. A machine busy with other tests leaves beats out, and says so.
    assert len(result.tries) >= 20
    assert len(result.tries) + result.skipped == pytest.approx((starts[-1] - starts[0]) / 20, abs=4)
    assert sorted(steps)[len(steps) // 2] == pytest.approx(20, abs=2)
    assert all(240 < t.took_ms < 1000 + result.late_ms or t.error == "unreachable" for t in result.tries)
    assert not result.servers


def test_a_poller_is_not_held_up_by_a_load_on_the_same_host(lab: LabHosts) -> None:
    client: Host = lab.hosts["client"]
    with client.poller("http://192.0.2.1/", interval_s=0.02) as poller:
        time.sleep(1.0)
        before = poller.stop()  # how late it is because of what else runs on this machine
    with client.poller("http://192.0.2.1/", interval_s=0.02) as poller:
        load = client.load("http://192.0.2.1/", 3000, at_once=32)
        assert load.share.total() == 3000
        result = poller.stop()
    assert result.longest_gap is None
    assert result.late_ms < 100 + 3 * before.late_ms


def test_a_stopped_poller_s_process_is_gone_and_its_result_stays(lab: LabHosts) -> None:
    client = lab.hosts["client"]
    processes = client.run(["sh", "-c", "ps ax | grep -c 'guest --listen'"]).stdout
    with client.poller("icmp://192.0.2.1") as poller:
        assert poller.wait_until(lambda p: len(p.tries) >= 3, Deadline(5, "tries")).errors.total() == 0
    assert poller.read() == poller.stop()
    assert poller.read().under_way == 0
    assert client.run(["sh", "-c", "ps ax | grep -c 'guest --listen'"]).stdout == processes


def test_a_failure_while_polling_is_not_hidden_by_a_lab_that_is_gone(tmp_path: Path) -> None:
    with lab_hosts.running(tmp_path) as path:
        lab = LabHosts.connect(path, segments=lab_hosts.SEGMENTS)
        client = lab.add(lab_hosts.spec("client", 2))
        with pytest.raises(ZeroDivisionError), client.poller("icmp://192.0.2.1"):
            lab.close()
            raise ZeroDivisionError
