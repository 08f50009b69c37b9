"""Accounts in a folder while the daemon runs: added, changed, broken and taken out, without touching the others."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any, Final

import pytest

from dexcom2mqtt.daemon import reloading
from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare, accelerated
from tests.support.processes import Mosquitto, Process, Subscriber, daemon, eventually, write_config

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

SPEED: Final = 120.0
KEYS: Final = ("anna", "ben", "carla")
PEOPLE: Final = {key: SimulatedAccount(f"{key}@example.com", f"of {key}", seed=n) for n, key in enumerate(KEYS)}


class World:
    """A daemon whose accounts are files, a broker, a subscriber, and the simulated Share service."""

    def __init__(self, stack: ExitStack, mosquitto: Mosquitto, folder: Path) -> None:
        self.stack = stack
        self.mosquitto = mosquitto
        self.folder = folder
        self.accounts = folder / "accounts"
        self.accounts.mkdir(mode=0o700)
        self.share = stack.enter_context(SimulatedShare(list(PEOPLE.values()), accelerated(SPEED)))
        self.subscriber = stack.enter_context(Subscriber(mosquitto.port))
        self.process: Process

    def write(self, key: str, **more: Any) -> None:
        """Write the file of an account, as a whole."""
        person = PEOPLE[key]
        account = {"username": person.username, "password": person.password, "share_url": self.share.base_url}
        new = write_config(self.folder / "new", account | more)
        new.rename(self.accounts / f"{key}.yaml")

    def start(self, *keys: str, look: float = 3600.0, **settings: Any) -> None:
        """Start the daemon with the files of these accounts; it looks at the folder again every ``look`` seconds."""
        for key in keys:
            self.write(key)
        config = {
            "accounts_dir": str(self.accounts),
            "mqtt": {"host": "127.0.0.1", "port": self.mosquitto.port},
            **settings,
        }
        file = write_config(self.folder / "config.yaml", config)
        self.process = self.stack.enter_context(daemon(file, self.folder / "daemon.log", speed=SPEED, LOOK=f"{look}"))
        for key in keys:
            self.online(key)

    def online(self, key: str) -> None:
        """Wait until an account has a current value."""
        self.subscriber.wait_for(f"dexcom2mqtt/{key}/availability", "online", 30)

    def look(self) -> None:
        """Tell the daemon to look at the folder."""
        self.process.signal(signal.SIGHUP)

    def sign_ins(self, key: str) -> int:
        """Return how many requests with the password of an account Share got."""
        return self.share.count(account=PEOPLE[key].username, password=True)

    def readings(self, key: str) -> list[int]:
        """Return the dates of an account's readings, as they were published."""
        return [json.loads(each)["date"] for each in self.subscriber.payloads(f"dexcom2mqtt/{key}/reading")]

    def next_reading(self, key: str) -> None:
        """Wait until a newer reading of an account is published."""
        known = max(self.readings(key), default=0)
        eventually(lambda: max(self.readings(key), default=0) > known, 30)

    def info(self) -> list[str]:
        """Return the accounts that the daemon says it serves."""
        keys: list[str] = json.loads(self.subscriber.latest()["dexcom2mqtt/bridge/info"])["accounts"]
        return keys


@pytest.fixture
def world(mosquitto: Mosquitto, stack: ExitStack, tmp_path: Path) -> World:
    """Return a world without a running daemon."""
    return World(stack, mosquitto, tmp_path)


def test_an_added_account_starts_without_touching_the_others(world: World) -> None:
    """It is read, discovered and named in the daemon's info; the others neither sign in again nor go offline."""
    world.start("anna")
    before = world.sign_ins("anna")
    world.subscriber.wait_for("dexcom2mqtt/bridge/state", "online")
    world.write("ben")
    world.look()
    world.online("ben")
    assert world.sign_ins("anna") == before
    assert "offline" not in world.subscriber.payloads("dexcom2mqtt/anna/availability")[1:]
    eventually(lambda: world.info() == ["anna", "ben"])
    discovery = json.loads(world.subscriber.latest()["homeassistant/device/dexcom2mqtt_ben/config"])
    assert discovery["dev"]["name"] == "Ben"
    assert "offline" not in world.subscriber.payloads("dexcom2mqtt/bridge/state")[1:]
    assert world.process.text().count("ben: newly configured") == 1


def test_the_folder_is_looked_at_once_a_minute(world: World) -> None:
    """Nobody has to tell the daemon."""
    assert reloading._EVERY == 60  # noqa: SLF001  # this test makes it shorter
    world.start("anna", look=1.0)
    world.write("ben")
    world.online("ben")


