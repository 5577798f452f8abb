"""The serial console: finding the shell, and commands whose output survives whatever else is on the wire.

The guest is a shell on a pseudo terminal behind a socket; what a real guest's kernel and BusyBox do to the stream is
proved in test_vm.py.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from console_guest import ASK, Guest
from ndakit.core.deadline import Deadline
from ndakit.machine import console as console_module
from ndakit.machine.console import Console
from ndakit.machine.console_errors import (
    ConsoleClosed,
    ConsoleLocked,
    ConsoleNotActive,
    ConsoleSilent,
    GuestPanicked,
    GuestRestarted,
    OutputDamaged,
)
from ndakit.machine.console_protocol import ConsoleAnswer, Damaged, Session, encode_command, without_noise
from ndakit.node import files
from ndakit.node.errors import ChecksumMismatch, CommandTimeout, OutputTooLarge, RemoteFileFailed
from ndakit.node.shell import host_over

OPENWRT = f"""
echo booting
printf %b {ASK!r}
read -r _
printf ' _______\\n|       | OpenWrt\\n'
export PS1='root@OpenWrt:\\w# '
exec sh -i
"""
KERNEL_LINE = b"[  123.456789] eth0: link is up, and what else a kernel has to say\r\n"


@pytest.fixture
def guests(tmp_path: Path) -> Iterator[Callable[..., Guest]]:
    with contextlib.ExitStack() as stack:

        def start(script: str = OPENWRT, *, path: str = os.environ["PATH"], activate: bool = True) -> Guest:
            made = Guest(script, tmp_path, path=path)
            stack.callback(made.close)
            if activate:
                made.console.activate(Deadline(20, "the shell"))
            return made

        yield start


@pytest.fixture
def guest(guests: Callable[..., Guest]) -> Guest:
    return guests()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_NUDGE_S", "_STEP_S", "_GRACE_S", "_QUIET_S"):
        monkeypatch.setattr(console_module, name, 0.3)


# -- finding the shell -------------------------------------------------------------------------------------------------


def test_it_presses_enter_and_finds_the_shell(guest: Guest) -> None:
    assert guest.console.active
    assert guest.console.run('echo "$PS1"').stdout == "root@OpenWrt:\\w# \n"
    assert "| OpenWrt" in guest.console.text


def test_it_finds_a_shell_that_is_open_already(guests: Callable[..., Guest], impatient: None) -> None:
    guest = guests("PS1='~ # '; export PS1; exec sh -i", activate=False)
    guest.console.wait_for("~ # ", Deadline(5, "the prompt"))
    guest.console.activate(Deadline(10, "the shell"))  # nothing more is shown unless it presses Enter
    assert guest.console.run("echo here").stdout == "here\n"


def test_a_login_without_password_is_passed(guests: Callable[..., Guest]) -> None:
    script = "printf '\\nOpenWrt login: '; read -r name; [ \"$name\" = root ] && exec sh -i"
    assert guests(script).console.run("echo in").stdout == "in\n"


def test_a_password_is_not_guessed(guests: Callable[..., Guest]) -> None:
    guest = guests("printf '\\nOpenWrt login: '; read -r _; printf 'Password: '; sleep 60", activate=False)
    with pytest.raises(ConsoleLocked, match="asks for a password"):
        guest.console.activate(Deadline(10, "the shell"))


def test_after_release_a_person_finds_the_prompt_and_activate_works_again(guest: Guest) -> None:
    guest.console.release()
    guest.console.wait_for("root@OpenWrt:", Deadline(5, "the prompt"))
    with pytest.raises(ConsoleNotActive):
        guest.console.run("true")
    guest.console.activate(Deadline(15, "the shell"))
    assert guest.console.run("echo again").stdout == "again\n"


def test_nothing_of_ours_is_left_in_the_guest_after_release(guest: Guest) -> None:
    ours = guest.console.run("echo $_q").stdout.strip()
    assert ours.startswith("/tmp/.ndakit-")
    assert guest.console.run(f"ls {ours}.*").rc == 0
    guest.console.release()
    guest.console.send(f"echo left=$(ls {ours}.* 2>/dev/null | wc -l)=\n".encode())
    assert guest.console.wait_for(re.compile(r"left=(\d+)="), Deadline(5, "the count"))[1] == "0"


# -- commands ----------------------------------------------------------------------------------------------------------


def test_exit_code_and_both_streams_come_apart(guest: Guest) -> None:
    ran = guest.console.run("echo out; echo err >&2; exit 7")
    assert (ran.rc, ran.stdout, ran.stderr) == (7, "out\n", "err\n")
    assert guest.console.run("nonexistent-program").rc == 127
    assert guest.console.run("").rc == 0


@pytest.mark.parametrize(
    "command",
    [
        "printf '%s' \"it's\"",
        "printf '%s' '$(reboot) `x` \\\\ \"q\" ; & | < > * ? [a] ~ ! # %'",
        "printf '%s\\n' 'Umlaute: äöü €'",
        "a=1\nb=2\nprintf '%s' $((a + b))",
        "cat <<'END'\n  two  spaces\n\ttab\nEND",
        "printf 'no newline at the end'",
        "printf '\\n\\n\\n'",
        "printf 'a\\0b\\r\\nc\\r\\001\\003\\004\\021\\023\\177\\377'",
        ": " + "x" * 10000 + "; echo long",
    ],
)
def test_a_command_arrives_as_it_is_and_so_does_its_output(guest: Guest, command: str) -> None:
    expected = subprocess.run(["/bin/sh", "-c", command], capture_output=True, check=False)
    ran = guest.console.run(command)
    assert (ran.rc, ran.stdout_bytes, ran.stderr_bytes) == (expected.returncode, expected.stdout, expected.stderr)


def test_a_command_reads_nothing_and_changes_nothing_for_the_next(guest: Guest) -> None:
    assert guest.console.run("cat; cd /usr; X=1; export X").stdout == ""
    assert guest.console.run("pwd; echo ${X-unset}").stdout.splitlines()[1] == "unset"


def test_a_nul_in_a_command_is_refused(guest: Guest) -> None:
    with pytest.raises(ValueError, match="NUL"):
        guest.console.run("echo a\0b")


def test_64_kib_of_random_bytes_come_whole(guest: Guest, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(65536)
    (tmp_path / "data").write_bytes(data)
    assert guest.console.get(str(tmp_path / "data")) == data


def test_a_file_that_is_not_there_says_so(guest: Guest) -> None:
    with pytest.raises(RemoteFileFailed, match="no such file"):
        guest.console.get("/nonexistent")
    with pytest.raises(RemoteFileFailed, match="cannot be read"):
        guest.console.get("-n")


def test_a_file_is_put_over_the_console_whole_or_not_at_all(
    guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts, for a console has no input to give to a command."""
    data = random.Random(2).randbytes(20_000)
    (tmp_path / "d").mkdir()
    (tmp_path / "source").write_bytes(data)
    path = tmp_path / "d/it's"
    guest.console.put(b"old", str(path))
    told: list[int] = []
    guest.console.put_file(tmp_path / "source", str(path), mode=0o700, progress=lambda done, total: told.append(done))
    assert (path.read_bytes(), path.stat().st_mode & 0o777, told) == (data, 0o700, [8192, 16384, 20_000])
    guest.console.get_file(str(path), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    with pytest.raises(RemoteFileFailed, match="there is no folder"):
        guest.console.put(b"x", "/nowhere/x")
    monkeypatch.setattr(files, "append_command", lambda part, temporary: ["sh", "-c", 'echo >>"$1"', "", temporary])
    with pytest.raises(ChecksumMismatch):
        guest.console.put(b"new", str(path))
    assert {p: p.read_bytes() for p in (tmp_path / "d").iterdir()} == {path: data}


def test_a_command_that_says_too_much_is_told(guest: Guest) -> None:
    with pytest.raises(OutputTooLarge, match="wrote more than 10 bytes"):
        guest.console.run("echo 0123456789", output_max_bytes=10)


def test_a_command_that_hangs_is_killed_with_what_it_started_and_the_next_one_works(
    guest: Guest, tmp_path: Path
) -> None:
    mark = tmp_path / "alive"
    started_s = time.monotonic()
    with pytest.raises(CommandTimeout, match=r"did not end within 1 s and was killed") as caught:
        guest.console.run(f"echo said; (trap '' INT TERM; sleep 3; echo x >{mark}) & sleep 60", timeout_s=1)
    assert caught.value.output == "said\n" and caught.value.exit_code == 5
    assert time.monotonic() - started_s < 30, "it waited for `sleep 60`"
    assert guest.console.run("echo next").stdout == "next\n"
    time.sleep(max(0.0, started_s + 3.5 - time.monotonic()))
    assert not mark.exists()


def test_a_daemon_started_by_a_command_does_not_hold_it(guest: Guest) -> None:
    started_s = time.monotonic()
    assert guest.console.run("sleep 60 & echo started").stdout == "started\n"
    assert time.monotonic() - started_s < 30, "it waited for `sleep 60`"


def test_commands_from_several_threads_do_not_mix(guest: Guest) -> None:
    results: dict[int, str] = {}

    def ask(number: int) -> None:
        results[number] = guest.console.run(f"echo {number}").stdout

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: f"{n}\n" for n in range(6)}


