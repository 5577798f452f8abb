"""Run outside programs: the only module that imports subprocess.

A command is a list, never a shell line; its environment is made from scratch with a fixed locale; its input is closed
unless given. Failures carry the command one can paste, the exit code, the last lines and the log's path.
Which commands are run, and what their output means, is the business of the module that owns the program.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from ndakit.core.errors import BuildError, MachineError

Argv = Sequence[str | Path]

_TAIL_LINES = 10
_POLITE_S = 5.0
_TICK_S = 0.25
_PIECE = 65536
_IF_PARENT_LIVES = '[ "$PPID" = "$0" ] && exec "$@"'
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "http_proxy", "https_proxy", "no_proxy", "XDG_CACHE_HOME")


_halting = threading.Event()


class Halted(KeyboardInterrupt):
    """What this thread does was given up by the thread that started it; unwinds as Ctrl-C does."""


@contextlib.contextmanager
def halt() -> Iterator[None]:
    """While this block lasts, programs that other threads run are ended, and they start none.

    They unwind with Halted. For the main thread, after Ctrl-C or a failure that ends everything: wait for them inside.
    """
    _halting.set()
    try:
        yield
    finally:
        _halting.clear()


def go_on() -> None:
    """Raises Halted if everything is to end. For long waits of threads beside the main one."""
    if _halting.is_set() and threading.current_thread() is not threading.main_thread():
        raise Halted


def ending(returncode: int) -> str:
    """How a program ended, as the end of a sentence; `returncode` as of a Popen: negative if a signal ended it."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return f"was ended by {name}" + (" (often: the machine had no memory left)" if name == "SIGKILL" else "")


class ToolMissing(MachineError):
    """A program that is needed is not installed."""

    def __init__(self, tool: str, *, package: str, reason: str) -> None:
        super().__init__(
            f"{tool} is needed {reason}, and is not installed",
            where="this machine's PATH (and /usr/sbin, /sbin)",
            fix=f"apt-get install {package}",
        )
        self.tool = tool
        self.package = package


class ProcessFailed(BuildError):
    """An outside program ended with a failure."""

    def __init__(self, done: Done, *, log: Path | None = None, fix: str = "") -> None:
        tail = "\n".join(f"         | {line}" for line in done.tail())
        super().__init__(
            f"{Path(done.argv[0]).name} {ending(done.returncode)}" + (f"\n{tail}" if tail else ""),
            where=f"command: {done.command()}" + (f" (log: {log})" if log else ""),
            fix=fix or "run the command by hand to see the failure alone; its last lines are above",
        )
        self.done = done


class ProcessTimeout(BuildError):
    """An outside program did not end in its time and was stopped."""

    def __init__(self, argv: Argv, timeout_s: float, *, log: Path | None = None) -> None:
        super().__init__(
            f"{Path(str(argv[0])).name} did not end within {timeout_s:g} s and was stopped",
            where=f"command: {shlex.join(map(str, argv))}" + (f" (log: {log})" if log else ""),
            fix="look whether the machine is overloaded or the program waits for something; then run it again",
        )


@dataclass(frozen=True)
class Done:
    """A program that ended: its command line, exit code, output as text and the seconds it took."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    elapsed_s: float

    def command(self) -> str:
        """The command line, to be pasted into a shell."""
        return shlex.join(self.argv)

    def tail(self, lines: int = _TAIL_LINES) -> list[str]:
        """The last lines it said (both streams, stderr last)."""
        return [line for line in (self.stdout + "\n" + self.stderr).splitlines() if line.strip()][-lines:]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of every child: a few variables passed on, a fixed locale and time zone, `extra` on top."""
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    path = env.get("PATH", "/usr/local/bin:/usr/bin:/bin").split(":")
    env["PATH"] = ":".join(path + [d for d in ("/usr/sbin", "/sbin") if d not in path])
    env |= {"LC_ALL": "C", "TZ": "UTC"}
    return env | dict(extra or {})


def find(tool: str) -> Path | None:
    """Where the program is, with the sbin folders looked into as well; None if it is not installed."""
    path = shutil.which(tool, path=environment()["PATH"])
    return Path(path) if path else None


def require(tool: str, *, package: str, reason: str) -> Path:
    """Where the program is. `reason` completes "X is needed …". Raises ToolMissing."""
    path = find(tool)
    if path is None:
        raise ToolMissing(tool, package=package, reason=reason)
    return path


