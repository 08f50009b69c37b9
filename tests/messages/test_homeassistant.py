"""How accounts appear in Home Assistant: the payload follows its rules and our promises, and does not change."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pytest

from dexcom2mqtt.account.statistics import statistics_of
from dexcom2mqtt.config.loading import build
from dexcom2mqtt.config.settings import Account
from dexcom2mqtt.messages.days import counted, day_of
from dexcom2mqtt.messages.homeassistant import account_of, discovery_message, discovery_topic
from dexcom2mqtt.messages.message import to_json
from dexcom2mqtt.messages.state import State, fresh_messages, stale, state_of, unavailable, without_reading
from dexcom2mqtt.messages.status import REMEDIES, ShareState, Status, status_message
from dexcom2mqtt.readings import RANGES, TRENDS
from dexcom2mqtt.topics import Topics
from tests.support.builders import NOON, account, reading
from tests.support.discovery_rules import problems

if TYPE_CHECKING:
    from collections.abc import Callable

    from dexcom2mqtt.config.values import Statistics

GOLDEN = Path(__file__).parent / "golden" / "discovery.json"
TOPICS = Topics("dexcom2mqtt")
BRIDGE = "dexcom2mqtt/bridge/state"
AVAILABILITY = "dexcom2mqtt/anna/availability"

ENTITIES = {
    "glucose_value": "sensor.anna_glucose_value",
    "glucose_trend": "sensor.anna_glucose_trend",
    "glucose_delta": "sensor.anna_glucose_delta",
    "glucose_range": "sensor.anna_glucose_range",
    "glucose_reading_time": "sensor.anna_glucose_reading_time",
    "readings_missing": "binary_sensor.anna_readings_missing",
    "share_status": "sensor.anna_share_status",
    "refresh": "button.anna_refresh",
    "time_in_range": "sensor.anna_time_in_range",
    "time_below_range": "sensor.anna_time_below_range",
    "glucose_mean": "sensor.anna_glucose_mean",
    "time_in_range_14_days": "sensor.anna_time_in_range_14_days",
    "glucose_mean_14_days": "sensor.anna_glucose_mean_14_days",
    "gmi": "sensor.anna_gmi",
    "time_below_range_14_days": "sensor.anna_time_below_range_14_days",
    "glucose_cv_14_days": "sensor.anna_glucose_cv_14_days",
}
OF_A_DAY = ["time_in_range", "time_below_range", "glucose_mean"]
OF_14_DAYS = list(ENTITIES)[-5:]
CURRENT = list(ENTITIES)[:4]


def anna(**more: Any) -> Account:
    given = {"username": "anna@example.com", "password": "hunter2", "name": "Anna"} | more
    return build(Account, given)


def discovered(
    described: Account | None = None, topics: Topics = TOPICS, statistics: Statistics = "90d"
) -> dict[str, Any]:
    """Return the payload for Anna, read as JSON."""
    message = discovery_message(
        "homeassistant",
        topics,
        "anna",
        described or anna(),
        stale_after=900,
        version="1.2.3",
        statistics=statistics,
    )
    payload: dict[str, Any] = json.loads(message.payload)
    return payload


def component(name: str, described: Account | None = None) -> dict[str, Any]:
    found: dict[str, Any] = discovered(described)["cmps"][name]
    return found


# --- rules, promise, golden file ---------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["mg/dL", "mmol/L"])
@pytest.mark.parametrize("base", ["dexcom2mqtt", "home/glucose-1"])
@pytest.mark.parametrize("name", ["Anna", 'Änna "♥" ü, née Ó \\ /'])
@pytest.mark.parametrize("statistics", ["90d", "24h", "off"])
def test_home_assistant_accepts_it(unit: str, base: str, name: str, statistics: Statistics) -> None:
    """The payload follows every rule, whatever the unit, the topic, the name and the statistics."""
    message = discovery_message(
        "homeassistant",
        Topics(base),
        "anna",
        anna(unit=unit, name=name),
        stale_after=600,
        version="1.2.3",
        statistics=statistics,
    )
    assert problems(message.topic, message.payload) == []
    assert message.retain
    assert message.expires_at is None


def test_nothing_public_changes_unnoticed() -> None:
    """The whole payload is unchanged: a changed id would cost users their history."""
    payloads = {
        unit: discovered(anna(unit=unit)) | {"topic": discovery_topic("homeassistant", TOPICS, "anna")}
        for unit in ("mg/dL", "mmol/L")
    }
    assert payloads == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_device() -> None:
    """An account is one device, without an address (url, configuration_url) that leads nowhere."""
    payload = discovered(topics=Topics("home/glucose"))
    assert payload["dev"] == {
        "ids": ["home_glucose_anna"],
        "name": "Anna",
        "mf": "Dexcom",
        "mdl": "Share",
        "sw": "1.2.3",
    }
    assert payload["o"] == {"name": "dexcom2mqtt", "sw": "1.2.3"}
    assert discovery_topic("ha/x", Topics("home/glucose"), "anna") == "ha/x/device/home_glucose_anna/config"


def test_entities() -> None:
    """The entities are exactly the promised ones, with their ids."""
    components = discovered()["cmps"]
    assert {name: each["default_entity_id"] for name, each in components.items()} == ENTITIES
    assert {name: each["unique_id"] for name, each in components.items()} == {
        name: f"dexcom2mqtt_anna_{name}" for name in ENTITIES
    }


@pytest.mark.parametrize(("statistics", "gone"), [("90d", []), ("24h", OF_14_DAYS), ("off", OF_A_DAY + OF_14_DAYS)])
def test_unwanted_statistics_are_removed(statistics: Statistics, gone: list[str]) -> None:
    """Home Assistant keeps an entity that a discovery leaves out, and removes one that has only a platform."""
    components = discovered(statistics=statistics)["cmps"]
    assert list(components) == list(ENTITIES)
    assert [name for name, each in components.items() if each == {"p": "sensor"}] == gone


@pytest.mark.parametrize("name", OF_A_DAY + OF_14_DAYS)
def test_statistics(name: str) -> None:
    """Each is a measurement; glucose figures are in the account's unit, and two are disabled by default."""
    found = component(name, anna(unit="mmol/L"))
    assert found["state_topic"] == "dexcom2mqtt/anna/statistics"
    assert found["state_class"] == "measurement"
    assert found["unit_of_measurement"] == ("mmol/L" if "mean" in name else "%")
    disabled = name in {"time_below_range_14_days", "glucose_cv_14_days"}
    assert found.get("enabled_by_default", True) is not disabled
    assert found.get("json_attributes_topic") == (None if name == "glucose_mean" else "dexcom2mqtt/anna/statistics")


