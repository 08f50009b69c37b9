"""The examples for Home Assistant and others: they load, name only what exists, and cope with missing states."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dexcom2mqtt.messages.homeassistant import discovery_message
from dexcom2mqtt.readings import RANGES, TRENDS
from dexcom2mqtt.topics import Topics
from tests.support.builders import account

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples" / "home-assistant"
DOCS = ROOT / "docs"

DISCOVERED = discovery_message("homeassistant", Topics("dexcom2mqtt"), "anna", account(), stale_after=900, version="1")
COMPONENTS = json.loads(DISCOVERED.payload)["cmps"].values()
ENTITIES = {component["default_entity_id"] for component in COMPONENTS}
ENABLED = {each["default_entity_id"] for each in COMPONENTS if each.get("enabled_by_default", True)}
VALUE = "sensor.anna_glucose_value"
TREND = "sensor.anna_glucose_trend"
DELTA = "sensor.anna_glucose_delta"
RANGE = "sensor.anna_glucose_range"
READING_TIME = "sensor.anna_glucose_reading_time"
MISSING = "binary_sensor.anna_readings_missing"
STATUS = "sensor.anna_share_status"
GONE = ("unknown", "unavailable")

ACTIONS = {"notify.persistent_notification", "button.press"}
ENTITY_LIKE = re.compile(r"\b(?:sensor|binary_sensor|button|notify)\.\w+")

AUTOMATION = {"id", "alias", "triggers", "actions", "mode"}
TRIGGERS = {
    "state": {"entity_id", "to", "not_from", "not_to", "for"},
    "template": {"value_template", "for"},
}
CARDS = {
    "heading": {"heading", "icon"},
    "markdown": {"content"},
    "gauge": {"entity", "name", "needle", "min", "max", "segments", "visibility"},
    "history-graph": {"hours_to_show", "entities"},
    "tile": {"entity", "color"},
    "entities": {"entities"},
    "button": {"entity", "name", "show_state", "tap_action"},
}


class StrictLoader(yaml.SafeLoader):
    """Reads YAML, and rejects a key that comes twice or is not a text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT002  # PyYAML's
        """Reject what PyYAML would resolve silently."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if not isinstance(key, str) or keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"a key twice, or no text: {key!r}", node.start_mark
                )
        return super().construct_mapping(node, deep=deep)


def load(text: str) -> Any:
    """Read YAML strictly."""
    return yaml.load(text, StrictLoader)  # noqa: S506  # it is a safe loader


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return cast("dict[str, Any]", load((EXAMPLES / "dashboard.yaml").read_text("utf-8")))


@pytest.fixture(scope="module")
def automations() -> dict[str, dict[str, Any]]:
    listed = load((EXAMPLES / "automations.yaml").read_text("utf-8"))
    by_id = {automation["id"]: automation for automation in listed}
    assert len(by_id) == len(listed)
    return by_id


def texts(example: object) -> list[str]:
    """Collect every text in an example, at any depth."""
    if isinstance(example, str):
        return [example]
    if isinstance(example, Mapping):
        return [text for part in example.values() for text in texts(part)]
    if isinstance(example, Sequence):
        return [text for part in example for text in texts(part)]
    return []


def cards_of(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the cards of every section."""
    return [card for view in dashboard["views"] for section in view["sections"] for card in section["cards"]]


