"""The OpenAPI files are true: every status they name happens, and no request gets a reply that they do not name.

Only the Rust tests (`failed_store_is_500…`, at both APIs) cause 500 of the look-ups and of the operators' API, which need the
moment between a failure of the store and the exit of the relay, and 503 of the operators' API, which needs a disk that hangs
for five seconds.
"""

import http.client
import io
import json
import os
import resource
import socket

import pytest
import requests
import schemathesis
import urllib3
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter

from kit.callers import send
from kit.wait import until
from kit.processes import ROOT, Relay, Simulator
from kit.upstream import error

INGRESS = schemathesis.openapi.from_path(ROOT / "openapi/ingress.yaml")
CONTROL = schemathesis.openapi.from_path(ROOT / "openapi/control.yaml")
ADMIN = schemathesis.openapi.from_path(ROOT / "openapi/admin.yaml")
TOKEN = "canary-token"


class UnixAdapter(HTTPAdapter):
    """Lets `requests`, and so schemathesis, connect to a Unix socket."""

    def __init__(self, path):
        super().__init__()

        class Connection(urllib3.connection.HTTPConnection):
            def _new_conn(self):
                dialled = socket.socket(socket.AF_UNIX)
                dialled.settimeout(90)
                dialled.connect(path)
                return dialled

        self.pool = urllib3.HTTPConnectionPool("relay", maxsize=1)
        self.pool.ConnectionCls = Connection

    def get_connection_with_tls_context(self, *_, **__):
        return self.pool


def session(path):
    made = requests.Session()
    made.trust_env = False
    made.mount("http://relay", UnixAdapter(path))
    return made


def control_socket(relay):
    return relay.folder / "private/control.sock"


def test_the_files_are_openapi():
    for schema in (INGRESS, CONTROL, ADMIN):
        schema.validate()
        assert schema.specification.version.startswith("3.1")


class ApiClient:
    """Sends requests to a relay, checks each reply against the file, and records the statuses."""

    def __init__(self, relay, seen, schema=INGRESS, path=None):
        self.relay, self.seen, self.schema = relay, seen, schema
        self.session = session(str(path or relay.socket))

    def ask(self, status, method, route, body=None, target=None, documented=None, **headers):
        headers = {"X-Amz-Bearer": TOKEN, **{name.replace("_", "-"): str(value) for name, value in headers.items()}}
        data = body if isinstance(body, (str, bytes, type(None))) else json.dumps(body)
        reply = self.session.request(method, "http://relay" + (target or route), data=data, headers=headers, timeout=90)
        self.check(reply, status, method, route, documented)
        return reply

    def check(self, reply, status, method, route, documented=None):
        assert reply.status_code == status, f"{method} {route}: {reply.status_code} {reply.text}"
        self.schema[route][method].validate_response(reply)
        self.seen.add((method, route, documented or str(status)))

    def late(self, route, target=None):
        """A body that never ends."""
        slow = http.client.HTTPConnection("relay", timeout=90)
        slow.sock = socket.socket(socket.AF_UNIX)
        slow.sock.connect(self.relay.socket)
        slow.putrequest("POST", target or route)
        for name, value in {"X-Amz-Bearer": TOKEN, "Content-Length": "9"}.items():
            slow.putheader(name, value)
        slow.endheaders(b"{")
        answer = slow.getresponse()
        raw = urllib3.HTTPResponse(io.BytesIO(answer.read()), answer.getheaders(), answer.status, preload_content=False)
        reply = HTTPAdapter().build_response(requests.Request("POST", "http://relay" + route).prepare(), raw)
        slow.close()
        self.check(reply, 408, "POST", route)


SAID, EVENT, LEFT = "/participant/message", "/participant/event", "/participant/disconnect"
BATCH, CONNECTION, OTHER = "/participant/messages", "/participant/connection", "/participant/{operation}"
STATE, QUEUE, OUTCOMES = "/participant/message/{ClientToken}", "/participant/queue", "/participant/outcomes"
READ = "application/vnd.amazonaws.connect.event.message.read"
TRANSCRIPT, STATE_OF_ONE = "/participant/transcript", "/participant/message/c-1"
BODIES = {
    SAID: {"ContentType": "text/plain", "Content": "canary"},
    EVENT: {"ContentType": READ, "Content": '{"messageId":"canary"}'},
    LEFT: {},
}


def teapot(request):
    """A service whose answer is named by the token."""
    token = request.token or ""
    if "teapot" in token:
        return error(418, "TeapotException", "short and stout")
    if "refuse" in token:
        return error(403, "AccessDeniedException", "Access denied")
    return None