# -- what else is on the wire ------------------------------------------------------------------------------------------


def test_kernel_lines_in_the_middle_of_everything_do_no_harm(guests: Callable[..., Guest]) -> None:
    noise = random.Random(2)

    def meddle(data: bytes) -> bytes:
        at = noise.randrange(len(data) + 1)
        while data[at - 1 : at] == b"\r":  # a driver writes both at once
            at -= 1
        return data[:at] + KERNEL_LINE + data[at:]

    guest = guests(activate=False)
    guest.meddle = meddle
    guest.console.activate(Deadline(20, "the shell"))
    for number in range(10):
        ran = guest.console.run(f"seq {number} 400; exit {number}")
        assert (ran.rc, ran.stdout) == (number, "".join(f"{n}\n" for n in range(number, 401)))


def test_output_that_looks_like_kernel_lines_stays(guest: Guest) -> None:
    lines = "[    1.000000] first\n[    2.000000][    T1] second\n"
    guest.meddle = lambda data: data.replace(b"second", b"sec" + KERNEL_LINE + b"ond")
    assert guest.console.run(f"printf '%s' '{lines}'").stdout == lines  # only the sum tells them apart
    guest.meddle = lambda data: data
    assert guest.console.run(f"printf '%s' '{lines}'").stdout == lines


