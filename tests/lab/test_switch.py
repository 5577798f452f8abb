"""The lab's switch: delivery, faults, counters, capture, and what it tells about VRRP."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ndakit.lab.frames import VrrpAdvert, decode_vrrp, protocol_name, protocol_of
from ndakit.lab.pcap import PcapWriter
from ndakit.lab.switch import Flow, Frame, Switch
from wire import BROADCAST, Guest, frame, mac


@pytest.fixture
def switch() -> Iterator[Switch]:
    with Switch() as made:
        yield made


@pytest.fixture
def guests(switch: Switch) -> Iterator[list[Guest]]:
    with contextlib.ExitStack() as stack:
        made = [Guest(switch.port("lan", name)) for name in ("a", "b", "c")]
        for guest in made:
            stack.callback(guest.wire.close)
        yield made


def settle(switch: Switch) -> None:
    """Wait until the switch has taken what was sent: a command runs behind the frames of one round."""
    for _ in range(3):
        switch.ports()
        time.sleep(0.005)


def test_a_frame_floods_until_its_destination_was_seen_and_then_goes_only_there(guests: list[Guest]) -> None:
    a, b, c = guests
    first = frame(mac(2), mac(1))
    a.send(first)
    assert b.receive() == first and c.receive() == first
    b.send(frame(mac(1), mac(2)))
    assert a.receive()[6:12] == mac(2) and c.silent()
    a.send(first)
    assert b.receive() == first and c.silent() and a.silent()


def test_a_station_that_moves_is_found_at_its_new_port(guests: list[Guest]) -> None:
    a, b, c = guests
    a.send(frame(BROADCAST, mac(9)))
    assert b.receive() and c.receive()
    b.send(frame(BROADCAST, mac(9)))  # the address moves, as a VIP's does
    assert a.receive() and c.receive()
    c.send(frame(mac(9), mac(3)))
    assert b.receive() and a.silent()


def test_a_station_is_looked_for_everywhere_once_its_port_has_lost_its_link(guests: list[Guest]) -> None:
    a, b, c = guests
    a.send(frame(BROADCAST, mac(9)))
    assert b.receive() and c.receive()
    c.send(frame(mac(9), mac(3)))
    assert a.receive() and b.silent()
    a.port.carrier(False)  # as the card of a bond; the other one may have sent nothing yet
    c.send(frame(mac(9), mac(3)))
    assert b.receive()


def test_segments_do_not_hear_each_other(switch: Switch, guests: list[Guest]) -> None:
    other = Guest(switch.port("wan", "d"))
    guests[0].send(frame(BROADCAST, mac(1)))
    assert guests[1].receive() and other.silent()
    other.wire.close()


def test_vlan_tags_pass_unchanged_and_learning_is_per_vlan(guests: list[Guest]) -> None:
    a, b, c = guests
    tagged = frame(BROADCAST, mac(1), b"\x00\x0a\x08\x06" + bytes(42), b"\x81\x00")
    a.send(tagged)
    assert b.receive() == tagged and c.receive() == tagged
    b.send(frame(mac(1), mac(2)))  # untagged: mac(1) was not seen there
    assert a.receive() and c.receive()


def test_a_cut_port_takes_and_gets_nothing_and_says_how_much(switch: Switch, guests: list[Guest]) -> None:
    a, b, c = guests
    switch.cut(b.port)
    a.send(frame(BROADCAST, mac(1)))
    b.send(frame(BROADCAST, mac(2)))
    assert c.receive()[6:12] == mac(1) and b.silent() and a.silent()
    assert switch.counters(b.port).drops == {"cut": 2}
    switch.heal(b.port)
    a.send(frame(BROADCAST, mac(1)))
    assert b.receive()


def test_a_block_holds_in_one_direction_only(switch: Switch, guests: list[Guest]) -> None:
    a, b, c = guests
    switch.block(a.port, b.port)
    a.send(frame(BROADCAST, mac(1)))
    assert c.receive() and b.silent()
    b.send(frame(BROADCAST, mac(2)))
    assert a.receive() and c.receive()
    assert switch.counters(b.port).drops == {"blocked": 1}
    switch.unblock(a.port, b.port)
    a.send(frame(BROADCAST, mac(1)))
    assert b.receive()


def test_a_delayed_port_gets_its_frames_later_in_order_and_the_others_at_once(
    switch: Switch, guests: list[Guest]
) -> None:
    a, b, c = guests
    switch.delay(b.port, 800)
    started_s = time.monotonic()
    for number in range(5):
        a.send(frame(BROADCAST, mac(1), bytes([number]) * 46))
    assert c.receive() and time.monotonic() - started_s < 0.7
    assert [b.receive()[14] for _ in range(5)] == [0, 1, 2, 3, 4]
    assert time.monotonic() - started_s > 0.79


def test_no_frame_is_lost_without_being_counted(switch: Switch, guests: list[Guest]) -> None:
    a, b, _ = guests
    switch.cut(guests[2].port)
    sent = 2000
    for _ in range(sent):
        a.send(frame(BROADCAST, mac(1)))
    time.sleep(0.4)  # b reads nothing: its socket and its queue fill, and what waits too long is dropped
    received = 0
    while not b.silent():
        received += 1
    counters = switch.counters(b.port)
    assert switch.counters(a.port).in_frames == sent
    assert counters.out_frames == received and 0 < received < sent
    assert received + counters.drops["queue-full"] == sent


def test_a_machine_that_was_frozen_gets_no_old_frames_beyond_its_socket(switch: Switch, guests: list[Guest]) -> None:
    a, b, _ = guests
    for number in range(200):
        a.send(frame(BROADCAST, mac(1), bytes([number]) * 46))
    time.sleep(0.4)
    old = 0
    while not b.silent():
        old += 1
    assert old < 30  # the kernel's own queue (net.unix.max_dgram_qlen)
    a.send(frame(BROADCAST, mac(1)))
    assert b.receive()


def test_an_absent_machine_is_counted_and_found_again_when_it_is_back(switch: Switch, guests: list[Guest]) -> None:
    a, b, _ = guests
    b.wire.close()
    a.send(frame(BROADCAST, mac(1)))
    settle(switch)
    assert switch.counters(b.port).drops == {"absent": 1}
    b.port.guest_path.unlink()
    back = Guest(b.port)
    a.send(frame(BROADCAST, mac(1)))
    assert back.receive()
    back.wire.close()


def test_counters_tell_who_sent_what(switch: Switch, guests: list[Guest]) -> None:
    a, b, _ = guests
    tcp = b"\x45" + bytes(8) + b"\x06" + bytes(36)
    a.send(frame(BROADCAST, mac(1), kind=b"\x08\x06"))
    a.send(frame(mac(2), mac(1), tcp, kind=b"\x08\x00"))
    a.send(b"runt")
    assert b.receive() and b.receive()
    settle(switch)
    counters = switch.counters(a.port)
    ours = "52:54:00:00:00:01"
    assert counters.flows == {Flow(ours, "in", "arp"): 1, Flow(ours, "in", "ipv4/tcp"): 1}
    assert (counters.in_frames, counters.in_bytes, counters.drops) == (3, 60 + 60 + 4, {"runt": 1})
    assert switch.counters(b.port).flows[Flow("52:54:00:00:00:02", "out", "ipv4/tcp")] == 1


def test_observers_see_each_frame_once_with_the_time_it_came(switch: Switch, guests: list[Guest]) -> None:
    seen: list[Frame] = []
    before_s = time.monotonic()
    with switch.on_frame(seen.append, segment="lan"):
        guests[0].send(frame(BROADCAST, mac(1)))
        assert guests[1].receive()
        switch.inject("wan", frame(BROADCAST, mac(8)))
    assert [(f.segment, f.port, f.data[6:12]) for f in seen] == [("lan", "a", mac(1))]
    assert before_s <= seen[0].time_s <= time.monotonic()
    guests[0].send(frame(BROADCAST, mac(1)))
    assert guests[1].receive() and len(seen) == 1


def test_an_observer_that_fails_stops_no_frame_and_its_failure_is_raised(switch: Switch, guests: list[Guest]) -> None:
    def fail(_: Frame) -> None:
        raise RuntimeError("mine")

    observation = switch.on_frame(fail)
    guests[0].send(frame(BROADCAST, mac(1)))
    assert guests[1].receive()
    with pytest.raises(RuntimeError, match="mine"):
        observation.end()


def test_an_injected_frame_reaches_the_whole_segment(switch: Switch, guests: list[Guest]) -> None:
    switch.inject("lan", frame(BROADCAST, mac(7)))
    assert all(guest.receive()[6:12] == mac(7) for guest in guests)


def test_a_capture_holds_the_frames_of_its_segment_and_appears_complete(
    switch: Switch, guests: list[Guest], tmp_path: Path
) -> None:
    path = tmp_path / "lan.pcap"
    sent = [frame(BROADCAST, mac(n), bytes([n]) * (46 + n)) for n in (1, 2, 3)]
    with switch.capture("lan", path):
        for data in sent:
            guests[0].send(data)
            assert guests[1].receive()
        assert not path.exists()
    data = path.read_bytes()
    magic, major, minor, _, _, limit, link = struct.unpack_from("=IHHiIII", data)
    assert (magic, major, minor, limit, link) == (0xA1B23C4D, 2, 4, 65535, 1)
    at, captured = 24, []
    while at < len(data):
        seconds, nanoseconds, kept, length = struct.unpack_from("=IIII", data, at)
        assert abs(seconds + nanoseconds / 1e9 - time.time()) < 5 and kept == length
        captured.append(data[at + 16 : at + 16 + kept])
        at += 16 + kept
    assert captured == sent


def test_a_capture_that_is_interrupted_keeps_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(KeyError), PcapWriter(tmp_path / "x.pcap") as writer:
        writer.write(time.monotonic(), bytes(60))
        raise KeyError
    assert (tmp_path / "x.pcap").stat().st_size == 24 + 16 + 60


def test_a_port_name_is_given_once_and_a_closed_switch_refuses(switch: Switch) -> None:
    switch.port("lan", "a")
    with pytest.raises(ValueError, match="has a port a already"):
        switch.port("wan", "a")
    with Switch() as closed:
        pass
    with pytest.raises(ValueError, match="not open"):
        closed.ports()


def test_two_switches_at_once_and_short_private_paths(switch: Switch) -> None:
    with Switch() as other:
        paths = {switch.port("lan", "a").guest_path, other.port("lan", "a").guest_path}
        assert len(paths) == 2
        for path in paths:
            assert len(os.fsencode(path)) < 100
            assert path.parent.stat().st_mode & 0o077 == 0
        folder = other.port("lan", "b").switch_path.parent
    assert not folder.exists()


def test_the_folder_of_a_killed_switch_is_swept_by_a_later_run() -> None:
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from ndakit.lab.switch import Switch\nimport time\n"
            "with Switch() as s: print(s.port('lan', 'a').switch_path, flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    folder = Path(child.stdout.readline().strip()).parent
    assert folder.is_dir()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    os.utime(folder, (time.time() - 60, time.time() - 60))
    with Switch():
        assert not folder.exists()


# -- what lies in frames -----------------------------------------------------------------------------------------------


def ipv4(source: str, destination: str, body: bytes, protocol: int = 112) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 255, protocol, 0)
    return head + ip_address(source).packed + ip_address(destination).packed + body


def ipv6(source: str, destination: str, body: bytes, first: int = 112) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(body), first, 255)
    return head + ip_address(source).packed + ip_address(destination).packed + body


def test_vrrp_version_2_is_decoded() -> None:
    body = bytes([0x21, 51, 150, 1, 0, 2, 0, 0]) + ip_address("192.0.2.10").packed + bytes(8)
    advert = decode_vrrp(frame(mac(9), mac(1), ipv4("192.0.2.1", "224.0.0.18", body), b"\x08\x00"))
    assert advert == VrrpAdvert(
        source_mac="52:54:00:00:00:01",
        source=ip_address("192.0.2.1"),
        destination=ip_address("224.0.0.18"),
        vlan=0,
        ttl=255,
        version=2,
        vrid=51,
        priority=150,
        interval_s=2.0,
        addresses=(ip_address("192.0.2.10"),),
    )


def test_vrrp_version_3_is_decoded_for_both_families_with_tags_and_extension_headers() -> None:
    body = bytes([0x31, 7, 0, 2, 0x00, 10, 0, 0])
    four = body + ip_address("192.0.2.10").packed + ip_address("192.0.2.11").packed
    tagged = frame(mac(9), mac(1), b"\x00\x2a\x08\x00" + ipv4("192.0.2.1", "192.0.2.2", four), b"\x81\x00")
    advert = decode_vrrp(tagged)
    assert advert is not None
    assert (advert.version, advert.vrid, advert.priority, advert.vlan, advert.interval_s) == (3, 7, 0, 42, 0.1)
    assert [str(a) for a in advert.addresses] == ["192.0.2.10", "192.0.2.11"]
    six = body[:3] + b"\x01" + body[4:] + ip_address("2001:db8::10").packed
    for packet in (ipv6("fe80::1", "ff02::12", six), ipv6("fe80::1", "ff02::12", b"\x70\0" + bytes(6) + six, 0)):
        advert = decode_vrrp(frame(mac(9), mac(1), packet, b"\x86\xdd"))
        assert advert is not None
        assert (str(advert.source), [str(a) for a in advert.addresses]) == ("fe80::1", ["2001:db8::10"])


def test_other_traffic_is_no_vrrp() -> None:
    assert decode_vrrp(frame(mac(9), mac(1), ipv4("192.0.2.1", "192.0.2.2", bytes(20), 6), b"\x08\x00")) is None
    assert decode_vrrp(frame(mac(9), mac(1), ipv4("192.0.2.1", "192.0.2.2", bytes(20)), b"\x08\x00")) is None
    assert decode_vrrp(frame(mac(9), mac(1), kind=b"\x08\x06")) is None


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x81\x00", b"\x88\xa8", b"\x08\x06"]),
    st.binary(max_size=120),
)
def test_no_frame_can_upset_the_decoders(kind: bytes, payload: bytes) -> None:
    data = mac(2) + mac(1) + kind + payload
    decode_vrrp(data)
    protocol_name(*protocol_of(data))


def test_vrrp_cut_short_anywhere_is_not_decoded_wrongly() -> None:
    body = bytes([0x31, 7, 100, 1, 0, 100, 0, 0]) + ip_address("192.0.2.10").packed
    whole = frame(mac(9), mac(1), ipv4("192.0.2.1", "224.0.0.18", body), b"\x08\x00")
    assert decode_vrrp(whole) is not None
    assert all(decode_vrrp(whole[:length]) is None for length in range(len(whole)))
