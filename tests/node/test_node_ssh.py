"""SSH to a balancer, against Debian's dropbear and OpenSSH's sshd with BusyBox behind them."""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndakit.node import files, ssh, ssh_options
from ndakit.node import keys as node_keys
from ndakit.node.errors import (
    AddressUnknown,
    AnybodyGetsIn,
    ChecksumMismatch,
    CommandTimeout,
    ConnectionLost,
    FingerprintMalformed,
    HostKeyChanged,
    HostKeyNotTheOne,
    HostKeyUnknown,
    JumpHostFailed,
    KeyMissing,
    KeyNotAccepted,
    KeyUnusable,
    NodeRefused,
    NodeSilent,
    OldAlgorithmsOnly,
    OutputTooLarge,
    PinsUnreadable,
    RemoteDiskFull,
    RemoteFileFailed,
)
from ndakit.node.host_keys import Pins
from ndakit.node.ssh import Ssh
from ndakit.node.ssh_options import Target, TargetMalformed
from ssh_servers import SshServer, Wire, keygen, server

BYTES = bytes(range(256)) * 3 + "Grüße\n".encode()


@pytest.fixture(scope="module", params=["dropbear", "sshd"])
def box(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with server(request.param, tmp_path_factory.mktemp("ssh") / request.param) as running:
        keygen(running.folder / "me")
        running.allow((running.folder / "me.pub").read_text().strip())
        yield running


@pytest.fixture(scope="module")
def dropbear(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """One server for what concerns this side alone."""
    with server("dropbear", tmp_path_factory.mktemp("one") / "dropbear") as running:
        keygen(running.folder / "me")
        running.allow((running.folder / "me.pub").read_text().strip())
        yield running


def target(port: int, address: str = "127.0.0.1", **changes: object) -> Target:
    return Target("shop", "lb1", address, port=port, **changes)  # type: ignore[arg-type]


def pinned(box: SshServer, path: Path) -> Pins:
    pins = Pins(path / "pins" / "lb1", "shop.lb1")
    pins.write(list(box.host_keys.values()))
    return pins


def my_keys(box: SshServer, name: str = "me") -> node_keys.Keys:
    return node_keys.given(box.folder / name, {"me": (box.folder / f"{name}.pub").read_text()})


@pytest.fixture
def on(box: SshServer, tmp_path: Path) -> Iterator[Ssh]:
    """A connection to the box."""
    with Ssh(target(box.port), pinned(box, tmp_path), my_keys(box)) as opened:
        yield opened


# -- commands ----------------------------------------------------------------------------------------------------------


def test_a_command_brings_its_exit_code_and_both_outputs_byte_for_byte(on: Ssh, box: SshServer) -> None:
    (box.home / "bytes").write_bytes(BYTES)
    ran = on.run("cat bytes; cat bytes bytes >&2; exit 7")
    assert (ran.rc, ran.stdout_bytes, ran.stderr_bytes) == (7, BYTES, BYTES * 2)
    assert on.run("").rc == 0


def test_exit_code_255_is_the_commands_own_and_no_failure_of_ssh(on: Ssh) -> None:
    assert on.run("exit 255").rc == 255
    assert on.run("kill -9 $$").rc == 137


def test_words_arrive_as_they_are(on: Ssh) -> None:
    words = ["'; touch pwned; '", "$(touch pwned)", "`id`", "*", "a\nb", "", "-n", "\\0", "ü", "%s"]
    command = ["printf", "<%s>\\n", *words]
    ran = on.run(command)
    assert ran.stdout == "".join(f"<{word}>\n" for word in words)
    assert on.run("test -e pwned").rc == 1


def test_a_nul_in_a_command_is_refused_before_anything_is_sent(on: Ssh) -> None:
    with pytest.raises(ValueError, match="NUL"):
        on.run("echo \0")


def test_the_commands_stdin_is_empty(on: Ssh) -> None:
    assert on.run("cat; echo end", 5).stdout == "end\n"


def test_commands_share_one_connection(box: SshServer, tmp_path: Path) -> None:
    with Wire(box.port) as wire, Ssh(target(wire.port), pinned(box, tmp_path), my_keys(box)) as opened:
        for number in range(5):
            assert opened.run(["echo", str(number)]).stdout == f"{number}\n"
        opened.put(b"x", f"{box.home}/x")
        assert wire.connections == 1


def test_a_command_that_takes_too_long_is_ended_there_with_what_it_started(
    on: Ssh, box: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "_GRACE_S", 0.2)
    mark = f"7{os.getpid()}{time.monotonic_ns() % 10**6}"
    with pytest.raises(CommandTimeout, match=r"was killed; it had said:\n.*working") as caught:
        on.run(f"echo working; (sleep {mark} & sleep {mark}); sleep {mark}", 0.5)
    assert caught.value.ended
    assert box.processes(f"sleep {mark}") == []
    assert on.run("echo alive").stdout == "alive\n"


def test_what_a_command_leaves_behind_does_not_make_it_a_failure(on: Ssh, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps the connection's ends open, so that ssh waits; the command's own end is known all the same."""
    monkeypatch.setattr(ssh, "_GRACE_S", 0.2)
    begun_s = time.monotonic()
    ran = on.run("sleep 600 & echo started; exit 3", 1)
    assert (ran.rc, ran.stdout) == (3, "started\n")
    assert time.monotonic() - begun_s < 60


def test_output_beyond_the_limit_ends_the_command(on: Ssh, box: SshServer) -> None:
    with pytest.raises(OutputTooLarge, match="wrote more than 100000 bytes"):
        on.run("yes 0123456789-far-too-much", output_max_bytes=100_000)
    assert box.processes("yes 0123456789-far-too-much") == []
    assert len(on.run("head -c 100000 /dev/zero", output_max_bytes=100_000).stdout_bytes) == 100_000


def test_a_connection_that_dies_in_a_command_says_that_the_outcome_is_unknown(box: SshServer, tmp_path: Path) -> None:
    with Wire(box.port) as wire, Ssh(target(wire.port), pinned(box, tmp_path), my_keys(box)) as opened:
        with pytest.raises(ConnectionLost, match="it had begun; whether it ended, and with what, is unknown") as caught:
            opened.stream("echo one; sleep 20", timeout_s=20, sink=lambda piece: wire.cut())
        assert caught.value.begun
        with pytest.raises(ConnectionLost, match="it had not begun") as caught:
            opened.run("echo two")
        assert not caught.value.begun
        assert wire.connections == 1, "no new connection is made behind the caller's back"


def test_a_link_that_falls_silent_is_noticed(
    dropbear: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_options, "ALIVE_INTERVAL_S", 1)
    monkeypatch.setattr(ssh_options, "ALIVE_COUNT", 2)
    pins = pinned(dropbear, tmp_path)
    with Wire(dropbear.port) as wire, Ssh(target(wire.port), pins, my_keys(dropbear)) as opened:
        begun_s = time.monotonic()
        with pytest.raises(ConnectionLost, match="not responding"):
            opened.stream("echo one; sleep 60", timeout_s=50, sink=lambda piece: wire.freeze())
        assert time.monotonic() - begun_s < 30


def test_ctrl_c_ends_the_command_the_connection_and_the_private_folder(dropbear: SshServer, tmp_path: Path) -> None:
    pinned(dropbear, tmp_path)
    mark = f"8{os.getpid()}{time.monotonic_ns() % 10**6}"
    script = tmp_path / "long.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom ndakit.node import keys\nfrom ndakit.node.host_keys import Pins\n"
        "from ndakit.node.ssh import Ssh\nfrom ndakit.node.ssh_options import Target\n"
        f"pins = Pins(Path({str(tmp_path / 'pins/lb1')!r}), 'shop.lb1')\n"
        f"mine = keys.given(Path({str(dropbear.folder / 'me')!r}), {{'me': 'x'}})\n"
        f"with Ssh(Target('shop', 'lb1', '127.0.0.1', port={dropbear.port}), pins, mine) as opened:\n"
        "    print(opened._socket, flush=True)\n"
        f"    opened.stream('echo on; sleep {mark}', timeout_s=60, sink=lambda p: print(p, flush=True))\n"
    )
    child = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout
    socket = Path(child.stdout.readline().strip())
    assert socket.exists()
    assert "on" in child.stdout.readline()
    child.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in child.communicate(timeout=30)[1]
    assert not socket.parent.exists()
    assert dropbear.processes(str(socket)) == []
    assert dropbear.processes(f"sleep {mark}") == []


def test_a_killed_ndakit_leaves_no_connection(dropbear: SshServer, tmp_path: Path) -> None:
    pinned(dropbear, tmp_path)
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal\nfrom pathlib import Path\nfrom ndakit.node import keys\n"
        "from ndakit.node.host_keys import Pins\nfrom ndakit.node.ssh import Ssh\n"
        "from ndakit.node.ssh_options import Target\n"
        f"pins = Pins(Path({str(tmp_path / 'pins/lb1')!r}), 'shop.lb1')\n"
        f"mine = keys.given(Path({str(dropbear.folder / 'me')!r}), {{'me': 'x'}})\n"
        f"opened = Ssh(Target('shop', 'lb1', '127.0.0.1', port={dropbear.port}), pins, mine).open()\n"
        "print(opened._socket, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    end_s = time.monotonic() + 10
    while dropbear.processes(done.stdout.strip()) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert dropbear.processes(done.stdout.strip()) == []


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755])
def test_a_file_is_put_whole_with_its_mode_and_nothing_is_left_beside_it(on: Ssh, box: SshServer, mode: int) -> None:
    folder = box.home / f"put {mode:o}"
    folder.mkdir()
    path = folder / "it's ü $HOME"
    on.put(b"old", str(path), mode=0o644)
    on.put(BYTES, str(path), mode=mode)
    assert path.read_bytes() == BYTES
    assert path.stat().st_mode & 0o7777 == mode
    assert list(folder.iterdir()) == [path]
    assert on.get(str(path)) == BYTES


def test_empty_files_and_names_without_a_folder(on: Ssh, box: SshServer) -> None:
    on.put(b"", "empty")
    assert (box.home / "empty").read_bytes() == b""
    assert on.get("empty") == b""


def test_large_files_go_both_ways_with_progress(on: Ssh, box: SshServer, tmp_path: Path) -> None:
    source = tmp_path / "large"
    source.write_bytes(os.urandom(12 << 20))
    told: list[tuple[int, int | None]] = []
    on.put_file(source, f"{box.home}/large", mode=0o600, progress=lambda done, total: told.append((done, total)))
    assert hashlib.sha256((box.home / "large").read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()
    assert told[-1] == (12 << 20, 12 << 20)
    assert len(told) > 10
    told.clear()
    on.get_file(f"{box.home}/large", tmp_path / "back", progress=lambda done, total: told.append((done, total)))
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert (tmp_path / "back").stat().st_mode & 0o777 == 0o600
    assert told[-1] == (12 << 20, 12 << 20)


def test_a_full_disk_on_the_box_is_said_so_and_the_old_file_stays(on: Ssh, box: SshServer) -> None:
    on.put(b"old", f"{box.tiny}/f")
    with pytest.raises(RemoteDiskFull, match="no space on the box") as caught:
        on.put(os.urandom(200_000), f"{box.tiny}/f")
    assert "tiny" in caught.value.what, "df's line about that file system"
    assert on.get(f"{box.tiny}/f") == b"old"
    assert on.run(f"ls -A {box.tiny}").stdout == "f\n"


def test_what_arrives_damaged_is_not_put_into_its_place(
    on: Ssh, box: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on.put(b"old", f"{box.home}/damaged")
    source = tmp_path / "source"
    source.write_bytes(b"new")
    monkeypatch.setattr(ssh, "file_sha256", lambda path: files.sha256(b"other"))
    with pytest.raises(ChecksumMismatch, match=files.sha256(b"new")):
        on.put_file(source, f"{box.home}/damaged")
    assert (box.home / "damaged").read_bytes() == b"old"
    assert not list(box.home.glob(".ndakit*"))


def test_a_connection_cut_in_the_middle_of_a_put_leaves_the_old_file_alone(box: SshServer, tmp_path: Path) -> None:
    (box.home / "cut").mkdir()
    (box.home / "cut/f").write_bytes(b"old")
    with Wire(box.port) as wire, Ssh(target(wire.port), pinned(box, tmp_path), my_keys(box)) as opened:
        opened.run("true")
        wire.cut_after_bytes = wire._up + 300_000
        with pytest.raises(ConnectionLost):
            opened.put(os.urandom(4 << 20), f"{box.home}/cut/f")
    end_s = time.monotonic() + 10
    while list((box.home / "cut").glob(".ndakit*")) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert {p.name: p.read_bytes() for p in (box.home / "cut").iterdir()} == {"f": b"old"}


def test_files_that_cannot_be_read_or_written_say_why(on: Ssh, box: SshServer, tmp_path: Path) -> None:
    with pytest.raises(RemoteFileFailed, match=r"gone cannot be read: there is no such file"):
        on.get("gone")
    with pytest.raises(RemoteFileFailed, match=r"gone cannot be read: there is no such file"):
        on.get_file("gone", tmp_path / "gone")
    assert list(tmp_path.glob("*gone*")) == []
    with pytest.raises(RemoteFileFailed, match="it is a folder"):
        on.put(b"x", str(box.home))
    with pytest.raises(RemoteFileFailed, match=r"cannot be written: .*/nowhere"):
        on.put(b"x", "/nowhere/x")
    with pytest.raises(OutputTooLarge):
        on.get("/dev/zero", max_bytes=1000)


def test_a_file_that_changes_while_it_is_read_is_no_backup(on: Ssh, box: SshServer, tmp_path: Path) -> None:
    """/proc/uptime is another one at each reading, so that the checksum never fits."""
    with pytest.raises(ChecksumMismatch):
        for _ in range(20):
            on.get("/proc/self/stat")
            on.get_file("/proc/self/stat", tmp_path / "f")
    assert not (tmp_path / "f").exists()


# -- who is there ------------------------------------------------------------------------------------------------------


def test_the_first_contact_shows_the_key_and_pins_nothing(box: SshServer, tmp_path: Path) -> None:
    pins = Pins(tmp_path / "pins/lb1", "shop.lb1")
    (key,) = box.host_keys.values()
    with pytest.raises(HostKeyUnknown) as caught:
        Ssh(target(box.port), pins, my_keys(box)).open()
    assert caught.value.fingerprint == key.fingerprint
    assert f"./inv ssh shop --node lb1 --accept-host-key {key.fingerprint}" in caught.value.fix
    assert not pins.path.exists()
    assert ssh.accept(target(box.port), pins, key.fingerprint) == key
    with Ssh(target(box.port), pins, my_keys(box)) as opened:
        assert opened.run("echo in").stdout == "in\n"


def test_the_fingerprint_is_the_one_that_the_box_itself_shows(dropbear: SshServer) -> None:
    """What an admin compares at the box: dropbearkey -y."""
    argv = ["dropbearkey", "-y", "-f", str(dropbear.folder / "dropbear_key")]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert ssh.host_key(target(dropbear.port)).fingerprint in shown


def test_another_fingerprint_than_the_accepted_one_pins_nothing(box: SshServer, tmp_path: Path) -> None:
    pins = Pins(tmp_path / "pins/lb1", "shop.lb1")
    with pytest.raises(HostKeyNotTheOne, match="nothing was pinned"):
        ssh.accept(target(box.port), pins, "SHA256:" + "A" * 43)
    with pytest.raises(FingerprintMalformed):
        ssh.accept(target(box.port), pins, "SHA256:short")
    assert not pins.path.exists()


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_a_changed_key_stops_everything_and_its_fix_works(box: SshServer, tmp_path: Path, kind: str) -> None:
    """Another key of the same type, and one of a type that the box does not have."""
    public = keygen(tmp_path / "other", kind).split()
    pins = Pins(tmp_path / "pins/lb1", "shop.lb1")
    pins.path.parent.mkdir()
    pins.path.write_text(f"shop.lb1 {public[0]} {public[1]}\n")
    (old,), (new,) = pins.read(), box.host_keys.values()
    with pytest.raises(HostKeyChanged) as caught:
        Ssh(target(box.port), pins, my_keys(box)).open()
    assert old.fingerprint in caught.value.what
    assert new.fingerprint in caught.value.what
    assert str(pins.path) in caught.value.where
    fingerprint = shlex.split(caught.value.fix.partition("--accept-host-key ")[2].partition(";")[0])[0]
    ssh.accept(target(box.port), pins, fingerprint)
    with Ssh(target(box.port), pins, my_keys(box)) as opened:
        assert opened.run("echo in").stdout == "in\n"


def test_a_box_that_lets_anybody_in_is_found_out(tmp_path: Path) -> None:
    """As an OpenWrt that nobody has set up: root has no password, and dropbear is told to take that (-B)."""
    with server("dropbear", tmp_path / "open", options=("-B",)) as box:
        shadow = box.folder / "shadow"
        shadow.write_text(shadow.read_text().replace("root:*:", "root::"))
        box.stop()
        box.start()
        with pytest.raises(AnybodyGetsIn):
            ssh.host_key(target(box.port))


@pytest.mark.parametrize(
    "text",
    ["* ssh-ed25519 AAAA\n", "shop.lb1 ssh-ed25519 ?\n", "shop.lb1 ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAA\n",
     "@revoked x y z\n", "\xff",
     "other ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n"],
)  # fmt: skip
def test_a_damaged_file_of_pins_is_no_first_contact(dropbear: SshServer, tmp_path: Path, text: str) -> None:
    pins = Pins(tmp_path / "lb1", "shop.lb1")
    pins.path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PinsUnreadable):
        Ssh(target(dropbear.port), pins, my_keys(dropbear)).open()


def test_pins_are_by_node_and_not_by_address(dropbear: SshServer, tmp_path: Path) -> None:
    pins = pinned(dropbear, tmp_path)
    with Ssh(target(dropbear.port, "::1"), pins, my_keys(dropbear)) as opened:
        assert opened.run("echo six").stdout == "six\n"
    with Ssh(target(dropbear.port, "localhost"), pins, my_keys(dropbear)) as opened:
        assert opened.run("echo name").stdout == "name\n"


def test_a_folder_with_blanks_and_percent_signs(dropbear: SshServer, tmp_path: Path) -> None:
    folder = tmp_path / "a b %h 'c'"
    folder.mkdir()
    pins = pinned(dropbear, folder)
    with Ssh(target(dropbear.port), pins, my_keys(dropbear)) as opened:
        assert opened.run("echo in").stdout == "in\n"


# -- who we are --------------------------------------------------------------------------------------------------------


def test_a_key_that_the_box_does_not_take_is_named_with_who_gets_in(box: SshServer, tmp_path: Path) -> None:
    keygen(tmp_path / "stranger", comment="stranger")
    mine = node_keys.given(tmp_path / "stranger", {"anna": "ssh-ed25519 AAAA"})
    with pytest.raises(KeyNotAccepted) as caught:
        Ssh(target(box.port), pinned(box, tmp_path), mine).open()
    assert "stranger" in caught.value.offered[0]
    assert "SHA256:" in caught.value.what
    assert "anna" in caught.value.fix


def test_keys_that_cannot_be_used_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    keygen(tmp_path / "locked", passphrase="secret words")
    keygen(tmp_path / "plain")
    with pytest.raises(KeyUnusable, match="passphrase") as caught:
        node_keys.given(tmp_path / "locked", {})
    assert caught.value.fix.endswith(f"ssh-add {tmp_path / 'locked'}")
    with pytest.raises(KeyUnusable, match="not a private key") as caught:
        node_keys.given(tmp_path / "plain.pub", {})
    assert caught.value.fix == f"name the private half: --identity {tmp_path / 'plain'}"
    with pytest.raises(KeyUnusable, match="No such file"):
        node_keys.given(tmp_path / "gone", {})
    (tmp_path / "plain").chmod(0o644)
    with pytest.raises(KeyUnusable, match="mode 0644") as caught:
        node_keys.given(tmp_path / "plain", {})
    subprocess.run(["sh", "-c", caught.value.fix], check=True)
    assert node_keys.given(tmp_path / "plain", {}).files == (tmp_path / "plain",)


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An agent without keys."""
    socket = Path(tmp_path / "agent")
    child = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    while not socket.exists():
        assert child.poll() is None
        time.sleep(0.02)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
    yield
    child.kill()
    child.wait()


@pytest.mark.usefixtures("agent")
def test_without_a_file_only_keys_of_the_profile_are_offered(
    dropbear: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c", "d", "e"):
        keygen(tmp_path / name)
        subprocess.run(["ssh-add", "-q", tmp_path / name], check=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    mine = (dropbear.folder / "me.pub").read_text()
    with pytest.raises(KeyMissing, match="your agent holds 5 other keys"):
        node_keys.usual("shop", {"me": mine}, tmp_path)
    subprocess.run(["ssh-add", "-q", dropbear.folder / "me"], check=True)
    identities = node_keys.usual("shop", {"me": mine, "gone": "ssh-ed25519 AAAA"}, tmp_path)
    assert len(identities.files) == 1
    with Ssh(target(dropbear.port), pinned(dropbear, tmp_path), identities) as opened:
        assert opened.run("echo in").stdout == "in\n"


def test_the_usual_key_of_the_user_is_found_if_the_profile_lets_it_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / ".ssh").mkdir()
    mine = keygen(tmp_path / ".ssh/id_ed25519")
    keygen(tmp_path / ".ssh/id_rsa", "rsa")
    assert node_keys.usual("shop", {"me": mine}, tmp_path, tmp_path).files == (tmp_path / ".ssh/id_ed25519",)
    with pytest.raises(KeyMissing, match="no private key for this pair: it lets in anna"):
        node_keys.usual("shop", {"anna": "ssh-ed25519 AAAA"}, tmp_path, tmp_path)


# -- the way there -----------------------------------------------------------------------------------------------------


def test_a_port_without_a_server_refuses(dropbear: SshServer, tmp_path: Path) -> None:
    with pytest.raises(NodeRefused):
        Ssh(target(1), pinned(dropbear, tmp_path), my_keys(dropbear)).open()
    with pytest.raises(NodeRefused):
        ssh.host_key(target(1))


def test_a_server_that_says_nothing_is_no_answer(
    dropbear: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_options, "CONNECT_TIMEOUT_S", 1)
    with Wire(dropbear.port) as wire:
        wire.freeze()
        with pytest.raises(NodeSilent, match="timed out"):
            Ssh(target(wire.port), pinned(dropbear, tmp_path), my_keys(dropbear)).open()


@pytest.mark.parametrize("address", ["no-such-host.invalid", "fe80::1%nocard"])
def test_addresses_that_lead_nowhere_say_so(dropbear: SshServer, tmp_path: Path, address: str) -> None:
    with pytest.raises(AddressUnknown):
        Ssh(target(22, address), pinned(dropbear, tmp_path), my_keys(dropbear)).open()


@pytest.mark.parametrize("address", ["", "-oProxyCommand=x", "a b", "a;b", "a'b", "%h", "$(x)"])
def test_hostile_addresses_are_refused(address: str) -> None:
    with pytest.raises(TargetMalformed):
        target(22, address)
    with pytest.raises(TargetMalformed):
        target(22, jump=address or " ")


def test_old_algorithms_are_taken_where_the_release_needs_them_and_nowhere_else(tmp_path: Path) -> None:
    old = "HostKeyAlgorithms ssh-rsa\n"
    with server("sshd", tmp_path / "old", host_key="rsa", settings=old) as box:
        box.allow(keygen(box.folder / "me", "rsa"))
        pins = pinned(box, tmp_path)
        with pytest.raises(OldAlgorithmsOnly, match=r"which 24\.10\.8 does not need"):
            Ssh(target(box.port, release="24.10.8"), pins, my_keys(box)).open()
        with Ssh(target(box.port, sha1=True), pins, my_keys(box)) as opened:
            assert opened.run("echo in").stdout == "in\n"
        for sha1 in (False, True):
            argv = ssh_options.options(target(box.port, sha1=sha1), pins.path)
            assert ("PubkeyAcceptedAlgorithms=+ssh-rsa" in argv) is sha1


def test_through_another_machine(box: SshServer, dropbear: SshServer, tmp_path: Path) -> None:
    """`proxy` is how ssh -W is started; here with the first server as the machine between."""
    base = [
        *ssh_options.options(target(dropbear.port), pinned(dropbear, tmp_path / "gate").path),
        "-i",
        f"{dropbear.folder}/me",
    ]
    through = (*base, "-W", f"127.0.0.1:{box.port}", *ssh_options.destination(target(dropbear.port)))
    with Ssh(target(box.port, proxy=through), pinned(box, tmp_path), my_keys(box)) as opened:
        assert opened.run("echo far").stdout == "far\n"


def test_a_machine_between_that_does_not_let_one_through(dropbear: SshServer, tmp_path: Path) -> None:
    with pytest.raises(JumpHostFailed) as caught:
        Ssh(target(dropbear.port, jump="me@127.0.0.1:1"), pinned(dropbear, tmp_path), my_keys(dropbear)).open()
    assert caught.value.fix.endswith("ssh -p 1 me@127.0.0.1")


def test_nothing_of_the_users_configuration_counts(dropbear: SshServer, tmp_path: Path) -> None:
    mine = my_keys(dropbear)
    pins = pinned(dropbear, tmp_path)
    opened = Ssh(target(dropbear.port, jump="me@gate"), pins, mine)
    for argv in (
        ssh_options.options(opened.target, pins.path),
        opened._client("true"),
        ssh.session_argv(opened.target, pins, mine),
        shlex.split(ssh_options._through(opened.target)),
    ):
        assert argv[:3] == ["ssh", "-F", "none"]


def test_link_local_addresses_need_and_take_their_card(dropbear: SshServer, tmp_path: Path) -> None:
    """In a network namespace of its own, where loopback has a link-local address."""
    script = tmp_path / "scoped.py"
    script.write_text(
        "import subprocess, sys\nfrom pathlib import Path\nfrom ndakit.node import ssh\n"
        "from ndakit.node.ssh_options import Target\n"
        "for argv in ('ip link set lo up', 'ip addr add fe80::1/64 dev lo nodad'):\n"
        "    subprocess.run(argv.split(), check=True)\n"
        f"child = subprocess.Popen(['dropbear', '-F', '-r', {str(dropbear.folder / 'dropbear_key')!r}, '-p', '2222'])\n"
        "try:\n"
        "    for n in range(100):\n"
        "        try:\n"
        "            print(ssh.host_key(Target('shop', 'lb1', 'fe80::1%lo', port=2222)).fingerprint)\n"
        "            break\n"
        "        except ssh.ssh_options.NodeRefused:\n"
        "            pass\n"
        "finally:\n"
        "    child.kill()\n"
    )
    (key,) = dropbear.host_keys.values()
    argv = ["unshare", "-n", sys.executable, str(script)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == key.fingerprint, done.stderr
