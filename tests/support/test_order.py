"""Long tests begin first, on every worker."""

from __future__ import annotations

import pytest

from order import long_first


@pytest.mark.parametrize("workers", [1, 2, 3, 6])
def test_each_worker_begins_with_its_share_of_the_long_ones(workers: int) -> None:
    items = [f"{'LONG' if n in (3, 17, 18, 19, 25) else 'short'} {n}" for n in range(26)]
    ordered = long_first(items, lambda item: item.startswith("LONG"), workers)
    assert sorted(ordered) == sorted(items)
    shorts = [item for item in ordered if not item.startswith("LONG")]
    assert shorts == [item for item in items if not item.startswith("LONG")], "the others stay in their order"
    begins = [len(items) * worker // workers for worker in range(workers)]
    heads = [ordered[begin : begin + 5 // workers] for begin in begins]
    assert all(item.startswith("LONG") for head in heads for item in head)


def test_more_long_ones_than_a_worker_has_room_for_lose_none() -> None:
    items = list(range(7))
    assert sorted(long_first(items, lambda item: item != 6, 3)) == items
    assert long_first([], lambda item: True, 4) == []
