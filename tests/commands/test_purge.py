"""The command that removes what the daemon left at the broker: the real command, a real mosquitto."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from dexcom2mqtt.clock import Clock
from dexcom2mqtt.commands.purge import accounts_in
from dexcom2mqtt.config.settings import Mqtt
from dexcom2mqtt.messages import homeassistant
from dexcom2mqtt.messages.bridge import bridge_info, bridge_offline
from dexcom2mqtt.messages.days import days_message
from dexcom2mqtt.messages.history import history_message
from dexcom2mqtt.messages.message import Message
from dexcom2mqtt.messages.state import stale_messages, state_of
from dexcom2mqtt.messages.status import Status, status_message
from dexcom2mqtt.mqtt.connection import Connection
from dexcom2mqtt.mqtt.visit import Visit
from dexcom2mqtt.topics import Topics
from tests.support.brokers import gatekeeper
from tests.support.builders import account, reading
from tests.support.processes import Mosquitto, Process, Subscriber, free_port, retained, write_config
from tests.support.relay import DROP, PASS, Packet, Relay

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CLIENT_ID = f"test-{uuid.uuid4()}"
"""Unique, since purge refuses if any daemon on this machine has it."""
FOREIGN = {
    "dexcom2mqtt/note": "mine",
    "dexcom2mqtt/anna/note": "mine",
    "dexcom2mqtt/anna/value/deep": "mine",
    "dexcom2mqtt/kitchen/state": '{"state": "on"}',
    "dexcom2mqtt/kitchen/value": "21.5",
    "dexcom2mqtt/kitchen/status": '{"since": 1}',
    "dexcom2mqtt2/anna/value": "85",
    "homeassistant/device/dexcom2mqtt_kitchen/config": "{}",
    "homeassistant/device/other_anna/config": "{}",
    "homeassistant/sensor/dexcom2mqtt_anna/config": "{}",
}


def left_by(
    *keys: str, base: str = "dexcom2mqtt", prefix: str = "homeassistant", bridge: str = "bridge", info: bool = True
) -> list[Message]:
    """Return the messages that a stopped daemon with these accounts leaves."""
    topics, anybody = Topics(base, bridge), account()
    left = [bridge_offline(topics)]
    if info:
        left.append(bridge_info(topics, version="1", started_at=None, protocol="5", accounts=keys))
    for key in keys:
        state = state_of(reading(85), None, anybody)
        left += stale_messages(topics, key, state)
        left.append(history_message(topics, key, "9a0364b9", [reading(85)]))
        left.append(days_message(topics, key, "9a0364b9", {}))
        left.append(Message(topics.of(key, "statistics"), "{}"))
        left.append(status_message(topics, key, Status(), released=True))
        left.append(homeassistant.discovery_message(prefix, topics, key, anybody, stale_after=900, version="1"))
    return left


def fill(broker: Mosquitto, *left: Message, foreign: dict[str, str] | None = None) -> None:
    with Subscriber(broker.port) as subscriber:
        for message in left:
            subscriber.client.publish(message.topic, message.payload, qos=1, retain=True)
        for topic, payload in (foreign or {}).items():
            subscriber.client.publish(topic, payload, qos=1, retain=True)
        subscriber.client.publish("test/end", qos=1)
        subscriber.wait_for("test/end")


@pytest.fixture
def purge(mosquitto: Mosquitto, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command with a configuration that knows Anna."""

    def purge(*arguments: str, **mqtt: Any) -> subprocess.CompletedProcess[str]:
        config = {
            "accounts": {"anna": {"username": "anna@example.com", "password": "hunter2"}},
            "mqtt": {"host": "127.0.0.1", "port": mosquitto.port, "client_id": CLIENT_ID, **mqtt},
        }
        file = write_config(tmp_path / "config.yaml", config)
        command = [sys.executable, "-m", "dexcom2mqtt", "purge", "--config", str(file), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)

    return purge


