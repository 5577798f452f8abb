"""Roots of the lab's base system for tests without a VM."""

from __future__ import annotations

from pathlib import Path

import labrig
import pytest


@pytest.fixture
def make_root(tmp_path: Path) -> labrig.MakeRoot:
    """Make a root with overlays: `make_root("fw4-lb1", release="24.10.8")`."""
    count = 0

    def make(*overlays: Path | str, release: str = "24.10.8", packages: str = labrig.PACKAGES) -> labrig.Root:
        nonlocal count
        count += 1
        return labrig.Root(tmp_path / str(count), *overlays, release=release, packages=packages)

    return make
