"""How the launcher tells the daemon what is about to become of its sandbox."""

from __future__ import annotations

import signal

ENDING_SIGNAL = signal.SIGRTMIN + 5
"""Tells the daemon that its sandbox is about to be killed. Not one that programs send at random."""
PAUSING_SIGNAL = signal.SIGRTMIN + 6
"""The same for a pause."""
