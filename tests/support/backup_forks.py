"""Backs up a box that is a folder, each time somebody writes a line: in a child that can be killed.

    backup_forks.py WORKSPACE BOX

For one line it prints the child's process id, for the next one an empty line when that has ended.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fake_box import Box, TreeShell
from ndakit.core.workspace import Workspace
from ndakit.load import load
from ndakit.operate import backup
from ndakit.operate.backup import AtHand, Wanted


def main() -> None:
    """See the module's docstring."""
    place, root = Workspace(Path(sys.argv[1])), Path(sys.argv[2])
    profile = load.load(place, "shop").profile
    wanted = Wanted("shop", "lb1", "the box", "192.0.2.11", (), profile.hostname("lb1"), str(profile.release))
    while sys.stdin.readline():
        child = os.fork()
        if child == 0:
            backup.take(TreeShell(Box(root, rom=True)), wanted, place.backups, known=AtHand())
            os._exit(0)
        tell(str(child))
        sys.stdin.readline()  # until then it keeps its number, though it may have ended
        os.waitpid(child, 0)
        tell("")


def tell(word: str) -> None:
    """A line for who waits for it."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
