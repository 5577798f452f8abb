"""What all tasks share: how an error of the library becomes three lines and an exit code; words of their help."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from invoke.exceptions import Exit

from ndakit.core import terminal
from ndakit.core.errors import MachineError, NdakitError, refused

PROFILE_HELP = "profile's name (profiles/NAME.yaml) or path to its file"
NODE_HELP = "only this node (default: all)"


def shown(body: Callable[..., Any]) -> Callable[..., Any]:
    """Turn an error of the library into its three lines and its exit code."""

    @functools.wraps(body)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return body(*args, **kwargs)
        except NdakitError as error:
            terminal.show_error(error)
            raise Exit(code=error.exit_code) from None
        except BrokenPipeError:
            raise
        except OSError as cause:
            # What the system refuses, wherever it does: this machine's state and no bug of ours.
            terminal.show_error(refused(cause))
            raise Exit(code=MachineError.exit_code) from None

    return wrapped
