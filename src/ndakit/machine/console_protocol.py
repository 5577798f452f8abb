"""How commands and their output cross a serial console unharmed; pure text work, no sockets.

A serial console is one stream for everybody: the kernel writes its messages into the middle of our lines, the terminal
echoes what we send and turns `\\n` into `\\r\\n`. So a loop of BusyBox ash (`_GUEST_LOOP`) is started in the guest's
shell; it takes commands as short ASCII lines, keeps their output in files under /tmp, and sends it between markers with
its MD5 sums. What does not match its sum is sent again, armoured. `Session` makes those lines and reads those answers;
`console` carries them.

Lines to the loop: `+TEXT` append to the command, `!N LENGTH SECONDS` run it, `?` and `#` send the last result again (as
it is, armoured), `x` end. From it, each after the token: `!ARMOUR SUMS` ready, `+LENGTH` appended, `<N RC ARMOUR`
stdout, `=N` stderr, `>N SUMS`; or `~N`: the command did not arrive whole.
"""

from __future__ import annotations

import binascii
import hashlib
import math
import re
from dataclasses import dataclass

# "[   12.345678] text", with the caller if CONFIG_PRINTK_CALLER is set: lines that the kernel wrote into the stream.
_KERNEL_LINE = re.compile(rb"\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? [^\r\n]*\r*\n")
_NOISE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|" + _KERNEL_LINE.pattern)
_PLAIN = frozenset(range(0x20, 0x7F)) - {0x5C}
_CHUNK = 900  # a terminal line holds 4095 bytes (termios(3), canonical mode), and two lines may be on their way
_SETUP_CHUNK = 240  # OpenWrt's BusyBox edits lines of at most 512 bytes

# For BusyBox ash as on OpenWrt: no stty, timeout, setsid, base64. The lines are joined without anything between them;
# no single quotes, for it is sent inside some. The command runs as a job of its own (set -m), so that a watchdog can
# kill it with all that it started; without a controlling terminal set -m does nothing and only the shell is killed.
_GUEST_LOOP = r"""
_I=$0;_T=@$_I;_q=/tmp/.ndakit-$_I;_c=;_n=0;_r=0;_m=-;_s(){ :;};_k=-;_a(){ cat $1;};
_h(){ command -v $1 >/dev/null;};
if _h base64;then _k=b;_a(){ base64 $1;};
elif _h hexdump;then _k=h;_a(){ hexdump -v -e "32/1 \"%02x\" \"\n\"" $1;};
elif _h od;then _k=h;_a(){ od -An -v -tx1 $1;};fi;
if _h md5sum;then _m=m;_s(){ md5sum $_q.o $_q.e;};fi;
_w(){ printf "\n%s<%s %s %s\n" $_T $_n $_r $1;$2 $_q.o;printf "\n%s=%s\n" $_T $_n;
[ -s $_q.e ]&&$2 $_q.e;printf "\n%s>%s %s\n" $_T $_n "$(echo $(_s))";};
printf "\n%s!%s %s\n" $_T $_k $_m;
while IFS= read -r _l;do case $_l in
 +*)_c=$_c${_l#+};printf "\n%s+%s\n" $_T ${#_c};;
!*)set -- ${_l#!};_n=$1;if [ ${#_c} != $2 ];then _c=;printf "\n%s~%s\n" $_T $_n;else
 rm -f $_q.*;set -m;(eval "$(printf %b "$_c")") </dev/null >$_q.o 2>$_q.e & _p=$!;
(sleep $3;:>$_q.t;kill -9 -$_p $_p)>/dev/null 2>&1 & _d=$!;set +m;wait $_p;_r=$?;
[ -f $_q.t ]&&_r=T;kill -9 -$_d $_d;wait $_d;_c=;_w - cat;fi;;
\?)_w - cat;;
\#)_w $_k _a;;
x)break;;esac;done 2>/dev/null;rm -f $_q.*
"""


class Damaged(ValueError):
    """An answer did not come through whole, and has to be asked for again."""


@dataclass(frozen=True)
class ConsoleAnswer:
    """What a command came to: its exit code (None: killed when its time was over) and the bytes of its output."""

    rc: int | None
    stdout: bytes
    stderr: bytes


def without_noise(data: bytes) -> bytes:
    """The stream without the kernel's lines and without a terminal's escape sequences."""
    return _NOISE.sub(b"", data)


def place_with_noise(data: bytes, place: int) -> int:
    """Where in `data` that is which is at `place` in `without_noise(data)`."""
    for noise in _NOISE.finditer(data):
        if noise.start() >= place:
            break
        place += len(noise[0])
    return place


def encode_command(command: str) -> str:
    """A command as printable ASCII for `printf %b`. Raises ValueError for a NUL, which no shell command can hold."""
    data = command.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise ValueError("a shell command cannot hold a NUL byte")
    return "".join(chr(b) if b in _PLAIN else f"\\0{b:03o}" for b in data)


