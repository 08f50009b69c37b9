"""Home Assistant's discovery: which entities an account has there. Pure.

One message describes one account as a device, with a component for each entity. The rules come from Home
Assistant's documentation of MQTT discovery and from what its release 2026.11 takes and rejects; a ``unique_id`` or an
entity id that changes would cost users their history, so both are public and stay as they are.
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
    from dexcom2mqtt.config.settings import Account, Settings
    from dexcom2mqtt.topics import Topics

_ORIGIN: Final = "dexcom2mqtt"

_Component = dict[str, object]


def discovery_topic(prefix: str, topics: Topics, account: str) -> str:
    """Name the topic of an account's discovery."""
    return f"{prefix}/device/{_device_id(topics, account)}/config"


def discovery_topics(prefix: str) -> str:
    """Name the filter for the discovery of all devices, of others, too."""
    return f"{prefix}/device/+/config"


def account_of(prefix: str, topics: Topics, topic: str, payload: bytes) -> str | None:
    """Return which account below these topics a retained discovery describes; None where it is somebody else's."""
    try:
        device = json.loads(payload)
        origin, component = device["o"]["name"], device["cmps"]["glucose_value"]
        base, account, _ = component["state_topic"].rsplit("/", 2)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    ours = origin == _ORIGIN and base == topics.base and topic == discovery_topic(prefix, topics, account)
    return account if ours and re.fullmatch(ACCOUNT_KEY, account) else None


def discovery_messages(settings: Settings, topics: Topics, version: str) -> list[Message]:
    """Describe every account to Home Assistant."""
    prefix, stale_after = settings.home_assistant.discovery_prefix, settings.stale_after_seconds
    return [
        discovery_message(prefix, topics, key, account, stale_after=stale_after, version=version)
        for key, account in settings.accounts.items()
    ]


def discovery_message(  # noqa: PLR0913  # by name, and each has its place in the message
    prefix: str, topics: Topics, key: str, account: Account, *, stale_after: int, version: str
) -> Message:
    """Describe an account to Home Assistant; ``stale_after`` is in seconds."""
    device_id = _device_id(topics, key)
    components = _current(topics, key, account, stale_after) | _lasting(topics, key)
    payload = {
        "dev": {"ids": [device_id], "name": account.name, "mf": "Dexcom", "mdl": "Share", "sw": version},
        "o": {"name": _ORIGIN, "sw": version},
        "cmps": {
            name: {
                **component,
                "unique_id": f"{device_id}_{name}",
                "default_entity_id": f"{component['p']}.{key}_{name}",
            }
            for name, component in components.items()
        },
    }
    return Message(discovery_topic(prefix, topics, key), json.dumps(payload, ensure_ascii=False))


def _current(topics: Topics, key: str, account: Account, stale_after: int) -> dict[str, _Component]:
    """Describe what is there only while the newest reading is current."""
    state = topics.of(key, "state")
    precision = 0 if account.unit == "mg/dL" else 1
    common: _Component = {
        "p": "sensor",
        "state_topic": state,
        "availability": [_available(topics.bridge_state), _available(topics.of(key, "availability"))],
        "availability_mode": "all",
        "expire_after": stale_after,  # should all else fail
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
            "force_update": True,  # for those who count readings: an equal value is a new one
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
    """Describe what is there as long as the daemon is."""
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


def _available(topic: str) -> dict[str, str]:
    return {"topic": topic}  # online and offline are what Home Assistant expects anyway


def _device_id(topics: Topics, account: str) -> str:
    return f"{topics.base.replace('/', '_')}_{account}"