def the_card(dashboard: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Find the only card of a type."""
    (card,) = [card for card in cards_of(dashboard) if card["type"] == kind]
    return card


def the_text(dashboard: Mapping[str, Any], entity: str) -> str:
    """Find the template of the only text that shows an entity."""
    texts = [card["content"] for card in cards_of(dashboard) if card["type"] == "markdown"]
    (text,) = [text for text in texts if entity in text]
    return cast("str", text)


def message_of(automation: Mapping[str, Any]) -> str:
    """Find the template of an automation's message."""
    return cast("str", automation["actions"][-1]["data"]["message"])


@dataclass(frozen=True)
class State:
    """A state as seen by templates."""

    state: str
    attributes: Mapping[str, object] = field(default_factory=dict)
    last_changed: datetime = datetime(2025, 4, 19, 12, tzinfo=UTC)


class States:
    """Home Assistant's ``states``: called with an entity id, or with the id as attributes."""

    def __init__(self, states: Mapping[str, State], domain: str = "") -> None:
        self._states = states
        self._domain = domain

    def __getitem__(self, entity_id: str) -> State | None:
        return self._states.get(entity_id)

    def __call__(self, entity_id: str, *, with_unit: bool = False, rounded: bool = False) -> str:
        del rounded  # to the precision of discovery, in which the states of these tests are written
        state = self._states.get(entity_id)
        if state is None:
            return "unknown"
        unit = state.attributes.get("unit_of_measurement")
        return f"{state.state} {unit}" if with_unit and unit else state.state

    def __getattr__(self, name: str) -> States | State | None:
        if self._domain:
            return self._states.get(f"{self._domain}.{name}")
        if name in {"sensor", "binary_sensor"}:
            return States(self._states, name)
        raise AttributeError(name)  # the sandbox asks for its own attributes


def is_number(value: object) -> bool:
    """Return whether it is a number, as Home Assistant does."""
    try:
        float(cast("str", value))
    except (TypeError, ValueError):
        return False
    return True


def as_timestamp(value: object, default: object = None) -> object:
    """Turn a time into Unix seconds; without a default, anything else is an error."""
    try:
        return (value if isinstance(value, datetime) else datetime.fromisoformat(cast("str", value))).timestamp()
    except (TypeError, ValueError):
        if default is None:
            raise
        return default


def environment(states: Mapping[str, State], now: datetime | None = None) -> ImmutableSandboxedEnvironment:
    """Return an environment that renders templates as Home Assistant does; a misspelled name is an error here."""
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
    environment.globals |= {
        "states": States(states),
        "state_attr": lambda entity, name: states[entity].attributes.get(name) if entity in states else None,
        "is_state": lambda entity, state: entity in states and states[entity].state == state,
        "is_number": is_number,
        "as_timestamp": as_timestamp,
        "now": lambda: now,
        "timedelta": timedelta,
    }
    return environment


def render(template: str, states: Mapping[str, State], *, now: datetime | None = None, **variables: object) -> str:
    """Render a template as Home Assistant would."""
    return environment(states, now).from_string(template).render(variables).strip()


def current(value: str, **attributes: object) -> State:
    """Make the value's state as it comes with a reading."""
    known = {"unit_of_measurement": "mg/dL", "arrow": "↘", "description": "falling slightly", "out_of_range": None}
    return State(value, known | attributes)


@pytest.mark.parametrize("text", ["a: 1\na: 2", "b: {a: 1, a: 2}", "on: 1", "[{1: a}]"])
def test_loader_rejects_repeated_keys_and_keys_that_are_not_texts(text: str) -> None:
    with pytest.raises(yaml.constructor.ConstructorError, match="a key twice, or no text"):
        load(text)


def test_examples_name_only_entities_that_discovery_declares(
    dashboard: dict[str, Any], automations: dict[str, dict[str, Any]]
) -> None:
    named = {name for text in texts([dashboard, automations]) for name in ENTITY_LIKE.findall(text)}
    assert named - ACTIONS <= ENTITIES


def test_dashboard_shows_every_entity_enabled_by_default(dashboard: dict[str, Any]) -> None:
    named = {name for text in texts(dashboard) for name in ENTITY_LIKE.findall(text)}
    assert named - ACTIONS == ENABLED


def test_dashboard_is_a_view_of_sections(dashboard: dict[str, Any]) -> None:
    assert set(dashboard) == {"title", "views"}
    (view,) = dashboard["views"]
    assert set(view) == {"title", "path", "icon", "type", "sections"}
    assert view["type"] == "sections"
    for section in view["sections"]:
        assert set(section) == {"type", "cards"}
        assert section["type"] == "grid"


def test_dashboard_uses_only_home_assistants_own_cards_and_their_options(dashboard: dict[str, Any]) -> None:
    for card in cards_of(dashboard):
        assert set(card) - {"type"} <= CARDS[card["type"]], card
    assert {card["type"] for card in cards_of(dashboard)} == set(CARDS)
    for kind in ("history-graph", "entities"):
        for row in the_card(dashboard, kind)["entities"]:
            assert set(row) <= {"type", "entity", "attribute", "name"}
            assert ("attribute" in row) == (row.get("type") == "attribute")
    assert the_card(dashboard, "history-graph")["hours_to_show"] == 24


def test_gauge_is_colored_by_the_default_ranges_and_hidden_without_a_number(dashboard: dict[str, Any]) -> None:
    gauge = the_card(dashboard, "gauge")
    assert gauge["needle"] is True  # without it Home Assistant ignores the segments
    assert [segment["from"] for segment in gauge["segments"]] == [0, 54, 70, 181, 251]
    assert all(re.fullmatch("#[0-9a-f]{6}", segment["color"]) for segment in gauge["segments"])
    assert gauge["visibility"] == [{"condition": "numeric_state", "entity": VALUE, "above": 0}]


def test_button_presses_the_button(dashboard: dict[str, Any]) -> None:
    assert the_card(dashboard, "button")["tap_action"] == {
        "action": "perform-action",
        "perform_action": "button.press",
        "target": {"entity_id": "button.anna_refresh"},
    }


@pytest.mark.parametrize(
    ("value", "delta", "shown"),
    [
        (current("85"), "-3", ["# 85 mg/dL ↘", "-3,", "falling slightly"]),
        (current("85"), "0", ["# 85 mg/dL ↘", "+0,", "falling slightly"]),
        (current("4.0", unit_of_measurement="mmol/L"), "0.2", ["# 4.0 mmol/L ↘", "+0.2,", "falling slightly"]),
        (current("85", arrow=None, description=None), "unknown", ["# 85 mg/dL", "no delta,", "no trend"]),
        (current("39", out_of_range="low"), "unknown", ["# LOW ↘", "no delta,", "falling slightly"]),
        (current("401", out_of_range="high"), "unavailable", ["# HIGH ↘", "no delta,", "falling slightly"]),
        (State("unknown"), "unknown", ["# No current reading", "Look at the phone."]),
        (State("unavailable"), "unavailable", ["# No current reading", "Look at the phone."]),
    ],
)
def test_dashboard_shows_value_trend_and_delta_or_why_there_are_none(
    dashboard: dict[str, Any], value: State, delta: str, shown: list[str]
) -> None:
    states = {VALUE: value, DELTA: State(delta), STATUS: State("no_readings", {"message": "Look at the phone."})}
    rendered = render(the_text(dashboard, VALUE), states)
    assert [line.strip() for line in rendered.splitlines() if line.strip()] == shown


def test_dashboard_says_that_the_daemon_is_down(dashboard: dict[str, Any]) -> None:
    states = dict.fromkeys((VALUE, DELTA, STATUS), State("unavailable"))
    assert "dexcom2mqtt or its broker is down." in render(the_text(dashboard, VALUE), states)


def test_dashboard_shows_time_in_range(dashboard: dict[str, Any]) -> None:
    """A bar has a piece for each range, in the order and colors of the gauge, and even a small one is visible."""
    parts = {"very_low": 0.4, "low": 2.5, "in_range": 77.5, "high": 18.2, "very_high": 1.4}
    states = {
        "sensor.anna_time_in_range": State("77.5", parts),
        "sensor.anna_glucose_mean": State("142", {"unit_of_measurement": "mg/dL"}),
        "sensor.anna_time_in_range_14_days": State("unknown"),
    }
    rendered = render(the_text(dashboard, "sensor.anna_time_in_range"), states)
    assert [line.strip() for line in rendered.splitlines() if line.strip() and "font" not in line] == [
        "**24 hours:** 77.5 % in range, average 142 mg/dL",
        "**14 days:** not enough readings yet",
    ]
    bar = re.findall(r'<font color="(#[0-9a-f]{6})">(█*)</font>', rendered)
    assert [len(blocks) for _, blocks in bar] == [1, 1, 20, 5, 1]
    assert [color for color, _ in bar] == [segment["color"] for segment in the_card(dashboard, "gauge")["segments"]]


def test_automations_have_the_shape_that_home_assistant_expects(automations: dict[str, dict[str, Any]]) -> None:
    assert set(automations) == {"anna_glucose_low", "anna_readings_missing", "anna_new_reading"}
    for automation in automations.values():
        assert set(automation) == AUTOMATION
        assert automation["mode"] in {"single", "restart", "queued"}
        for trigger in automation["triggers"]:
            assert set(trigger) - {"trigger"} <= TRIGGERS[trigger["trigger"]]
            assert isinstance(trigger.get("to", ""), str)  # and not a boolean, as a bare `on` would be
        *waits, told = automation["actions"]
        assert all(set(wait) == {"wait_template", "timeout", "continue_on_timeout"} for wait in waits)
        assert set(told) == {"action", "data"}
        assert told["action"] in ACTIONS
        assert set(told["data"]) == {"title", "message"}


@pytest.mark.parametrize(
    ("severity", "trend", "alarms"),
    [(severity, trend, False) for severity in (*RANGES, *GONE) if severity != "low" for trend in (*TRENDS, *GONE)]
    + [("low", trend, trend.startswith("falling")) for trend in (*TRENDS, *GONE)],
)
def test_low_and_falling_needs_both(
    automations: dict[str, dict[str, Any]], severity: str, trend: str, alarms: bool
) -> None:
    template = automations["anna_glucose_low"]["triggers"][1]["value_template"]
    assert render(template, {RANGE: State(severity), TREND: State(trend)}) == str(alarms)


def test_low_and_falling_is_false_without_entities(automations: dict[str, dict[str, Any]]) -> None:
    assert render(automations["anna_glucose_low"]["triggers"][1]["value_template"], {}) == "False"


def test_very_low_needs_no_trend_and_alerts_again(automations: dict[str, dict[str, Any]]) -> None:
    very_low, low_and_falling = automations["anna_glucose_low"]["triggers"]
    assert very_low == {"trigger": "state", "entity_id": RANGE, "to": "very_low", "for": {"seconds": 2}}
    assert low_and_falling["for"] == {"seconds": 2}  # or it would see the old trend beside the new range


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (current("65"), "65 mg/dL, falling slightly"),
        (current("3.6", unit_of_measurement="mmol/L", description=None), "3.6 mmol/L, no trend"),
        (current("39", out_of_range="low"), "LOW, falling slightly"),
        (State("unavailable"), "the reading has just expired"),
        (State("unknown"), "the reading has just expired"),
    ],
)
def test_low_names_the_value(automations: dict[str, dict[str, Any]], value: State, told: str) -> None:
    assert " ".join(render(message_of(automations["anna_glucose_low"]), {VALUE: value}).split()) == told


