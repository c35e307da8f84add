"""The status page on the admin port: its data, its policy, and with --long the page in a real browser.

KEEP_SCREENSHOTS=FOLDER keeps the screenshots of the states.
"""

import base64
import hashlib
import json
import os
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kit.browser import steady
from kit.callers import send
from kit.wait import until
from kit.processes import command
from kit.upstream import error

DOWN = "http://127.0.0.1:9"
TOKEN = "canary-token"
KEY = "Relay-Conversation: chat-4711/bot"


def fetch(relay, path):
    """Headers and text of a page of the admin port."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(relay.admin + path, timeout=20) as page:
        return {name.lower(): value for name, value in page.headers.items()}, page.read().decode()


def data(relay):
    return json.loads(fetch(relay, "/status.json")[1])


def run_command(relay, *words):
    done = command(*words, "--dir", relay.folder)
    assert done.returncode == 0, done
    return done.stdout


# The data.


def test_status_json_has_the_texts_of_the_status_command(relays):
    relay = relays(DOWN, sender__lifetime="1h")
    send(relay, TOKEN, "canary", headers=[KEY])
    run_command(relay, "pause", "--reason", "the instance moves")
    page, text = data(relay), run_command(relay, "status")
    assert steady("\n".join([page["headline"], *(f"  - {problem}" for problem in page["problems"])])) in steady(text)
    figures = "\n".join(f"{figure['name']:<14}{figure['value']}" for figure in page["figures"])
    assert steady(text).endswith(steady(figures) + "\n")
    status = json.loads(run_command(relay, "status", "--json"))
    assert set(page) == set(status) | {"time", "headline", "figures", "history"}
    changing = ("uptime_seconds", "oldest_seconds", "oldest_due_seconds", "quota_wait_seconds", "disk_free", "attempts", "in_flight")
    for name in set(status) - set(changing):
        assert page[name] == status[name], name


def test_page_and_data_show_no_contents_no_token_and_no_conversation(relays):
    relay = relays(DOWN)
    send(relay, TOKEN, "canary: contents", "greeting-4711", headers=[KEY])
    for path in ("/", "/status.json"):
        text = fetch(relay, path)[1]
        assert "canary" not in text and "4711" not in text


def test_history_counts_what_was_accepted_delivered_and_throttled(relays, upstreams):
    said = iter([error(429, "ThrottlingException")] * 2)
    relay = relays(upstreams(lambda request: next(said, None)).url, sender__probe_max="100ms", sender__backoff__initial="10ms")
    for number in range(5):
        send(relay, f"canary-{number}", "canary")
    relay.until_empty()
    points = until(lambda: (found := data(relay)["history"]) and found[-1]["seconds"] >= 1 and found, "an interval has passed")
    total = {name: sum(point[name] for point in points) for name in ("accepted", "delivered", "throttled")}
    assert total == {"accepted": 5, "delivered": 5, "throttled": 2}
    assert points[-1]["queued"] == points[-1]["expiring"] == 0
    relay.kill()
    paused = relays(DOWN)
    run_command(paused, "pause")
    send(paused, TOKEN, "canary")
    until(lambda: (found := data(paused)["history"]) and found[-1]["queued"] == 1, "what waits is in it")


def test_other_methods_and_paths_are_refused(relay):
    for path in ("/", "/status.json"):
        request = urllib.request.Request(relay.admin + path, method="POST", data=b"")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20)
        assert refused.value.code == 405 and refused.value.headers["Allow"] == "GET, HEAD"
    assert relay.get("/status")[0] == relay.get("/status.html")[0] == 404


# The policy and the file.


class Page(HTMLParser):
    """Elements with their attributes, ids, and the text of script and style."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.inner, self._open = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open = tag

    def handle_data(self, text):
        if self._open in ("script", "style"):
            self.inner[self._open] = self.inner.get(self._open, "") + text

    def handle_endtag(self, tag):
        self._open = None


def test_policy_admits_the_pages_own_script_and_style_and_nothing_else(relay):
    headers, text = fetch(relay, "/")
    page = Page(text)
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.inner[tag].encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'" and policy["img-src"] == "data:" and "unsafe" not in str(policy)
    assert headers["content-type"] == "text/html; charset=utf-8" and headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer" and headers["cache-control"] == "no-store"
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcset")], (tag, attributes)
        assert attributes.get("href", "").split(":")[0] in ("", "data", "status.json", "metrics"), attributes