def test_an_account_that_is_taken_out_ends_and_is_cleared(world: World) -> None:
    """Everything it had at the broker is gone; a new file brings it back, with its readings of the last day."""
    world.start("anna", "ben")
    (world.accounts / "ben.yaml").unlink()
    world.look()
    ours = ("dexcom2mqtt/ben/", "homeassistant/device/dexcom2mqtt_ben/")

    def left() -> set[str]:
        latest = world.subscriber.latest()
        return {topic for topic in latest if topic.startswith(ours) and latest[topic] and "/reading" not in topic}

    eventually(lambda: not left())
    eventually(lambda: world.info() == ["anna"])
    asked = world.share.count(account=PEOPLE["ben"].username)
    world.subscriber.forget()
    eventually(lambda: len(world.readings("anna")) >= 2, 30)
    assert world.share.count(account=PEOPLE["ben"].username) == asked
    world.write("ben")
    world.look()
    world.online("ben")


def test_a_changed_account_restarts_without_repeats(world: World) -> None:
    """Its value is withdrawn until it is read again, and readings that were published are not published again."""
    world.start("anna", "ben")
    eventually(lambda: len(world.readings("anna")) > 280, 30)
    world.write("anna", unit="mmol/L", name="Anna Maria")
    world.look()
    state = "dexcom2mqtt/anna/state"
    eventually(lambda: json.loads(world.subscriber.latest()[state])["unit"] == "mmol/L", 30)
    world.online("anna")
    assert json.loads(world.subscriber.latest()[state])["value"] < 30
    units = [json.loads(payload) for payload in world.subscriber.payloads(state)]
    changed = [each["value"] for each in units if each["unit"] == "mmol/L"]
    assert changed[0] is None
    assert len(world.readings("anna")) == len(set(world.readings("anna")))
    assert "Anna Maria" in world.subscriber.latest()["homeassistant/device/dexcom2mqtt_anna/config"]
    assert world.sign_ins("ben") == 2


@pytest.mark.parametrize("text", ["password: [", "username: x\nregion: mars\n"])
def test_a_file_that_becomes_broken_changes_nothing(world: World, text: str) -> None:
    """The account goes on as it was; one line names the file, once. When it is mended, nothing happens either."""
    world.start("anna", "ben")
    (world.accounts / "ben.yaml").write_text(text)
    for _ in range(3):
        world.look()
        world.next_reading("ben")
    assert world.process.text().count("nothing changes for this account") == 1
    world.write("ben")
    world.look()
    eventually(lambda: world.process.text().count("accounts_dir: everything in it can be used again") == 1)
    world.next_reading("ben")
    assert world.sign_ins("ben") == 2
    assert world.info() == ["anna", "ben"]


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_a_folder_without_accounts_changes_nothing(world: World, how: str) -> None:
    """A folder that is not mounted for a moment costs nobody an account."""
    world.start("anna")
    if how == "gone":
        world.accounts.rename(world.folder / "elsewhere")
    else:
        (world.accounts / "anna.yaml").unlink()
    for _ in range(2):
        world.look()
        world.next_reading("anna")
    assert world.process.text().count("the accounts stay as they are") == 1
    assert "" not in world.subscriber.payloads("dexcom2mqtt/anna/state")


def test_a_person_is_not_read_twice(world: World) -> None:
    """A new file with the person of an account that runs is left out, also if it comes first in the alphabet."""
    world.start("ben")
    person = PEOPLE["ben"]
    same = {"username": person.username.upper(), "password": person.password, "share_url": world.share.base_url}
    write_config(world.accounts / "aaron.yaml", same)
    world.look()
    eventually(lambda: "the same person" in world.process.text())
    world.next_reading("ben")
    assert world.sign_ins("ben") == 2
    assert world.info() == ["ben"]


def test_accounts_beside_the_folder_stay(world: World) -> None:
    """Accounts in the configuration file and in the folder run side by side."""
    person = PEOPLE["carla"]
    carla = {"username": person.username, "password": person.password, "share_url": world.share.base_url}
    world.start("anna", accounts={"carla": carla})
    world.online("carla")
    (world.accounts / "anna.yaml").unlink()
    world.write("ben")
    world.look()
    world.online("ben")
    eventually(lambda: world.info() == ["carla", "ben"])
    assert world.sign_ins("carla") == 2