@pytest.mark.parametrize("protocol", ["5", "3.1.1", "auto"])
def test_removes_everything_of_the_daemon_and_nothing_else(
    mosquitto: Mosquitto, purge: Callable[..., subprocess.CompletedProcess[str]], protocol: str
) -> None:
    """All retained messages of current and former accounts are removed; what is not the daemon's stays."""
    fill(mosquitto, *left_by("anna", "ben"), foreign=FOREIGN)
    assert len(retained(mosquitto.port)) == 2 + 2 * 21 + len(FOREIGN)
    done = purge(protocol=protocol)
    assert (done.returncode, done.stderr) == (0, "")
    assert "removed 44 retained messages" in done.stdout
    assert retained(mosquitto.port) == FOREIGN
    again = purge(protocol=protocol)
    assert again.returncode == 0
    assert "nothing to remove" in again.stdout


def test_a_broker_full_of_messages(
    start_mosquitto: Callable[..., Mosquitto], purge: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """It removes many more messages than may be in flight or fit into the broker's queue."""
    broker = start_mosquitto("allow_anonymous true", "max_queued_messages 1000")  # its default
    keys = [f"a{number}" for number in range(80)]
    fill(broker, *left_by(*keys))
    assert purge(port=broker.port).returncode == 0
    assert [topic for topic in retained(broker.port) if topic.startswith(("dexcom2mqtt", "homeassistant"))] == []


def test_one_account(mosquitto: Mosquitto, purge: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """With an account, only its messages are removed, including discovery; an unknown account is reported."""
    fill(mosquitto, *left_by("anna", "ben"))
    done = purge("--account", "ben")
    assert done.returncode == 0
    kept = retained(mosquitto.port)
    assert not [topic for topic in kept if "ben" in topic]
    assert len(kept) == 2 + 21
    missing = purge("--account", "bert")
    assert missing.returncode == 0
    assert "no retained messages of bert below dexcom2mqtt; accounts known: anna, ben" in missing.stdout


def test_topics_used_earlier(mosquitto: Mosquitto, purge: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Another base topic and discovery prefix are purged, and the current ones stay."""
    fill(mosquitto, *left_by("anna"), *left_by("anna", "ben", base="home/glucose", prefix="ha/x"))
    done = purge("--base-topic", "home/glucose", "--discovery-prefix", "ha/x")
    assert done.returncode == 0
    assert sorted(retained(mosquitto.port)) == sorted(message.topic for message in left_by("anna"))


def test_accounts_are_found_without_the_bridges_list(
    mosquitto: Mosquitto, purge: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """An account that is not listed is found by messages that only the daemon can have sent."""
    fill(mosquitto, *left_by("ben", info=False), foreign=FOREIGN)
    assert purge().returncode == 0
    assert retained(mosquitto.port) == FOREIGN


def test_it_refuses_while_the_daemon_runs(
    mosquitto: Mosquitto, purge: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """While the bridge is online nothing is removed, and the message says what to do."""
    online = Message("dexcom2mqtt/bridge/state", "online")
    fill(mosquitto, *left_by("anna")[1:], online)
    before = retained(mosquitto.port)
    done = purge()
    assert done.returncode == 1
    assert "dexcom2mqtt/bridge/state is online: stop the daemon first" in done.stderr
    assert purge("--account", "anna").returncode == 1
    assert retained(mosquitto.port) == before


# --- several processes --------------------------------------------------------------------------------------


@pytest.fixture
def shards(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the configuration be for several processes."""

    def shards(count: int, index: int = 0) -> None:
        monkeypatch.setenv("DEXCOM2MQTT_SHARD__COUNT", str(count))
        monkeypatch.setenv("DEXCOM2MQTT_SHARD__INDEX", str(index))

    return shards


def silent_about_wildcards(port: int) -> Relay:
    """Return a relay in front of a broker that sends no retained messages for wildcards, as RabbitMQ does not."""
    asked: list[str] = []

    def rule(packet: Packet) -> float:
        if packet.kind == "SUBSCRIBE":
            asked[:] = packet.filters
        wild = any("+" in topic for topic in asked)
        return DROP if wild and packet.kind == "PUBLISH" and not packet.from_client and packet.data[0] & 1 else PASS

    return Relay(port, rule)


def test_a_shard_has_a_client_id_of_its_own(
    mosquitto: Mosquitto, purge: Callable[..., subprocess.CompletedProcess[str]], shards: Callable[..., None]
) -> None:
    """It connects with the name of its own process, as no other process does."""
    shards(3, index=2)
    assert purge().returncode == 0
    assert f" as {CLIENT_ID}-2-purge " in mosquitto.log()


@pytest.mark.parametrize("lists", [True, False])
def test_removes_what_several_processes_left(
    mosquitto: Mosquitto,
    purge: Callable[..., subprocess.CompletedProcess[str]],
    shards: Callable[..., None],
    *,
    lists: bool,
) -> None:
    """All of them, and the accounts that only they know, are removed, even if the broker lists nothing."""
    shards(3, index=1)
    of_one, of_another = left_by("anna", "ben", bridge="bridge-0"), left_by("cleo", bridge="bridge-2")
    elsewhere = {"dexcom2mqtt/bridge-x/state": "offline", "dexcom2mqtt/bridge-7/state": "21.5"}
    fill(mosquitto, *left_by("dora"), *of_one, *of_another, foreign=FOREIGN | elsewhere)
    with silent_about_wildcards(mosquitto.port) as relay:
        done = purge(port=mosquitto.port if lists else relay.port)
    assert (done.returncode, done.stderr) == (0, "")
    assert "removed 90 retained messages" in done.stdout
    assert retained(mosquitto.port) == FOREIGN | elsewhere


@pytest.mark.parametrize("lists", [True, False])
def test_processes_that_are_no_longer_configured(
    mosquitto: Mosquitto, purge: Callable[..., subprocess.CompletedProcess[str]], *, lists: bool
) -> None:
    """A broker that lists nothing reveals those that an account names as its owner."""
    owned = status_message(Topics("dexcom2mqtt", "bridge-4"), "anna", Status())
    fill(mosquitto, *left_by("anna"), *left_by("anna", "ben", bridge="bridge-4"), owned)
    with silent_about_wildcards(mosquitto.port) as relay:
        assert purge(port=mosquitto.port if lists else relay.port).returncode == 0
    assert retained(mosquitto.port) == {}


@pytest.mark.parametrize("lists", [True, False])
def test_one_process_asks_about_no_other(
    mosquitto: Mosquitto, purge: Callable[..., subprocess.CompletedProcess[str]], *, lists: bool
) -> None:
    """Without shards, purge reads only what the daemon says about itself."""
    fill(mosquitto, *left_by("anna"))
    relay = Relay(mosquitto.port) if lists else silent_about_wildcards(mosquitto.port)
    with relay:
        assert purge(port=relay.port).returncode == 0
    asked = {topic for packet in relay.came("SUBSCRIBE") for topic in packet.filters}
    assert {topic for topic in asked if "bridge" in topic} == {
        "dexcom2mqtt/bridge/state",
        "dexcom2mqtt/bridge/info",
        f"dexcom2mqtt/bridge/sync/{CLIENT_ID}-purge",
    }


@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize(
    ("count", "online"), [(3, ["bridge-1"]), (3, ["bridge"]), (3, ["bridge-0", "bridge-2"]), (1, ["bridge-7"])]
)
def test_it_refuses_while_any_process_runs(
    mosquitto: Mosquitto,
    purge: Callable[..., subprocess.CompletedProcess[str]],
    shards: Callable[..., None],
    count: int,
    online: list[str],
    *,
    lists: bool,
) -> None:
    """Nothing is removed, and the message names the process, even one that only an account names as its owner."""
    shards(count)
    states = [Message(f"dexcom2mqtt/{name}/state", "online") for name in online]
    owner = status_message(Topics("dexcom2mqtt", online[-1]), "anna", Status())
    fill(mosquitto, *left_by("anna"), owner, *states)
    before = retained(mosquitto.port)
    with silent_about_wildcards(mosquitto.port) as relay:
        for arguments in ((), ("--account", "anna")):
            done = purge(*arguments, port=mosquitto.port if lists else relay.port)
            assert done.returncode == 1
            names = ", ".join(state.topic for state in states)
            if online == ["bridge"]:
                assert f"{names} is online: stop the daemon first" in done.stderr
            else:
                assert f"{names} {'is' if len(online) == 1 else 'are'} online: stop all processes first" in done.stderr
    assert retained(mosquitto.port) == before


def test_a_broken_file_of_an_account(
    mosquitto: Mosquitto,
    purge: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its account is looked for like the others; a file whose name cannot be a key is none."""
    folder = tmp_path / "accounts"
    folder.mkdir()
    for name in ("ben", "B+#"):
        (folder / f"{name}.yaml").write_text("{", encoding="utf-8")
    monkeypatch.setenv("DEXCOM2MQTT_ACCOUNTS_DIR", str(folder))
    fill(mosquitto, *left_by("ben", info=False))
    with silent_about_wildcards(mosquitto.port) as relay:
        done = purge(port=relay.port)
    assert done.returncode == 0
    assert "this broker does not list them; accounts looked for: anna, ben\n" in done.stdout
    assert retained(mosquitto.port) == {}


# --- access control -----------------------------------------------------------------------------------------


class Guarded:
    """A broker with an access control list, which allows everything until `allow` is called."""

    def __init__(self, start_mosquitto: Callable[..., Mosquitto], acl: Path, *keys: str) -> None:
        self._acl = acl
        acl.write_text("topic readwrite #\n", encoding="utf-8")
        self.broker = start_mosquitto("allow_anonymous true", f"acl_file {acl}")
        fill(self.broker, *left_by(*keys))

    def allow(self, *rules: str) -> None:
        self._acl.write_text("".join(f"topic {rule}\n" for rule in rules), encoding="utf-8")
        self.broker.reload()

    def retained(self) -> set[str]:
        self.allow("readwrite #")
        return set(retained(self.broker.port))


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_messages_that_may_not_be_removed_are_reported(
    start_mosquitto: Callable[..., Mosquitto],
    purge: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    protocol: str,
) -> None:
    """If access control protects messages, the command fails and names them, also with MQTT 3.1.1."""
    guarded = Guarded(start_mosquitto, tmp_path / "acl", "anna")
    guarded.allow("read #", "write dexcom2mqtt/bridge/#")
    done = purge(port=guarded.broker.port, protocol=protocol)
    assert done.returncode == 1
    assert "21 retained messages could not be removed (dexcom2mqtt/anna/arrow, " in done.stderr
    assert "access control list" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_messages_that_may_only_be_written_are_removed(
    start_mosquitto: Callable[..., Mosquitto],
    purge: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    protocol: str,
) -> None:
    """Messages hidden by access control are removed as well: the daemon itself never reads its discovery."""
    guarded = Guarded(start_mosquitto, tmp_path / "acl", "anna")
    guarded.allow("readwrite dexcom2mqtt/#", "write homeassistant/#")
    assert purge(port=guarded.broker.port, protocol=protocol).returncode == 0
    assert guarded.retained() == set()


def test_a_second_purge_removes_messages_that_the_first_left(
    start_mosquitto: Callable[..., Mosquitto],
    purge: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """An incomplete purge keeps the list of accounts, so that the next one knows where to look."""
    guarded = Guarded(start_mosquitto, tmp_path / "acl", "anna", "ben")
    guarded.allow("readwrite #", "deny dexcom2mqtt/ben/value")
    assert purge(port=guarded.broker.port).returncode == 1
    assert guarded.retained() == {"dexcom2mqtt/bridge/info", "dexcom2mqtt/ben/value"}
    assert purge(port=guarded.broker.port).returncode == 0
    assert guarded.retained() == set()


def test_an_account_with_only_its_discovery_left(
    mosquitto: Mosquitto, purge: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """After a change of the discovery prefix, devices below the old one are found, also of former accounts."""
    devices = [message for message in left_by("ben", prefix="old") if "/device/" in message.topic]
    fill(mosquitto, *devices, foreign={"old/device/dexcom2mqtt_x/config": "{}"})
    assert purge("--discovery-prefix", "old").returncode == 0
    assert retained(mosquitto.port) == {"old/device/dexcom2mqtt_x/config": "{}"}


@pytest.mark.parametrize("answer", [b"\x20\x02\x00\x01", b"\x20\x03\x00\x84\x00", b""])
def test_a_broker_without_mqtt_5(
    mosquitto: Mosquitto, purge: Callable[..., subprocess.CompletedProcess[str]], answer: bytes
) -> None:
    """A broker that refuses MQTT 5 or closes the connection is purged with 3.1.1."""
    fill(mosquitto, *left_by("anna"))
    with gatekeeper(mosquitto.port, answer) as (port, levels):
        assert purge(port=port).returncode == 0
        assert levels == [5, 4]
    assert retained(mosquitto.port) == {}


def test_no_more_at_once_than_the_broker_accepts(
    start_mosquitto: Callable[..., Mosquitto], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are never more unacknowledged messages than the broker's limit."""
    broker = start_mosquitto("allow_anonymous true", "max_inflight_messages 3")
    unanswered = []
    publish = Connection.publish

    def watched(connection: Connection, message: Message) -> None:
        publish(connection, message)
        unanswered.append(3 - connection.room)

    monkeypatch.setattr(Connection, "publish", watched)
    with Visit(Mqtt(host="127.0.0.1", port=broker.port), Clock(), "test") as visit:
        assert visit.publish(left_by("anna")) == []
    assert len(unanswered) == 23
    assert max(unanswered) == 3


def test_an_interruption_is_no_traceback(tmp_path: Path) -> None:
    """Ctrl-C while the broker does not answer ends it with one line."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        config = {
            "accounts": {"anna": {"username": "anna@example.com", "password": "hunter2"}},
            "mqtt": {"host": "127.0.0.1", "port": server.getsockname()[1], "client_id": CLIENT_ID},
        }
        file = write_config(tmp_path / "config.yaml", config)
        command = [sys.executable, "-m", "dexcom2mqtt", "purge", "--config", str(file)]
        with Process(command, tmp_path / "purge.log") as process:
            server.settimeout(10)
            connection, _ = server.accept()
            with connection:
                connection.recv(1)
                process.signal(signal.SIGINT)
                assert process.wait() == 1
            assert process.text() == "dexcom2mqtt: interrupted: some messages may be left; run purge again\n"


def test_denied_reading_is_reported(
    start_mosquitto: Callable[..., Mosquitto],
    purge: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """If access control returns nothing, that does not prove that nothing exists."""
    acl = tmp_path / "acl"
    acl.write_text("topic write #\n", encoding="utf-8")
    broker = start_mosquitto("allow_anonymous true", f"acl_file {acl}")
    done = purge(port=broker.port)
    assert done.returncode == 1
    assert "does not let the user of this daemon read and write all of its topics" in done.stderr


def test_no_broker(purge: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Without a broker it fails with the reason."""
    done = purge(port=free_port())
    assert done.returncode == 1
    assert "nothing listens there" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments", [("--account", "Anna"), ("--account", "bridge"), ("--base-topic", "a/#"), ("--discovery-prefix", "")]
)
def test_wrong_usage(purge: Callable[..., subprocess.CompletedProcess[str]], arguments: tuple[str, str]) -> None:
    """An invalid account or topic ends with 2, before anything is done."""
    assert purge(*arguments).returncode == 2


def test_its_client_id(mosquitto: Mosquitto, purge: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """It connects beside the daemon, with its own client id and without a will."""
    assert purge(client_id="bridge-1").returncode == 0
    connected = [line for line in mosquitto.log().splitlines() if "as bridge-1-purge" in line]
    assert len(connected) == 1
    assert "No will message specified." in mosquitto.log().split(connected[0])[1]


def test_accounts_in_retained_messages() -> None:
    """Accounts are found by the bridge's list, a status or a history, and by nothing less."""
    found = {message.topic: message.payload.encode() for message in left_by("ben", info=False)}
    assert accounts_in(found, Topics("dexcom2mqtt"), "homeassistant") == {"ben"}
    assert (
        accounts_in({topic: value.encode() for topic, value in FOREIGN.items()}, Topics("dexcom2mqtt"), "homeassistant")
        == set()
    )
    listed = {"dexcom2mqtt/bridge/info": json.dumps({"schema_version": 1, "accounts": ["carla"]}).encode()}
    assert accounts_in(listed, Topics("dexcom2mqtt"), "homeassistant") == {"carla"}
    strange = {f"dexcom2mqtt/{key}/history": found["dexcom2mqtt/ben/history"] for key in ("bridge", "Ben", "")}
    described = {message.topic: message.payload.encode() for message in left_by("dora") if "/device/" in message.topic}
    assert accounts_in(described, Topics("dexcom2mqtt"), "homeassistant") == {"dora"}
    assert accounts_in(strange, Topics("dexcom2mqtt"), "homeassistant") == set()
