"""Who serves an account, by its retained status, and what processes say about accounts that they claim or serve."""

from __future__ import annotations

import json

import pytest
from hypothesis import given

from dexcom2mqtt.messages.message import parse_object
from dexcom2mqtt.messages.ownership import (
    Claim,
    claim_messages,
    outranks,
    owner_of,
    parse_claim,
    released,
    serving_messages,
    was_shared,
)
from dexcom2mqtt.messages.status import Status, status_message
from dexcom2mqtt.topics import Topics
from tests.support.payloads import any_payload

SECOND = Topics("home/cgm", "bridge-2")


def status(topics: Topics, *, free: bool = False) -> bytes:
    return status_message(topics, "anna", Status("ok", "", None), released=free).payload.encode()


def test_claims_say_who_claims_what() -> None:
    """They are not retained, and the number tells them from earlier ones."""
    (message,) = claim_messages(SECOND, {"ben", "anna"}, 7)
    assert (message.topic, message.retain) == ("home/cgm/bridge/claims", False)
    assert json.loads(message.payload) == {"bridge": "bridge-2", "claims": ["anna", "ben"], "number": 7}
    assert parse_claim(message.payload.encode()) == Claim("bridge-2", claims=frozenset({"anna", "ben"}))
    (answer,) = serving_messages(SECOND, ["anna"])
    assert parse_claim(answer.payload.encode()) == Claim("bridge-2", serves=frozenset({"anna"}))


def test_nothing_is_said_about_no_account() -> None:
    """An empty message would only wake the others."""
    assert claim_messages(SECOND, [], 1) == serving_messages(SECOND, []) == []


def test_many_accounts_take_several_messages() -> None:
    """Each has a few kilobytes, whatever the broker allows, and together they name each account once."""
    keys = [f"account_{number}" for number in range(1001)]
    messages = claim_messages(SECOND, keys, 1)
    assert max(len(message.payload) for message in messages) < 10_000
    assert sorted(key for message in messages for key in json.loads(message.payload)["claims"]) == sorted(keys)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b'{"claims": ["anna"]}',
        b'{"bridge": 1}',
        b'{"bridge": "bridge-01"}',
        b'{"bridge": "anna"}',
        b'{"bridge": "bridge-1", "claims": {"anna": 1}}',
        b'{"bridge": "bridge-1", "serves": "anna"}',
    ],
)
def test_other_messages_are_ignored(payload: bytes) -> None:
    """Anybody may publish on the topic of claims."""
    assert parse_claim(payload) is None


def test_only_texts_are_accounts() -> None:
    """What else is in the lists is ignored."""
    assert parse_claim(b'{"bridge": "bridge-1", "claims": ["anna", 1, null, ["ben"]]}') == Claim(
        "bridge-1", frozenset({"anna"})
    )


@given(any_payload)
def test_no_payload_is_an_error(payload: bytes) -> None:
    """Whatever comes, it is read or ignored."""
    parse_claim(payload)
    assert owner_of("anna", payload) is None or "bridge" in str(owner_of("anna", payload))


def test_the_lower_number_outranks() -> None:
    """Numbers are compared as numbers, and one process alone comes first."""
    assert outranks("bridge-2", "bridge-10")
    assert not outranks("bridge-10", "bridge-2")
    assert outranks("bridge", "bridge-0")
    assert not outranks("bridge-1", "bridge-1")


@pytest.mark.parametrize(
    ("payload", "owner"),
    [
        (status(SECOND), "bridge-2"),
        (status(SECOND, free=True), None),
        (status(Topics("home/cgm")), "bridge"),
        (status(SECOND).replace(b'"bridge-2"', b'"a/b"'), None),
        (status(SECOND).replace(b'"bridge-2"', b"3"), None),
        (b'{"bridge": "bridge-2"}', None),
        (b"", None),
        (None, None),
    ],
)
def test_the_status_names_the_owner(payload: bytes | None, owner: str | None) -> None:
    """Without the key it is the process that is alone; a released status, garbage or none at all names nobody."""
    assert owner_of("anna", payload) == owner


def test_a_released_status_keeps_everything_else() -> None:
    """The rejected sign-ins count for whoever serves the account next."""
    before = status_message(SECOND, "anna", Status("ok", "", None, rejected=(5, 7))).payload.encode()
    message = released(SECOND, "anna", before)
    assert message.topic == "home/cgm/anna/status"
    assert json.loads(message.payload) == {**parse_object(before), "bridge": None}
    assert owner_of("anna", message.payload.encode()) is None


def test_one_process_alone_writes_no_owner() -> None:
    """Its status is as it was before several processes could share the accounts."""
    assert "bridge" not in parse_object(status(Topics("home/cgm")))
    assert not was_shared({"anna": status(Topics("home/cgm")), "ben": b"{"})
    assert was_shared({"anna": status(SECOND, free=True)})


def test_the_status_of_one_of_several_is_as_published() -> None:
    """The key comes last: the owner, or null once nobody serves the account."""
    assert list(parse_object(status(SECOND)).items())[-1] == ("bridge", "bridge-2")
    assert list(parse_object(status(SECOND, free=True)).items())[-1] == ("bridge", None)
    assert json.loads(status(SECOND))["share"] == "ok"
