"""Templates that have been compiled before, so that a command does not compile them all anew each time.

A cache and nothing more: without its folder the same text is rendered, a tenth of a second later. Compiling works out
constant expressions, filters included, and what is compiled calls extensions of the engine by their module's name: so
the code of both is part of a file's name. What is loaded is code, so only a file that this user alone can have written
is, and nothing is unpickled. A file begins with the SHA-256 of what follows: the template's checksum, a line end, and
the code (marshal's form, which a damaged byte could crash).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import marshal
import sys
from pathlib import Path

from jinja2 import BytecodeCache, __version__
from jinja2.bccache import Bucket

from ndakit.core.files import own_bytes, write_atomic
from ndakit.core.locks import stale
from ndakit.core.workspace import CacheUnusable, cache

_LIMIT = 500
"""Files that are kept; one is some 6 KiB."""
_DIGEST = hashlib.sha256().digest_size
_CODE = (Path(__file__).with_name("filters.py"), Path(__file__).with_name("environment.py"))


class CompiledTemplates(BytecodeCache):
    """One file per template's path in the user's cache."""

    def get_cache_key(self, name: str, filename: str | None = None) -> str:
        """By path alone: a changed template takes the place of what it was."""
        return f"{super().get_cache_key(filename or name)}-{_code()}"

    def load_bytecode(self, bucket: Bucket) -> None:
        """Fill the bucket, if this very template was compiled before; what is stale or damaged is passed over.

        Raises CacheUnsafe.
        """
        with contextlib.suppress(OSError, CacheUnusable, ValueError, EOFError, TypeError):
            kept = own_bytes(_folder() / bucket.key)
            checksum, _, code = kept[_DIGEST:].partition(b"\n")
            if sealed(kept[_DIGEST:]) == kept and checksum == bucket.checksum.encode():
                bucket.code = marshal.loads(code)

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep a compiled template; a cache that cannot be written costs time, nothing else. Raises CacheUnsafe."""
        with contextlib.suppress(OSError, CacheUnusable):
            kept = sealed(bucket.checksum.encode() + b"\n" + marshal.dumps(bucket.code))
            write_atomic(_folder() / bucket.key, kept, mode=0o600)
            for file in stale(_folder().iterdir(), keep=_LIMIT, idle_s=0):
                file.unlink(missing_ok=True)


def sealed(content: bytes) -> bytes:
    """The content behind its SHA-256."""
    return hashlib.sha256(content).digest() + content


@functools.cache
def _folder() -> Path:
    return cache() / "templates"


@functools.cache
def _code() -> str:
    """What else decides the outcome: Python, the engine, its extensions and the filters."""
    code = b"".join(file.read_bytes() for file in _CODE)
    python = str(sys.implementation.cache_tag)
    return hashlib.sha256(f"{python} {__version__} ".encode() + code).hexdigest()[:16]
