"""Discovery: which entities an account has in Home Assistant. Pure.

One message describes one account as a device, with a component for each entity. The rules come from Home
Assistant's documentation of MQTT discovery and from what its release 2026.11 accepts; a changed ``unique_id`` or
entity id would cost users their history, so both are public and never change.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.messages.message import Message
from dexcom2mqtt.messages.status import REMEDIES
from dexcom2mqtt.readings import RANGES, TRENDS
from dexcom2mqtt.topics import ACCOUNT_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dexcom2mqtt.config.settings import Account, Settings
    from dexcom2mqtt.config.values import Statistics
    from dexcom2mqtt.topics import Topics

_ORIGIN: Final = "dexcom2mqtt"

_Component = dict[str, object]

_GONE: Final[_Component] = {"p": "sensor"}
"""Removes an entity from an earlier discovery. Home Assistant keeps those that a discovery leaves out."""


def discovery_topic(prefix: str, topics: Topics, account: str) -> str:
    """Return the topic of an account's discovery."""
    return f"{prefix}/device/{_device_id(topics, account)}/config"


def discovery_topics(prefix: str) -> str:
    """Return the filter for the discovery of all devices, including other programs'."""
    return f"{prefix}/device/+/config"


def account_of(prefix: str, topics: Topics, topic: str, payload: bytes) -> str | None:
    """Return the account below these topics that a retained discovery describes; None if it is somebody else's."""
    try:
        device = json.loads(payload)
        origin, component = device["o"]["name"], device["cmps"]["glucose_value"]
        base, account, _ = component["state_topic"].rsplit("/", 2)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    ours = origin == _ORIGIN and base == topics.base and topic == discovery_topic(prefix, topics, account)
    return account if ours and re.fullmatch(ACCOUNT_KEY, account) else None


def discovery_messages(
    settings: Settings, topics: Topics, version: str, accounts: Mapping[str, Account]
) -> list[Message]:
    """Return the discovery of these accounts."""
    prefix, stale_after = settings.home_assistant.discovery_prefix, settings.stale_after_seconds
    return [
        discovery_message(
            prefix,
            topics,
            key,
            account,
            stale_after=stale_after,
            version=version,
            statistics=settings.statistics,
        )
        for key, account in accounts.items()
    ]


def discovery_message(  # noqa: PLR0913  # passed by name, and each is part of the message
    prefix: str,
    topics: Topics,
    key: str,
    account: Account,
    *,
    stale_after: int,
    version: str,
    statistics: Statistics = "90d",
) -> Message:
    """Return the discovery of an account; ``stale_after`` is in seconds."""
    device_id = _device_id(topics, key)
    day, long = _of_a_day(topics, key, account), _of_14_days(topics, key, account)
    components = _current(topics, key, account, stale_after) | _lasting(topics, key)
    components |= day if statistics != "off" else dict.fromkeys(day, _GONE)
    components |= long if statistics == "90d" else dict.fromkeys(long, _GONE)
    payload = {
        "dev": {"ids": [device_id], "name": account.name, "mf": "Dexcom", "mdl": "Share", "sw": version},
        "o": {"name": _ORIGIN, "sw": version},
        "cmps": {
            name: component
            if component is _GONE
            else {
                **component,
                "unique_id": f"{device_id}_{name}",
                "default_entity_id": f"{component['p']}.{key}_{name}",
            }
            for name, component in components.items()
        },
    }
    return Message(discovery_topic(prefix, topics, key), json.dumps(payload, ensure_ascii=False))


def _current(topics: Topics, key: str, account: Account, stale_after: int) -> dict[str, _Component]:
    """Return the entities that are available only while the newest reading is current."""
    state = topics.of(key, "state")
    precision = 0 if account.unit == "mg/dL" else 1
    common: _Component = {
        "p": "sensor",
        "state_topic": state,
        "availability": [_available(topics.bridge_state), _available(topics.of(key, "availability"))],
        "availability_mode": "all",
        "expire_after": stale_after,  # if all else fails
    }
    measured: _Component = {
        "unit_of_measurement": account.unit,
        "state_class": "measurement",
        "suggested_display_precision": precision,
    }
    return {
        "glucose_value": common
        | measured
        | {
            "name": "Glucose value",
            "device_class": "blood_glucose_concentration",
            "value_template": "{{ value_json.value }}",
            "json_attributes_topic": state,
            "force_update": True,  # for automations that count readings: an equal value is a new reading
        },
        "glucose_trend": common
        | {
            "name": "Glucose trend",
            "device_class": "enum",
            "options": list(TRENDS),
            "value_template": "{{ value_json.trend }}",
        },
        "glucose_delta": common
        | measured
        | {"name": "Glucose delta", "icon": "mdi:delta", "value_template": "{{ value_json.delta }}"},
        "glucose_range": common
        | {
            "name": "Glucose range",
            "device_class": "enum",
            "options": list(RANGES),
            "value_template": "{{ value_json.range }}",
        },
    }


