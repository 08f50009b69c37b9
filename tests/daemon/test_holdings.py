"""Accounts that other processes serve: which messages mean that one of them may be free."""

import json

import pytest

from dexcom2mqtt.daemon.holdings import Waiting
from dexcom2mqtt.messages.status import Status, status_message
from dexcom2mqtt.topics import Topics

OTHER = Topics("dexcom2mqtt", "bridge-0")
STATUS = status_message(OTHER, "anna", Status("ok")).payload


@pytest.fixture
def waiting() -> Waiting:
    """Wait for an account of Anna's, which the first process serves."""
    waiting = Waiting(Topics("dexcom2mqtt", "bridge-1"))
    waiting.update({"anna": "bridge-0"})
    return waiting


@pytest.mark.parametrize(
    ("topic", "payload"), [("anna/status", STATUS), ("bridge-0/state", "online")], ids=["a poll", "the heartbeat"]
)
def test_what_its_owner_says_every_few_minutes_is_no_reason_to_look(waiting: Waiting, topic: str, payload: str) -> None:
    """Otherwise a process that waits for many accounts would look without a pause."""
    assert f"dexcom2mqtt/{topic}" in waiting.watched
    assert not waiting.is_over(f"dexcom2mqtt/{topic}", payload.encode())


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        ("anna/status", json.dumps(json.loads(STATUS) | {"bridge": None})),
        ("anna/status", json.dumps(json.loads(STATUS) | {"bridge": "bridge-2"})),
        ("anna/status", ""),
        ("anna/status", "not ours"),
        ("bridge-0/state", "offline"),
        ("bridge-0/state", ""),
    ],
    ids=["released", "another owner", "cleared", "garbage", "offline", "state cleared"],
)
def test_an_account_may_be_free(waiting: Waiting, topic: str, payload: str) -> None:
    """Once its status no longer names the owner, or that one is no longer online, it is time to look."""
    assert waiting.is_over(f"dexcom2mqtt/{topic}", payload.encode())
