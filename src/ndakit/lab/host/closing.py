"""What goes on in a lab host until this side ends it."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from ndakit.core.errors import NdakitError


class Lasting(ABC):
    """A context manager that closes itself at its end."""

    @abstractmethod
    def close(self) -> None:
        """End it; nothing happens if it has ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:  # what went wrong is told, not that this could not be ended after it
            with contextlib.suppress(NdakitError):
                self.close()
