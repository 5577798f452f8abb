"""A node's shell with prepared answers, as testinfra would ask it."""

from __future__ import annotations

from typing import Any


class Typed:
    """A node's console with prepared answers."""

    def __init__(self, **answers: str) -> None:
        self.answers = answers

    def run(self, command: str, *args: str) -> Any:
        word = command.split()[0]

        class Result:
            rc = 0 if word in self.answers else 127
            stdout = self.answers.get(word, "")

        return Result()
