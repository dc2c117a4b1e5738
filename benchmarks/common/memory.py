"""Memory of this process, as Linux counts it."""

import threading
import time
from pathlib import Path

EVERY = 0.005
"""Seconds between two looks at the anonymous memory."""


def peak() -> int:
    """The largest resident set so far, in bytes; since the last write to /proc/self/clear_refs, where there was one.

    Not `ru_maxrss`, which begins with that of the process that started this one.
    """
    return _status("VmHWM")


def anonymous() -> int:
    """What is allocated and was written to, in bytes: without pages of files, which the system may drop."""
    return _status("RssAnon")


class Anonymous(threading.Thread):
    """Looks at it again and again: Linux keeps no peak of it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.start()

    def run(self) -> None:
        """Until the process ends."""
        while True:
            self.peak = max(self.peak, anonymous())
            time.sleep(EVERY)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024