class Session:
    """One loop in one guest; `token` (hexadecimal digits that nobody else writes) sets its markers apart."""

    def __init__(self, token: str) -> None:
        if not re.fullmatch(r"[0-9a-f]{8,}", token):
            raise ValueError(token)
        self._identity = token
        self._token = f"@{token}".encode()
        self._number = 0
        self._sums = True

    def setup(self) -> list[tuple[str, str]]:
        """The lines that bring the loop into a shell at its prompt, each with the text that the shell prints for it.

        What is printed is never part of what is sent, for the terminal echoes that.
        """
        loop = "".join(_GUEST_LOOP.strip("\n").splitlines())
        half = len(self._identity) // 2
        name = f"{self._identity[:half]}''{self._identity[half:]}"
        steps = [(f'_P=;_I={name};echo "=$_I="', f"={self._identity}=")]
        for at in range(0, len(loop), _SETUP_CHUNK):
            chunk = loop[at : at + _SETUP_CHUNK]
            steps.append((f'_P="$_P"\'{chunk}\';echo "=${{#_P}}="', f"={at + len(chunk)}="))
        return [*steps, ('sh -c "$_P" "$_I"', f"@{self._identity}!")]

    def started(self, data: bytes) -> bool:
        """True once the loop has said in `data` that it is ready."""
        greeting = re.search(re.escape(self._token) + rb"!(\S) (\S)\s", without_noise(data))
        if greeting is None:
            return False
        self._sums = greeting[2] == b"m"
        return True

    def next_number(self) -> int:
        """A number for the next command."""
        self._number += 1
        return self._number

    def lines(self, command: str, number: int, timeout_s: float) -> list[tuple[str, bytes]]:
        """The lines that run a command, each with what to wait for before the next (empty: nothing)."""
        text = encode_command(command)
        chunks = [text[at : at + _CHUNK] for at in range(0, len(text), _CHUNK)] or [""]
        lines: list[tuple[str, bytes]] = []
        sent = 0
        for chunk in chunks:
            sent += len(chunk)
            ack = self._token + b"+%d" % sent if len(chunks) > 1 else b""
            lines.append((f"+{chunk}", ack))
        lines.append((f"!{number} {len(text)} {max(1, math.ceil(timeout_s))}", b""))
        return lines

    def end_mark(self, number: int) -> bytes:
        """What the last line of an answer begins with."""
        return self._token + b">%d " % number

    def lost(self, data: bytes, number: int) -> bool:
        """True if the loop says that a command did not arrive whole."""
        return self._token + b"~%d\n" % number in without_noise(data).replace(b"\r", b"")

    def answering(self, data: bytes) -> bool:
        """True if an answer has begun in `data`."""
        return self._token + b"<" in without_noise(data)

    def stirred(self, data: bytes) -> bool:
        """True if something was written behind the sign that the command has arrived: perhaps an answer, broken."""
        plain = without_noise(data)
        taken = plain.rfind(self._token + b"+")
        return bool(plain[plain.find(b"\n", taken) :].strip()) if taken >= 0 else bool(plain.strip())

    def answer(self, data: bytes, number: int) -> ConsoleAnswer | None:
        """The answer to command `number` in the stream, None while it is not complete. Raises Damaged."""
        ended = False
        plain = _KERNEL_LINE.sub(b"", data)
        for candidate in (data, plain) if self._sums and plain != data else (plain,):
            parts = self._parts(candidate.replace(b"\r\n", b"\n"), number)
            if parts is None:
                continue
            ended = True
            answer = self._decode(*parts)
            if answer is not None:
                return answer
        last = plain.rfind(self.end_mark(number))
        if ended or (last >= 0 and b"\n" in plain[last:]):
            raise Damaged(f"answer {number}")
        return None

    def _parts(self, data: bytes, number: int) -> tuple[bytes, bytes, bytes, bytes] | None:
        """Header, stdout, stderr and sums of the last complete answer."""
        marks = [b"\n" + self._token + mark + b"%d" % number for mark in (b"<", b"=", b">")]
        end = data.rfind(marks[2] + b" ")
        begin = data.rfind(marks[0] + b" ", 0, end)
        if end < 0 or begin < 0:
            return None
        stop = data.find(b"\n", end + 1)
        middle = data.rfind(marks[1] + b"\n", begin, end)
        body = data.find(b"\n", begin + 1) + 1
        if stop < 0 or middle < 0 or body > middle:
            return None
        return (
            data[begin + len(marks[0]) : body - 1],
            data[body:middle],
            data[middle + len(marks[1]) + 1 : end],
            data[end + len(marks[2]) : stop],
        )

    def _decode(self, header: bytes, stdout: bytes, stderr: bytes, sums: bytes) -> ConsoleAnswer | None:
        """The answer, or None if it is not what its sums say."""
        status = re.fullmatch(rb" (\d+|T) ([-bh])", header)
        if status is None:
            return None
        try:
            if status[2] == b"b":
                stdout, stderr = (binascii.a2b_base64(b"".join(t.split()), strict_mode=True) for t in (stdout, stderr))
            elif status[2] == b"h":
                stdout, stderr = (binascii.unhexlify(b"".join(t.split())) for t in (stdout, stderr))
        except binascii.Error:
            return None
        if self._sums:
            wanted = [hashlib.md5(text, usedforsecurity=False).hexdigest().encode() for text in (stdout, stderr)]
            if re.findall(rb"\b[0-9a-f]{32}\b", sums) != wanted:
                return None
        return ConsoleAnswer(None if status[1] == b"T" else int(status[1]), stdout, stderr)