def test_file_has_roles_names_and_a_language(relay):
    page = Page(fetch(relay, "/")[1])
    tags = [tag for tag, _ in page.elements]
    assert dict(page.elements)["html"] == {"lang": "en"} and tags.count("main") == tags.count("h1") == tags.count("title") == 1
    assert {"header", "footer", "noscript", "caption", "button"} <= set(tags)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        assert attributes.get("aria-labelledby", ids[0]) in ids
        if attributes.get("role") == "img":
            assert attributes["aria-label"]
        if tag == "th":
            assert attributes["scope"] in ("col", "row")
    assert len(fetch(relay, "/")[1]) < 30_000


# In a browser.


@pytest.fixture
def states(relays, upstreams):
    """A relay in each state: `states[name]()`."""

    def healthy():
        relay = relays(upstreams().url, sender__connect_instance="shop")
        for number in range(20):
            send(relay, f"canary-{number}", "canary")
        relay.until_empty()
        return relay

    def throttled():
        relay = relays(upstreams(lambda _: error(429, "ThrottlingException")).url)
        for number in range(20):
            send(relay, f"canary-{number}", "canary")
        until(lambda: data(relay)["gate"] == "throttled", "it is throttled")
        return relay

    def down():
        relay = relays(DOWN, sender__lifetime="2m")
        for number in range(20):
            send(relay, f"canary-{number}", "canary")
        until(lambda: data(relay)["gate"] == "down", "it is down")
        return relay

    def paused():
        relay = relays(upstreams().url)
        run_command(relay, "pause", "--reason", "the instance <b>moves</b> & rests")
        for number in range(20):
            send(relay, f"canary-{number}", "canary")
        return relay

    return {"healthy": healthy, "throttled": throttled, "down": down, "paused": paused}


WORDS = {"healthy": "healthy: nothing is queued", "throttled": "Connect throttles", "down": "Sending is stuck since", "paused": "the instance <b>moves</b> & rests"}


def keep(browser, name):
    if folder := os.environ.get("KEEP_SCREENSHOTS"):
        browser.picture(Path(folder) / f"{name}.png")


@pytest.mark.long
@pytest.mark.parametrize("state", ["healthy", "throttled", "down", "paused"])
def test_page_shows_each_state_by_day_by_night_and_on_a_phone(browser, states, state):
    relay = states[state]()
    until(lambda: (found := data(relay)["history"]) and found[-1]["seconds"] >= 10, "the plot has a point")
    for width, dark in [(1000, False), (1000, True), (390, False), (390, True)]:
        browser.open(relay.admin + "/", width=width, dark=dark)
        text = browser.until_shown(WORDS[state])
        found = data(relay)
        for problem in found["problems"]:
            assert steady(problem) in steady(text)
        assert all(figure["name"] in text for figure in found["figures"])
        assert browser.run("document.title").startswith("healthy" if state == "healthy" else "not healthy")
        assert browser.run("document.querySelectorAll('polyline').length") >= 5
        wide = browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, "it does not scroll sideways"
        assert browser.run(CONTRAST) == [], (width, dark)
        keep(browser, f"{state}-{width}-{'dark' if dark else 'light'}")
    assert not browser.problems, browser.problems
    foreign = [url for url in browser.requests if not url.startswith((relay.admin, "data:", "about:"))]
    assert not foreign, "it loads nothing else"


# Each text against the colour behind it (4.5), and each line of a plot (3), as WCAG 2 has it.
CONTRAST = """(() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const ratio = (one, other) => { const [a, b] = [light(one), light(other)].sort((x, y) => y - x); return (a + .05) / (b + .05); };
  const bad = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || ['SCRIPT', 'STYLE', 'NOSCRIPT'].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const colour = parse(element.closest('svg') ? style.fill : style.color);
    if (ratio(colour, behind(element)) < 4.5) bad.push([element.outerHTML.slice(0, 80), ratio(colour, behind(element))]);
  }
  for (const line of document.querySelectorAll('.plot')) {
    const found = ratio(parse(getComputedStyle(line).stroke), behind(line));
    if (found < 3) bad.push([line.getAttribute('class'), found]);
  }
  return bad;
})()"""


