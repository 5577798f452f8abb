"""What every test may rely on."""

from __future__ import annotations

import signal

# A shell script starts what it puts behind `&` with SIGINT ignored, and children inherit that: tests that send Ctrl-C
# to programs would wait for an end that never comes.
signal.signal(signal.SIGINT, signal.default_int_handler)
