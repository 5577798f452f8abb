"""What is made of measured tries: gaps, shares, SSH's words. No lab needed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndakit.lab.host import Answer, LabHostNotMade, LabImage, Load, Polled, SshProbe, Try, Watched, gaps, image
from ndakit.lab.host.request import http, target
from places import ROOT


def answered(start: float, took: float = 2.0, server: str = "web1") -> Try:
    return Try(start, start + took, start + 1, "", 200, server)


def failed(start: float, took: float = 250.0, error: str = "time-out") -> Try:
    return Try(start, start + took, None, error, 0, "")


def polled(*tries: Try) -> Polled:
    return Polled(tries, 0.02, 0.25, len(tries), 0, 0, 0.0, False)


def test_a_gap_counts_from_answer_to_answer_and_not_to_the_ends_of_failed_tries() -> None:
    measured = gaps([answered(0), failed(20), failed(40), failed(60), answered(80, server="web2")])
    assert len(measured) == 1
    gap = measured[0]
    assert (gap.begin_ms, gap.end_ms, gap.length_ms) == (2, 82, 80)
    assert (gap.at_least_ms, gap.failures, dict(gap.errors)) == (40, 3, {"time-out": 3})
    assert (gap.server_before, gap.server_after, gap.closed) == ("web1", "web2", True)


def test_answers_without_a_failure_between_them_are_no_gap_however_long_they_took() -> None:
    result = polled(answered(0), answered(20, took=400), answered(600))
    assert result.longest_gap is None
    assert result.gap_ms == 0


def test_a_gap_at_the_end_is_open_and_one_at_the_begin_counts_from_the_first_try() -> None:
    begin, end = gaps([failed(0), failed(20), answered(40), failed(60), failed(80)])
    assert (begin.begin_ms, begin.end_ms, begin.length_ms, begin.server_before) == (0, 42, 42, "")
    assert (end.begin_ms, end.closed, end.length_ms, end.server_after) == (42, False, 288, "")


def test_nothing_tried_and_nothing_answered() -> None:
    assert gaps([]) == ()
    assert [g.length_ms for g in gaps([failed(0), failed(20)])] == [270]


def test_the_longest_of_several_gaps_is_reported() -> None:
    tries = [answered(0), failed(20), answered(40), failed(60), failed(80), failed(100), answered(120), answered(140)]
    assert [g.length_ms for g in gaps(tries)] == [40, 80]
    assert polled(*tries).gap_ms == 80
    assert polled(*tries).answers_in_a_row() == 2


@given(
    outage=st.floats(1, 5000),
    begin=st.floats(100, 400),
    interval=st.sampled_from([5, 10, 20, 50]),
    latency=st.floats(0.1, 30),
    timeout=st.sampled_from([50, 250, 1000]),
)
def test_a_gap_is_never_shorter_than_the_outage_and_longer_by_no_more_than_the_resolution(
    outage: float, begin: float, interval: int, latency: float, timeout: int
) -> None:
    tries = []
    for n in range(int((begin + outage + 500) / interval)):
        start = float(n * interval)
        lost = start < begin + outage and start + latency > begin
        tries.append(failed(start, timeout) if lost else answered(start, latency))
    result = Polled(tuple(tries), interval / 1000, timeout / 1000, len(tries), 0, 0, 0.0, False)
    if result.longest_gap is None:  # an outage between two tries
        assert outage + latency <= interval
    else:
        assert outage <= result.gap_ms + 0.001
        assert result.gap_ms <= outage + result.resolution_ms + 0.001
        assert result.longest_gap.at_least_ms <= outage + latency


def test_a_late_measuring_machine_makes_the_resolution_worse() -> None:
    sound = polled(answered(0), answered(20))
    busy = Polled(sound.tries, 0.02, 0.25, 2, 0, 3, 70.0, False)
    assert sound.resolution_ms == 42
    assert busy.resolution_ms == 112
    assert (sound.disturbed, busy.disturbed) == ("", "")


def test_a_measuring_machine_that_was_too_busy_says_so() -> None:
    assert "126 ms late" in Polled((answered(0),), 0.02, 0.25, 1, 0, 6, 126.0, False).disturbed
    assert "after 1 tries" in Polled((answered(0),), 0.02, 0.25, 1, 0, 0, 1.0, True).disturbed


def test_a_load_is_shared_by_those_who_answered() -> None:
    load = Load((answered(0, 1), answered(0, 2, "web2"), answered(0, 3), failed(5, error="refused")))
    assert dict(load.share) == {"web1": 2, "web2": 1}
    assert dict(load.errors) == {"refused": 1}
    assert dict(load.statuses) == {200: 3, 0: 1}


def test_an_answer_of_something_else_has_seen_nothing() -> None:
    page = Answer(answered(0), (("Content-Type", "text/html"),), "<h1>Sorry</h1>", ("192.0.2.2", 4000))
    assert page.seen == {}
    assert page.seen_header("x-forwarded-for") is None
    assert page.header("content-type") == "text/html"


VERBOSE = """OpenSSH_10.0p2 Debian-7, OpenSSL 3.5.1 1 Jul 2025
debug1: Connecting to 192.0.2.1 [192.0.2.1] port 22.
debug1: Connection established.
debug1: Local version string SSH-2.0-OpenSSH_10.0p2 Debian-7
debug1: Remote protocol version 2.0, remote software version dropbear_2025.88
debug1: compat_banner: no match: dropbear_2025.88
Warning: Permanently added '192.0.2.1' (ED25519) to the list of known hosts.
debug1: Authentications that can continue: publickey,password
debug1: No more authentication methods to try.
root@192.0.2.1: Permission denied (publickey,password).
"""


def test_ssh_s_words_become_banner_and_methods() -> None:
    probe = SshProbe.of(VERBOSE.replace("\n", "\r\n"))
    assert probe.banner == "SSH-2.0-dropbear_2025.88"
    assert probe.methods == ("publickey", "password")
    assert probe.error == "root@192.0.2.1: Permission denied (publickey,password)."
    assert not probe.open_door


def test_an_ssh_server_that_lets_anybody_in_is_noticed() -> None:
    probe = SshProbe.of(
        VERBOSE.split("debug1: Auth")[0] + 'Authenticated to 192.0.2.1 ([192.0.2.1]:22) using "none".\n'
    )
    assert probe.open_door
    assert probe.error == ""


def test_no_ssh_server_is_no_banner() -> None:
    probe = SshProbe.of("OpenSSH_10.0\nssh: connect to host 192.0.2.1 port 22: Connection refused\n")
    assert (probe.banner, probe.methods) == ("", ())
    assert "refused" in probe.error


def test_requests_name_their_host_and_close_unless_told_otherwise() -> None:
    plain = http("http://[2001:db8::1]:8080/a?b=c", "GET", {}, b"", None, "")
    assert (plain["address"], plain["port"], plain["path"]) == ("2001:db8::1", 8080, "/a?b=c")
    assert plain["headers"] == [("Host", "[2001:db8::1]:8080"), ("Connection", "close")]
    named = http("http://shop.example/", "GET", {"connection": "keep-alive"}, b"", "192.0.2.10", "192.0.2.2")
    assert (named["address"], named["source"]) == ("192.0.2.10", "192.0.2.2")
    assert named["headers"] == [("Host", "shop.example"), ("connection", "keep-alive")]


@pytest.mark.parametrize("url", ["gopher://192.0.2.1/", "http:///", "ftp://192.0.2.1", "http://shop.example/"])
def test_urls_that_cannot_be_asked_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"http|address"):
        http(url, "GET", {}, b"", None, "")


def test_a_target_without_an_address_is_refused() -> None:
    with pytest.raises(ValueError, match="tcp://"):
        target("tcp://", "")


def wire() -> ModuleType:
    path = ROOT / "lab/host/guest/wire.py"
    spec = importlib.util.spec_from_file_location("lab_host_wire", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WIRE = wire()
ANSWERS = {
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc": (200, b"abc", True),
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\nConnection: close\r\n\r\n": (
        200,
        b"",
        False,
    ),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nA: b\r\n\r\n": (
        200,
        b"abcde",
        True,
    ),
    b"HTTP/1.1 204 No Content\r\n\r\n": (204, b"", True),
    b"HTTP/1.0 503 Service Unavailable\r\nConnection: close\r\n\r\n<h1>Sorry</h1>": (503, b"<h1>Sorry</h1>", False),
}


@pytest.mark.parametrize("data", ANSWERS)
@pytest.mark.parametrize("step", [1, 7, 4096])
def test_http_answers_are_read_however_they_are_cut(data: bytes, step: int) -> None:
    status, body, alive = ANSWERS[data]
    message = WIRE.Message(response=True)
    for at in range(0, len(data), step):
        message.feed(data[at : at + step])
    if not message.complete:
        message.end()
    assert (message.status, bytes(message.body), message.keeps_alive) == (status, body, alive)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-dropbear\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-",
        b"",
        b"x" * 70000,
    ],
)
def test_what_is_no_whole_http_answer_is_malformed(data: bytes) -> None:
    message = WIRE.Message(response=True)
    with pytest.raises(WIRE.Malformed):  # either of the two notices
        message.feed(data)
        message.end()


def test_two_requests_in_one_piece_are_told_apart() -> None:
    message = WIRE.Message(response=False)
    message.feed(b"POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\nhiGET /b HTTP/1.1\r\n\r\n")
    assert message.complete
    assert (message.start, bytes(message.body)) == ("POST /a HTTP/1.1", b"hi")
    assert message.rest == b"GET /b HTTP/1.1\r\n\r\n"


def test_an_image_that_cannot_be_made_here_is_this_machine_s_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LabHostNotMade, match="cache cannot be written") as failure:
        image.build(ROOT / "lab", tmp_path / "file" / "cache")
    assert failure.value.exit_code == 3
    assert "XDG_CACHE_HOME" in failure.value.fix


def test_a_machine_of_the_image_has_a_control_port_and_never_writes_its_root() -> None:
    made = LabImage(Path("/c/kernel"), Path("/c/initrd"), Path("/c/root"))
    spec = made.machine("lab", ())
    assert spec.agent_serial
    assert spec.disks[0].read_only
    assert "clearcpuid=cx16" in spec.append


def watched(asked: tuple[float, float] | None, connected: tuple[float, float] | None) -> Watched:
    """Requests every 50 ms and connections every 10 ms; each fails from one moment (ms) to another."""

    def tries(interval: int, lost: tuple[float, float] | None) -> Polled:
        made = []
        for start in range(0, 2000, interval):
            bad = lost is not None and lost[0] <= start < lost[1]
            made.append(failed(start) if bad else answered(start))
        return Polled(tuple(made), interval / 1000, 0.25, len(made), 0, 0, 0.0, False)

    return Watched(tries(50, asked), tries(10, connected))


def test_connections_say_how_long_a_gap_was_when_requests_agree() -> None:
    seen = watched((205, 905), (205, 905))
    assert seen.decisive is seen.connected
    assert seen.longest_gap is not None
    assert seen.longest_gap.at_least_ms <= 700 <= seen.gap_ms <= seen.longest_gap.at_least_ms + 2 * 10 + 2
    assert seen.answered_again(10)


@pytest.mark.parametrize("connected", [(205, 905), (205, 255), None])
def test_a_gap_is_as_long_as_requests_went_unanswered_even_when_connections_came_about(
    connected: tuple[float, float] | None,
) -> None:
    seen = watched((205, 1405), connected)
    assert seen.decisive is seen.asked
    assert 1200 <= seen.gap_ms <= 1200 + seen.resolution_ms


def test_requests_that_fail_now_and_then_are_a_gap_though_every_connection_came_about() -> None:
    assert watched((205, 255), None).gap_ms == 100
    assert watched(None, None).gap_ms == 0
    assert watched(None, (205, 905)).gap_ms >= 700


def test_a_service_answers_again_when_requests_and_connections_do() -> None:
    assert not watched(None, None).answered_again(10), "there was no gap"
    assert not watched((205, 1900), (205, 905)).answered_again(10)
    assert not watched((205, 905), (205, 1950)).answered_again(10)
    assert watched((205, 905), None).answered_again(10)
    one = Watched(watched((205, 905), None).asked)
    assert (one.answered_again(10), one.decisive) == (True, one.asked)


def test_a_gap_that_is_not_over_is_told_from_one_that_is() -> None:
    assert not watched((205, 905), (205, 905)).silent
    assert watched((205, 905), (205, 2000)).silent
    assert watched((205, 2000), (205, 905)).silent
    assert not watched(None, None).silent
