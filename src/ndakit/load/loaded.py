"""A loaded profile as a value: what it says, and where that was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ndakit.core.errors import Location
from ndakit.core.mistakes import KeyPath, ProfileWarning
from ndakit.model import Profile


@dataclass(frozen=True)
class Loaded:
    """A profile that is right, and where its values were written."""

    profile: Profile
    path: Path
    """The profile's own file."""
    origins: Mapping[KeyPath, Location]
    """The place of every value that a file states; values without one are defaults."""
    warnings: tuple[ProfileWarning, ...]
    sources: tuple[Path, ...]
    """Every file that was read: the profile, what it extends, the files it names."""
    called: str = field(compare=False)
    """How a command names the profile: as this one did, a name or a path, quoted for a shell."""
