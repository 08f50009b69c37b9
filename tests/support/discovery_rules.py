"""What Home Assistant accepts as the discovery of a device: as strict as its 2026.11 was observed to be, or stricter.

Home Assistant silently drops unknown keys inside a component, and rejects a whole device for an unknown key above that.
Here, both are problems.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

_TOPIC: Final = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*/device/[A-Za-z0-9_-]+/config")
_NO_WILDCARDS: Final = re.compile(r"[^+#\0]+")
_TOP: Final = {"dev", "o", "cmps"}
_DEVICE: Final = {"ids", "name", "mf", "mdl", "sw", "cu"}
_ORIGIN: Final = {"name", "sw", "url"}
_EVERY: Final = {
    "p",
    "unique_id",
    "default_entity_id",
    "name",
    "icon",
    "availability",
    "availability_mode",
    "entity_category",
    "enabled_by_default",
}
_STATEFUL: Final = _EVERY | {
    "state_topic",
    "value_template",
    "device_class",
    "expire_after",
    "force_update",
    "json_attributes_topic",
    "json_attributes_template",
}
_KEYS: Final = {
    "sensor": _STATEFUL | {"unit_of_measurement", "state_class", "options", "suggested_display_precision"},
    "binary_sensor": _STATEFUL | {"payload_on", "payload_off"},
    "button": _EVERY | {"command_topic", "payload_press"},
}
_NEEDED: Final = {"sensor": "state_topic", "binary_sensor": "state_topic", "button": "command_topic"}
_UNITS: Final = {"mg/dL", "mmol/L", "%"}
_CLASSES: Final[dict[str, set[str | None]]] = {
    "sensor": {"blood_glucose_concentration", "enum", "timestamp", None},
    "binary_sensor": {"problem", None},
    "button": {None},
}


def problems(topic: str, payload: str) -> list[str]:
    """Return everything that Home Assistant would reject, drop, or not turn into an entity."""
    found = [] if _TOPIC.fullmatch(topic) else ["the topic has characters that are ignored"]
    device = json.loads(payload)
    found += _unknown("the payload", device, _TOP)
    found += _unknown("dev", device.get("dev", {}), _DEVICE)
    found += _unknown("o", device.get("o", {}), _ORIGIN)
    if not device.get("o", {}).get("name"):
        found.append("the origin has no name")
    if not device.get("dev", {}).get("ids") or not device["dev"].get("name"):
        found.append("the device has no identifier or no name")
    components = device.get("cmps") or {}
    if not components:
        found.append("there is no component")
    for key, component in components.items():
        found += [f"{key}: {problem}" for problem in _of_component(component, device.get("dev", {}).get("name", ""))]
    for unique in ("unique_id", "default_entity_id"):
        values = [each.get(unique) for each in components.values() if each.keys() != {"p"}]
        if len(set(values)) != len(values):
            found.append(f"a {unique} appears twice")
    return found


def _of_component(component: dict[str, Any], device_name: str) -> list[str]:
    platform: str = component.get("p", "")
    if platform not in _KEYS:
        return ["no known p"]
    if component.keys() == {"p"}:
        return []  # it removes an existing entity
    found = _unknown("it", component, _KEYS[platform])
    if not component.get("unique_id"):
        found.append("no unique_id")
    if not re.fullmatch(rf"{platform}\.[a-z0-9]+(_[a-z0-9]+)*", component.get("default_entity_id", "")):
        found.append("default_entity_id is not of its domain, or has characters that are changed")
    if not component.get("name") or component["name"].casefold().startswith(device_name.casefold()):
        found.append("no name, or one that repeats the device's")
    topics = [value for key, value in component.items() if key.endswith("_topic")]
    topics += [entry.get("topic", "") for entry in component.get("availability", [])]
    if _NEEDED[platform] not in component or not all(_NO_WILDCARDS.fullmatch(topic) for topic in topics):
        found.append("a topic is missing, or has wildcards")
    found += _availability(component)
    if component.get("entity_category") not in {None, "diagnostic"}:
        found.append("entity_category is for other platforms")
    if component.get("device_class") not in _CLASSES[platform]:
        found.append("device_class is not one of the platform")
    if type(component.get("expire_after", 1)) is not int or component.get("expire_after", 1) < 1:
        found.append("expire_after is no number of seconds")
    return found + (_of_sensor(component) if platform == "sensor" else [])


def _availability(component: dict[str, Any]) -> list[str]:
    entries = component.get("availability", [])
    found = [problem for entry in entries for problem in _unknown("availability", entry, {"topic"})]
    if not entries:
        found.append("no availability: it would look well although the daemon is gone")
    if len(entries) > 1 and component.get("availability_mode") != "all":
        found.append("one of several availabilities would be enough")
    return found


def _of_sensor(sensor: dict[str, Any]) -> list[str]:
    found: list[str] = []
    device_class, unit, state_class = (
        sensor.get(key) for key in ("device_class", "unit_of_measurement", "state_class")
    )
    if unit not in _UNITS | {None}:
        found.append("the unit is spelt otherwise")
    if state_class not in {"measurement", None} or (state_class and not unit):
        found.append("state_class is not one that goes with it")
    if device_class == "blood_glucose_concentration" and not (unit and state_class):
        found.append("glucose without unit or without statistics")
    if device_class == "blood_glucose_concentration" and unit == "%":
        found.append("glucose in percent")
    if (device_class == "enum") != ("options" in sensor):
        found.append("an enum has options, and nothing else has")
    if device_class in {"enum", "timestamp"} and (unit or state_class or "suggested_display_precision" in sensor):
        found.append("an enum or a timestamp with a unit or a state class makes no entity")
    options = sensor.get("options", ["one"])
    if not options or len(set(options)) != len(options):
        found.append("options are missing, or there twice")
    return found


def _unknown(place: str, given: dict[str, Any], known: set[str]) -> list[str]:
    return [f"{place} has an unknown key: {key}" for key in sorted(given.keys() - known)]