@pytest.mark.parametrize("name", ENTITIES)
def test_availability(name: str) -> None:
    """Entities of the current reading need bridge and availability, and expire; all others need only the bridge."""
    found = component(name)
    both = [{"topic": BRIDGE}, {"topic": AVAILABILITY}]
    if name in CURRENT:
        assert found["availability"] == both
        assert found["availability_mode"] == "all"
        assert found["expire_after"] == 900
    else:
        assert found["availability"] == both[:1]
        assert "expire_after" not in found


def test_glucose_value() -> None:
    """The value is glucose in the account's unit, with statistics; each reading counts, even an equal one."""
    found = component("glucose_value", anna(unit="mmol/L"))
    assert found["device_class"] == "blood_glucose_concentration"
    assert found["unit_of_measurement"] == "mmol/L"
    assert found["state_class"] == "measurement"
    assert found["suggested_display_precision"] == 1
    assert component("glucose_value")["suggested_display_precision"] == 0
    assert found["force_update"] is True
    assert found["json_attributes_topic"] == "dexcom2mqtt/anna/state"


def test_an_account_is_known_by_its_discovery() -> None:
    """A retained discovery names its account, if it is clearly the daemon's."""

    def account_in(topic: str, payload: bytes, base: str = "home/glucose") -> str | None:
        return account_of("ha", Topics(base), topic, payload)

    message = discovery_message("ha", Topics("home/glucose"), "b_2", anna(), stale_after=900, version="1")
    payload = message.payload.encode()
    assert account_in(message.topic, payload) == "b_2"
    assert account_in("ha/device/home_glucose_b/config", payload) is None
    assert account_in(message.topic, payload, "home_glucose") is None  # whose discovery has the same topic
    assert account_in(message.topic, payload, "home") is None
    assert account_in(message.topic, payload.replace(b'"o": {"name": "dexcom', b'"o": {"name": "another')) is None
    for foreign in (b"", b"{}", b"[1]", b"null", b"\xff", b'{"o": 1}', b'{"o": {"name": "dexcom2mqtt"}, "cmps": []}'):
        assert account_in(message.topic, foreign) is None
    nested = b'{"o": {"name": "dexcom2mqtt"}, "cmps": {"glucose_value": {"state_topic": %s}}}'
    for topic in (b"1", b'"a"', b'"home/glucose/bridge/state"'):
        assert account_in("ha/device/home_glucose_bridge/config", nested % topic) is None


