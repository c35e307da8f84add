"""The conditions after a cut or a kill, derived from what the relay had replied and sent before.

For each chat, with the places of its messages counted from 0:

| before | afterwards |
| --- | --- |
| accepted, by a 2xx | delivered before, or delivered now |
| Connect's 200 had come in | need not be sent again |
| the bot got its 200, or the chat's next message was sent | the delivery is on disk: it is not sent again |
| only offered | may be delivered now, or be missing |

The messages sent now have consecutive places, in order, each with the contents, token and ClientToken that were offered.
"""

from kit.bots import chat_token, message, place_of

NAMES = ("offered", "accepted", "delivered", "sent", "answered")


class Known:
    """For each chat the highest place that was offered, accepted, delivered (by the relay's reply), sent, answered; -1
    for none."""

    def __init__(self, chats):
        self.highest = {name: dict.fromkeys(range(chats), -1) for name in NAMES}

    def note(self, what, client_token):
        chat, place = place_of(client_token)
        self.highest[what][chat] = max(place, self.highest[what][chat])
        if what == "delivered":
            self.note("accepted", client_token)

    def copy(self):
        other = Known(0)
        other.highest = {name: dict(places) for name, places in self.highest.items()}
        return other

    def of(self, chat):
        return [self.highest[name][chat] for name in NAMES]


def faults(seed, known, ledger):
    """Lists the faults of a ledger; empty if there are none."""
    found, sent = [], {chat: [] for chat in known.highest["offered"]}
    for line in ledger:
        try:
            chat, place = place_of(line["ClientToken"])
            offered = {**message(seed, chat, place), "ConnectionToken": chat_token(seed, chat)}
        except ValueError:
            offered = None
        if offered is None or chat not in sent or any(line[name] != offered[name] for name in offered):
            found.append(f"forged or altered: {str(line)[:300]}")
        else:
            sent[chat].append(place)
    for chat, places in sent.items():
        offered, accepted, delivered, attempted, answered = known.of(chat)
        says = f"chat {chat}: sent now {places[:1]}..{places[-1:]}; before: " + str(dict(zip(NAMES, known.of(chat))))
        first, last = (places[0], places[-1]) if places else (answered + 1, answered)
        if places != list(range(first, last + 1)):
            found.append(f"out of order or with gaps: {places}: {says}")
        if first > answered + 1 or last < accepted:
            found.append(f"lost: {says}")
        if places and first < max(delivered + 1, attempted):
            found.append(f"repeated, though its delivery was on disk: {says}")
        if last > max(offered, answered):
            found.append(f"never offered: {says}")
    return found