def run(
    argv: Argv,
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    log: Path | None = None,
    check: bool = True,
    fix: str = "",
    on_line: Callable[[str], None] | None = None,
    umask: int = -1,
) -> Done:
    """Run a program to its end and return what it said.

    `log` also gets everything it said (one file for both streams, appended); `on_line` is called with each line while
    it runs. With `check` a non-zero exit raises ProcessFailed (`fix` is its fix line). `umask` is the child's, -1 for
    our own. On time-out, Ctrl-C or any other exception the program's whole process group is ended, politely and then
    firmly. Raises ToolMissing if the program is not there.
    """
    go_on()
    words = tuple(str(a) for a in argv)
    started_s = time.monotonic()
    merged = log is not None or on_line is not None
    child = _started(words, env, given=stdin is not None, merged=merged, cwd=cwd, umask=umask)
    try:
        if merged:
            out, err = _follow(child, words, stdin, timeout_s, log, on_line), ""
        else:
            try:
                raw_out, raw_err = child.communicate(stdin, timeout=timeout_s)
            except subprocess.TimeoutExpired as cause:
                raise ProcessTimeout(words, timeout_s, log=log) from cause
            out, err = raw_out.decode(errors="replace"), raw_err.decode(errors="replace")
    finally:
        end_group(child.pid, child)
    done = Done(words, child.returncode, out, err, time.monotonic() - started_s)
    if check and done.returncode != 0:
        raise ProcessFailed(done, log=log, fix=fix)
    return done


def _started(
    words: tuple[str, ...],
    env: Mapping[str, str] | None,
    *,
    given: bool,
    merged: bool = False,
    cwd: Path | None = None,
    umask: int = -1,
) -> subprocess.Popen[bytes]:
    """A child in a process group of its own, with pipes from it, and one to it if it is `given` input; `merged`: both
    its streams come through one pipe. Raises ToolMissing, and FileNotFoundError if `cwd` is not there."""
    try:
        return subprocess.Popen(
            words,
            cwd=cwd,
            env=environment(env),
            stdin=subprocess.PIPE if given else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE,
            start_new_session=True,
            umask=umask,
        )
    except FileNotFoundError as cause:
        if cwd is not None and not cwd.is_dir():
            raise
        raise ToolMissing(words[0], package=Path(words[0]).name, reason="for this step") from cause


def _follow(
    child: subprocess.Popen[bytes],
    words: tuple[str, ...],
    stdin: bytes | None,
    timeout_s: float,
    log: Path | None,
    on_line: Callable[[str], None] | None,
) -> str:
    """Read the child's output as it comes, into the log and the callback, and wait for its end."""
    import selectors

    assert child.stdout is not None
    end_s = time.monotonic() + timeout_s
    collected = bytearray()
    shown = 0
    with contextlib.ExitStack() as stack:
        if stdin is not None:
            stack.enter_context(_feeding(child, stdin))
        sink: IO[bytes] | None = stack.enter_context(log.open("ab")) if log is not None else None
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                raise ProcessTimeout(words, timeout_s, log=log)
            go_on()
            if not selector.select(min(left_s, _TICK_S)):
                continue
            chunk = os.read(child.stdout.fileno(), 65536)
            if not chunk:
                break
            collected += chunk
            if sink is not None:
                sink.write(chunk)
                sink.flush()
            if on_line is not None:
                while (newline := collected.find(b"\n", shown)) >= 0:
                    on_line(collected[shown:newline].decode(errors="replace"))
                    shown = newline + 1
    try:
        child.wait(max(0.1, end_s - time.monotonic()))
    except subprocess.TimeoutExpired as cause:
        raise ProcessTimeout(words, timeout_s, log=log) from cause
    return collected.decode(errors="replace")


@contextlib.contextmanager
def _feeding(child: subprocess.Popen[bytes], stdin: bytes) -> Iterator[None]:
    """While the block lasts, a thread writes the child's input. A child that says much before it has read all of it
    would otherwise wait for us while we wait for it, past every time-out."""
    source = child.stdin
    assert source is not None

    def write() -> None:
        with contextlib.suppress(OSError, ValueError):  # it ended, or was ended, without reading everything
            source.write(stdin)
        with contextlib.suppress(OSError, ValueError):
            source.close()

    writer = threading.Thread(target=write, name="input", daemon=True)
    writer.start()
    try:
        yield
    except BaseException:
        end_group(child.pid, child)  # the pipe's reader is gone, so that the writer ends as well
        raise
    finally:
        writer.join(_POLITE_S)


