"""The possible contents of a disk after a power cut, from a recording of all its writes and syncs.

A file is its durable bytes and the list of what was done to it since; a folder is its durable entries, and so on. What a
call did is durable once an fsync or fdatasync of that file (of that folder, for its entries) *began after it had ended*
and has ended itself; `sync_file_range` is not even recorded, because it promises nothing. An fsync that failed makes
nothing durable, then or later: Linux takes the pages for written. All that is not durable may be on the disk or not:

| style | of what was done after the last sync, the disk has |
| --- | --- |
| `synced` | nothing |
| `all` | everything |
| `blocks` | of each block of 4 KiB the state after some of its writes, of the changes of names the first few |
| `sectors` | the same by sectors of 512 bytes |
| `torn` | the first few writes, the last of them up to some sector; of the changes of names the first few |

Where a file had grown, what did not reach the disk is zeros, or is not there.
"""

import mmap
import os
import struct
from dataclasses import dataclass, field

STYLES, WEIGHTS = ("synced", "all", "blocks", "sectors", "torn"), (2, 1, 3, 3, 1)
SEGMENT = 512 << 10  # of sled's log

_RECORD = struct.Struct("<IIqqqII")


@dataclass(slots=True)
class Event:
    kind: str
    thread: int
    inode: int
    a: int
    b: int
    data: memoryview
    first: int

    @property
    def paths(self):
        text = bytes(self.data)
        return os.fsdecode(text[: self.first]), os.fsdecode(text[self.first :])


def read(path):
    """The events of a recording, in order."""
    with open(path, "rb") as file:
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    events, at = [], 0
    while at < len(whole):
        kind, thread, inode, a, b, length, first = _RECORD.unpack_from(whole, at)
        at += _RECORD.size
        events.append(Event(chr(kind), thread, inode, a, b, whole[at : at + length], first))
        at += length
    return events


@dataclass(eq=False)
class Change:
    """One call that changed something: what `write`, `size` or `names` say, from `begun` to `ended`."""

    what: str
    begun: int
    args: tuple
    ended: int | None = None


@dataclass(eq=False)
class File:
    durable: bytearray = field(default_factory=bytearray)
    later: list = field(default_factory=list)


@dataclass(eq=False)
class Folder:
    entries: dict = field(default_factory=dict)


def _apply(data, change):
    if change.what == "write":
        offset, piece = change.args
        if len(data) < offset:
            data.extend(bytes(offset - len(data)))
        data[offset : offset + len(piece)] = piece
    else:
        _resize(data, *change.args)


def _resize(data, size, shrink):
    if len(data) < size:
        data.extend(bytes(size - len(data)))
    elif shrink:
        del data[size:]


