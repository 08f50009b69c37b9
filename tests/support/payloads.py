"""Payloads as subscribers get them, and what a broker may have instead."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st

from dexcom2mqtt.readings import Reading
from dexcom2mqtt.topics import Topics
from tests.support.builders import NOON, any_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.messages.state import State


TOPICS = Topics("home/dexcom")

KEYS = [
    "value",
    "unit",
    "mg_dl",
    "mmol_l",
    "out_of_range",
    "trend",
    "trend_number",
    "direction",
    "arrow",
    "description",
    "delta",
    "range",
    "measurement_timestamp",
    "date",
]

IN_MG_DL: State = {
    "value": 72,
    "unit": "mg/dL",
    "mg_dl": 72,
    "mmol_l": 4.0,
    "out_of_range": None,
    "trend": "steady",
    "trend_number": 4,
    "direction": "Flat",
    "arrow": "→",
    "description": "steady",
    "delta": -9,
    "range": "in_range",
    "measurement_timestamp": "2025-04-19T08:00:00.000-04:00",
    "date": 1745064000000,
}

readings = st.builds(
    Reading,
    mg_dl=st.integers(39, 401),
    direction=st.sampled_from(["Flat", "DoubleDown", "None", "NotComputable"]) | st.text(min_size=1, max_size=64),
    date=st.integers(1, 4_102_444_799_999),
    offset_min=st.integers(-840, 840),
)


def parsed(message: Message) -> dict[str, object]:
    """Parse a payload strictly: no NaN, no infinity, valid UTF-8."""
    payload: dict[str, object] = json.loads(message.payload.encode(), parse_constant=pytest.fail)
    return payload


def typed(payload: Mapping[str, object]) -> list[tuple[str, object, type]]:
    """Distinguish 4.0 from 4 and the order of keys, which == on dicts does not."""
    return [(key, value, type(value)) for key, value in payload.items()]


SOURCE = "0123abcd"

any_entry = st.fixed_dictionaries(
    {
        "date": st.sampled_from([NOON * 1000, NOON * 1000 + 10**6, 0, -1, 10**30]) | any_json,
        "mg_dl": st.sampled_from([100, 39, 38, 2001]) | any_json,
        "direction": st.sampled_from(["Flat", "", "x" * 65]) | any_json,
        "offset_min": st.sampled_from([0, -240, 900]) | any_json,
    }
)

any_history = st.fixed_dictionaries(
    {
        "version": st.sampled_from([1, 1, 1, 2]) | any_json,
        "source": st.sampled_from([SOURCE, SOURCE, SOURCE, "x"]) | any_json,
        "readings": st.lists(any_entry | any_json, max_size=4) | any_json,
        "rejected": st.lists(st.integers() | any_json, max_size=4) | any_json,
    }
).map(lambda history: json.dumps(history).encode())

any_payload = st.binary(max_size=200) | any_json.map(lambda value: json.dumps(value).encode()) | any_history
