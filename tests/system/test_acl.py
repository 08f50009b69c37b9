"""The access control example: each user can do what they need, and no more; with a real mosquitto."""

from __future__ import annotations

import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare, accelerated
from tests.support.processes import ROOT, Mosquitto, Subscriber, daemon, eventually, write_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ACL = ROOT / "examples" / "mosquitto" / "acl"
USERS = ("dexcom2mqtt", "homeassistant", "reader", "display")
SPEED = 60.0


@pytest.fixture
def broker(start_mosquitto: Callable[..., Mosquitto], tmp_path: Path) -> Mosquitto:
    """Start a broker with the example; each user's password is their name."""
    passwords = tmp_path / "passwords"
    passwords.touch()
    for user in USERS:
        subprocess.run(["/usr/bin/mosquitto_passwd", "-b", passwords, user, user], check=True)
    return start_mosquitto("allow_anonymous false", f"password_file {passwords}", f"acl_file {ACL}")


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_each_user_has_exactly_the_access_it_needs(broker: Mosquitto, tmp_path: Path, protocol: str) -> None:
    """The daemon works fully, Home Assistant reads and refreshes, readers read, a display sees only the value."""
    account = SimulatedAccount("anna@example.com", "password", seed=1)

    def visitor(user: str) -> Subscriber:
        return Subscriber(broker.port, MQTTProtocolVersion.MQTTv5, (user, user))

    with SimulatedShare([account], accelerated(SPEED)) as service:
        config = {
            "accounts": {"anna": {"username": account.username, "password": "password", "share_url": service.base_url}},
            "mqtt": {
                "host": "127.0.0.1",
                "port": broker.port,
                "username": "dexcom2mqtt",
                "password": "dexcom2mqtt",
                "protocol": protocol,
                "client_id": f"test-{uuid.uuid4()}",  # purge refuses if any daemon on this machine has it
            },
        }
        file = write_config(tmp_path / "config.yaml", config)
        with daemon(file, tmp_path / "daemon.log", speed=SPEED) as running, visitor("dexcom2mqtt") as witness:
            witness.wait_for("dexcom2mqtt/anna/availability", "online")
            witness.wait_for("dexcom2mqtt/bridge/state", "online")
            eventually(lambda: len(witness.payloads("dexcom2mqtt/anna/reading")) > 250)
            eventually(lambda: witness.payloads("homeassistant/device/dexcom2mqtt_anna/config"))

            with visitor("homeassistant") as hub, visitor("reader") as reader, visitor("display") as display:
                for each in (hub, reader):
                    each.wait_for("dexcom2mqtt/anna/history")
                    each.wait_for("dexcom2mqtt/bridge/state", "online")
                with pytest.raises(AssertionError, match="could not subscribe"):
                    Subscriber(broker.port, seconds=0.25)  # without a user
                hub.wait_for("homeassistant/device/dexcom2mqtt_anna/config")
                display.wait_for("dexcom2mqtt/anna/value")
                for each in (hub, reader, display):
                    for topic in ("anna/value", "bridge/state", "anna/history"):
                        each.client.publish(f"dexcom2mqtt/{topic}", "forged", qos=1, retain=True)
                    each.client.publish("dexcom2mqtt/anna/refresh", each.client.username, qos=1)
                hub.client.publish("homeassistant/status", "online", qos=1)
                known = len(witness.payloads("homeassistant/device/dexcom2mqtt_anna/config"))
                eventually(lambda: len(witness.payloads("homeassistant/device/dexcom2mqtt_anna/config")) > known)
            assert witness.payloads("dexcom2mqtt/anna/refresh") == ["homeassistant"]
            assert "forged" not in {heard.payload for heard in witness.heard}
            assert {heard.topic for heard in display.heard} == {
                f"dexcom2mqtt/{leaf}" for leaf in ("bridge/state", "anna/availability", "anna/value", "anna/arrow")
            }
            assert not [heard for heard in reader.heard if not heard.topic.startswith("dexcom2mqtt/")]
            assert "WARNING" not in running.text()
            assert "ERROR" not in running.text()
    done = subprocess.run(
        [sys.executable, "-m", "dexcom2mqtt", "purge", "--config", file], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    with visitor("dexcom2mqtt") as witness:
        witness.client.publish("dexcom2mqtt/test/end", "end", qos=1)
        witness.wait_for("dexcom2mqtt/test/end")
        assert [heard.topic for heard in witness.heard] == ["dexcom2mqtt/test/end"]