# An hour of which the second half is worse, and how the page shows it.
HOUR = """(async () => {
  const status = await (await fetch('status.json')).json(), now = Date.parse(status.time);
  status.history = [...Array(60).keys()].map(minute => ({
    time: new Date(now - (59 - minute) * 60e3).toISOString(), seconds: 60, accepted: 500 + 40 * Math.round(5 * Math.sin(minute / 4)),
    delivered: minute < 30 ? 500 : 280, throttled: minute < 30 ? 3 : 120, queued: Math.max(0, (minute - 30) * 220),
    expiring: Math.max(0, (minute - 45) * 150)}));
  status.history.push({...status.history[59], time: status.time, seconds: 12, accepted: 100, delivered: 56, throttled: 24});
  held = true;
  show(status);
  return [...document.querySelectorAll('polyline')].map(line => line.getAttribute('points').split(' ').map(pair => pair.split(',').map(Number)));
})()"""


@pytest.mark.long
def test_page_plots_a_whole_hour(browser, relay):
    for width, dark in [(1000, False), (390, True)]:
        browser.open(relay.admin + "/", width=width, dark=dark)
        browser.until_shown(WORDS["healthy"])
        lines = browser.run(HOUR)[:3] + browser.run(HOUR)[-2:]
        assert [len(line) for line in lines] == [61] * 5
        for line in lines:
            assert all(one[0] <= next_one[0] for one, next_one in zip(line, line[1:])), "from left to right"
            assert all(44 <= x <= 472 and 10 <= y <= 154 for x, y in line), "within the axes"
        text = browser.text()
        assert "throttled attempts: now 120, highest 120" in text and "queued: now 6,380, highest 6,380" in text
        assert "delivered: now 280, highest 500" in text, "nothing is extrapolated from twelve seconds"
        cut = browser.run("""[...document.querySelectorAll('figure > svg text')].filter(text => {
          const [inner, outer] = [text.getBoundingClientRect(), text.ownerSVGElement.getBoundingClientRect()];
          return inner.left < outer.left - 1 || inner.right > outer.right + 1;
        }).map(text => text.textContent)""")
        assert cut == [], "no label is cut off"
        keep(browser, f"hour-{width}")


@pytest.mark.long
def test_page_refreshes_itself_and_reports_a_relay_that_does_not_answer(browser, states):
    relay = states["healthy"]()
    browser.open(relay.admin + "/")
    browser.until_shown("healthy: nothing is queued")
    run_command(relay, "pause", "--reason", "lunch")
    browser.until_shown(": lunch.")
    news = lambda: browser.run("document.getElementById('news').textContent")  # noqa: E731
    until(lambda: news() == "not healthy: 1 problem", "a screen reader hears of it, and of no figure")
    relay.stop()
    browser.until_shown("The relay does not answer")
    assert browser.run("document.title") == "no status – connect-relay"
    relay.start()
    browser.until_shown(": lunch.")


@pytest.mark.long
def test_page_works_by_keyboard_and_for_a_screen_reader(browser, states):
    relay = states["paused"]()
    until(lambda: data(relay)["history"], "the table has a row")
    browser.open(relay.admin + "/")
    browser.until_shown(WORDS["paused"])
    roles = browser.accessible()
    named = {role: [name for found, name in roles if found == role] for role, _ in roles}
    assert named["main"] and named["banner"] and named["contentinfo"]
    assert "connect-relay" in named["heading"] and "The last hour" in named["heading"] and "Figures" in named["heading"]
    assert any(name.startswith("not healthy") for name in named["heading"])
    pictures = named.get("image", []) + named.get("img", [])
    assert len(pictures) == 2 and "accepted: " in pictures[0] and "queued: " in pictures[1], pictures
    assert "Stop refreshing" in named["button"] and {"status.json", "metrics"} <= set(named["link"])
    assert named["rowheader"] and "status" in named

    def focused():
        return browser.run("document.activeElement.id || document.activeElement.tagName")

    seen = []
    for _ in range(6):
        browser.press("Tab", 9)
        seen.append(focused())
        assert browser.run("getComputedStyle(document.activeElement).outlineStyle") != "none", "the focus is seen"
        if seen[-1] == "SUMMARY":
            browser.press("Enter", 13)
            until(lambda: browser.run("document.querySelector('details').open"), "the table opens")
        if seen[-1] == "hold":
            browser.press("Enter", 13)
            until(lambda: browser.run("document.getElementById('hold').getAttribute('aria-pressed')") == "true", "it is held")
            break
    assert "SUMMARY" in seen and "hold" in seen, seen
    assert browser.run("document.querySelectorAll('#intervals tr').length") >= 1
    before = browser.run("document.getElementById('seen').textContent")
    run_command(relay, "resume")
    relay.until_empty()
    browser.press("Enter", 13)
    browser.until_shown("healthy: nothing is queued")
    assert before != browser.run("document.getElementById('seen').textContent")
    assert not browser.problems, browser.problems