def test_every_status_in_the_ingress_file_happens(relays, upstreams, simulators):
    seen = set()
    quick = {"ingress__request_timeout": "500ms", "ingress__body_bytes_max": "20KiB", "ingress__batch_bytes_max": "20KiB",
             "sender__backoff__initial": "10ms", "sender__backoff__max": "20ms", "sender__probe_max": "200ms"}
    api = ApiClient(relays(upstreams(teapot).url, **quick), seen)
    for number, (route, body) in enumerate(BODIES.items()):
        own = {"X_Amz_Bearer": f"canary-{number}", "Prefer": "wait=20"}
        api.ask(400, "POST", route, b"{", **own)
        api.ask(403, "POST", route, body, **own, Relay_Replaces_Token="canary-of-a-stranger")
        api.ask(202, "POST", SAID, {**BODIES[SAID], "ClientToken": "c-1", "Content": "canary: first"}, **{**own, "Prefer": "respond-async"})
        api.ask(409, "POST", route, {**body, "ClientToken": "c-1"}, **own)
        api.ask(202, "POST", route, {**body, "ClientToken": "c-2"}, **{**own, "Prefer": "respond-async"})
        api.ask(200, "POST", route, {**body, "ClientToken": "c-2"}, **own)
        api.ask(418, "POST", route, body, X_Amz_Bearer=f"canary-teapot-{number}", Prefer="wait=20", documented="default")
    for route in (SAID, EVENT, LEFT, BATCH, CONNECTION, TRANSCRIPT):
        named = OTHER if route == TRANSCRIPT else route
        api.ask(413, "POST", named, b" " * 25_000, target=route)
        api.late(named, target=route)
        if route in (SAID, EVENT, LEFT, BATCH):
            api.ask(415, "POST", route, b"", Content_Encoding="gzip")
    line = {**BODIES[SAID], "ConnectionToken": TOKEN, "ClientToken": "b-1"}
    assert len(api.ask(200, "POST", BATCH, json.dumps(line) + "\n{\n").text.splitlines()) == 2
    api.ask(400, "POST", BATCH, "{\n" * 5000)
    api.ask(200, "POST", CONNECTION, {"Type": ["CONNECTION_CREDENTIALS"]})
    api.ask(403, "POST", CONNECTION, {}, X_Amz_Bearer="canary-refuse")
    api.ask(418, "POST", CONNECTION, {}, X_Amz_Bearer="canary-teapot", documented="default")
    api.ask(403, "POST", OTHER, {}, target=TRANSCRIPT, X_Amz_Bearer="canary-refuse")
    api.ask(200, "POST", OTHER, {}, target=TRANSCRIPT, documented="default")
    api.ask(404, "POST", OTHER, {}, target=QUEUE)
    api.ask(200, "GET", STATE, target=STATE_OF_ONE, X_Amz_Bearer="canary-0")
    api.ask(400, "GET", STATE, target=STATE_OF_ONE, X_Amz_Bearer="")
    api.ask(404, "GET", STATE, target=STATE_OF_ONE.replace("c-1", "nobodys"), X_Amz_Bearer="canary-0")
    api.ask(409, "GET", STATE, target=STATE_OF_ONE, X_Amz_Bearer="canary-0", Relay_Conversation="another")
    api.ask(200, "GET", QUEUE)
    api.ask(400, "GET", OUTCOMES, Last_Event_ID="c-1")
    api.ask(410, "GET", OUTCOMES, target=OUTCOMES + "?after=0000002a-1-1-0")
    stream = api.session.get("http://relay" + OUTCOMES, stream=True, timeout=90)
    api.relay.terminate()
    assert api.relay.wait() == 0 and stream.text == "", "a drain of an empty queue ends it"
    api.check(stream, 200, "GET", OUTCOMES)

    # No upstream.
    alone = ApiClient(relays("http://127.0.0.1:9", **quick), seen)
    hasty = [(route, {**body, "ClientToken": "c-1"}, f"canary-{number}") for number, (route, body) in enumerate(BODIES.items())]
    for route, body, token in hasty:
        alone.ask(202, "POST", route, body, X_Amz_Bearer=token, Relay_Lifetime=1)
    alone.relay.until_empty()
    for route, body, token in hasty:
        alone.ask(410, "POST", route, body, X_Amz_Bearer=token)
    alone.ask(503, "POST", CONNECTION, {})
    alone.ask(503, "POST", OTHER, {}, target=TRANSCRIPT)

    # A full queue.
    full = ApiClient(relays("http://127.0.0.1:9", queue__messages_max=1), seen)
    full.ask(202, "POST", SAID, BODIES[SAID])
    for route, body in BODIES.items():
        full.ask(429, "POST", route, body, X_Amz_Bearer="canary-another")

    # A user that is not allowed.
    strange = ApiClient(relays("http://127.0.0.1:9", tcp=False, ingress__allow_uids=os.getuid() + 1), seen)
    strange.ask(403, "POST", BATCH, "")
    strange.ask(403, "GET", STATE, target=STATE_OF_ONE)
    strange.ask(403, "GET", QUEUE)
    strange.ask(403, "GET", OUTCOMES)

    # The last two seconds of the grace, with an attempt in flight.
    leaving = ApiClient(relays(simulators("--latency", "1h").url, shutdown__grace="4s"), seen)
    leaving.ask(202, "POST", SAID, BODIES[SAID])
    leaving.relay.terminate()
    until(lambda: leaving.session.post("http://relay" + BATCH).status_code == 503, "the door closes")
    for route in (SAID, EVENT, LEFT, BATCH):
        leaving.ask(503, "POST", route, BODIES.get(route, ""))
    leaving.ask(503, "GET", OUTCOMES)
    assert leaving.relay.wait() == 75

    # A disk without space: files cannot grow. The first request that needs a write gets an error, and the relay exits.
    for route in (SAID, EVENT, LEFT, BATCH, CONNECTION):
        failing = ApiClient(relays(upstreams().url), seen)
        resource.prlimit(failing.relay.process.pid, resource.RLIMIT_FSIZE, (0, 0))
        failing.ask(500, "POST", route, BODIES.get(route, json.dumps(line)))
        assert failing.relay.wait() == 1

    seen |= {("GET", STATE, "500"), ("GET", QUEUE, "500"), ("GET", OUTCOMES, "500")}  # made elsewhere, as said above
    assert statuses(INGRESS) - seen == set(), "it is said, and did not happen"
    assert seen - statuses(INGRESS) == set(), "it happened, and is not said"


