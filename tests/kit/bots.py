"""The load: bots that send to a relay over its Unix socket, each with its own chat, and the replies that they got.

Messages are derived from the seed, so that an audit can derive them again and compare them byte for byte.
"""

import asyncio
import json
import random

from kit import wire

PLAIN, JSON = "text/plain", "application/json"


def message(seed, chat, place):
    """100 bytes to 48 KB; ASCII, accents, emoji. Half of the time short, half of the time long, for all chats at about the
    same time: then one commit after the other opens a segment of the log, and some open several."""
    rng = random.Random(f"{seed} {chat} {place}")
    name = f"{chat}-{place}"
    if place % 20 < 10 and rng.random() < 0.8:
        text = name + " " + "é😀 text "[: rng.randint(1, 9)] * rng.randint(100, 1000)
        return {"ContentType": PLAIN, "Content": text[: rng.randint(60, 1024)], "ClientToken": name}
    filling = rng.choice("😀😀é語") * rng.randint(1000 if place % 20 < 10 else 6000, 11_900)
    return {"ContentType": JSON, "Content": json.dumps(f"{name} {filling}", ensure_ascii=False), "ClientToken": name}


def chat_token(seed, chat):
    return f"chat-{seed}-{chat}"


def place_of(client_token):
    chat, place = client_token.split("-")
    return int(chat), int(place)


class Bots:
    """`chats` bots that send `length` messages each, one after the other's reply; `told` has the last
    place that got a 2xx.

    `room()` returns how many more may be queued: at 0 a bot waits.
    """

    def __init__(self, seed, socket, chats, length, room=lambda: 1):
        self.seed, self.socket, self.chats, self.length, self.room = seed, socket, chats, length, room
        self.told = dict.fromkeys(range(chats), -1)
        self.refused = {}

    @property
    def acknowledged(self):
        return sum(self.told.values()) + self.chats

    def run(self, over=lambda: False):
        """Runs all bots until they are done, the relay is gone, or `over()` is true."""
        self.over = over
        asyncio.run(self._all())

    async def _all(self):
        await asyncio.gather(*(self._bot(chat) for chat in self.told))

    async def _bot(self, chat):
        """Repeats a message after a temporary error; ends when the connection breaks, because the relay is gone."""
        rng = random.Random(f"{self.seed} bot {chat}")
        try:
            reader, writer = await asyncio.open_unix_connection(self.socket, limit=1 << 20)
        except OSError:
            return
        try:
            while self.told[chat] < self.length - 1 and not self.over():
                if self.room() <= 0:
                    await asyncio.sleep(0.005)
                    continue
                done = await (self._batch if rng.random() < 0.1 else self._one)(reader, writer, chat, rng)
                if not done:
                    await asyncio.sleep(0.02)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _one(self, reader, writer, chat, rng):
        place = self.told[chat] + 1
        prefer = "wait=2" if rng.random() < 0.1 else "respond-async"
        text = json.dumps(message(self.seed, chat, place), ensure_ascii=False).encode()
        head = f"X-Amz-Bearer: {chat_token(self.seed, chat)}\r\nPrefer: {prefer}\r\n"
        status, _, answer = await self._call(reader, writer, "/participant/message", head, text)
        return self._record(chat, place, status in (200, 202), answer)

    async def _batch(self, reader, writer, chat, rng):
        first = self.told[chat] + 1
        places = range(first, min(self.length, first + rng.choice([2, 3, 5, 20])))
        made = [{**message(self.seed, chat, place), "ConnectionToken": chat_token(self.seed, chat)} for place in places]
        text = "\n".join(json.dumps(line, ensure_ascii=False) for line in made).encode()
        status, _, answer = await self._call(reader, writer, "/participant/messages", "", text)
        if status != 200:
            return self._record(chat, first, False, answer)
        for place, line in zip(places, answer.splitlines(), strict=True):
            if not self._record(chat, place, b'"Error"' not in line, line):
                return False
        return True

    def _record(self, chat, place, kept, answer):
        if kept:
            self.told[chat] = place
        else:
            name = json.loads(answer)
            name = str(name.get("Error", name))
            self.refused[name] = self.refused.get(name, 0) + 1
        return kept

    async def _call(self, reader, writer, path, head, text):
        writer.write(f"POST {path} HTTP/1.1\r\nHost: relay\r\n{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
        answer = await reader.readexactly(int(wire.field(head, b"content-length")))
        return int(head.split(b" ")[1]), head, answer
