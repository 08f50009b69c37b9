"""What comes from a real mosquitto: what is read back, and the messages of subscriptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dexcom2mqtt.mqtt.connection import Received
from tests.mqtt.conftest import STATE, SUBACKS_LATE, is_late
from tests.support.processes import Mosquitto, Subscriber, eventually
from tests.support.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.mqtt.conftest import Running


def test_the_read_back_probes_once_its_subscriptions_are_confirmed(
    mosquitto: Mosquitto, start: Callable[..., Running]
) -> None:
    """A broker may take a message before a subscription that was sent earlier: then the probe would never be back."""
    with Relay(mosquitto.port, is_late) as relay:
        running = start(relay.port, subscriptions=("test/refresh",))
        eventually(lambda: running.found)
        (probe,) = (packet for packet in relay.came("PUBLISH", "test/bridge/sync/test") if packet.from_client)
        assert probe.at >= max(packet.at for packet in relay.came("SUBACK")) + SUBACKS_LATE


def test_messages_of_subscriptions_are_handed_on(mosquitto: Mosquitto, start: Callable[..., Running]) -> None:
    """What arrives on a subscribed topic is handed on, with whether it was retained, after every connect."""
    with Subscriber(mosquitto.port) as subscriber:
        subscriber.client.publish("test/anna/refresh", "old", qos=1, retain=True)
        subscriber.wait_for("test/anna/refresh")
        running = start(mosquitto.port, subscriptions=("test/anna/refresh",), speed=5)
        eventually(lambda: Received("test/anna/refresh", b"old", retained=True) in running.received)
        subscriber.client.publish("test/anna/refresh", "now")
        eventually(lambda: Received("test/anna/refresh", b"now", retained=False) in running.received)
        subscriber.client.publish("test/other", "no")
    mosquitto.kill()
    mosquitto.start()
    eventually(lambda: len(running.protocols) == 2)
    with Subscriber(mosquitto.port) as subscriber:
        subscriber.wait_for(STATE)
        subscriber.client.publish("test/anna/refresh", "again")
        eventually(lambda: Received("test/anna/refresh", b"again", retained=False) in running.received)
    assert len(running.received) == 3