def statuses(schema):
    operations = [result.ok() for result in schema.get_all_operations()]
    return {(operation.method.upper(), operation.path, str(status))
            for operation in operations for status in operation.definition.raw["responses"]}


def test_every_status_in_the_control_file_happens(relays, relay, upstreams, simulators):
    seen = set()
    api = ApiClient(relay, seen, CONTROL, control_socket(relay))
    api.ask(200, "GET", "/status")
    assert api.ask(200, "POST", "/pause", {"reason": "a test"}).json()["paused"]["reason"] == "a test"
    assert api.ask(200, "GET", "/status").json()["paused"]["reason"] == "a test"
    api.ask(400, "POST", "/pause", {"reason": "two\nlines"})
    assert api.ask(200, "POST", "/resume").json()["paused"] is None
    api.ask(400, "POST", "/drain", {"timeout": -1})
    assert api.ask(200, "POST", "/drain", {"wait": True}).json() == {"queued": 0}
    assert relay.wait() == 0
    waiting = relays("http://127.0.0.1:9")
    ApiClient(waiting, set()).ask(202, "POST", SAID, BODIES[SAID])
    assert ApiClient(waiting, seen, CONTROL, control_socket(waiting)).ask(202, "POST", "/drain", {"timeout": 1}).json()["queued"] == 1
    assert waiting.wait() == 75

    # A queue for one message, a service that refuses bad contents, and one that never answers.
    refuses = relays(upstreams(lambda request: error(400, "ValidationException", "canary") if b"bad" in request.body else None).url,
                     queue__messages_max=1)
    api, one, redrive = ApiClient(refuses, seen, CONTROL, control_socket(refuses)), "/messages/{Id}", "/messages/{Id}/redrive"
    for number in range(2):
        send(refuses, TOKEN, "canary: bad")
        until(lambda: len(api.ask(200, "GET", "/messages", target="/messages?state=DEAD").json()["Messages"]) == number + 1, "it is dead")
    dead, other = (f"/messages/{message['Id']}" for message in api.ask(200, "GET", "/messages", target="/messages?state=DEAD").json()["Messages"])
    api.ask(400, "GET", "/messages", target="/messages?limit=0")
    api.ask(400, "DELETE", "/messages")
    api.ask(400, "POST", "/redrive", target="/redrive?reason=bored")
    api.ask(200, "GET", one, target=dead + "?contents=true")
    api.ask(400, "GET", one, target=dead + "?contents=1")
    api.ask(400, "DELETE", one, target=dead + "?contents=true")
    for method in ("GET", "DELETE"):
        api.ask(404, method, one, target="/messages/0000002a-1")
    api.ask(404, "POST", redrive, target="/messages/0000002a-1/redrive")
    api.ask(400, "POST", redrive, {"Contents": "canary"}, target=dead + "/redrive")
    api.ask(403, "POST", redrive, {"Content": "canary"}, target=dead + "/redrive")
    api.ask(200, "POST", "/pause")
    api.ask(200, "POST", redrive, target=dead + "/redrive")
    api.ask(409, "POST", redrive, target=dead + "/redrive")
    api.ask(429, "POST", redrive, target=other + "/redrive")
    api.ask(400, "POST", "/redrive")
    assert api.ask(200, "POST", "/redrive", target="/redrive?all=true&dry_run=true").json() == {"Redriven": 1, "DryRun": True}
    api.ask(429, "POST", "/redrive", target="/redrive?all=true")
    counted = api.ask(200, "GET", "/summary").json()
    assert (counted["Queued"], counted["Dead"], counted["Reasons"]) == (1, 1, {"invalid": 1})
    api.ask(200, "DELETE", one, target=dead)
    assert api.ask(200, "POST", "/redrive", target="/redrive?all=true").json() == {"Redriven": 1}, "not what was deleted"
    assert api.ask(200, "DELETE", "/messages", target="/messages?conversation=nobodys").json() == {"Deleted": 0, "InFlight": 0}
    silent = relays(simulators("--latency", "1h").url)
    api = ApiClient(silent, seen, CONTROL, control_socket(silent))
    send(silent, TOKEN, "canary")
    until(lambda: silent.metrics()["in_flight"] == 1, "an attempt is under way")
    [flying] = api.ask(200, "GET", "/messages").json()["Messages"]
    api.ask(409, "DELETE", one, target=f"/messages/{flying['Id']}")
    api.ask(200, "POST", "/log-level", {"Level": "info", "For": "1m"})
    api.ask(400, "POST", "/log-level", {"Level": "loud"})
    api.ask(200, "POST", "/reload")
    broken = relays("http://127.0.0.1:9", start=False)
    broken.folder.joinpath("relay.toml").write_text("")
    broken.arguments += ["--config", str(broken.folder / "relay.toml")]
    api = ApiClient(broken.start(), seen, CONTROL, control_socket(broken))
    broken.folder.joinpath("relay.toml").write_text("[log]\nlevel = 'loud'")
    api.ask(400, "POST", "/reload")
    # Those two need no store.
    storeless = ("/reload", "/log-level")
    elsewhere = {(method, route, status) for method, route, _ in seen for status in ("500", "503") if route not in storeless}
    assert statuses(CONTROL) == seen | elsewhere


