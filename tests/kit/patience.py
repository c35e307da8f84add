"""Waiting for something to become true: never a sleep in its place, and never for ever."""

import time

# Generous, because it is only ever used up when something is wrong.
PATIENCE = 60.0


def until(condition, what, patience=PATIENCE):
    """Calls `condition` until it gives something true, and gives that back."""
    deadline = time.monotonic() + patience
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"after {patience:.0f} s still not so: {what}")
        time.sleep(0.01)
