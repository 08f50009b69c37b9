"""Messages for this connection alone, and whether the broker surely still has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dexcom2mqtt.messages.message import Message
from tests.mqtt.conftest import STATE
from tests.support.processes import Mosquitto, Subscriber, eventually, retained

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.mqtt.conftest import Running

CLAIMS = "test/bridge/claims"


def test_what_is_told_is_published_once(mosquitto: Mosquitto, start: Callable[..., Running]) -> None:
    """It is not retained, and comes in its order."""
    running = start(mosquitto.port)
    with Subscriber(mosquitto.port) as subscriber:
        subscriber.wait_for(STATE, "online")
        running.link.tell([Message(CLAIMS, str(number), retain=False) for number in range(50)])
        subscriber.wait_for(CLAIMS, "49")
        assert subscriber.payloads(CLAIMS) == [str(number) for number in range(50)]
    assert CLAIMS not in retained(mosquitto.port)


def test_what_is_told_without_a_connection_is_dropped(mosquitto: Mosquitto, start: Callable[..., Running]) -> None:
    """On the next connection it would be out of date."""
    running = start(mosquitto.port, speed=5)
    eventually(lambda: running.found)
    mosquitto.kill()
    eventually(lambda: not running.link.trusted)
    running.link.tell([Message(CLAIMS, "old", retain=False)])
    mosquitto.start()
    with Subscriber(mosquitto.port) as subscriber:
        eventually(lambda: len(running.protocols) == 2)
        subscriber.wait_for(STATE, "online")
        running.link.tell([Message(CLAIMS, "new", retain=False)])
        subscriber.wait_for(CLAIMS, "new")
        assert subscriber.payloads(CLAIMS) == ["new"]


def test_a_silent_broker_is_trusted_for_a_while(mosquitto: Mosquitto, start: Callable[..., Running]) -> None:
    """The trust ends before the broker would end the connection, and begins again once it answers."""
    running = start(mosquitto.port, keepalive=5)
    assert not running.link.trusted or running.protocols
    eventually(lambda: running.link.trusted)
    mosquitto.freeze()
    began = running.clock.now()
    eventually(lambda: not running.link.trusted)
    assert running.clock.now() - began < 1.5 * 5
    mosquitto.thaw()
    eventually(lambda: running.link.trusted, 20)


def test_the_trust_lasts_as_long_as_the_broker_demands(
    start_mosquitto: Callable[..., Mosquitto], start: Callable[..., Running]
) -> None:
    """A broker may demand a shorter keepalive than ours: then it also ends a silent connection sooner."""
    mosquitto = start_mosquitto("allow_anonymous true", "max_keepalive 10")
    running = start(mosquitto.port, keepalive=3600)
    eventually(lambda: running.link.trusted)
    mosquitto.freeze()
    began = running.clock.now()
    eventually(lambda: not running.link.trusted, 30)
    assert running.clock.now() - began < 1.5 * 10
    mosquitto.thaw()
