"""The blueprints for Home Assistant: their forms, and how each template handles stale or missing states.

How an alert goes from the first ring to the last is played through in Home Assistant itself, in tests/e2e.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from dexcom2mqtt.readings import RANGES, TRENDS
from tests.documents.test_examples import EXAMPLES, GONE, MISSING, VALUE, State, StrictLoader, environment, texts
from tests.support.documents import rows_of, text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER: Final = EXAMPLES / "blueprints"
ALERTS: Final = ("glucose_low", "glucose_high", "glucose_missing")
CLOCK: Final = "awtrix_clock"
EVERY: Final = (*ALERTS, CLOCK)
NOON: Final = datetime(2026, 1, 15, 12, 1, tzinfo=UTC)
PHONES: Final = {"one": "Mum's phone", "two": "Großvater"}


class Input(str):
    """A place of a blueprint that the form fills in."""

    __slots__ = ()


class Loader(StrictLoader):
    """Reads a blueprint as strictly as the other examples."""


def _input(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Input:
    return Input(loader.construct_scalar(node))


Loader.add_constructor("!input", _input)


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load((FOLDER / f"{name}.yaml").read_text("utf-8"), Loader)  # noqa: S506  # it is safe
    return loaded


def inputs_of(blueprint: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """List the inputs, with a mark for those in sections."""
    found: dict[str, dict[str, Any]] = {}
    for name, given in blueprint["blueprint"]["input"].items():
        if "input" in given:
            assert given["collapsed"] is True
            found |= {inner: {**field, "section": name} for inner, field in given["input"].items()}
        else:
            found[name] = given
    return found


def defaults_of(name: str) -> dict[str, Any]:
    return {key: field["default"] for key, field in inputs_of(load(name)).items() if "default" in field}


def render(template: str, states: Mapping[str, State], *, now: datetime = NOON, **variables: Any) -> str:
    """Render a template with those functions of Home Assistant that only blueprints use."""
    made = environment(states, now)
    devices = {"anna": {"name": "Anna", "name_by_user": None}} | {
        key: {"name": name, "disabled_by": None} for key, name in PHONES.items()
    }
    given: dict[str, Any] = {
        "device_attr": lambda device, name: devices.get(device, {}).get(name),
        "device_entities": lambda _: [*states],
        "device_id": lambda _: "anna",
        "is_device_attr": lambda device, name, value: devices.get(device, {}).get(name) == value,
        "slugify": lambda text: re.sub(r"\W+", "_", text.lower().replace("ß", "ss")),
        "state_attr": made.globals["state_attr"],
    }
    made.globals |= given
    made.filters |= given | {"to_json": json.dumps}
    made.tests |= {"is_device_attr": given["is_device_attr"]}
    return made.from_string(template).render(variables).strip()


def glucose(value: str, **attributes: object) -> dict[str, State]:
    known = {"unit_of_measurement": "mg/dL", "description": "steady", "out_of_range": None, "trend": "steady"}
    return {VALUE: State(value, known | attributes)}


def steps_of(name: str) -> list[dict[str, Any]]:
    """Return the steps of one round of an alert."""
    begin, rounds = load(name)["actions"]
    assert set(begin) == {"variables"}
    found: list[dict[str, Any]] = rounds["repeat"]["sequence"]
    return found


def variables_of(name: str) -> dict[str, str]:
    """Return the templates at the beginning of an alert's round."""
    found: dict[str, str] = steps_of(name)[0]["variables"]
    return found


# --- the form ----------------------------------------------------------------------------------------------


def test_there_are_no_other_blueprints() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_a_blueprint_says_which_home_assistant_it_is_for(name: str) -> None:
    """It requires the same release as the project, and names no address to update it from."""
    head = load(name)["blueprint"]
    assert set(head) == {"name", "description", "domain", "author", "homeassistant", "input"}
    assert (head["domain"], head["homeassistant"]) == ("automation", {"min_version": "2025.10.0"})
    assert "This is not a medical device" in head["description"]