@pytest.mark.parametrize(
    ("state", "minutes", "alarms"),
    [
        ("on", 4, False),
        ("on", 5, True),  # the newest reading is 15 minutes old when it turns on
        ("on", 60, True),
        ("unavailable", 19, False),
        ("unavailable", 20, True),
        ("unknown", 19, False),
        ("unknown", 20, True),
        ("off", 60, False),
    ],
)
def test_missing_for_20_minutes_also_counts_while_the_daemon_is_down(
    automations: dict[str, dict[str, Any]], state: str, minutes: int, alarms: bool
) -> None:
    sensor = State(state)
    (trigger,) = automations["anna_readings_missing"]["triggers"]
    now = sensor.last_changed + timedelta(minutes=minutes)
    assert render(trigger["value_template"], {MISSING: sensor}, now=now) == str(alarms)


def test_missing_is_quiet_if_discovery_was_removed(automations: dict[str, dict[str, Any]]) -> None:
    (trigger,) = automations["anna_readings_missing"]["triggers"]
    assert render(trigger["value_template"], {}, now=datetime.now(UTC)) == "False"


@pytest.mark.parametrize(
    ("missing", "status", "told"),
    [
        (State("on"), State("no_readings", {"message": "Look at the phone."}), "Look at the phone."),
        (State("on"), State("unknown"), "Share has no newer reading."),
        (State("unavailable"), State("unavailable"), "dexcom2mqtt or its broker is down."),
        (State("unknown"), State("unknown"), "dexcom2mqtt or its broker is down."),
    ],
)
def test_missing_says_why(automations: dict[str, dict[str, Any]], missing: State, status: State, told: str) -> None:
    assert render(message_of(automations["anna_readings_missing"]), {MISSING: missing, STATUS: status}) == told


