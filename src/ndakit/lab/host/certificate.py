"""A throw-away certificate for a lab's HTTPS servers: made anew for each lab, signed by itself, valid for a day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from ndakit.load.certificates import make_self_signed

_NAME = "lab.invalid"


def throw_away() -> str:
    """Certificate and private key as PEM. P-256, for that is quick under emulation as well.

    Valid from a day ago on: the clocks of the lab's machines need not agree.
    """
    return make_self_signed([_NAME], datetime.now(UTC) - timedelta(days=1), 2).decode()
