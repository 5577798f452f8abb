"""Templates that have been compiled before, so that a command does not compile them all anew each time.

A cache and nothing more: without its folder the same text is rendered, a tenth of a second later. Compiling works out
constant expressions, filters included, so that the code of the filters is part of a file's name.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
from pathlib import Path

from jinja2 import BytecodeCache, __version__
from jinja2.bccache import Bucket

from ndakit import filters
from ndakit.workspace import cache, stale, write_atomic

_LIMIT = 500
"""Files that are kept; one is some 6 KiB."""


class CompiledTemplates(BytecodeCache):
    """One file per template's path in the user's cache. The engine compares the template's own text (its checksum)."""

    def get_cache_key(self, name: str, filename: str | None = None) -> str:
        """By path alone: a changed template takes the place of what it was."""
        return f"{super().get_cache_key(filename or name)}-{_code()}"

    def load_bytecode(self, bucket: Bucket) -> None:
        """Fill the bucket, if this template was compiled before; the engine refuses what is stale or damaged."""
        with contextlib.suppress(OSError):
            bucket.load_bytecode(io.BytesIO((_folder() / bucket.key).read_bytes()))

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep a compiled template; a cache that cannot be written costs time, nothing else."""
        with contextlib.suppress(OSError):
            write_atomic(_folder() / bucket.key, bucket.bytecode_to_string(), mode=0o600)
            for file in stale(_folder().iterdir(), keep=_LIMIT, idle_s=0):
                file.unlink(missing_ok=True)


@functools.cache
def _folder() -> Path:
    return cache() / "templates"


@functools.cache
def _code() -> str:
    """What else decides the outcome: the engine and the filters."""
    code = Path(filters.__file__).read_bytes()
    return hashlib.sha256(__version__.encode() + code).hexdigest()[:16]