class Disk:
    """Goes through a recording event by event. The folder's present files were there, durable, when the recording began,
    unless it began `empty`; `ignore` names what does not count as a sync: the mutants."""

    def __init__(self, root, events, ignore=None, empty=False):
        self.root, self.events, self.at = str(root), events, 0
        self.ignores = ignore or (lambda index, event: False)
        self.inodes, self.names = {}, []  # the changes of names that are not durable yet
        self.top = self._scan(self.root, empty)
        self._seen = {}  # a folder's entries as the running program sees them
        self._calls = {}  # what each thread is in the middle of

    def _scan(self, path, empty=False):
        """Sockets are no part of it."""
        folder = Folder()
        self.inodes[os.stat(path).st_ino] = folder
        for entry in () if empty else os.scandir(path):
            if entry.is_dir():
                folder.entries[entry.name] = self._scan(entry.path)
            elif entry.is_file():
                with open(entry.path, "rb") as file:
                    folder.entries[entry.name] = self.inodes[entry.inode()] = File(bytearray(file.read()))
        return folder

    def _entries(self, folder):
        return self._seen.setdefault(folder, dict(folder.entries))

    def _find(self, path):
        """The folder of a path and its name in it."""
        folder = self.top
        parts = os.path.relpath(path, self.root).split("/")
        for part in parts[:-1]:
            folder = self._entries(folder)[part]
        return folder, parts[-1]

    def advance(self, to):
        """Takes in all events before `to`."""
        while self.at < to:
            self._take(self.at, self.events[self.at])
            self.at += 1

    def _take(self, index, event):
        kind = event.kind
        if kind == "W":
            self._change(event, File, Change("write", index, (event.a, event.data)))
        elif kind == "T":
            self._change(event, File, Change("size", index, (event.a, True)))
        elif kind == "F":
            self._change(event, File, Change("size", index, (event.a, False)))
        elif kind == "S":
            self._calls[event.thread] = (event, index)
        elif kind == "E":
            self._end(index, event)
        elif kind == "O":
            self._open(index, event)
        elif kind == "M":
            folder, name = self._find(event.paths[0])
            self.inodes[event.inode] = Folder()
            self._name(("link", folder, name, self.inodes[event.inode]), index, index)
        elif kind in "UR":
            self._calls[event.thread] = (event, index)

    def _change(self, event, kind, change):
        file = self.inodes.get(event.inode)
        assert isinstance(file, kind), f"event {change.begun}: {event.kind} on an unknown inode {event.inode}"
        file.later.append(change)
        self._calls[event.thread] = (change, file)

    def _open(self, index, event):
        path = event.paths[0]
        if event.a:
            folder, name = self._find(path)
            self.inodes[event.inode] = File()
            self._name(("link", folder, name, self.inodes[event.inode]), index, index)
        elif event.b:
            self.inodes[event.inode].later.append(Change("size", index, (0, True), index))

    def _name(self, args, begun, ended):
        """A change of names, seen by the program at once."""
        self.names.append(Change("names", begun, args, ended))
        _rename(args, self._entries)

    def _end(self, index, event):
        call, more = self._calls.pop(event.thread, (None, None))
        if call is None:
            return
        if isinstance(call, Change):
            call.ended = index
            if event.a < 0:
                more.later.remove(call)
            elif call.what == "write":
                call.args = (call.args[0], call.args[1][: event.a])
        elif call.kind == "S":
            self._synced(more, call, event.a)
        elif event.a == 0:
            path, to = call.paths
            folder, name = self._find(path)
            found = self._entries(folder).get(name)
            if found is None:
                return  # a socket
            if call.kind == "U":
                self._name(("unlink", folder, name), more, index)
            else:
                target, new = self._find(to)
                self._name(("rename", folder, name, target, new, found), more, index)

    def _synced(self, begun, call, result):
        found = self.inodes[call.inode]
        if self.ignores(begun, call):
            return
        done = lambda change: change.ended is not None and change.ended < begun  # noqa: E731
        if result < 0:
            # Never durable, whatever is synced later.
            for change in found.later if isinstance(found, File) else []:
                if done(change):
                    change.ended = None
        elif isinstance(found, File):
            for change in filter(done, found.later):
                _apply(found.durable, change)
            found.later = [change for change in found.later if not done(change)]
        else:
            mine = [change for change in self.names if done(change) and _folder_of(change.args) is found]
            for change in mine:
                _rename(change.args, lambda folder: folder.entries)
            self.names = [change for change in self.names if change not in mine]

    def tree(self, style, rng):
        """The possible contents after a cut now, by path below the root: bytes of a file, None of a folder."""
        seen, names = {}, self.names
        if style == "synced":
            names = []
        elif style != "all":
            names = names[: rng.randint(0, len(names))]
        for change in names:
            _rename(change.args, lambda folder: seen.setdefault(folder, dict(folder.entries)))
        tree = {}
        self._collect(self.top, "", seen, tree, style, rng)
        return tree

    def _collect(self, folder, prefix, seen, tree, style, rng):
        for name, found in seen.get(folder, folder.entries).items():
            path = prefix + name
            if isinstance(found, Folder):
                tree[path] = None
                self._collect(found, path + "/", seen, tree, style, rng)
            else:
                tree[path] = _contents(found, style, rng)


def _folder_of(args):
    """Whose fsync makes a change of names durable: for a move, the folder it went to."""
    return args[3] if args[0] == "rename" else args[1]


def _rename(args, entries):
    what, folder, name, *more = args
    if what == "link":
        entries(folder)[name] = more[0]
    elif what == "unlink":
        entries(folder).pop(name, None)
    else:
        target, new, found = more
        if entries(folder).get(name) is found:
            del entries(folder)[name]
        entries(target)[new] = found


def _contents(file, style, rng):
    data = bytearray(file.durable)
    if style == "synced" or not file.later:
        pass
    elif style == "all":
        for change in file.later:
            _apply(data, change)
    elif style == "torn":
        last = rng.randrange(len(file.later))
        for change in file.later[:last]:
            _apply(data, change)
        if file.later[last].what == "write":
            offset, piece = file.later[last].args
            end = rng.randrange(offset, offset + len(piece) + 512) // 512 * 512
            _apply(data, Change("write", 0, (offset, piece[: max(0, end - offset)])))
    else:
        _scatter(data, file.later, 4096 if style == "blocks" else 512, rng)
    return data


