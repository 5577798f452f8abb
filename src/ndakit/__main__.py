"""`./inv`: Invoke with our list of tasks, our exit codes and clean endings.

The tasks are those of the nearest `tasks.py` (as Invoke finds it), else ndakit's own.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from invoke.collection import Collection
from invoke.config import Config
from invoke.exceptions import Exit, ParseError
from invoke.loader import FilesystemLoader
from invoke.program import Program

from ndakit import __version__
from ndakit.core.errors import MachineError, refused
from ndakit.core.terminal import OutputFailed, note, say, show_error
from ndakit.core.workspace import FolderGone

INTERRUPTED = 130
TERMINATED = 143
USAGE = 2
OPTIONAL_FIRST = ("build", "bench", "backups")
"""Tasks whose first argument may be left out: `build` with `--all`, `bench`, `backups`."""


class Settings(Config):
    """Invoke's settings; a HOME that is no folder has none for us (`HOME=/dev/null`, as daemons have it)."""

    def load_user(self, merge: bool = True) -> None:
        """Read ~/.invoke.yaml and its like, if that can be done."""
        with contextlib.suppress(OSError):
            super().load_user(merge)


class TaskProgram(Program):
    """Invoke's program with usage mistakes as exit code 2 and one ending for Ctrl-C."""

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:
        """Parse and execute; always ends the process."""
        try:
            self.create_config()
            self.parse_core(argv)
            self.parse_collection()
            self.parse_tasks()
            self.parse_cleanup()
            self.update_config()
            self.execute()
        except ParseError as mistake:
            what, fix = _usage_mistake(mistake)
            note(f"error: {what}\n  where: the command line\n  fix:   {fix}")
            sys.exit(USAGE)
        except Exit as ending:
            if ending.message:
                note(ending.message)
            sys.exit(ending.code)

    def print_task_help(self, name: str) -> None:
        """Invoke's, below a usage line that shows the task's first argument."""
        invokes = io.StringIO()
        with contextlib.redirect_stdout(invokes):
            super().print_task_help(name)
        context = self.parser.contexts[name]
        words = [f"[{a.name.upper()}]" if name in OPTIONAL_FIRST else a.name.upper() for a in context.positional_args]
        words += ["[options]"] if context.args else []
        say("\n".join([" ".join(["Usage: ./inv", name, *words]), *invokes.getvalue().splitlines()[1:]]))


def _usage_mistake(mistake: ParseError) -> tuple[str, str]:
    """What is wrong with the command line, and the way out, in our words where Invoke's are a riddle."""
    context = mistake.context
    if context is not None and context.missing_positional_args:
        task, words = context.name, " ".join(str(a.name).upper() for a in context.missing_positional_args)
        return f"{task}: which {words.lower()}?", f"./inv {task} {words}; ./inv list shows the profiles"
    unknown = re.fullmatch(r"No idea what '(.*)' is!", str(mistake), re.DOTALL)
    if unknown is None:
        return str(mistake), "./inv TASK --help says what a task takes"
    from ndakit.cli.tasks import namespace

    file = _tasks_here()
    if file is not None and unknown[1] in namespace.task_names:
        fix = f"write 'from ndakit.tasks import namespace' into it, or remove it: a workspace needs no {file.name}"
        return f"{file} does not have the task {unknown[1]}", fix
    return f"there is no task or option '{unknown[1]}'", "./inv alone lists the tasks"


def _tasks_here() -> Path | None:
    """The tasks.py that Invoke would find from here upwards."""
    files = (folder / "tasks.py" for folder in (Path.cwd(), *Path.cwd().parents))
    return next((file for file in files if file.is_file()), None)


def _terminated(signum: int, frame: FrameType | None) -> None:
    """SIGTERM and SIGHUP unwind like Ctrl-C, so that machines and locks go away."""
    sys.exit(TERMINATED)


def _without_output(error: MachineError) -> int:
    """Say it where that is possible; nothing is tried again when the interpreter ends."""
    with contextlib.suppress(OutputFailed, OSError):
        show_error(error)
    return _quietly(error.exit_code)


def _quietly(code: int) -> int:
    """The code; what is still held back goes nowhere."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def _lacks_first_word(words: list[str]) -> bool:
    """True for `build --all`, `bench` and `backups`, whose first argument may be left out."""
    optional = words[1] in OPTIONAL_FIRST and (words[1] != "build" or "--all" in words[2:])
    return optional and (len(words) == 2 or words[2].startswith("-"))


def main(argv: list[str] | None = None) -> Any:
    """Run the task named on the command line."""
    words = list(sys.argv if argv is None else argv)
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGHUP, _terminated)
    # A umask of 000 would let everybody change what is built here, and the programs that build it.
    os.umask(os.umask(0o077) | 0o002)
    try:
        Path.cwd()
    except OSError:
        show_error(FolderGone())
        return FolderGone.exit_code
    try:
        if len(words) == 1 or (words[1] in ("--list", "-l", "--help", "-h") and len(words) == 2):
            from ndakit.cli.tasks import overview

            say(overview())
            return 0
        if not words[1].startswith("-") and {"--help", "-h"} & set(words[2:]):
            # Invoke would take the word for the value of a missing positional argument.
            words[1:] = ["--help", words[1]]
        elif _lacks_first_word(words):
            # Invoke knows no positional argument that may be left out.
            words.insert(2, "")
        namespace: Collection | None = None
        if _tasks_here() is None:
            from ndakit.cli.tasks import namespace as shipped

            namespace = shipped
        program = TaskProgram(
            name="ndakit",
            binary="inv",
            version=__version__,
            namespace=namespace,
            loader_class=FilesystemLoader,
            config_class=Settings,
        )
        program.run(["inv", *words[1:]])
    except KeyboardInterrupt:
        note("\nstopped; everything this run had started is gone")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output (head, less) has gone: end quietly, also at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OutputFailed as error:
        return _without_output(error)
    except OSError as cause:
        # What Invoke itself prints (help, version), and the files that it reads.
        return _without_output(refused(cause) if cause.filename else OutputFailed(cause.strerror or str(cause)))
    return 0


def _ended() -> Any:
    """The exit code of a run, after what Python still held back of its output is written too."""
    try:
        code = main()
    except SystemExit as ending:
        code = ending.code
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # closed before the start
                stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as cause:
        failed = OutputFailed(cause.strerror or str(cause))
        if code == failed.exit_code:  # said already
            return _quietly(code)
        return _without_output(failed)
    return code


if __name__ == "__main__":
    sys.exit(_ended())
