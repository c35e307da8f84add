"""Mutants that break one rule of the store, derived from the recording of a correct relay: a test that does not detect
them proves nothing.

A relay that never calls fdatasync, or never syncs a folder, does the same writes without those calls: the calls are passed
over. For the relay with one sync for four batches, three of four `fdatasync` calls of sled's log are passed over. No reply is later
for that: replies rely on the journal's `fdatasync`.
"""

from kit import disk


def no_fdatasync(_index, event):
    return event.b == 1


def no_folder_sync(_index, event):
    return event.a == 1


def four_batches(events):
    """The calls to skip: three of four of the fdatasync calls of sled's log. The journal's count, so that a fault is one of sled's log."""
    logs = disk.files_called(events, "db")
    calls = [index for index, event in enumerate(events) if event.kind == "S" and event.b == 1 and event.inode in logs]
    return set(calls) - set(calls[::4])