@pytest.mark.parametrize("name", EVERY)
def test_every_input_is_used_and_every_use_has_one(name: str) -> None:
    blueprint = load(name)
    rest = {key: part for key, part in blueprint.items() if key != "blueprint"}
    assert {text for text in texts(rest) if isinstance(text, Input)} == set(inputs_of(blueprint))


@pytest.mark.parametrize("name", EVERY)
def test_only_the_person_and_where_to_show_it_must_be_chosen(name: str) -> None:
    """Everything else has a default and is in a collapsed section."""
    needed = {key for key, field in inputs_of(load(name)).items() if "default" not in field}
    entity = "missing" if name == "glucose_missing" else "glucose"
    assert needed == {entity, "prefix" if name == CLOCK else "phones"}
    assert all(("section" in field) == (key not in needed) for key, field in inputs_of(load(name)).items())


@pytest.mark.parametrize("name", EVERY)
def test_the_form_offers_only_entities_and_phones_that_fit(name: str) -> None:
    """The entity is one of MQTT with the class that discovery gives it; phones have the Companion app."""
    inputs = inputs_of(load(name))
    platform, device_class = {"glucose_missing": ("binary_sensor", "problem")}.get(
        name, ("sensor", "blood_glucose_concentration")
    )
    entity = inputs["missing" if name == "glucose_missing" else "glucose"]
    assert entity["selector"] == {
        "entity": {"filter": [{"integration": "mqtt", "domain": platform, "device_class": device_class}]}
    }
    if name != CLOCK:
        assert inputs["phones"]["selector"] == {"device": {"multiple": True, "filter": [{"integration": "mobile_app"}]}}


def test_only_low_is_critical_and_never_quiet() -> None:
    assert [defaults_of(name)["critical"] for name in ALERTS] == [True, False, False]
    assert [{"quiet_from", "quiet_to"} <= defaults_of(name).keys() for name in ALERTS] == [False, True, True]


@pytest.mark.parametrize("name", ALERTS)
def test_the_documentation_names_the_defaults(name: str) -> None:
    (row,) = [row for row in rows_of(text_of("docs/alerts.md")) if f"[{name}.yaml]" in row[0]]
    default = defaults_of(name)
    _, rings, again, snooze, critical, quiet = row
    if "minutes" in default:
        assert f"for {default['minutes']} min" in rings
    assert (again, snooze) == (f"every {default['again']} min", f"{default['snooze']} min")
    assert critical == ("yes" if default["critical"] else "no")
    assert quiet == ("if you set them" if "quiet_from" in default else "never")


# --- when it rings -----------------------------------------------------------------------------------------


def triggers_of(name: str, states: Mapping[str, State], **given: Any) -> tuple[bool, bool]:
    """Return whether an alert begins with these states, and whether it would at a minute divisible by five."""
    begins, goes_on = load(name)["triggers"]
    assert render(goes_on["value_template"], states, **given) == "False"  # a minute after
    at_five = render(goes_on["value_template"], states, now=NOON.replace(minute=5), **given)
    return render(begins["value_template"], states, **given) == "True", at_five == "True"


@pytest.mark.parametrize("severity", [*RANGES, None])
@pytest.mark.parametrize("value", ["65", *GONE])
def test_low_and_high_ring_by_the_range_of_a_current_value(severity: str | None, value: str) -> None:
    """The same condition begins and keeps an alert, and there is none without a number."""
    states = glucose(value, range=severity)
    number = value not in GONE
    cases: tuple[tuple[str, dict[str, Any], set[str]], ...] = (
        ("glucose_low", {"falling": False}, {"low", "very_low"}),
        ("glucose_high", {"very_high": False}, {"high", "very_high"}),
        ("glucose_high", {"very_high": True}, {"very_high"}),
    )
    for name, option, rings in cases:
        expected = number and severity in rings
        assert triggers_of(name, states, glucose=VALUE, **option) == (expected, expected)
        level = render(variables_of(name)["level"], states, glucose=VALUE, **option)
        assert level == (severity if expected else "")


