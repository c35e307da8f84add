"""One incident from its first minute to its end, as the operator on call lives through it: a relay in a root folder that has the
image's files and no shell, bots, a Connect that fails, the shipped alerts in a real Prometheus, the status page in a real Chromium.

Every act of the operator is a command of the relay. The alerts have seconds for their minutes.
"""

import json
from collections import Counter

import pytest

from kit.bare import USER
from kit.browser import steady
from kit.callers import curl, send
from kit.monitoring import RULES, hastened
from kit.tools import ROOT_USER
from kit.wait import until

# Long enough for the alert even on a busy machine, and the time that the story takes.
HASTY = 30
QUIET = "[log]\nlevel = 'warn'\n"
SUPPORT, CAMPAIGN = "4711/bot", "campaign/bot"
# The state as the page shows it.
PAGE = """({
  title: document.title, headline: document.getElementById('headline').textContent,
  problems: [...document.querySelectorAll('#problems li')].map(item => item.textContent),
  figures: Object.fromEntries([...document.querySelectorAll('#figures tr')].map(row => [...row.children].map(cell => cell.textContent))),
})"""


def names(conversation, count):
    return [f"{conversation}-{number}" for number in range(count)]


def hand_over(relay, conversation, count, **more):
    """A batch of messages of one conversation; their ClientTokens."""
    tokens = names(conversation, count)
    line = {"ContentType": "text/plain", "Content": "canary", "ConnectionToken": f"canary-{conversation}", "Conversation": conversation, **more}
    reply = curl(relay, "/participant/messages", "\n".join(json.dumps({**line, "ClientToken": token}) for token in tokens).encode())
    assert [found.get("State") for found in reply.lines] == ["QUEUED"] * count, reply
    return tokens


def status(relay):
    return json.loads(relay.operate("status", "--json"))


def page_is_right(browser, relay, word):
    """Waits until the page, which refreshes by itself, says the same as `status`, and that is this word."""

    def is_right():
        shown, now = browser.run(PAGE), status(relay)
        healthy = "healthy" if not now["problems"] else "not healthy"
        return (
            shown["title"] == f"{healthy} – connect-relay"
            and list(map(steady, shown["problems"])) == list(map(steady, now["problems"]))
            and shown["figures"]["queued"] == f"{now['queued']} of {now['queued_max']}"
            and shown["figures"]["dead letters"] == str(now["dead_letters"])
            and word in "\n".join([shown["headline"], *shown["problems"]])
        )

    until(is_right, f"the page says the same as status: {word}")


