"""Starts the program of a lab host from its own folder: Python's isolated mode does not look there by itself."""

import sys

sys.path.insert(0, "/usr/lib/lab-host")

from guest.__main__ import main  # after its folder is known

sys.exit(main())
