"""In which order tests run: long ones begin first, so that no processor waits for the last of them at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

_Item = TypeVar("_Item")


def long_first(items: Sequence[_Item], is_long: Callable[[_Item], bool], workers: int) -> list[_Item]:
    """The items in an order in which each worker begins with its share of the long ones. pytest-xdist (worksteal) gives
    each worker as many items in a row at first; the others stay in their order, so that a module's stay together."""
    long = [item for item in items if is_long(item)]
    others = iter([item for item in items if not is_long(item)])
    ordered: list[_Item] = []
    for worker in range(workers):
        ordered += long[worker::workers]
        end = len(items) * (worker + 1) // workers
        while len(ordered) < end:
            ordered.append(next(others))
    return ordered
