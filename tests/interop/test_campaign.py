"""The whole promise at once: 2,000 messages over 50 conversations, from boto3 and curl, through errors, lost replies and
kill -9, and in the end every acknowledged message is in the ledger exactly once, in its conversation's order.

The seed is printed and can be given (TEST_SEED), so that a run can be repeated as far as the clock allows it.
"""

import json
import random
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from kit.callers import MESSAGE, PLAIN, bot, connect
from kit.wait import until

CONVERSATIONS = 50
MESSAGES = 40  # in each: 2,000 together
KILLS = 12
TIME_LIMIT = 240.0

# Errors after which an SDK's caller retries: the relay is down, starting, or full. Any other error fails the test.
PASSING = {"ThrottlingException", "InternalServerException", "ServiceUnavailableException", "500", "502", "503"}


class Conversation:
    """One chat: its bot's messages, and how many were acknowledged."""

    def __init__(self, number, token):
        self.token = token
        self.messages = [
            {"ContentType": PLAIN, "Content": f"canary {number}: message {place} é😀", "ClientToken": f"c{number}-m{place}"}
            for place in range(MESSAGES)
        ]
        self.acknowledged = 0


class Campaign:
    """Fifty bots; each sends its next message when the previous one was acknowledged."""

    def __init__(self, relay, simulator, seed, timeout):
        self.relay, self.simulator, self.timeout = relay, simulator, timeout
        self.random = random.Random(seed)
        self.deadline = time.monotonic() + timeout
        client = bot(relay.url, attempts=10)
        self.conversations = []
        for number in range(CONVERSATIONS):
            token = connect(client, f"canary-participant-{number}")
            relay.secrets.add(token)
            self.conversations.append(Conversation(number, token))
        assert len({conversation.token for conversation in self.conversations}) == CONVERSATIONS

    def run(self):
        """Runs all bots: the even ones use boto3, the odd ones curl."""
        client = bot(self.relay.url, attempts=1, connections=CONVERSATIONS)
        by_boto, by_curl = self.conversations[::2], self.conversations[1::2]
        with ThreadPoolExecutor(len(by_boto)) as botos, ThreadPoolExecutor(4) as curls:
            waiting = [botos.submit(self._boto, client, conversation) for conversation in by_boto]
            waiting += [curls.submit(self._curl, conversation) for conversation in by_curl]
            for bot_ in waiting:
                bot_.result()

    def progress(self):
        """Acknowledged and delivered together: 4,000 at the end."""
        return sum(conversation.acknowledged for conversation in self.conversations) + self.simulator.accepted()

    def _again(self):
        assert time.monotonic() < self.deadline, f"not done after {self.timeout:.0f} s"
        time.sleep(0.05)  # as a bot's own backoff would

    def _boto(self, client, conversation):
        while conversation.acknowledged < MESSAGES:
            message = conversation.messages[conversation.acknowledged]
            try:
                client.send_message(ConnectionToken=conversation.token, **message)
                conversation.acknowledged += 1
            except ClientError as fault:
                assert fault.response["Error"]["Code"] in PASSING, fault
                self._again()
            except BotoCoreError:  # no listener, or the connection broke: it is unknown if the message was stored
                self._again()

    def _curl(self, conversation):
        """Half of it in batches of ten lines, half as single requests over one connection."""
        while conversation.acknowledged < MESSAGES:
            part = conversation.messages[conversation.acknowledged :][:10]
            batch = conversation.acknowledged < MESSAGES // 2
            done = self._batch(conversation, part) if batch else self._singles(conversation, part)
            conversation.acknowledged += done
            if done < len(part):
                self._again()

    def _batch(self, conversation, messages):
        lines = "".join(json.dumps({**message, "ConnectionToken": conversation.token}) + "\n" for message in messages)
        args = ["curl", "--disable", "--silent", "--fail", "--max-time", "30", "--unix-socket", self.relay.socket]
        args += ["--data-binary", "@-", "http://relay/participant/messages"]
        reply = subprocess.run(args, input=lines.encode(), capture_output=True, timeout=60)
        done = 0
        for message, line in zip(messages, reply.stdout.splitlines()):
            try:
                answer = json.loads(line)
            except ValueError:
                break  # the relay was killed in the middle of it
            if "Error" in answer:
                assert answer["Error"]["Code"] in PASSING, answer
                break
            assert answer["ClientToken"] == message["ClientToken"]
            done += 1
        return done

    def _singles(self, conversation, messages):
        requests = []
        for message in messages:
            data = json.dumps(message).replace("\\", "\\\\").replace('"', '\\"')
            requests.append(
                f'url = "http://relay{MESSAGE}"\nunix-socket = "{self.relay.socket}"\nmax-time = 30\nfail\n'
                f'header = "X-Amz-Bearer: {conversation.token}"\nheader = "Content-Type: application/json"\n'
                f'data-binary = "{data}"\noutput = "/dev/null"\nwrite-out = "%{{http_code}}\\n"\n'
            )
        reply = subprocess.run(
            ["curl", "--disable", "--silent", "--fail-early", "--config", "-"],
            input="next\n".join(requests).encode(), capture_output=True, timeout=120,
        )
        codes = reply.stdout.decode().split()
        assert set(codes) <= {"200", "202", "000", "429", "500", "503"}, codes
        return sum(code in ("200", "202") for code in codes)

    def audit(self):
        """Compares the ledger with the acknowledged messages."""
        assert all(conversation.acknowledged == MESSAGES for conversation in self.conversations)
        self.relay.until_empty(self.timeout)
        metrics = self.relay.metrics()
        assert metrics["dead_letters"] == 0 and metrics["conversations"] == 0
        ledger = self.simulator.ledger()
        for conversation in self.conversations:
            mine = [line for line in ledger if line["ConnectionToken"] == conversation.token]
            assert [(line["ClientToken"], line["Content"]) for line in mine] == [
                (message["ClientToken"], message["Content"]) for message in conversation.messages
            ]
        assert len(ledger) == CONVERSATIONS * MESSAGES
        assert len({line["Id"] for line in ledger}) == len(ledger)