@pytest.mark.parametrize("trend", [*TRENDS, None])
def test_low_only_while_falling(trend: str | None) -> None:
    falls = trend is not None and trend.startswith("falling")
    for severity, expected in (("low", falls), ("very_low", True), ("in_range", False)):
        states = glucose("65", range=severity, trend=trend)
        assert triggers_of("glucose_low", states, glucose=VALUE, falling=True) == (expected, expected)


@pytest.mark.parametrize(("state", "rings"), [("on", True), ("off", False), ("unavailable", True), ("unknown", True)])
def test_missing_also_rings_while_the_entity_is_unavailable(state: str, rings: bool) -> None:
    states = {MISSING: State(state)}
    assert triggers_of("glucose_missing", states, missing=MISSING) == (rings, rings)
    assert render(variables_of("glucose_missing")["level"], states, missing=MISSING) == (state if rings else "")


@pytest.mark.parametrize("name", ALERTS)
def test_without_the_entity_nothing_rings(name: str) -> None:
    given: dict[str, Any] = {"glucose": VALUE, "missing": MISSING, "falling": False, "very_high": False}
    assert triggers_of(name, {}, **given) == (False, False)
    assert render(variables_of(name)["level"], {}, **given) == ""


@pytest.mark.parametrize("name", ["glucose_high", "glucose_missing"])
@pytest.mark.parametrize(
    ("begin", "end", "quiet"),
    [
        ("00:00:00", "00:00:00", set[str]()),
        ("08:00:00", "12:00:00", {"08:00:00", "11:59:59"}),
        ("22:00:00", "07:00:00", {"22:00:00", "00:00:00", "06:59:59"}),
    ],
)
def test_quiet_hours_may_cross_midnight(name: str, begin: str, end: str, quiet: set[str]) -> None:
    template = variables_of(name)["quiet"]
    for clock in ("00:00:00", "06:59:59", "07:00:00", "08:00:00", "11:59:59", "12:00:00", "21:59:59", "22:00:00"):
        told = render(template, {}, quiet_from=begin, quiet_to=end, clock=clock)
        assert (told == "True") == (clock in quiet)


# --- the message ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "states", "told"),
    [
        ("glucose_low", glucose("65"), "65 mg/dL, steady"),
        ("glucose_low", glucose("3.6", unit_of_measurement="mmol/L", description=None), "3.6 mmol/L, no trend"),
        ("glucose_low", glucose("39", out_of_range="low"), "LOW, steady"),
        ("glucose_high", glucose("401", out_of_range="high"), "HIGH, steady"),
        ("glucose_missing", {MISSING: State("on")}, "Share has no newer reading."),
        (
            "glucose_missing",
            {MISSING: State("on"), "sensor.status": State("no_readings", {"message": "Look at the phone."})},
            "Look at the phone.",
        ),
        ("glucose_missing", {MISSING: State("unavailable")}, "dexcom2mqtt or its broker is down."),
    ],
)
def test_the_message_says_what_is_known(name: str, states: dict[str, State], told: str) -> None:
    level = states[MISSING].state if MISSING in states else "low"
    assert render(variables_of(name)["text"], states, glucose=VALUE, missing=MISSING, level=level) == told


def test_the_title_says_whose_and_what() -> None:
    for name, level, told in (
        ("glucose_low", "very_low", "Anna: glucose is very low"),
        ("glucose_high", "high", "Anna: glucose is high"),
        ("glucose_missing", "on", "Anna: no glucose readings"),
        *((name, "", "Anna: this is a test") for name in ALERTS),
    ):
        person = render(variables_of(name)["person"], {}, glucose=VALUE, missing=MISSING)
        assert render(variables_of(name)["title"], {}, person=person, level=level) == told


