"""Waits for a condition, with a time-out; tests never sleep for a fixed time."""

import time

# Generous: only a failing test waits this long.
TIMEOUT = 60.0


def until(condition, what, timeout=TIMEOUT):
    """Calls `condition` until it returns something true, and returns that."""
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout:.0f} s not yet: {what}")
        time.sleep(0.01)
