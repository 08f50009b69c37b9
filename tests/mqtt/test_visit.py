"""A command's short connection to the broker; test_check and test_purge test more of it."""

from __future__ import annotations

from dexcom2mqtt.clock import Clock
from dexcom2mqtt.config.settings import Mqtt
from dexcom2mqtt.mqtt.visit import Visit
from tests.mqtt.conftest import SUBACKS_LATE, is_late
from tests.support.processes import Mosquitto, Subscriber
from tests.support.relay import Relay


def test_a_visit_probes_once_its_subscriptions_are_confirmed(mosquitto: Mosquitto) -> None:
    """A command waits for the confirmations, like the daemon."""
    with Subscriber(mosquitto.port) as other, Relay(mosquitto.port, is_late) as relay:
        other.client.publish("test/a", "1", qos=1, retain=True)
        other.wait_for("test/a", "1")
        mqtt = Mqtt(host="127.0.0.1", port=relay.port, base_topic="test")
        with Visit(mqtt, Clock(), "purge") as visit:
            assert visit.retained(["test/a"], "test/probe") == {"test/a": b"1"}
        (probe,) = (packet for packet in relay.came("PUBLISH", "test/probe") if packet.from_client)
        assert len(relay.came("SUBACK")) == 2
        assert probe.at >= max(packet.at for packet in relay.came("SUBACK")) + SUBACKS_LATE
