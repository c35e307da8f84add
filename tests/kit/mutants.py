"""Mutants that break one rule of the store, derived from the recording of a correct relay: a test that does not detect
them proves nothing.

A relay that never calls fdatasync, or never syncs a folder, does the same writes without those calls: the calls are passed
over. For the relay with one sync for two batches, every second `fdatasync` of any file (the journal or sled's log) is
passed over, and the replies that relied on it are sent after the next one.
"""


def no_fdatasync(_index, event):
    return event.b == 1


def no_folder_sync(_index, event):
    return event.a == 1


def two_batches(events, said):
    """The calls to skip, and the later times of the replies."""
    calls, ends, open_calls = [], {}, {}
    for index, event in enumerate(events):
        if event.kind == "S" and event.b == 1:
            calls.append(index)
            open_calls[event.thread] = index
        elif event.kind == "E" and event.thread in open_calls:
            ends[open_calls.pop(event.thread)] = index
    passed_over = set(calls[::2])
    later = []
    for at, what, token in said:
        if what not in ("offered", "answered"):
            # The last batch before it must have been synced: the first call that counts at or after that one.
            last = max((number for number, call in enumerate(calls) if ends.get(call, len(events)) < at), default=None)
            if last is not None and calls[last] in passed_over:
                at = max(at, ends.get(calls[last + 1], len(events)) + 1) if last + 1 < len(calls) else len(events)
        later.append((at, what, token))
    return passed_over, sorted(later)