def _scatter(data, changes, unit, rng):
    """Each unit holds the state after some number of the writes to it."""
    pieces, size = {}, len(data)
    for change in changes:
        if change.what == "size":
            if rng.random() < 0.5:
                _resize(data, *change.args)
            continue
        offset, piece = change.args
        size = max(size, offset + len(piece))
        at = 0
        while at < len(piece):
            block = (offset + at) // unit
            step = min((block + 1) * unit - offset - at, len(piece) - at)
            pieces.setdefault(block, []).append((offset + at, piece[at : at + step]))
            at += step
    for writes in pieces.values():
        for offset, piece in writes[: rng.randint(0, len(writes))]:
            _apply(data, Change("write", 0, (offset, piece)))
    if rng.random() < 0.5:
        _resize(data, size, False)


def lay(tree, folder):
    """Makes a folder of what a disk held."""
    os.makedirs(folder)
    for path, data in tree.items():
        where = os.path.join(folder, path)
        if data is None:
            os.makedirs(where, mode=0o700, exist_ok=True)
            continue
        with open(os.open(where, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
            if path.endswith("/ballast"):
                file.truncate(len(data))  # nothing but zeros
            else:
                file.write(data)


def found_in(folder):
    """The true folder, in the shape of `Disk.tree`."""
    tree = {}
    for where, folders, files in os.walk(folder):
        for name in folders + files:
            path = os.path.join(where, name)
            if os.path.isdir(path):
                tree[os.path.relpath(path, folder)] = None
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    tree[os.path.relpath(path, folder)] = bytearray(file.read())
    return tree


def files_called(events, name):
    """The files that were opened under a name, by their inodes."""
    return {event.inode for event in events if event.kind == "O" and os.path.basename(event.paths[0]) == name}


def segments_opened(events):
    """The events at which the log begins a segment: writes at its boundary."""
    logs = files_called(events, "db")
    writes = ((i, event) for i, event in enumerate(events) if event.kind == "W" and event.inode in logs)
    return [i for i, event in writes if event.a > 0 and event.a % SEGMENT == 0]


def checkpoints(events):
    """The events at which the journal has begun its next epoch, and sled gets the one before."""
    journals = files_called(events, "journal.0") | files_called(events, "journal.1")
    return [i for i, event in enumerate(events) if event.kind == "W" and event.inode in journals and event.a == 0]


def lengthened(events):
    """The events at which a file of the journal gets longer."""
    journals, ends, found = files_called(events, "journal.0") | files_called(events, "journal.1"), {}, []
    for index, event in enumerate(events):
        if event.kind == "W" and event.inode in journals:
            end = ends.get(event.inode, 0)
            if event.a >= end >= 5 << 18:
                found.append(index)
            ends[event.inode] = max(end, event.a + len(event.data))
    return found


def opened_anew(events):
    """The events at which sled opens the log again: its new snapshot gets its name."""
    return [i for i, event in enumerate(events) if event.kind == "R" and "/queue/snap." in event.paths[0]]


def vouched_too_early(events, passed_over=frozenset()):
    """Where the log's header of a segment vouches for what lies in a segment whose own header the disk need not have: both
    were written since the last sync. A cut between them can lose the whole log. The copy made by a compaction is left out:
    it is synced as a whole before it counts. `passed_over` are the syncs that a mutant does not do."""
    mask, logs, copies, since, found = (1 << 63) - 1, files_called(events, "db"), set(), [], []
    for index, event in enumerate(events):
        if event.kind == "O" and event.a and event.paths[0].endswith("/compacted/db"):
            copies.add(event.inode)
            copy = event.inode
        elif event.kind == "R" and event.paths[0].endswith("/compacted/db"):
            copies.discard(copy)
        elif event.kind == "S" and not event.a and event.inode in logs and index not in passed_over:
            since.clear()
        elif event.kind == "W" and event.inode in logs - copies and event.a % SEGMENT == 0 and len(event.data) >= 20:
            begins, stable = (number ^ mask for number in struct.unpack_from("<qq", event.data, 4))
            if begins % SEGMENT or stable >= begins:
                continue  # not a header: a segment made free
            found += [index for other in since if stable >= other]
            since.append(begins)
    return found
