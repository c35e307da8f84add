"""Damage to a real queue's folder, by chance and repeatable: what disks, copies and people do to files."""

import shutil

BLOCK, SEGMENT = 4096, 512 << 10


def flipped_bits(folder, rng):
    _log(folder, lambda data: [_flip(data, rng.randrange(len(data))) for _ in range(rng.choice([1, 1, 2, 20]))])


def flipped_bits_of_a_small_file(folder, rng):
    path = rng.choice([path for path in files(folder) if path.name != "db"])
    _edit(path, lambda data: [_flip(data, rng.randrange(len(data))) for _ in range(rng.choice([1, 3]))])


def zeroed_blocks(folder, rng):
    _log(folder, lambda data: [_fill(data, rng.randrange(len(data)) // BLOCK * BLOCK, BLOCK) for _ in range(rng.choice([1, 1, 4]))])


def garbage(folder, rng):
    at = lambda data: rng.randrange(len(data)) // 512 * 512  # noqa: E731
    _log(folder, lambda data: _put(data, at(data), rng.randbytes(512)))


def moved_block(folder, rng):
    """A block at the place of another: a misdirected write."""
    def move(data):
        source, target = (rng.randrange(len(data)) // BLOCK * BLOCK for _ in range(2))
        _put(data, target, bytes(data[source : source + BLOCK]))

    _log(folder, move)


def doubled_segment(folder, rng):
    def double(data):
        source, target = (rng.randrange(len(data)) // SEGMENT * SEGMENT for _ in range(2))
        _put(data, target, bytes(data[source : source + SEGMENT]))

    _log(folder, double)


def cut_tail(folder, rng):
    path = rng.choice([folder / "db", folder / "db", *files(folder)])
    _edit(path, lambda data: data.__delitem__(slice(rng.randrange(len(data)), None)))


def emptied_file(folder, rng):
    rng.choice(files(folder)).write_bytes(b"")


def dropped_file(folder, rng):
    rng.choice(files(folder)).unlink()


def doubled_file(folder, rng):
    """A copy beside it, under the name of another snapshot or of nothing; or in the place of another file."""
    source = rng.choice(files(folder))
    name = rng.choice(["snap.%016X" % rng.randrange(1 << 40), "db.bak", "blobs/17", rng.choice(files(folder)).name])
    if source.name != name:
        shutil.copyfile(source, folder / name)


KINDS = [
    flipped_bits, flipped_bits_of_a_small_file, zeroed_blocks, garbage, moved_block, doubled_segment, cut_tail, emptied_file,
    dropped_file, doubled_file,
]  # fmt: skip


def files(folder):
    """The files of a store."""
    own = ("db", "conf", "format", "journal.0", "journal.1")
    return sorted(path for path in folder.iterdir() if path.name in own or path.name.startswith("snap."))


def _log(folder, change):
    _edit(folder / "db", change)


def _edit(path, change):
    data = bytearray(path.read_bytes())
    if data:
        change(data)
        path.write_bytes(data)


def _flip(data, at):
    data[at] ^= 1 << (at * 7 + len(data)) % 8


def _fill(data, at, length):
    _put(data, at, bytes(min(length, len(data) - at)))


def _put(data, at, text):
    text = text[: len(data) - at]
    data[at : at + len(text)] = text
