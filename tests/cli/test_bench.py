"""The figures of failover: what counts as the usual gap, and when a limit is missed."""

from __future__ import annotations

from ndakit.cli.bench.bench import gap_figures


def test_of_twenty_gaps_one_may_be_longer_than_the_usual_ones() -> None:
    longest, usual = gap_figures(1.0, [*range(2001, 2020), 3900.0])
    assert (longest.value, longest.ok) == (3900, True)
    assert (usual.value, usual.ok) == (2019, True)
    assert "20 of 20" in longest.note


def test_two_of_twenty_are_too_many() -> None:
    longest, usual = gap_figures(0.1, [*[300.0] * 18, 700.0, 810.0])
    assert not longest.ok
    assert (usual.value, usual.ok) == (700, False)
    assert "19 of 20" in longest.note


def test_one_gap_is_the_longest_and_the_usual_one() -> None:
    assert [f.value for f in gap_figures(1.0, [2500.0])] == [2500, 2500]