@pytest.mark.needs("chromium", "ldd", ROOT_USER)
def test_an_outage_from_the_alert_to_the_last_redrive(bare_relays, simulators, prometheus, browser, outcomes):
    simulator = simulators("--rate", 50, "--burst", 50)
    relay = bare_relays(simulator.url, QUIET, sender__quota_rate=50, sender__quota_burst=50, sender__probe_max="500ms")
    assert relay.programs() == ["usr/bin/connect-relay"], "there is no shell"
    own = {"instance": relay.admin.removeprefix("http://")}
    seen = prometheus([relay], hastened(RULES.read_text()))

    # Every day: bots talk, the page is open.
    stream = outcomes(relay)
    browser.open(relay.admin + "/")
    daily = hand_over(relay, "daily/bot", 10)
    until(lambda: stream.tokens("delivered") == daily, "the bot reads that they are delivered")
    page_is_right(browser, relay, "healthy: nothing is queued")
    assert seen.alerts() == []

    # Connect is down, and bots go on: a campaign and a chat whose answers are soon worth nothing, and others that can wait.
    simulator.switch(Outage=True)
    campaign = hand_over(relay, CAMPAIGN, 40, Lifetime=HASTY)
    support = hand_over(relay, SUPPORT, 5, Lifetime=HASTY)
    patient = [token for number in range(10) for token in hand_over(relay, f"patient-{number}/bot", 1)]

    # The alert, and what it says to look at.
    seen.until_fires("ConnectRelayMessagesWillExpire", **own)
    seen.until_fires("ConnectRelayConnectUnavailable")
    [alert] = seen.alerts("ConnectRelayMessagesWillExpire", **own)
    assert "`connect-relay status` says when the first one does" in alert["annotations"]["description"]
    problems = relay.operate("status")
    assert "Sending is stuck since " in problems and "Of 55 messages queued, about 45 will expire" in problems, problems
    relay.operate("status", "--exit-code", code=75)
    page_is_right(browser, relay, "about 45 will expire")

    # Whose they are.
    summary = relay.operate("messages", "summary")
    assert summary.startswith("queued        55 in 12 conversations; about 45 will expire before they can be sent, the first: 20")
    most = summary.split("MOST QUEUED\n")[1].splitlines()
    assert [line.split()[0] + " " + line.split()[2] for line in most[:2]] == [f"40 {CAMPAIGN}", f"5 {SUPPORT}"]

    # The log says more for a while; the bot loses its connection.
    assert relay.operate("log-level", "info", "--for", "10m").startswith("the log's level is info until 20")
    stream.cut()

    # The first loss comes after the alert.
    until(lambda: status(relay)["dead_letters"] == 45, "those that could not wait are dead letters")
    page_is_right(browser, relay, "Sending is stuck since ")
    dead = until(lambda: len(lines := relay.lines("dead")) == 45 and lines, "each is logged")
    assert {(line["conversation"], line["reason"]) for line in dead} == {(CAMPAIGN, "expired"), (SUPPORT, "expired")}
    fired, lost = (first_second(seen, query) for query in (FIRED, LOST))
    assert fired < lost, "there was time to act"

    # Connect is back.
    simulator.switch(Outage=False)
    relay.until_empty()
    page_is_right(browser, relay, "healthy: nothing is queued; 45 dead letters")
    stream.connect()
    until(lambda: len(stream.events) == 65, "the bot reads what it missed")
    assert stream.tokens("delivered")[:10] == daily and sorted(stream.tokens("delivered")[10:]) == sorted(patient)
    assert sorted(stream.tokens("dead")) == sorted(campaign + support)
    stream.cut()

    # What is still worth saying is said: first only counted.
    chosen = ["messages", "redrive", "--reason", "expired", "--conversation", SUPPORT, "--newer-than", "1h"]
    assert relay.operate(*chosen, "--dry-run") == "to be queued again: 5\n"
    assert status(relay)["dead_letters"] == 45 and status(relay)["queued"] == 0, "nothing is changed"
    assert relay.operate(*chosen) == "queued again: 5\n"
    relay.until_empty()
    assert len(until(lambda: len(lines := relay.lines("redriven")) == 5 and lines, "each is logged")) == 5
    [act] = until(lambda: [line for line in relay.lines() if line.get("act") == "redrive_all"], "the act is logged")
    assert (act["uid"], act["conversation"], act["reason"], act["redriven"]) == (USER, SUPPORT, "expired", 5)
    stream.connect()
    until(lambda: len(stream.events) == 70, "the bot reads that they are delivered")
    page_is_right(browser, relay, "healthy: nothing is queued; 40 dead letters")

    # The log is as before.
    assert relay.operate("log-level", "warn") == "the log's level is warn; log.level is warn\n"
    before = len(relay.lines("accepted"))
    assert send(relay, "canary-after", "canary", "after", headers=["Prefer: wait=20"]).status == 200
    assert len(relay.lines("accepted")) == before

    # A longer apology needs another limit, and no restart.
    apology = "canary: " + "sorry " * 200
    assert send(relay, "canary-after", apology, "apology").status == 400
    relay.write(QUIET + "[ingress.content_chars_max]\nplain = 4096\n")
    assert relay.operate("reload") == "reloaded: ingress.content_chars_max.plain changed\n"
    assert send(relay, "canary-after", apology, "apology", headers=["Prefer: wait=20"]).status == 200

    # All is well, and the relay leaves.
    until(lambda: len(stream.events) == 72, "the bot has read everything")
    seen.until_clears("ConnectRelayMessagesWillExpire")
    seen.until_clears("ConnectRelayConnectUnavailable")
    assert relay.operate("drain") == "drained: nothing is queued\n" and relay.wait() == 0
    stream.wait_for_end()
    assert Counter(stream.tokens("delivered")) == Counter(daily + patient + support + ["after", "apology"]), "nothing missed, nothing twice"
    assert Counter(stream.tokens("dead")) == Counter(campaign + support) and len(set(stream.cursors)) == 72
    assert stream.tokens("delivered")[20:25] == support
    ledger = [entry["ClientToken"] for entry in simulator.ledger()]
    assert Counter(ledger) == Counter(daily + patient + support + ["after", "apology"])
    assert [token for token in ledger if token in support] == support, "in order"
    assert not browser.problems, browser.problems


FIRED = 'min_over_time(timestamp(ALERTS{alertname="ConnectRelayMessagesWillExpire",alertstate="firing"})[10m:1s])'
LOST = 'min_over_time(timestamp(connect_relay_messages_dead_total{told="false",reason="expired"} > 0)[10m:1s])'


def first_second(seen, query):
    """The first time at which Prometheus has it."""
    [found] = until(lambda: seen.query(query), query)
    return float(found["value"][1])