# --- what the templates make of our own payloads -----------------------------------------------------------


def rendered(name: str, payload: str, key: str = "value_template") -> str:
    """Render a template as Home Assistant does; a missing key is an error here."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701  # no HTML
    return environment.from_string(component(name)[key]).render(value_json=json.loads(payload))


def payload_of(state: State, topic: str = "state") -> str:
    published = fresh_messages(TOPICS, "anna", state, 1.0)
    return next(message.payload for message in published if message.topic == TOPICS.of("anna", topic))


FRESH = state_of(reading(65, direction="SingleDown"), -12, account())
STALE = stale(FRESH)
NONE = without_reading(account())
IN_MMOL = state_of(reading(72), -9, account("mmol/L"))


def test_templates_of_a_reading() -> None:
    """Each entity shows its part of the state, and only values that its class accepts."""
    payload = payload_of(FRESH)
    assert rendered("glucose_value", payload) == "65"
    assert rendered("glucose_delta", payload) == "-12"
    assert rendered("glucose_trend", payload) == "falling"
    assert rendered("glucose_range", payload) == "low"
    assert datetime.fromisoformat(rendered("glucose_reading_time", payload)).tzinfo
    assert rendered("glucose_value", payload_of(IN_MMOL)) == "4.0"
    assert rendered("glucose_delta", payload_of(IN_MMOL)) == "-0.5"


@pytest.mark.parametrize("state", [STALE, NONE])
@pytest.mark.parametrize("name", CURRENT)
def test_templates_of_no_reading(state: State, name: str) -> None:
    """Without a current reading the templates return None, which Home Assistant shows as unknown."""
    assert rendered(name, payload_of(state)) == "None"


def test_time_of_the_last_reading_remains() -> None:
    """The time of the last reading is shown even if it is stale, and is unknown if there never was one."""
    assert rendered("glucose_reading_time", payload_of(STALE)) == FRESH["measurement_timestamp"]
    assert rendered("glucose_reading_time", payload_of(NONE)) == "None"


@pytest.mark.parametrize("share", REMEDIES)
def test_templates_of_the_status(share: ShareState) -> None:
    """The status is one of the options, and its attributes are ``message`` and ``since``."""
    status = Status(share=share, message='It\'s "wrong" <here> & \\there', since=1_745_064_000.0)
    payload = status_message(TOPICS, "anna", status).payload
    assert rendered("share_status", payload) in component("share_status")["options"]
    attributes = json.loads(rendered("share_status", payload, "json_attributes_template"))
    assert attributes == {"message": status.message, "since": "2025-04-19T12:00:00+00:00"}


def statistics(covered: float) -> str:
    """Return the statistics of 14 days with that coverage, and of a day with five readings."""
    day = [reading(value, seconds=-300 * n) for n, value in enumerate((50, 60, 61, 100, 200))]
    days = {
        day_of(NOON, 0) - n: counted({}, [reading(value) for value in [60, 120, 130] * 96], (54, 70, 180, 250))
        for n in range(1, round(14 * covered) + 1)
    }
    sums = {number: next(iter(each.values()))._replace(number=number) for number, each in days.items()}
    return to_json(statistics_of(day, sums, account(), NOON, 0))


def test_templates_of_statistics() -> None:
    """Each shows its figure, and has its whole window as attributes."""
    payload = statistics(0.9)
    shown = {name: rendered(name, payload) for name in OF_A_DAY + OF_14_DAYS}
    assert shown == {
        "time_in_range": "20.0",
        "time_below_range": "60.0",
        "glucose_mean": "94.2",
        "time_in_range_14_days": "66.7",
        "glucose_mean_14_days": "103.3",
        "gmi": "5.8",
        "time_below_range_14_days": "33.3",
        "glucose_cv_14_days": "29.9",
    }
    for name in (*OF_A_DAY[:2], *OF_14_DAYS):
        window = json.loads(payload)["14d" if name in OF_14_DAYS else "24h"]
        assert json.loads(rendered(name, payload, "json_attributes_template")) == window


def test_templates_of_too_few_days() -> None:
    """Below 70 % of 14 days the figures are unknown, and the attributes say how much is covered."""
    payload = statistics(0.6)
    assert [rendered(name, payload) for name in OF_14_DAYS] == ["None"] * 5
    attributes = json.loads(rendered("gmi", payload, "json_attributes_template"))
    assert attributes["coverage"] < 70


def test_templates_of_no_statistics() -> None:
    """Without a reading, or if most were counted with other ranges, the figures are unknown."""
    nothing = to_json(statistics_of([], None, account(), NOON, 0))
    for name in OF_A_DAY + OF_14_DAYS:
        assert rendered(name, nothing) == "None"
        if name != "glucose_mean":
            assert rendered(name, nothing, "json_attributes_template") == "{}"
    others = json.loads(statistics(0.9))
    for window in ("24h", "14d"):
        others[window] |= dict.fromkeys(RANGES)
    for name in OF_A_DAY + OF_14_DAYS:
        assert (rendered(name, json.dumps(others)) == "None") is ("range" in name)


def test_options_are_all_possible_values() -> None:
    """An enum lists every value, because Home Assistant keeps the old value if an unknown one arrives."""
    assert component("glucose_trend")["options"] == list(TRENDS)
    assert component("glucose_range")["options"] == list(RANGES)
    assert component("share_status")["options"] == list(REMEDIES)


def test_readings_missing_follows_availability() -> None:
    """The problem is on while the availability is offline, and off while it is online."""
    found = component("readings_missing")
    assert found["state_topic"] == AVAILABILITY
    published = fresh_messages(TOPICS, "anna", FRESH, 1.0)[-1]
    assert published.topic == AVAILABILITY
    assert published.payload == found["payload_off"]
    assert unavailable(TOPICS, "anna").payload == found["payload_on"]


# --- the rules find what breaks them -----------------------------------------------------------------------


def change(*path: str, to: Any = None) -> Callable[[dict[str, Any]], None]:
    """Set a key of the payload, or remove it."""

    def apply(payload: dict[str, Any]) -> None:
        for key in path[:-1]:
            payload = payload[key]
        if to is None:
            payload.pop(path[-1])
        else:
            payload[path[-1]] = to

    return apply


BROKEN = {
    "key at the top": change("expire_after", to=900),
    "tilde": change("~", to="dexcom2mqtt"),
    "key in dev": change("dev", "suggested_area", to="Bedroom"),
    "key in o": change("o", "support", to="us"),
    "no origin": change("o"),
    "no name of the origin": change("o", "name"),
    "no identifier": change("dev", "ids"),
    "no component": change("cmps", to={"none": {}}),
    "glucose in percent": change("cmps", "glucose_value", "unit_of_measurement", to="%"),
    "no p": change("cmps", "refresh", "p"),
    "no unique_id": change("cmps", "glucose_value", "unique_id"),
    "object_id": change("cmps", "glucose_value", "object_id", to="x"),
    "a domain missing": change("cmps", "glucose_value", "default_entity_id", to="anna_glucose_value"),
    "ids twice": change("cmps", "glucose_trend", "unique_id", to="dexcom2mqtt_anna_glucose_value"),
    "the device's name": change("cmps", "glucose_value", "name", to="Anna glucose value"),
    "unit": change("cmps", "glucose_value", "unit_of_measurement", to="mg/dl"),
    "state class": change("cmps", "glucose_value", "state_class", to="total"),
    "enum with unit": change("cmps", "glucose_trend", "unit_of_measurement", to="mg/dL"),
    "enum without options": change("cmps", "glucose_range", "options"),
    "timestamp with precision": change("cmps", "glucose_reading_time", "suggested_display_precision", to=0),
    "mode": change("cmps", "glucose_value", "availability_mode", to="any"),
    "no availability": change("cmps", "glucose_value", "availability"),
    "wildcard": change("cmps", "glucose_value", "state_topic", to="dexcom2mqtt/+/state"),
    "class": change("cmps", "readings_missing", "device_class", to="enum"),
    "category": change("cmps", "share_status", "entity_category", to="config"),
    "expiry": change("cmps", "glucose_value", "expire_after", to=900.0),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_the_rules_find(broken: str) -> None:
    """Each rule reports a payload that breaks it."""
    payload = discovered()
    BROKEN[broken](payload)
    assert len(problems("homeassistant/device/dexcom2mqtt_anna/config", json.dumps(payload))) == 1


@pytest.mark.parametrize("node", ["dexcom.mqtt", "a b", "a:b", "änna", "a/b"])
def test_the_rules_find_topics(node: str) -> None:
    """A topic with characters that Home Assistant ignores is reported."""
    assert problems(f"homeassistant/device/{node}/config", json.dumps(discovered()))
