"""A real Prometheus beside real relays before simulated Connects: the faults are made, the alerts fire, and clear.

The rules are the shipped ones with seconds for their minutes; the faults are made at once, each at a relay of its own, so
that all of it takes some 75 seconds. Not made here: a write that fails, because the relay leaves within a second of it,
rarely with a scrape in between. The unit tests have it.
"""

import shutil

from kit.monitoring import RULES, hastened, say
from kit.wait import until
from kit.processes import command, free_port


class Scene:
    """One relay, named as its own Connect instance, before one simulator that can be stopped and started again."""

    def __init__(self, name, relays, simulators, *args, **settings):
        self.name = name
        self.simulators = simulators
        self.listen = f"127.0.0.1:{free_port()}"
        self.connect(*args)
        settings = {"sender__probe_max": "500ms", "sender__connect_instance": name, **settings}
        self.relay = relays(f"http://{self.listen}", **settings)
        self.own = {"instance": self.relay.admin.removeprefix("http://")}
        self.shared = {"connect_instance": name}

    def connect(self, *args):
        self.simulator = self.simulators(*args, listen=self.listen)

    def lose(self):
        self.simulator.remove()

    def operate(self, *args):
        assert command(*args, "--dir", self.relay.folder).returncode == 0

    def again(self, damage=None, **settings):
        """Kills and restarts it, with other settings, after a change of its files."""
        self.relay.kill()
        if damage:
            damage(self.queue)
        self.relay.settings.update((key.replace("__", "."), value) for key, value in settings.items())
        self.relay.start()

    @property
    def queue(self):
        return self.relay.folder / "private/queue"

    def say(self, count, token="canary", **options):
        return [say(self.relay, f"{token}-{number}", **options) for number in range(count)]


def flipped(folder):
    """Flips a bit of a record in the journal, before the journal's end."""
    [path] = [path for path in folder.glob("journal.*") if b"canary" in path.read_bytes()]
    journal = bytearray(path.read_bytes())
    journal[journal.index(b"canary")] ^= 1
    path.write_bytes(journal)


def test_each_induced_fault_fires_its_alert_and_the_alert_clears(relays, simulators, loads, prometheus):
    fast = ("--rate", 100, "--burst", 100)
    denied = [option for number in range(6) for option in ("--deny", f"canary-denied-{number}")]
    outage = Scene("outage", relays, simulators, *fast, queue__messages_max=60, sender__quota_rate=20)
    stuck = Scene("stuck", relays, simulators, *fast, sender__in_flight_max=1)
    refused = Scene("refused", relays, simulators, *fast, *denied)
    small = Scene("small", relays, simulators, "--rate", 2, "--burst", 2, sender__quota_rate=2, sender__quota_burst=2)
    crashing = Scene("crashing", relays, simulators, *fast)
    paused = Scene("paused", relays, simulators, *fast)
    crowded = Scene("crowded", relays, simulators, *fast, queue__bytes_max="16MiB", ingress__content_chars_max__plain=0)
    damaged = Scene("damaged", relays, simulators, *fast)
    scenes = [outage, stuck, refused, small, crashing, paused, crowded, damaged]
    seen = prometheus([scene.relay for scene in scenes], hastened(RULES.read_text()))

    # Healthy: bots send, and no alert fires.
    talk = loads(outage.relay, per_second=5)
    loads(stuck.relay, per_second=2)
    turned_away = loads(crowded.relay, per_second=2)
    until(lambda: len(seen.query("connect_instance:connect_relay_messages_delivered:rate5m > 0")) == 3, "messages flow")
    assert len(seen.query("connect_instance:connect_relay_members:count == 1")) == len(scenes)
    assert seen.alerts() == []

    # Induce the faults.
    assert set(small.say(64)) == {202}
    assert set(refused.say(6, "canary-denied")) == {202}
    paused.operate("pause", "--reason", "a test")
    outage.lose()
    assert outage.say(3, "canary-hasty", lifetime=1) == [202] * 3
    damaged.say(3)
    damaged.again(flipped)
    until(lambda: crowded.say(10, content="canary" * 2700)[-1] == 429, "its folder is full")
    stuck.lose()
    stuck.connect(*fast, "--latency", "1h")  # it takes requests and does not answer
    for _ in range(10):
        crashing.relay.kill()
        seen.until_scraped(crashing.own, up=0)  # and so its start is a second later: that is how exact it is told
        crashing.relay.start()
        seen.until_scraped(crashing.own, up=1)
        if seen.fired("ConnectRelayRestarting", **crashing.own):
            break

    seen.until_fires("ConnectRelayQueueNearlyFull", **crowded.own, limit="queue.bytes_max")
    crowded.again(queue__bytes_max="1GiB", queue__free_disk_min="1TiB")  # space in the folder, and none on its volume
    seen.until_fires("ConnectRelayStoreFailing", **damaged.own, sign="a damaged store was set aside")
    seen.until_fires("ConnectRelayRestarting", **crashing.own)
    seen.until_fires("ConnectRelayMessagesLost", **outage.own, reason="expired", told="false")
    seen.until_fires("ConnectRelayConnectUnavailable", **outage.shared)
    seen.until_fires("ConnectRelayAllTokensRefused", **refused.shared)
    assert 3 <= refused.simulator.counts()["denied"] <= 6, "it goes slowly, and does not spend quota on all of them"
    seen.until_fires("ConnectRelayPausedTooLong", **paused.own)
    seen.until_fires("ConnectRelayQueueNearlyFull", **outage.own, limit="queue.messages_max")
    seen.until_fires("ConnectRelayStuck", **stuck.own)
    crashing.relay.kill()
    seen.until_fires("ConnectRelayAbsent", **crashing.own)
    seen.until_fires("ConnectRelayDiskNearlyFull", **crowded.own)
    seen.until_fires("ConnectRelayQuotaTooSmall", **small.shared)
    assert not seen.fired("ConnectRelayStuck", **outage.own), "an outage is not called stuck"
    assert not seen.fired("ConnectRelayConnectUnavailable", **small.shared), "a throttle is not called an outage"

    # Remove the faults.
    crashing.relay.start()
    stuck.lose()
    stuck.connect(*fast)
    outage.connect(*fast)
    refused.lose()
    refused.connect(*fast)  # as if the region had been put right
    refused.operate("resume")
    paused.operate("resume")
    crowded.again(queue__free_disk_min="1MiB")
    for folder in damaged.queue.glob("damaged-*"):
        shutil.rmtree(folder)
    seen.until_fires("ConnectRelayAnswersLate", **outage.shared)  # what waited out the outage arrives
    for scene in scenes:
        seen.until_clears(**scene.own)
        seen.until_clears(**scene.shared)
    until(lambda: not seen.alerts(), "nothing fires any more")
    assert talk.statuses[202] > 0 and turned_away.statuses[429] > 0
    for scene in (outage, stuck, small, refused):
        scene.relay.until_empty()
    assert len(refused.simulator.ledger()) == 6, "nothing of what was refused is lost"