def test_damaged_output_is_fetched_again(guest: Guest) -> None:
    left = [2]

    def meddle(data: bytes) -> bytes:
        if b"precious" in data and left[0]:
            left[0] -= 1
            return data.replace(b"precious", b"pre!ious")
        return data

    guest.meddle = meddle
    assert guest.console.run("echo prec''ious").stdout == "precious\n"
    assert left[0] < 2


def test_output_that_never_comes_whole_is_an_error(guest: Guest) -> None:
    guest.meddle = lambda data: re.sub(rb"(@\w+<\d+ \d+ .\r\n)", rb"\1garbage", data)
    with pytest.raises(OutputDamaged, match="did not come through whole"):
        guest.console.run("echo x")
    guest.meddle = lambda data: data
    assert guest.console.run("echo y").stdout == "y\n"


def test_a_command_that_loses_a_character_on_its_way_is_sent_again(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, lost = guest.console.send, [True]

    def lossy(data: bytes) -> None:
        if data.startswith(b"+") and lost[0]:
            lost[0], data = False, data[:3] + data[4:]
        send(data)

    monkeypatch.setattr(guest.console, "send", lossy)
    assert guest.console.run("echo whole").stdout == "whole\n"
    assert lost == [False]


@pytest.mark.parametrize("tools", ["base64 md5sum", "hexdump md5sum", "od md5sum", "od", ""])
def test_it_works_with_the_tools_that_the_guest_has(guests: Callable[..., Guest], tmp_path: Path, tools: str) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ["sh", "cat", "sleep", "rm", "seq", *tools.split()]:
        program = shutil.which(tool)
        assert program is not None, tool
        (folder / tool).symlink_to(program)
    guest = guests(OPENWRT, path=str(folder))
    if "md5sum" in tools:  # only then damage shows
        guest.meddle = lambda data: data.replace(b"12\r\n13\r\n", b"12\r\n31\r\n")
    assert guest.console.run("seq 1 100").stdout == "".join(f"{n}\n" for n in range(1, 101))


# -- when it goes wrong ------------------------------------------------------------------------------------------------


def test_a_silent_console_is_an_error_that_shows_what_there_was(guests: Callable[..., Guest], impatient: None) -> None:
    guest = guests("printf 'GRUB loading.\\n'; cat >/dev/null", activate=False)
    with pytest.raises(ConsoleSilent) as caught:
        guest.console.activate(Deadline(1, "the shell of lb1"))
    text = caught.value.text()
    assert "| GRUB loading." in text and "the facts" in text and str(guest.log) in text and caught.value.exit_code == 5


def test_a_console_that_shows_nothing_at_all_says_so(guests: Callable[..., Guest]) -> None:
    guest = guests("sleep 60", activate=False)
    with pytest.raises(ConsoleSilent, match="it has shown nothing at all"):
        guest.console.wait_for("x", Deadline(0.2, "x"))


def test_a_machine_that_ends_is_an_error_at_once(guests: Callable[..., Guest]) -> None:
    guest = guests("printf 'Power down\\n'; exit", activate=False)
    started_s = time.monotonic()
    with pytest.raises(ConsoleClosed, match=r"has ended \(the facts\)(.|\n)*Power down"):
        guest.console.activate(Deadline(60, "the shell"))
    assert time.monotonic() - started_s < 30, "it waited for the deadline"


def test_a_machine_that_ends_during_a_command_is_an_error_at_once(guest: Guest) -> None:
    threading.Timer(0.3, lambda: guest.signal(signal.SIGKILL)).start()
    with pytest.raises(ConsoleClosed):
        guest.console.run("sleep 30; :")
    with pytest.raises((ConsoleClosed, ConsoleNotActive)):
        guest.console.run("true")


def test_a_panic_is_an_error_at_once_with_the_kernel_s_words(guests: Callable[..., Guest]) -> None:
    script = "echo '[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs'; sleep 60"
    guest = guests(script, activate=False)
    with pytest.raises(GuestPanicked, match="VFS: Unable to mount root fs"):
        guest.console.activate(Deadline(30, "the shell"))


def test_a_guest_that_restarts_during_a_command_is_told_from_a_slow_one(guest: Guest) -> None:
    def restart() -> None:
        guest.wire.sendall(b"\r\n[    0.000000] Linux version 6.6\r\n" + ASK.encode())

    threading.Timer(0.3, restart).start()
    with pytest.raises(GuestRestarted, match="restarted, and its shell is gone"):
        guest.console.run("sleep 30")
    assert not guest.console.active


def test_output_with_the_words_of_a_restart_is_output(guest: Guest, tmp_path: Path) -> None:
    data = ASK.encode() * 3000
    (tmp_path / "inittab").write_bytes(data)

    def slowly(piece: bytes) -> bytes:  # so that it is looked at while it comes
        time.sleep(0.002)
        return piece

    guest.meddle = slowly
    assert guest.console.get(str(tmp_path / "inittab")) == data


def test_a_guest_that_hangs_during_a_command_is_an_error(guest: Guest, impatient: None) -> None:
    guest.signal(signal.SIGSTOP)
    with pytest.raises(ConsoleSilent, match="the answer to 'echo x'"):
        guest.console.run("echo x", timeout_s=0.3)


def test_commands_before_activation_are_an_error(guests: Callable[..., Guest]) -> None:
    with pytest.raises(ConsoleNotActive, match="not activated"):
        guests(activate=False).console.run("true")


def test_wait_for_goes_on_where_it_was_and_kernel_lines_do_not_break_it(guests: Callable[..., Guest]) -> None:
    guest = guests("echo one; echo two; printf 'th'; sleep 0.2; echo ree; sleep 60", activate=False)
    deadline = Deadline(10, "a word")
    guest.meddle = lambda data: data.replace(b"two", b"t" + KERNEL_LINE + b"wo")
    assert guest.console.wait_for(re.compile(r"t(w)o"), deadline)[1] == "w"
    guest.console.wait_for("three", deadline)
    with pytest.raises(ConsoleSilent):
        guest.console.wait_for("one", Deadline(0.2, "one"))


def test_a_console_can_be_reached_by_its_path_and_listened_to(tmp_path: Path) -> None:
    path, pieces = tmp_path / "s", list[bytes]()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen(1)
        console = Console.connect("x", path, log=tmp_path / "log")
        stop = console.listen(pieces.append)
        peer, _ = server.accept()
        with peer:
            peer.sendall(b"hello")
            console.wait_for("hello", Deadline(5, "hello"))
            stop()
            peer.sendall(b"more")
            console.wait_for("more", Deadline(5, "more"))
        console.close()
    assert b"".join(pieces) == b"hello"
    with pytest.raises(OSError):
        Console.connect("x", tmp_path / "none", log=tmp_path / "log")


def test_a_listener_that_fails_stops_nothing_and_its_failure_is_raised(guest: Guest) -> None:
    def fail(_: bytes) -> None:
        raise RuntimeError("mine")

    end = guest.console.listen(fail)
    assert guest.console.run("echo on").stdout == "on\n"
    with pytest.raises(RuntimeError, match="mine"):
        end()


# -- testinfra ---------------------------------------------------------------------------------------------------------


def test_testinfra_reads_facts_over_the_console(guest: Guest, tmp_path: Path) -> None:
    host = host_over(guest.console)
    assert host.check_output("echo %s", "it's $HOME") == "it's $HOME"
    result = host.run("printf 'caf\\303\\251 \\377'; exit 3")
    assert (result.rc, result.stdout) == (3, "café �")
    (tmp_path / "f").write_text("listen 80\n")
    assert host.file(str(tmp_path / "f")).contains("listen")
    assert host.exists("sh") and not host.exists("nonexistent-program")
    with pytest.raises(CommandTimeout):
        host.run("sleep 9", timeout_s=1)


# -- the protocol alone ------------------------------------------------------------------------------------------------

TOKEN = "00c0ffee00"


def wire_form(answer: ConsoleAnswer, number: int) -> bytes:
    """What the loop prints for an answer, as a terminal passes it on."""
    import hashlib

    sums = " ".join(f"{hashlib.md5(t).hexdigest()} x" for t in (answer.stdout, answer.stderr))
    text = b"\n@%s<%d %d -\n%s\n@%s=%d\n%s\n@%s>%d %s\n" % (
        *(TOKEN.encode(), number, answer.rc or 0, answer.stdout),
        *(TOKEN.encode(), number, answer.stderr),
        *(TOKEN.encode(), number, sums.encode()),
    )
    return text.replace(b"\n", b"\r\n")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 255), st.binary(max_size=300), st.binary(max_size=100), st.data())