def test_every_status_in_the_admin_file_happens(relays, simulators):
    seen = set()

    def ask(status, path):
        reply = requests.get(relay.admin + path, timeout=90, proxies={"http": ""})
        assert reply.status_code == status, (path, reply.text)
        ADMIN[path]["GET"].validate_response(reply)
        seen.add(("GET", path, str(status)))
        return reply

    relay = relays(simulators("--latency", "1h").url)
    for path in ("/", "/metrics", "/livez", "/readyz"):
        ask(200, path)
    ApiClient(relay, set()).ask(202, "POST", SAID, BODIES[SAID])
    page = until(lambda: (found := ask(200, "/status.json").json()) and found["in_flight"] and found, "an attempt is under way")
    members = set(ApiClient(relay, set(), CONTROL, control_socket(relay)).ask(200, "GET", "/status").json())
    assert set(page) - members == {"time", "headline", "figures", "history"} and members < set(page)
    relay.terminate()
    until(lambda: relay.get("/readyz")[0] == 503, "it drains")
    ask(503, "/readyz")
    # Made to happen by Rust tests alone: a queue that is not open or does not answer, and a sender that makes no step.
    seen |= {("GET", "/status.json", "503"), ("GET", "/livez", "503")}
    assert statuses(ADMIN) == seen


def test_operators_api_has_no_other_route(relay):
    api = ApiClient(relay, set(), CONTROL, control_socket(relay))
    for method, path, status in [("GET", "/", 404), ("GET", "/messages/", 404), ("GET", "/redrive", 405), ("POST", "/status", 405), ("HEAD", "/status", 200)]:
        assert api.session.request(method, "http://relay" + path).status_code == status


@pytest.fixture(scope="module")
def fuzzed():
    """One relay for all generated requests, before a service without a quota."""
    simulator = Simulator("--rate", 1e6, "--burst", 1_000_000, "--latency", "0ms", "--jitter", "0ms")
    relay = Relay(simulator.url, sender__quota_rate=1e5, sender__quota_burst=100_000, ingress__wait_max="1s",
                  queue__messages_max=1_000_000, queue__bytes_max="4GiB").start()
    relay.secrets = set()  # what is thrown may well be the name of a route
    try:
        yield relay
        assert relay.process.poll() is None, "it is alive"
        relay.until_empty()
    finally:
        relay.remove()
        simulator.remove()