@pytest.mark.parametrize("name", ALERTS)
def test_a_notification_fits_both_kinds_of_phones(name: str) -> None:
    """Critical alerts are marked for iOS and for Android; the tag is no longer than Apple allows."""
    known = load(name)["variables"]
    loud = render(known["how_loud"], {}, critical=True)
    assert json.loads(loud.replace("'", '"')) == {
        "ttl": 0,
        "priority": "high",
        "channel": "alarm_stream",
        "push": {"sound": {"name": "default", "critical": 1, "volume": 1.0}},
    }
    assert render(known["how_loud"], {}, critical=False) == "{}"
    entity = "automation." + "very_" * 20 + "long"
    tag = render(known["tag"], {}, this={"entity_id": entity})
    assert len(tag) == 64
    assert entity.endswith(tag)
    begin = load(name)["actions"][0]["variables"]
    buttons = {render(begin[key], {}, context={"id": "01"}) for key in ("acknowledge_button", "snooze_button")}
    assert buttons == {"ACKNOWLEDGE_01", "SNOOZE_01"}


@pytest.mark.parametrize("name", ALERTS)
def test_phones_are_reached_by_name_and_removed_ones_are_left_out(name: str) -> None:
    reached = render(variables_of(name)["reachable"], {}, phones=["one", "gone", "two"])
    assert reached == str(list(PHONES.values()))
    actions = {text for text in texts(steps_of(name)) if text.startswith("notify.")}
    (action,) = actions
    services = [render(action, {}, repeat={"item": phone}) for phone in PHONES.values()]
    assert services == ["notify.mobile_app_mum_s_phone", "notify.mobile_app_grossvater"]


# --- the clock ---------------------------------------------------------------------------------------------


def published(states: Mapping[str, State]) -> dict[str, Any] | None:
    """Return the message for the clock; None if its app is removed."""
    blueprint = load(CLOCK)
    begin, publish = blueprint["actions"]
    assert publish["data"]["retain"] is False
    given: dict[str, Any] = {"glucose": VALUE, "stale_after": 15, "prefix": "awtrix_1"} | {
        key: blueprint["variables"][key] for key in ("arrows", "colors")
    }
    assert render(publish["data"]["topic"], states, **given) == "awtrix_1/custom/glucose_anna"
    given["left"] = float(render(begin["variables"]["left"], states, **given))
    given["color"] = render(begin["variables"]["color"], states, **given)
    payload = render(publish["data"]["payload"], states, **given)
    return json.loads(payload) if payload else None


@pytest.mark.parametrize(
    ("age", "lifetime"), [(0, 900), (300.5, 599), (-100, 900), (899, 1), (899.5, None), (5000, None)]
)
def test_the_clock_keeps_a_reading_for_the_rest_of_its_time(age: float, lifetime: int | None) -> None:
    date = (NOON.timestamp() - age) * 1000
    shown = published(glucose("112", range="in_range", date=date))
    assert (shown and shown["lifetime"]) == lifetime


@pytest.mark.parametrize("state", GONE)
def test_the_clock_shows_nothing_without_a_current_value(state: str) -> None:
    assert published({VALUE: State(state)}) is None
    assert published({}) is None


def test_blueprint_and_flow_draw_the_same() -> None:
    """The arrows and colors of the blueprint are those of the flow for Node-RED."""
    flow = (EXAMPLES.parent / "node-red" / "awtrix.json").read_text("utf-8")
    (function,) = [node["func"] for node in json.loads(flow) if node["type"] == "function"]
    known = load(CLOCK)["variables"]
    arrows = {name: json.loads(lines) for name, lines in re.findall(r"\['(\w+)', (\[\[.*?\]\])\],\n", function)}
    assert arrows == known["arrows"]
    assert set(arrows) == set(TRENDS)
    assert dict(re.findall(r"\['(\w+)', '(#\w+)'\]", function)) == known["colors"]
    assert set(known["colors"]) == set(RANGES)


def test_each_file_says_where_to_copy_it() -> None:
    for name in EVERY:
        page = "docs/clocks.md" if name == CLOCK else "docs/alerts.md"
        first = (FOLDER / f"{name}.yaml").read_text("utf-8")
        assert first.startswith("# Copy this file to config/blueprints/automation/dexcom2mqtt/")
        assert page in first
        assert f"{name}.yaml" in text_of(page)
        assert "config/blueprints/automation/dexcom2mqtt/" in text_of(page)
