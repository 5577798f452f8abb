"""Runs in the guest's own Python while the image is made: compile what the lab host loads, so that the guest need not.

    precompile.py ROOT     imports the lab host's program from ROOT, compiles every module that this loaded

Written without time stamps and without a path of the building machine (PEP 552, unchecked hashes).
"""

import importlib
import py_compile
import sys
from pathlib import Path

root = Path(sys.argv[1])
sys.path.insert(0, str(root / "usr/lib/lab-host"))
_LATER = ("guest.tls", "encodings.idna", "encodings.latin_1", "encodings.ascii", "fcntl", "contextlib")
for name in ("guest.__main__", *_LATER):
    importlib.import_module(name)
for module in list(sys.modules.values()):
    source = getattr(module, "__file__", None)
    if source and source.endswith(".py") and Path(source).is_relative_to(root):
        py_compile.compile(
            source,
            dfile="/" + str(Path(source).relative_to(root)),
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