def stream(
    argv: Argv,
    *,
    timeout_s: float,
    source: Callable[[int], bytes] | None = None,
    on_stdout: Callable[[bytes], None],
    on_stderr: Callable[[bytes], None],
    env: Mapping[str, str] | None = None,
    watch: Callable[[], None] = lambda: None,
) -> int:
    """Run a program whose input or output may be too large for memory, or is no text; its exit code.

    `source` reads its input (at most so many bytes; empty: the end); that it ends before it has taken all is no error.
    The callbacks get its output as it comes, and what they raise ends the program; so does what `watch` raises, which
    is called again and again, also while nothing comes. On time-out (ProcessTimeout), Ctrl-C
    or any other exception the program's whole process group is ended. Raises ToolMissing.
    """
    import selectors

    go_on()
    words = tuple(str(a) for a in argv)
    end_s = time.monotonic() + timeout_s
    child = _started(words, env, given=source is not None)
    pending = b""
    try:
        with selectors.DefaultSelector() as selector:
            for pipe, callback in ((child.stdout, on_stdout), (child.stderr, on_stderr)):
                assert pipe is not None
                selector.register(pipe, selectors.EVENT_READ, callback)
            if child.stdin is not None:
                os.set_blocking(child.stdin.fileno(), False)
                selector.register(child.stdin, selectors.EVENT_WRITE)
            while any(key.data for key in selector.get_map().values()):
                if (left_s := end_s - time.monotonic()) <= 0:
                    raise ProcessTimeout(words, timeout_s)
                go_on()
                watch()
                for key, _ in selector.select(min(left_s, _TICK_S)):
                    if key.data is None:
                        assert source is not None
                        assert child.stdin is not None
                        pending = pending or source(_PIECE)
                        taken = _give(key.fd, pending)
                        pending = pending[taken or 0 :]
                        if taken is None:
                            selector.unregister(child.stdin)
                            child.stdin.close()
                    elif piece := os.read(key.fd, _PIECE):
                        key.data(piece)
                    else:
                        selector.unregister(key.fileobj)
        return child.wait(max(0.1, end_s - time.monotonic()))
    except subprocess.TimeoutExpired as cause:
        raise ProcessTimeout(words, timeout_s) from cause
    finally:
        end_group(child.pid, child)


def _give(fd: int, piece: bytes) -> int | None:
    """How many bytes a program took of a piece; None if there is nothing more to give, or it takes no more."""
    try:
        return os.write(fd, piece) if piece else None
    except BlockingIOError:
        return 0
    except BrokenPipeError:
        return None


def replace_us(argv: Argv, env: Mapping[str, str] | None = None) -> NoReturn:
    """Become another program: it gets this terminal, its keys and its signals. Raises ToolMissing."""
    words = [str(a) for a in argv]
    program = find(words[0])
    if program is None:
        raise ToolMissing(words[0], package=Path(words[0]).name, reason="for this step")
    for ours in filter(None, (sys.stdout, sys.stderr)):
        ours.flush()
    os.execve(program, words, environment(env))


class Child:
    """A program that runs beside us until `stop`. It dies with us, even when we are killed."""

    def __init__(self, popen: subprocess.Popen[bytes], argv: tuple[str, ...], log: Path) -> None:
        self._popen = popen
        self.argv = argv
        self.log = log

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._popen.poll()

    @property
    def running(self) -> bool:
        """True while it has not ended."""
        return self.returncode is None

    def wait(self, timeout_s: float) -> int | None:
        """Wait for its end; its exit code, or None if it still runs after `timeout_s`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._popen.wait(timeout_s)
        return None

    def stop(self) -> int:
        """End it: politely, then firmly. Returns its exit code."""
        end_group(self._popen.pid, self._popen)
        return self._popen.wait()

    def log_tail(self, lines: int = _TAIL_LINES) -> str:
        """The last lines of its log."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""


def spawn(
    argv: Argv,
    *,
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Child:
    """Start a program that runs beside us; both its streams go to `log`.

    util-linux's setpriv gives it a parent-death signal, so that not even a SIGKILL of ours leaves it behind; a shell
    line then looks whether we still live, for a parent that died before the signal was set would never send it. The
    signal is tied to the thread that starts it (prctl(2), PR_SET_PDEATHSIG): call this from a thread that lives as long
    as the child should. Raises ToolMissing.
    """
    setpriv = require("setpriv", package="util-linux", reason="so that no child outlives this program")
    words = tuple(str(a) for a in argv)
    if find(words[0]) is None and not Path(words[0]).is_file():
        raise ToolMissing(words[0], package=Path(words[0]).name, reason="for this step")
    with log.open("ab") as sink:
        popen = subprocess.Popen(
            (str(setpriv), "--pdeathsig", "KILL", "--", "/bin/sh", "-c", _IF_PARENT_LIVES, str(os.getpid()), *words),
            cwd=cwd,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
        )
    return Child(popen, words, log)


def end_group(group: int, child: subprocess.Popen[bytes]) -> None:
    """End a child and what it started: SIGTERM to its process group, after some seconds SIGKILL."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)
        try:
            child.wait(_POLITE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            child.wait()
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
