"""How the daemon describes itself, and what it reads back from an earlier daemon."""

from __future__ import annotations

import json

import pytest

from dexcom2mqtt.messages.bridge import Info, bridge_info, bridge_offline, bridge_online, parse_info
from dexcom2mqtt.messages.message import ForeignError, Message
from tests.support.builders import NOON
from tests.support.payloads import TOPICS, parsed, typed


def test_bridge_state() -> None:
    """The online message expires; the offline message does not."""
    assert bridge_online(TOPICS, 180.0) == Message(TOPICS.bridge_state, "online", 180.0)
    assert bridge_offline(TOPICS) == Message(TOPICS.bridge_state, "offline")


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_bridge_info(protocol: str) -> None:
    """The daemon describes itself with exactly the keys of the contract."""
    info = bridge_info(
        TOPICS, version="1.2.3", started_at=NOON + 0.9, protocol=protocol, accounts=(key for key in ("anna", "ben"))
    )
    assert (info.topic, info.expires_at) == (TOPICS.bridge_info, None)
    assert typed(parsed(info)) == typed(
        {
            "version": "1.2.3",
            "schema_version": 1,
            "started_at": "2025-04-19T12:00:00+00:00",
            "protocol": protocol,
            "accounts": ["anna", "ben"],
            "days": True,
        }
    )


def test_bridge_info_while_the_time_is_unknown() -> None:
    """Until Share has told the time, the daemon does not say when it started."""
    info = bridge_info(TOPICS, version="1", started_at=None, protocol=None, accounts=[])
    assert parsed(info)["started_at"] is None


def test_info_is_read_back() -> None:
    """The published accounts are read back."""
    message = bridge_info(TOPICS, version="1", started_at=None, protocol="5", accounts=["anna", "b_2"])
    assert parse_info(message.payload.encode()) == Info(("anna", "b_2"), days=True)
    message = bridge_info(TOPICS, version="1", started_at=None, protocol="5", accounts=["anna"], days=False)
    assert parse_info(message.payload.encode()) == Info(("anna",), days=False)


def test_an_older_daemon_kept_no_days() -> None:
    """Unless ``days`` is true, no days are expected."""
    for more in ("", ', "days": "true"', ', "days": 1', ', "days": null'):
        assert parse_info(f'{{"schema_version": 1, "accounts": []{more}}}'.encode()) == Info()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b'{"accounts": ["anna"]}',
        b'{"schema_version": 2, "accounts": ["anna"]}',
        b'{"schema_version": 1}',
        b'{"schema_version": 1, "accounts": {"anna": 1}}',
        b'{"schema_version": 1, "accounts": ["anna", 1]}',
        b'{"schema_version": 1, "accounts": ["anna", "+"]}',
        b'{"schema_version": 1, "accounts": ["anna/x"]}',
        b'{"schema_version": 1, "accounts": ["bridge"]}',
        json.dumps({"schema_version": 1, "accounts": ["anna"] * 10_001}).encode(),
    ],
)
def test_info_that_is_not_ours(payload: bytes) -> None:
    """A list of accounts that is not clearly ours is ignored entirely, because it decides what is removed."""
    with pytest.raises(ForeignError):
        parse_info(payload)
