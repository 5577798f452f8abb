"""The events of fetching and building as lines of text, for one profile at a time."""

from __future__ import annotations

from collections.abc import Callable

from ndakit.core import events, terminal
from ndakit.core.events import Event


class Steps:
    """Shows events as lines; `profile` is named in each where the builds of several share the output."""

    def __init__(self, to: Callable[[str], None], profile: str = "") -> None:
        self._to = to
        self._profile = profile
        self._progress = terminal.ProgressLine(to)

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case events.Planned(node, False, reasons):
                self._say(node, "; ".join(reasons))
            case events.StepDone(step, node, elapsed_s, note):
                self._say(node, f"{step} {terminal.seconds(elapsed_s)}" + (f", {note}" if note else ""))
            case events.StepStarted(step, node, what) if step == "image":
                self._say(node, what)
            case events.StepStarted("download" | "unpack", _, what):
                self._say("", what)
            case events.Progress(_, done_bytes, total_bytes) if (
                not self._profile
            ):  # else lines of others are in between
                self._progress(done_bytes, total_bytes)
            case events.Waiting(what):
                self._say("", what)
            case events.Warned(node, text):
                terminal.note(f"warning: {self._about(node)}{text}")
            case _:
                pass

    def _say(self, node: str, text: str) -> None:
        self._to(self._about(node) + text)

    def _about(self, node: str) -> str:
        named = "/".join(word for word in (self._profile, node) if word)
        return f"{named}: " if named else ""