def _lasting(topics: Topics, key: str) -> dict[str, _Component]:
    """Return the entities that are available as long as the daemon runs."""
    status = topics.of(key, "status")
    common: _Component = {"availability": [_available(topics.bridge_state)]}
    return {
        "glucose_reading_time": common
        | {
            "p": "sensor",
            "name": "Glucose reading time",
            "device_class": "timestamp",
            "state_topic": topics.of(key, "state"),
            "value_template": "{{ value_json.measurement_timestamp }}",
        },
        "readings_missing": common
        | {
            "p": "binary_sensor",
            "name": "Readings missing",
            "device_class": "problem",
            "state_topic": topics.of(key, "availability"),
            "payload_on": "offline",
            "payload_off": "online",
        },
        "share_status": common
        | {
            "p": "sensor",
            "name": "Share status",
            "entity_category": "diagnostic",
            "device_class": "enum",
            "options": list(REMEDIES),
            "state_topic": status,
            "value_template": "{{ value_json.share }}",
            "json_attributes_topic": status,
            "json_attributes_template": ("{{ {'message': value_json.message, 'since': value_json.since} | tojson }}"),
        },
        "refresh": common
        | {
            "p": "button",
            "name": "Refresh",
            "entity_category": "diagnostic",
            "icon": "mdi:refresh",
            "command_topic": topics.of(key, "refresh"),
        },
    }


def _of_a_day(topics: Topics, key: str, account: Account) -> dict[str, _Component]:
    """Return the statistics of the last 24 hours."""
    figure, window = _figure(topics, key), _window("24h")
    percent = figure | {"unit_of_measurement": "%", "suggested_display_precision": 1}
    attributes = {"json_attributes_topic": figure["state_topic"], "json_attributes_template": _attributes("24h")}
    return {
        "time_in_range": percent
        | attributes
        | {"name": "Time in range", "icon": "mdi:bullseye", "value_template": window.format("w.in_range")},
        "time_below_range": percent
        | attributes
        | {"name": "Time below range", "icon": "mdi:arrow-collapse-down", "value_template": window.format(_BELOW)},
        "glucose_mean": figure
        | _glucose(account)
        | {"name": "Glucose mean", "value_template": window.format("w.mean")},
    }


def _of_14_days(topics: Topics, key: str, account: Account) -> dict[str, _Component]:
    """Return the statistics of 14 days. They are unknown if there is no GMI, because too many readings are missing."""
    figure, window = _figure(topics, key), _window("14d", "w.gmi is not none")
    figure |= {"json_attributes_topic": figure["state_topic"], "json_attributes_template": _attributes("14d")}
    percent = figure | {"unit_of_measurement": "%", "suggested_display_precision": 1}
    hidden: _Component = {"enabled_by_default": False}
    return {
        "time_in_range_14_days": percent
        | {"name": "Time in range 14 days", "icon": "mdi:bullseye", "value_template": window.format("w.in_range")},
        "glucose_mean_14_days": figure
        | _glucose(account)
        | {"name": "Glucose mean 14 days", "value_template": window.format("w.mean")},
        "gmi": percent | {"name": "GMI", "icon": "mdi:test-tube", "value_template": window.format("w.gmi")},
        "time_below_range_14_days": percent
        | hidden
        | {
            "name": "Time below range 14 days",
            "icon": "mdi:arrow-collapse-down",
            "value_template": window.format(_BELOW),
        },
        "glucose_cv_14_days": percent
        | hidden
        | {"name": "Glucose variation 14 days", "icon": "mdi:sine-wave", "value_template": window.format("w.cv")},
    }


_BELOW: Final = "(w.very_low + w.low) | round(1) if w.low is not none else none"


def _figure(topics: Topics, key: str) -> _Component:
    return {
        "p": "sensor",
        "state_topic": topics.of(key, "statistics"),
        "state_class": "measurement",
        "availability": [_available(topics.bridge_state)],
    }


def _glucose(account: Account) -> _Component:
    return {
        "device_class": "blood_glucose_concentration",
        "unit_of_measurement": account.unit,
        "suggested_display_precision": 0 if account.unit == "mg/dL" else 1,
    }


def _window(name: str, also: str = "") -> str:
    """Return a template for one figure of a window, unknown if there is none; the figure goes into the ``{}``."""
    there = f"w and {also}" if also else "w"
    return f"{{{{% set w = value_json['{name}'] %}}}}{{{{{{{{ ({{}}) if {there} else none }}}}}}}}"


def _attributes(name: str) -> str:
    return f"{{{{ (value_json['{name}'] or {{}}) | tojson }}}}"


def _available(topic: str) -> dict[str, str]:
    return {"topic": topic}  # online and offline are Home Assistant's defaults


def _device_id(topics: Topics, account: str) -> str:
    return f"{topics.base.replace('/', '_')}_{account}"