def test_any_output_is_read_back_with_kernel_lines_anywhere(
    rc: int, stdout: bytes, stderr: bytes, data: st.DataObject
) -> None:
    answer = ConsoleAnswer(rc, stdout, stderr)
    wire = wire_form(answer, 5)
    session = Session(TOKEN)
    assert session.answer(wire, 5) == answer
    assert session.answer(wire, 4) is None
    at = data.draw(st.integers(0, len(wire)))
    noisy = wire[:at] + KERNEL_LINE + wire[at:]
    try:
        assert session.answer(noisy, 5) in (answer, None)
    except Damaged:
        assert KERNEL_LINE not in wire  # never a wrong answer; at worst it is asked for again


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1, max_size=80), st.data())
def test_a_changed_byte_never_passes_for_the_answer(stdout: bytes, data: st.DataObject) -> None:
    answer = ConsoleAnswer(0, stdout, b"")
    wire = bytearray(wire_form(answer, 5))
    wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    session = Session(TOKEN)
    with contextlib.suppress(Damaged):
        decoded = session.answer(bytes(wire), 5)
        assert decoded is None or (decoded.stdout, decoded.stderr) == (answer.stdout, answer.stderr)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=200))
def test_any_command_text_is_rebuilt_by_the_shell(text: str) -> None:
    encoded = encode_command(text + ".")
    assert re.fullmatch(r"[ -~]*", encoded)
    done = subprocess.run(["/bin/sh", "-c", 'printf %b "$1"', "sh", encoded], capture_output=True, check=True)
    assert done.stdout == text.encode() + b"."


