"""The flow of examples/node-red in a real Node-RED, with a real mosquitto and the real daemon."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from dataclasses import dataclass
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest
import requests

from tests.support.processes import ROOT, Process, Subscriber, eventually, free_port
from tests.system.test_delivery import make_system, retain, system

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.processes import Mosquitto
    from tests.system.test_delivery import System

__all__ = ["make_system", "system"]  # the fixtures

FLOW = ROOT / "examples" / "node-red" / "flow.json"
NODE_RED = shutil.which("node-red") or shutil.which("node-red", path=ROOT / ".node-red" / "node_modules" / ".bin")
NEVER = 60  # minutes, longer than any test
QUICK = 0.05  # minutes
FIRST = int(time.time()) * 1000 + 86_400_000  # when the published readings begin: none is too old while the tests run
SETTINGS = {
    "uiHost": "127.0.0.1",
    "flowFile": "flows.json",
    "credentialSecret": False,
    "disableEditor": True,
    "mqttReconnectTime": 200,
    # Nothing leaves loopback: no statistics, no check for updates, no catalog, nothing installed.
    "telemetry": {"enabled": False, "updateNotification": False},
    "externalModules": {key: {"allowInstall": False} for key in ("palette", "modules")} | {"autoInstall": False},
    "logging": {"console": {"level": "info", "metrics": False, "audit": False}},
}


@dataclass(frozen=True)
class Page:
    """What a person sees on /glucose."""

    html: str

    def _one(self, pattern: str) -> str | None:
        found = re.findall(pattern, self.html)
        assert len(found) <= 1, self.html
        return unescape(found[0]) if found else None

    @property
    def colour(self) -> str | None:
        return self._one(r'<p class="value (.*?)">')

    @property
    def number(self) -> str | None:
        return self._one(r'<span class="number">(.*?)</span>')

    @property
    def arrow(self) -> str | None:
        return self._one(r'<span class="arrow">(.*?)</span>')

    @property
    def delta(self) -> str | None:
        return self._one(r'<span class="delta">(.*?)</span>')

    @property
    def points(self) -> int:
        return self.html.count("<circle ")

    @property
    def in_range(self) -> str | None:
        return self._one(r'<span class="in-range">(.*?)</span>')

    @property
    def shows_a_value(self) -> bool:
        assert (self.number is None) == ("no current value" in self.html.partition("<body>")[2])
        return self.number is not None


class NodeRed:
    """A Node-RED on loopback, into which the flow can be imported again and again."""

    def __init__(self, folder: Path) -> None:
        self._url = f"http://127.0.0.1:{free_port()}"
        settings = folder / "settings.js"
        port = int(self._url.rpartition(":")[2])
        settings.write_text(f"module.exports = {json.dumps(SETTINGS | {'uiPort': port})};\n", encoding="utf-8")
        assert NODE_RED
        # Before version 20, Node.js uses only the first address of localhost, which may be ::1.
        environ = {"NODE_OPTIONS": "--dns-result-order=ipv4first"}
        command: list[str | Path] = [NODE_RED, "--userDir", folder, "--settings", settings]
        self.process = Process(command, folder / "node-red.log", environ)
        self._log_before = 0

    def answers(self) -> bool:
        assert self.process.running, self.process.text()
        try:
            return "Started flows" in self.process.text() and requests.get(f"{self._url}/flows", timeout=5).ok
        except requests.ConnectionError:
            return False

    def get(self, path: str) -> requests.Response:
        return requests.get(f"{self._url}/{path}", headers={"Accept": "application/json"}, timeout=10)

    def deploy(self, broker: Mosquitto, **env: float | str) -> None:
        """Import the flow as into a new Node-RED: with this broker, these limits, and its alarms in the log."""
        flow = json.loads(FLOW.read_text(encoding="utf-8"))
        by_id = {node["id"]: node for node in flow}
        by_id["glucose-broker"]["port"] = str(broker.port)
        limits = {limit["name"]: limit for limit in by_id["glucose"]["env"]}
        for name, value in env.items():
            limits[name]["value"] = str(value)
        probe = by_id["glucose-low"] | {"id": "probe", "name": "probe", "wires": [], "outputs": 0}
        probe["func"] = "node.log('ALARM ' + JSON.stringify(msg));"
        for name in ("low", "missing"):
            assert by_id[f"glucose-{name}"]["wires"] == [["glucose-notify"]]
            by_id[f"glucose-{name}"]["wires"][0].append("probe")
        self.import_flow([*flow, probe])
        eventually(lambda: "Connected to broker" in self.log(), why=self.process.text())

    def press(self, node: str) -> None:
        """Press the button of an *inject* node."""
        requests.post(f"{self._url}/inject/{node}", timeout=10).raise_for_status()

    def clear(self) -> None:
        """Remove the flow, and with it everything it remembers."""
        self.import_flow([])

    def import_flow(self, flow: list[dict[str, Any]]) -> None:
        """Replace everything with a flow."""
        self._log_before = len(self.process.text()) if flow else self._log_before
        headers = {"Node-RED-Deployment-Type": "full"}
        requests.post(f"{self._url}/flows", json=flow, headers=headers, timeout=20).raise_for_status()

    def log(self) -> str:
        """Return what was logged since the flow was deployed."""
        return self.process.text()[self._log_before :]

    def alarms(self) -> list[dict[str, Any]]:
        return [json.loads(found) for found in re.findall(r"\[function:probe\] ALARM (.*)", self.log())]

    def kinds(self) -> list[str]:
        return [alarm["topic"] for alarm in self.alarms()]

    def page(self) -> Page:
        answer = self.get("glucose")
        assert answer.ok
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["access-control-allow-origin"] == "none"  # by default Node-RED allows * (every web site)
        return Page(answer.text)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeRed]:
    """Start one Node-RED for all tests here, because that takes seconds."""
    if NODE_RED is None:
        pytest.skip("Node-RED is not installed; run npm install --prefix .node-red node-red@4 to run them")
    node_red = NodeRed(tmp_path_factory.mktemp("node-red"))
    with node_red.process:
        eventually(node_red.answers, 60, why="Node-RED did not start")
        yield node_red


@pytest.fixture
def node_red(started: NodeRed, mosquitto: Mosquitto) -> Iterator[NodeRed]:  # noqa: ARG001  # it must end later
    """Return the Node-RED, and check that the flow had no errors."""
    yield started
    started.clear()
    assert not re.findall(r".*(?:\[error\]|\[warn\]|missing types).*", started.log())


class Anna:
    """Publishes what the daemon would, for glucose that the simulated Share cannot produce."""

    def __init__(self, subscriber: Subscriber, node_red: NodeRed) -> None:
        self._subscriber = subscriber
        self._node_red = node_red

    def publish(self, leaf: str, payload: str) -> None:
        retain(self._subscriber, f"dexcom2mqtt/{leaf}", payload)

    def online(self, *, bridge: str = "online", availability: str = "online") -> None:
        self.publish("bridge/state", bridge)
        self.publish("anna/availability", availability)

    def state(self, minute: int, value: object, range_: str | None, **other: object) -> None:
        """Publish a state whose reading was taken so many minutes after the first."""
        date = FIRST + minute * 60_000
        state = {"value": value, "unit": "mg/dL", "arrow": "→", "delta": 1, "range": range_, "date": date}
        self.publish("anna/state", json.dumps(state | other))

    def settle(self) -> Page:
        """Wait until the flow has handled everything published, and return its page."""
        count = self._node_red.page().points + 1
        now = int(time.time() * 1000)
        points = [{"date": now, "mg_dl": 100}] * count
        no_points = [{"date": now - 90_000_000, "mg_dl": 100}, {"date": now, "mg_dl": "<b>"}, None]
        self.publish("anna/history", json.dumps({"readings": no_points + points}))
        eventually(lambda: self._node_red.page().points == count)
        return self._node_red.page()


@pytest.fixture
def anna(mosquitto: Mosquitto, node_red: NodeRed) -> Iterator[Anna]:
    """Return a publisher that replaces the daemon."""
    with Subscriber(mosquitto.port) as subscriber:
        yield Anna(subscriber, node_red)


def minutes(alarms: list[dict[str, Any]]) -> list[int]:
    """Return the minutes in which the readings of low alarms were taken."""
    return [(alarm["date"] - FIRST) // 60_000 for alarm in alarms if alarm["topic"] == "low"]


# --- the file ----------------------------------------------------------------------------------------------


def plain_flow(node_red: NodeRed, file: Path) -> list[dict[str, Any]]:
    """Return a flow; check that Node-RED includes every node, and that every wire leads to one."""
    text = file.read_text(encoding="utf-8")
    flow: list[dict[str, Any]] = json.loads(text)
    assert text == json.dumps(flow, indent=4, ensure_ascii=False) + "\n"
    own = {name for part in node_red.get("nodes").json() if part["module"] == "node-red" for name in part["types"]}
    assert {node["type"] for node in flow} - {"tab"} <= own
    ids = {node["id"] for node in flow}
    assert {end for node in flow for output in node.get("wires", []) for end in output} <= ids
    return flow


def test_the_flow_needs_nothing_but_node_red(node_red: NodeRed, mosquitto: Mosquitto) -> None:
    """Every node is one that comes with Node-RED, and the import logs no error."""
    flow = plain_flow(node_red, FLOW)
    node_red.deploy(mosquitto)
    imported = {node["id"]: node["type"] for node in node_red.get("flows").json()}
    assert imported.items() >= {node["id"]: node["type"] for node in flow}.items()


# --- with the daemon ---------------------------------------------------------------------------------------


def test_the_page_shows_what_the_daemon_publishes(node_red: NodeRed, mosquitto: Mosquitto, system: System) -> None:
    """Value, color and arrow are those of `state`, each reading of `history` is a point; a restart is not an alarm."""
    node_red.deploy(mosquitto, OFFLINE_MINUTES=0.5)
    assert not node_red.page().shows_a_value
    subscriber = system.subscribe(mosquitto)
    daemon = system.start(mosquitto.port)

    def agrees() -> bool:
        picture = subscriber.latest()
        state, history = (json.loads(picture.get(f"dexcom2mqtt/anna/{leaf}", "{}")) for leaf in ("state", "history"))
        page = node_red.page()
        shown = (page.number, page.arrow, page.colour, page.points)
        entries = history.get("readings", [])
        return len(entries) > 240 and shown == (str(state["value"]), state["arrow"], state["range"], len(entries))

    eventually(agrees)
    first = json.loads(subscriber.latest()["dexcom2mqtt/anna/state"])["date"]
    eventually(lambda: json.loads(subscriber.latest()["dexcom2mqtt/anna/state"])["date"] > first)
    eventually(agrees)
    daemon.signal(signal.SIGKILL)
    eventually(lambda: not node_red.page().shows_a_value)
    system.start(mosquitto.port, name="again")
    eventually(agrees)
    assert set(node_red.kinds()) <= {"low"}


def test_a_killed_daemon_is_an_alarm_after_the_grace(node_red: NodeRed, mosquitto: Mosquitto, system: System) -> None:
    """The last will starts the grace period, then one alarm follows, and one message when the daemon is back."""
    subscriber = system.subscribe(mosquitto)
    daemon = system.start(mosquitto.port)
    subscriber.wait_for("dexcom2mqtt/anna/availability", "online")
    node_red.deploy(mosquitto, OFFLINE_MINUTES=QUICK, MISSING_MINUTES=NEVER, LOW_REPEAT_MINUTES=NEVER)
    eventually(lambda: node_red.page().shows_a_value)
    daemon.signal(signal.SIGKILL)
    subscriber.wait_for("dexcom2mqtt/bridge/state", "offline")
    eventually(lambda: "missing" in node_red.kinds())
    [alarm] = [alarm for alarm in node_red.alarms() if alarm["topic"] == "missing"]
    assert alarm["payload"] == "Glucose readings are missing: dexcom2mqtt is not running"
    system.start(mosquitto.port, name="again")
    eventually(lambda: node_red.page().shows_a_value)
    assert [kind for kind in node_red.kinds() if kind != "low"] == ["missing", "back"]


@pytest.mark.parametrize(
    ("statistics", "shown"),
    [
        ({"24h": {"in_range": 77.5}}, "78 %"),
        ({"24h": {"in_range": 0}}, "0 %"),
        ({"24h": {"in_range": None}}, None),
        ({"24h": {"in_range": "<b>"}}, None),
        ({"24h": None}, None),
        ({}, None),
    ],
    ids=["a day", "never", "other ranges", "hostile", "no reading", "nothing"],
)
def test_time_in_range_is_shown_while_the_daemon_counts_it(
    node_red: NodeRed, mosquitto: Mosquitto, anna: Anna, statistics: dict[str, Any], shown: str | None
) -> None:
    """As a whole number of percent, and not at all if it is unknown."""
    node_red.deploy(mosquitto)
    anna.online()
    anna.publish("anna/statistics", json.dumps(statistics))
    assert anna.settle().in_range == shown
    anna.online(bridge="offline")
    assert anna.settle().in_range is None


# --- the value ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ({"value": 112, "range_": "in_range"}, ("112", "→", "in_range", "+1")),
        ({"value": 65, "range_": "low", "arrow": "↓↓", "delta": -20}, ("65", "↓↓", "low", "-20")),
        ({"value": 4.0, "range_": "in_range", "unit": "mmol/L", "delta": 0.2}, ("4.0", "→", "in_range", "+0.2")),
        (
            {"value": 401, "range_": "very_high", "out_of_range": "high", "delta": None},
            ("≥ 401", "→", "very_high", None),
        ),
        ({"value": 39, "range_": "very_low", "out_of_range": "low", "delta": None}, ("≤ 39", "→", "very_low", None)),
        ({"value": 201, "range_": "<b>", "arrow": "<i>&", "unit": "<u>"}, ("201", "<i>&", "none", "+1")),
    ],
    ids=["in range", "low", "mmol", "above", "below", "hostile"],
)
def test_a_value_looks_like_what_it_means(
    node_red: NodeRed, mosquitto: Mosquitto, anna: Anna, state: dict[str, Any], shown: tuple[str | None, ...]
) -> None:
    """The color follows the range, mmol/L has one decimal, a limit has a sign, and no text becomes HTML."""
    node_red.deploy(mosquitto)
    anna.state(0, **state)
    anna.online()
    page = anna.settle()
    assert (page.number, page.arrow, page.colour, page.delta) == shown
    assert not re.search("<[biu]>", page.html)


def test_a_value_is_current_only_while_both_are_online(node_red: NodeRed, mosquitto: Mosquitto, anna: Anna) -> None:
    """The page says that there is no value if one of the two is not online, or if there is no number."""
    node_red.deploy(mosquitto)
    anna.state(0, 112, "in_range")
    anna.publish("bridge/state", "online")
    assert not anna.settle().shows_a_value
    anna.publish("anna/availability", "online")
    assert anna.settle().shows_a_value
    anna.publish("bridge/state", "offline")
    assert not anna.settle().shows_a_value
    anna.online()
    assert anna.settle().shows_a_value
    anna.publish("anna/availability", "offline")
    assert not anna.settle().shows_a_value
    anna.online()
    assert anna.settle().shows_a_value
    anna.state(5, "112", "in_range")
    assert not anna.settle().shows_a_value
    anna.state(5, 112, "in_range")
    assert anna.settle().shows_a_value
    mosquitto.kill()
    eventually(lambda: not node_red.page().shows_a_value)


def test_an_old_value_is_not_current_although_both_are_online(
    node_red: NodeRed, mosquitto: Mosquitto, anna: Anna
) -> None:
    """Such as a broker without MQTT 5 has after a power failure: it is not shown, is no alarm, and ends no alarm."""

    def low(age: float) -> Page:
        anna.state(0, 60, "low", date=int(time.time() - age * 60) * 1000)
        return anna.settle()

    node_red.deploy(mosquitto, OFFLINE_MINUTES=QUICK, LOW_REPEAT_MINUTES=NEVER)
    anna.online(bridge="offline")
    eventually(lambda: node_red.kinds() == ["missing"])
    low(6 * 60)
    anna.online()
    assert not anna.settle().shows_a_value
    time.sleep(2.2)  # a tick does not change that
    assert not low(21).shows_a_value
    assert node_red.kinds() == ["missing"]
    low(19)
    eventually(lambda: node_red.page().shows_a_value)
    assert node_red.kinds() == ["missing", "back", "low"]


def test_old_values_are_missing(node_red: NodeRed, mosquitto: Mosquitto, anna: Anna) -> None:
    """So a Node-RED whose clock is far ahead does not stay silent; and `STALE_AFTER` says what is old."""
    node_red.deploy(mosquitto, MISSING_MINUTES=QUICK)
    anna.online()
    ages = iter(range(100_000, 30 * 60, -1))

    def arrive_and_are_missing() -> bool:
        anna.state(0, 100, "in_range", date=int(time.time() - next(ages)) * 1000)
        return node_red.kinds() == ["missing"]

    eventually(arrive_and_are_missing)
    anna.state(0, 100, "in_range", date=int(time.time() - 40 * 60) * 1000)
    assert not anna.settle().shows_a_value
    node_red.clear()
    node_red.deploy(mosquitto, STALE_AFTER=60)
    assert anna.settle().shows_a_value


# --- the alarms --------------------------------------------------------------------------------------------


def test_a_low_reading_is_one_alarm(node_red: NodeRed, mosquitto: Mosquitto, anna: Anna) -> None:
    """Every new low current reading is one alarm; null and offline are none."""
    node_red.deploy(mosquitto)
    anna.online()
    anna.state(0, 70, "in_range")
    anna.state(5, 69, "low")
    anna.state(5, 69, "low")  # as after a reconnect
    anna.online(availability="offline")
    anna.state(5, None, None, arrow=None, delta=None)
    anna.online()
    anna.state(5, None, "low")  # so that only the type differs
    anna.state(5, 69, "low")
    anna.settle()
    assert minutes(node_red.alarms()) == [5]
    anna.online(bridge="offline")
    anna.state(10, 66, "low")
    anna.settle()
    assert minutes(node_red.alarms()) == [5]
    anna.online()
    anna.state(15, 50, "very_low")
    anna.state(20, 100, "in_range")
    anna.state(25, 181, "high")
    anna.state(30, 60, "low")
    anna.settle()
    time.sleep(2.2)  # a tick is not a new reading
    assert minutes(node_red.alarms()) == [5, 10, 15, 30]
    assert node_red.kinds() == ["low"] * 4
    assert [alarm["payload"] for alarm in node_red.alarms()][1:3] == [
        "Glucose is low: 66 mg/dL →",
        "Glucose is very low: 50 mg/dL →",
    ]


def test_alarms_of_one_low_can_pause(node_red: NodeRed, mosquitto: Mosquitto, anna: Anna) -> None:
    """A low reading soon after an alarm can be silent; a very low one is an alarm, and so is a new low."""
    node_red.deploy(mosquitto, LOW_REPEAT_MINUTES=20)
    anna.online()
    for minute, value, range_ in [
        *((0, 69, "low"), (5, 68, "low"), (20, 68, "low"), (25, 53, "very_low"), (30, 52, "very_low")),
        *((35, 60, "low"), (40, 71, "in_range"), (45, 69, "low"), (50, 69, "low")),
    ]:
        anna.state(minute, value, range_)
    anna.settle()
    assert minutes(node_red.alarms()) == [0, 20, 25, 30, 45]


def test_an_alarm_can_be_tried(node_red: NodeRed, mosquitto: Mosquitto) -> None:
    """Each press of the button is an alarm, even without a reading, and it begins with the name."""
    node_red.deploy(mosquitto, NAME="Anna's glucose")
    node_red.press("glucose-try")
    eventually(lambda: node_red.kinds() == ["low"])
    node_red.press("glucose-try")
    eventually(lambda: node_red.kinds() == ["low", "low"])
    assert node_red.alarms()[0]["payload"] == "Anna's glucose is very low: this is a test"


def test_offline_is_an_alarm_only_after_the_grace(node_red: NodeRed, mosquitto: Mosquitto, anna: Anna) -> None:
    """Two short absences are no alarm, even if together they exceed the grace period; a long one is one alarm."""
    node_red.deploy(mosquitto, OFFLINE_MINUTES=4 / 60, MISSING_MINUTES=NEVER)
    anna.state(0, 100, "in_range")
    for _ in range(2):
        anna.online()
        anna.settle()
        anna.online(availability="offline")
        anna.settle()
        time.sleep(2.3)
    anna.online()
    anna.settle()
    assert node_red.kinds() == []
    anna.online(availability="offline")
    eventually(lambda: node_red.kinds() == ["missing"])
    assert node_red.alarms()[0]["payload"] == "Glucose readings are missing: Dexcom has no current reading"
    anna.online()
    eventually(lambda: node_red.kinds() == ["missing", "back"])
    eventually(lambda: node_red.page().shows_a_value)
    assert node_red.kinds() == ["missing", "back"]


def test_its_own_timer_needs_no_message(node_red: NodeRed, mosquitto: Mosquitto, anna: Anna) -> None:
    """Readings that never arrive and readings held back by a frozen broker are each one alarm, until they return."""
    node_red.deploy(mosquitto, MISSING_MINUTES=QUICK, OFFLINE_MINUTES=NEVER)
    eventually(lambda: node_red.kinds() == ["missing"])
    anna.state(0, 100, "in_range")
    anna.online()
    eventually(lambda: node_red.kinds() == ["missing", "back"])
    mosquitto.freeze()
    eventually(lambda: node_red.kinds() == ["missing", "back", "missing"])
    assert node_red.alarms()[-1]["payload"] == f"Glucose readings are missing: no new reading for {QUICK} minutes"
    eventually(lambda: not node_red.page().shows_a_value)
    mosquitto.thaw()
    anna.settle()
    assert node_red.kinds() == ["missing", "back", "missing"]  # it is still the old reading
    anna.state(5, 100, "in_range")
    eventually(lambda: node_red.kinds() == ["missing", "back", "missing", "back"])
    eventually(lambda: node_red.page().shows_a_value)


def test_a_dead_broker_is_an_alarm(node_red: NodeRed, mosquitto: Mosquitto, anna: Anna) -> None:
    """Nothing else needs a restart until the readings are back."""
    node_red.deploy(mosquitto, MISSING_MINUTES=QUICK, OFFLINE_MINUTES=NEVER)
    anna.state(0, 100, "in_range")
    anna.online()
    assert anna.settle().shows_a_value
    mosquitto.kill()
    eventually(lambda: node_red.kinds() == ["missing"])
    mosquitto.start()
    with Subscriber(mosquitto.port) as subscriber:
        again = Anna(subscriber, node_red)
        again.state(5, 100, "in_range")
        again.settle()
        assert node_red.kinds() == ["missing"]  # nothing has said yet that it is current
        again.online()
        eventually(lambda: node_red.kinds() == ["missing", "back"])