class Killer(threading.Thread):
    """Kills the relay at moments spread at random over the whole run, and starts it again on the same folder."""

    def __init__(self, campaign):
        super().__init__(daemon=True)
        whole = 2 * CONVERSATIONS * MESSAGES
        self.campaign = campaign
        self.moments = sorted(campaign.random.sample(range(20, whole - 20), KILLS))
        self.kills, self.fault, self.over = 0, None, threading.Event()

    def run(self):
        try:
            for moment in self.moments:
                while self.campaign.progress() < moment:
                    if self.over.wait(0.005):
                        return
                time.sleep(self.campaign.random.uniform(0, 0.05))
                self.campaign.relay.kill()
                self.campaign.relay.start()
                self.kills += 1
        except BaseException as fault:  # noqa: BLE001 - raised again where the test sees it
            self.fault = fault


def campaign(relays, simulators, seed, rate, burst, timeout=TIME_LIMIT, **settings):
    simulator = simulators(
        "--rate", rate, "--burst", burst, "--latency", "5ms", "--jitter", "5ms",
        "--error-rate", 0.1, "--lost-reply-rate", 0.05, "--seed", seed,
    )
    relay = relays(
        simulator.url, sender__quota_rate=rate, sender__quota_burst=burst, sender__lifetime="6h",
        sender__backoff__initial="50ms", sender__probe_max="1s", **settings,
    )
    return Campaign(relay, simulator, seed, timeout)


def test_every_acknowledged_message_arrives_once_and_in_order(relays, simulators, seed):
    run = campaign(relays, simulators, seed, 200, 50)
    run.run()
    run.audit()


def killed(run):
    killer = Killer(run)
    killer.start()
    try:
        run.run()
        # Those of its moments that lie in the delivery of what is queued come now.
        whole = 2 * CONVERSATIONS * MESSAGES
        until(lambda: not killer.is_alive() or run.progress() >= whole, "the killer is done", run.timeout)
    finally:
        killer.over.set()
        killer.join(timeout=120)
    print(f"killed {killer.kills} times")
    assert killer.fault is None, killer.fault
    assert killer.kills >= KILLS // 2, "hardly anything was killed: this run shows little"
    run.audit()


def test_kill_9_at_any_moment_loses_and_repeats_nothing(relays, simulators, seed):
    killed(campaign(relays, simulators, seed, 200, 50))


@pytest.mark.long
def test_every_acknowledged_message_arrives_once_and_in_order_at_the_true_rate(relays, simulators, seed):
    run = campaign(relays, simulators, seed, 10, 15, timeout=1800)
    run.run()
    run.audit()


@pytest.mark.long
def test_kill_9_loses_and_repeats_nothing_at_the_true_rate(relays, simulators, seed):
    killed(campaign(relays, simulators, seed, 10, 15, timeout=1800))