def test_lines_for_the_guest_s_line_editor_are_short_and_their_answers_are_not_in_their_echo() -> None:
    for line, answer in Session(TOKEN).setup():
        assert len(line) < 400
        assert answer not in line
        assert TOKEN not in line
    for line, _ in Session(TOKEN).lines("ä" * 5000, 1, 2):
        assert len(line) < 1000


def test_noise_is_kernel_lines_and_escape_sequences() -> None:
    assert without_noise(b"ab\x1b[6nc\x1b[1;31md" + KERNEL_LINE + b"e[x]\r\n") == b"abcde[x]\r\n"


def test_a_slow_disk_does_not_stop_the_reading(tmp_path: Path) -> None:
    # A firmware whose serial port takes nothing for a second gives it up.
    ours, theirs = socket.socketpair()
    log = tmp_path / "log"
    os.mkfifo(log)  # nobody reads it at first: a disk that keeps a write waiting
    holder = os.open(log, os.O_RDWR | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while os.write(holder, bytes(4096)):
            pass
    console = Console("guest", log=log)
    console.attach(ours)
    theirs.sendall(b"said meanwhile")
    console.wait_for("said meanwhile", Deadline(5, "what was said"))
    written = b""
    while b"said meanwhile" not in written:
        assert select.select([holder], [], [], 5)[0], "the log was never written"
        written += os.read(holder, 1 << 20)
    theirs.close()
    console.close()
    os.close(holder)