def test_new_reading_ignores_states_that_are_not_readings(automations: dict[str, dict[str, Any]]) -> None:
    (trigger,) = automations["anna_new_reading"]["triggers"]
    assert trigger == {
        "trigger": "state",
        "entity_id": READING_TIME,
        "not_from": list(GONE),
        "not_to": list(GONE),
    }


@pytest.mark.parametrize(
    ("value", "goes_on"),
    [
        (current("85", measurement_timestamp="2025-04-19T08:05:00.817-04:00"), True),
        (current("85", measurement_timestamp="2025-04-19T08:00:00.817-04:00"), False),  # the one before
        (current("85", measurement_timestamp=None), False),
        (State("unknown", {"measurement_timestamp": "2025-04-19T08:05:00.817-04:00"}), False),  # stale on arrival
        (State("unavailable"), False),
    ],
)
def test_new_reading_waits_for_the_value_that_belongs_to_the_time(
    automations: dict[str, dict[str, Any]], value: State, goes_on: bool
) -> None:
    wait = automations["anna_new_reading"]["actions"][0]
    assert wait["continue_on_timeout"] is False
    trigger = {"to_state": State("2025-04-19T12:05:00+00:00")}
    assert render(wait["wait_template"], {VALUE: value}, trigger=trigger) == str(goes_on)