# The same cases each time; --long generates others, and more.
FUZZ = {"deadline": None, "database": None, "phases": [Phase.explicit, Phase.generate],
        "suppress_health_check": list(HealthCheck)}
CHECKS = schemathesis.checks.CHECKS.get_by_names([
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance",
])


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=30), lambda inner: st.lists(inner, max_size=3))
LINE = st.fixed_dictionaries(
    {"ContentType": st.just("text/plain"), "Content": st.text(min_size=1) | JSON, "ConnectionToken": st.just(TOKEN) | JSON},
    optional={"ClientToken": JSON, "Conversation": JSON, "Lifetime": st.integers() | JSON},
)
LINES = st.lists(LINE.map(json.dumps) | st.text(max_size=50), max_size=8)
schemathesis.openapi.media_type("application/x-ndjson", LINES.map(lambda lines: "\n".join(lines).encode(errors="surrogatepass")))


# Their input cannot violate a schema: lines of text, an ignored header, nothing.
NOTHING_WRONG = {BATCH, QUEUE, "/status", "/summary", "/resume", "/reload"}


def throw(schema, socket_path, long, leave_out=()):
    """Sends requests that the file allows, and requests that it forbids, to every route."""
    through = session(str(socket_path))
    thrown = {}
    for operation in (result.ok() for result in schema.get_all_operations()):
        if operation.path in leave_out:
            continue
        for mode in schemathesis.GenerationMode:
            if mode is schemathesis.GenerationMode.NEGATIVE and operation.path in NOTHING_WRONG:
                continue

            @settings(**FUZZ, max_examples=500 if long else 40, derandomize=not long)
            @given(case=operation.as_strategy(generation_mode=mode))
            def one(case):
                reply = case.call(base_url="http://relay", session=through)
                case.validate_response(reply, checks=CHECKS)
                key = (operation.label, reply.status_code)
                thrown[key] = thrown.get(key, 0) + 1

            one()
    return thrown


def test_bots_api_gives_only_documented_replies(fuzzed, request):
    # A stream does not end by itself.
    thrown = throw(INGRESS, fuzzed.socket, request.config.getoption("--long"), leave_out={OUTCOMES})
    assert sum(thrown.values()) > 300 and ("POST /participant/message", 202) in thrown
    assert all(status < 500 for _, status in thrown)


def test_operators_api_gives_only_documented_replies(fuzzed, request):
    # A drained relay has exited.
    thrown = throw(CONTROL, control_socket(fuzzed), request.config.getoption("--long"), leave_out={"/drain"})
    assert set(thrown) == {
        ("GET /status", 200), ("POST /pause", 200), ("POST /pause", 400), ("POST /resume", 200),
        ("GET /summary", 200), ("GET /messages", 200), ("GET /messages", 400), ("DELETE /messages", 200), ("DELETE /messages", 400),
        ("GET /messages/{Id}", 400), ("GET /messages/{Id}", 404), ("DELETE /messages/{Id}", 404),
        ("POST /messages/{Id}/redrive", 400), ("POST /messages/{Id}/redrive", 404),
        ("POST /redrive", 200), ("POST /redrive", 400),
        ("POST /reload", 200), ("POST /log-level", 200), ("POST /log-level", 400),
    }
    session(str(control_socket(fuzzed))).post("http://relay/resume")


def test_status_of_a_relay_with_a_copy_in_a_fleet_is_what_the_files_say(relays, nats_servers, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=\n")
    server = nats_servers(f'jetstream {{ store_dir: "{tmp_path}/js" }}')
    copy = {"fleet__replicate": "true", "fleet__identity": "pod-0", "fleet__replicas": 1, "queue__key_file": keys}
    relay = relays("http://127.0.0.1:9", sender__connect_instance="shop", fleet__servers=server.url, **copy)
    api = ApiClient(relay, set(), CONTROL, control_socket(relay))

    def state():
        page = requests.get(relay.admin + "/status.json", timeout=90, proxies={"http": ""})
        ADMIN["/status.json"]["GET"].validate_response(page)
        status = api.ask(200, "GET", "/status").json()
        assert set(status["fleet"]["copy"]) == set(page.json()["fleet"]["copy"])
        return status["fleet"]["copy"]

    until(lambda: state()["state"] == "up", "the copy is up")
    server.kill()
    until(lambda: state()["state"] == "behind" and state()["behind_since"] and state()["behind_why"], "it is behind")
