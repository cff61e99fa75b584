"""Copies standard input to standard output, as a program of its own: ``python pump.py``.

It sleeps after each piece. HAProxy writes a line for each request, and a reader that each of them
woke, as `cat` would be, takes a twentieth of what the request takes of a core.
"""

import os
import time

_PIECE = 1 << 20
_PAUSE = 0.05
"""Seconds; the pipe holds what busy HAProxy writes in ten of them."""


def pump(source: int, target: int) -> None:
    """Copy between descriptors, until the last writer is gone."""
    while data := os.read(source, _PIECE):
        while data:
            data = data[os.write(target, data) :]
        time.sleep(_PAUSE)


if __name__ == "__main__":
    pump(0, 1)