def test_new_reading_names_the_value(automations: dict[str, dict[str, Any]]) -> None:
    told = render(message_of(automations["anna_new_reading"]), {VALUE: current("85")})
    assert " ".join(told.split()) == "85 mg/dL ↘"


def test_documentation_lists_every_entity_and_no_other() -> None:
    text = (DOCS / "home-assistant.md").read_text("utf-8")
    assert set(re.findall(r"^\| `((?:sensor|binary_sensor|button)\.\w+)` \|", text, re.MULTILINE)) == ENTITIES


def test_telegraf_reads_keys_of_a_reading_and_its_own_time() -> None:
    text = (DOCS / "others.md").read_text("utf-8")
    (snippet,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    telegraf = tomllib.loads(snippet)
    (consumer,) = telegraf["inputs"]["mqtt_consumer"]
    (parser,) = consumer["json_v2"]
    assert consumer["topics"] == ["dexcom2mqtt/+/reading"]
    assert (parser["timestamp_path"], parser["timestamp_format"]) == ("date", "unix_ms")
    topics = (DOCS / "topics.md").read_text("utf-8")
    for key in parser["field"]:
        assert f"| `{key['path']}` |" in topics
    assert set(telegraf["outputs"]) == {"influxdb_v2"}


@pytest.mark.parametrize("name", ["home-assistant.md", "others.md"])
def test_links_of_the_documentation_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (DOCS / name).read_text("utf-8"))
    for link in links:
        assert link.startswith("https://") or (DOCS / link).exists(), link
