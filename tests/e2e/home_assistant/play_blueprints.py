"""The blueprints played through in a real Home Assistant, whose clock is moved by hand.

`test_home_assistant.py` runs this there, with the fixtures of Home Assistant's own tests. Its MQTT integration gets
the daemon's messages without a broker; its mobile_app integration posts to a simulated push service of two phones.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from homeassistant.components.automation import DOMAIN as AUTOMATION
from homeassistant.config_entries import ConfigEntryDisabler
from homeassistant.helpers import device_registry as dr
from homeassistant.setup import async_setup_component
from homeassistant.util import dt as dt_util
from pytest_homeassistant_custom_component.common import (
    MockConfigEntry,
    async_fire_mqtt_message,
    async_fire_time_changed,
)
from pytest_homeassistant_custom_component.test_util.aiohttp import AiohttpClientMockResponse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from freezegun.api import FrozenDateTimeFactory
    from homeassistant.core import HomeAssistant
    from pytest_homeassistant_custom_component.test_util.aiohttp import AiohttpClientMocker
    from pytest_homeassistant_custom_component.typing import MqttMockHAClient
    from yarl import URL

# Of Home Assistant's voice, which mobile_app imports and nothing here uses: they want a compiler.
for name, attribute in (("pymicro_vad", "MicroVad"), ("pyspeex_noise", "AudioProcessor")):
    sys.modules[name] = ModuleType(name)
    setattr(sys.modules[name], attribute, object)

ROOT = Path(__file__).parents[3]
BLUEPRINTS = ROOT / "examples" / "home-assistant" / "blueprints"
DISCOVERY = ROOT / "tests" / "messages" / "golden" / "discovery.json"
PUSH = "https://push.example.com/send"
PUSHED = {"rateLimits": {"successful": 1, "errors": 0, "maximum": 500, "resetsAt": "2026-01-16T00:00:00.000Z"}}
GLUCOSE = "sensor.anna_glucose_value"
MISSING = "binary_sensor.anna_readings_missing"
PHONES = ("Mum's phone", "Großvater")
ROUND = 20  # seconds by which the clock moves
RANGES = ((54, "very_low"), (70, "low"), (181, "in_range"), (251, "high"))


class Home:
    """A Home Assistant with one person's glucose and two phones."""

    def __init__(
        self, hass: HomeAssistant, mqtt: MqttMockHAClient, push: AiohttpClientMocker, freezer: FrozenDateTimeFactory
    ) -> None:
        self.hass = hass
        self._mqtt = mqtt
        self._freezer = freezer
        self._push = push
        self._seen_calls = 0
        self.automations: list[dict[str, Any]] = []

    async def settle(self) -> None:
        """Let everything run until it waits; an alert never ends by itself, so do not wait for its end."""
        for _ in range(300):
            await asyncio.sleep(0)

    async def publish(self, topic: str, payload: str) -> None:
        """Publish as the daemon does."""
        async_fire_mqtt_message(self.hass, f"dexcom2mqtt/{topic}", payload)
        await self.settle()

    async def reading(self, value: int, trend: str | None = "steady", **other: Any) -> None:
        """Publish a reading that has just been taken."""
        state = {
            "value": value,
            "unit": "mg/dL",
            "range": next((name for limit, name in RANGES if value < limit), "very_high"),
            "trend": trend,
            "description": trend and trend.replace("_", " "),
            "out_of_range": None,
            "measurement_timestamp": dt_util.utcnow().isoformat(),
            "date": int(dt_util.utcnow().timestamp() * 1000),
        }
        await self.publish("anna/state", json.dumps(state | other))
        await self.publish("anna/availability", "online")

    async def stays(self, value: int, minutes: int, trend: str = "steady") -> None:
        """Publish a reading every five minutes, for so long."""
        for minute in range(minutes):
            if minute % 5 == 0:
                await self.reading(value, trend)
            await self.later(1)

    async def stale(self) -> None:
        """Withdraw the value, as the daemon does when the newest reading becomes stale."""
        await self.publish("anna/availability", "offline")
        await self.publish("anna/state", json.dumps(dict.fromkeys(("value", "range", "trend"))))

    async def automate(self, blueprint: str, **inputs: Any) -> None:
        """Make an automation from a blueprint, as the form does, and reload."""
        given: dict[str, Any] = {"missing": MISSING} if blueprint == "glucose_missing" else {"glucose": GLUCOSE}
        if blueprint != "awtrix_clock":
            given["phones"] = self.phones()
        used = {"path": f"dexcom2mqtt/{blueprint}.yaml", "input": given | inputs}
        self.automations = [{"id": blueprint, "alias": "Anna", "use_blueprint": used}]
        await self.reload()
        assert self.hass.states.get("automation.anna").state == "on"

    def phones(self) -> list[str]:
        """Return the phones' ids, as the form's selector does."""
        devices, entries = dr.async_get(self.hass), self.hass.config_entries.async_entries("mobile_app")
        return [device.id for entry in entries for device in dr.async_entries_for_config_entry(devices, entry.entry_id)]

    async def reload(self) -> None:
        """Read the automations again, as the button of the developer tools does."""
        with patch("homeassistant.config.load_yaml_config_file", return_value={AUTOMATION: self.automations}):
            await self.hass.services.async_call(AUTOMATION, "reload", blocking=True)
        await self.settle()

    async def later(self, minutes: float) -> None:
        """Move the clock."""
        for _ in range(int(minutes * 60 / ROUND)):
            self._freezer.tick(timedelta(seconds=ROUND))
            async_fire_time_changed(self.hass)
            await self.settle()

    def hang_at(self, phone: str) -> asyncio.Event:
        """Let what is pushed to a phone from now on hang until the event is set."""
        reached = asyncio.Event()

        async def answer(_method: str, url: URL, data: Mapping[str, Any]) -> AiohttpClientMockResponse:
            if data["push_token"] == phone:
                await reached.wait()
            return AiohttpClientMockResponse("post", url, json=PUSHED, status=201)

        self._push.clear_requests()
        self._seen_calls = 0
        self._push.post(PUSH, side_effect=answer)
        return reached

    def shown(self) -> list[dict[str, Any] | None]:
        """Return the messages to the clock since the last call; None if its app was removed."""
        calls = [call.args for call in self._mqtt.async_publish.call_args_list]
        self._mqtt.async_publish.reset_mock()
        assert {(topic, retain) for topic, _, _, retain, *_ in calls} <= {("awtrix_1/custom/glucose_anna", False)}
        return [json.loads(payload) if payload else None for _, payload, *_ in calls]

    def notifications(self) -> list[dict[str, Any]]:
        """Return the notifications to the phones since the last call."""
        calls = [call[2] for call in self._push.mock_calls]
        notifications, self._seen_calls = calls[self._seen_calls :], len(calls)
        return notifications

    def rang(self) -> list[tuple[str, str]]:
        """Return the phones notified since the last call, each with the title or "cleared"."""
        return [
            (call["push_token"], "cleared" if call["message"] == "clear_notification" else call["title"])
            for call in self.notifications()
        ]

    async def press(self, notification: Mapping[str, Any], title: str) -> None:
        """Press a button of a notification, as the app reports it."""
        (action,) = [one["action"] for one in notification["data"]["actions"] if one["title"].startswith(title)]
        self.hass.bus.async_fire("mobile_app_notification_action", {"action": action})
        await self.settle()


def on_both(text: str) -> list[tuple[str, str]]:
    """Return what `rang` returns when both phones are notified."""
    return [(name, text) for name in PHONES]


ARROWS = {
    "rising_quickly": ((24, 1, 24, 7), (24, 1, 22, 3), (24, 1, 26, 3), (29, 1, 29, 7), (29, 1, 27, 3), (29, 1, 31, 3)),
    "rising_slightly": ((25, 7, 31, 1), (31, 1, 27, 1), (31, 1, 31, 5)),
    "steady": ((25, 4, 31, 4), (31, 4, 29, 2), (31, 4, 29, 6)),
    "falling": ((28, 1, 28, 7), (28, 7, 26, 5), (28, 7, 30, 5)),
    "falling_quickly": ((24, 1, 24, 7), (24, 7, 22, 5), (24, 7, 26, 5), (29, 1, 29, 7), (29, 7, 27, 5), (29, 7, 31, 5)),
}
CLEARED = on_both("cleared")
LOW = on_both("Anna: glucose is low")
VERY_LOW = on_both("Anna: glucose is very low")
HIGH = on_both("Anna: glucose is high")
GONE = on_both("Anna: no glucose readings")


async def add_phone(hass: HomeAssistant, name: str) -> MockConfigEntry:
    entry = MockConfigEntry(
        domain="mobile_app",
        title=name,
        data={
            "app_data": {"push_token": name, "push_url": PUSH},
            "app_id": "io.robbie.HomeAssistant",
            "app_name": "Home Assistant",
            "app_version": "2025.10",
            "device_id": name,
            "device_name": name,
            "manufacturer": "Apple",
            "model": "iPhone",
            "os_name": "iOS",
            "os_version": "18",
            "supports_encryption": False,
            "user_id": "somebody",
            "webhook_id": f"hook-{name}",
        },
    )
    entry.add_to_hass(hass)
    assert await hass.config_entries.async_setup(entry.entry_id)
    await hass.async_block_till_done()
    return entry


@pytest.fixture
def expected_lingering_timers() -> bool:
    """Let a trigger that checks the clock finish: Home Assistant stops it a moment after that."""
    return True


@pytest.fixture
async def home(
    hass: HomeAssistant,
    mqtt_mock: MqttMockHAClient,
    aioclient_mock: AiohttpClientMocker,
    freezer: FrozenDateTimeFactory,
    tmp_path: Path,
) -> Home:
    freezer.move_to("2026-01-15T12:01:30+00:00")
    hass.config.config_dir = str(tmp_path)
    await hass.config.async_set_time_zone("UTC")
    shutil.copytree(BLUEPRINTS, tmp_path / "blueprints" / "automation" / "dexcom2mqtt")
    aioclient_mock.post(PUSH, json=PUSHED, status=201)
    assert await async_setup_component(hass, "mobile_app", {})
    for name in PHONES:
        await add_phone(hass, name)
    assert await async_setup_component(hass, AUTOMATION, {AUTOMATION: []})
    discovery = json.loads(DISCOVERY.read_text(encoding="utf-8"))["mg/dL"]
    async_fire_mqtt_message(hass, discovery.pop("topic"), json.dumps(discovery))
    await hass.async_block_till_done()
    home = Home(hass, mqtt_mock, aioclient_mock, freezer)
    await home.publish("bridge/state", "online")
    await home.reading(100)
    assert hass.states.get(GLUCOSE).state == "100"
    return home


# --- low -----------------------------------------------------------------------------------------------------


async def test_low_rings_until_it_is_acknowledged_on_one_phone(home: Home) -> None:
    """It rings at once and again on both phones, and a button on one of them clears and silences both."""
    await home.automate("glucose_low")
    await home.stays(70, 20)
    assert home.rang() == []
    await home.reading(65, "falling")
    first, second = home.notifications()
    assert (first["title"], first["message"]) == ("Anna: glucose is low", "65 mg/dL, falling")
    assert first["data"] == second["data"]
    assert first["data"].keys() == {"tag", "actions", "ttl", "priority", "channel", "push"}
    assert (first["data"]["ttl"], first["data"]["priority"], first["data"]["channel"]) == (0, "high", "alarm_stream")
    assert first["data"]["push"] == {"sound": {"name": "default", "critical": 1, "volume": 1.0}}
    await home.stays(64, 4)
    assert home.rang() == []
    await home.stays(64, 1)
    assert home.rang() == LOW
    await home.press(second, "Acknowledge")
    assert home.rang() == CLEARED
    await home.stays(64, 60)
    assert home.rang() == []
    await home.reading(75)
    await home.stays(75, 10)
    await home.reading(69)
    assert home.rang() == LOW


async def test_very_low_rings_whatever_was_pressed(home: Home) -> None:
    """A low that was snoozed or acknowledged does not suppress very low, not even the second time."""
    await home.automate("glucose_low")
    await home.reading(65)
    await home.press(home.notifications()[0], "Snooze")
    assert home.rang() == CLEARED
    await home.stays(60, 5)
    await home.reading(53, "falling_quickly")
    notifications = home.notifications()
    assert [(call["push_token"], call["title"]) for call in notifications] == VERY_LOW
    await home.press(notifications[1], "Acknowledge")
    assert home.rang() == CLEARED
    await home.stays(52, 20)
    await home.stays(60, 20)
    assert home.rang() == []
    await home.reading(50)
    assert home.rang() == VERY_LOW
    await home.stays(60, 5)
    assert home.rang() == LOW


async def test_a_snoozed_low_rings_again(home: Home) -> None:
    """If the glucose is still low after the snooze, it rings again, and the same buttons work."""
    await home.automate("glucose_low", snooze=20)
    await home.reading(65)
    notifications = home.notifications()
    assert [action["title"] for action in notifications[0]["data"]["actions"]] == ["Acknowledge", "Snooze 20 min"]
    await home.press(notifications[0], "Snooze")
    assert home.rang() == CLEARED
    await home.stays(65, 19)
    assert home.rang() == []
    await home.stays(65, 1)
    assert home.rang() == LOW
    await home.press(notifications[0], "Acknowledge")
    assert home.rang() == CLEARED


async def test_a_better_reading_clears_but_does_not_forget(home: Home) -> None:
    """In range the phones are cleared at once; a low one reading later is the same alert, and stays acknowledged."""
    await home.automate("glucose_low")
    await home.reading(69)
    notifications = home.notifications()
    await home.reading(71)
    assert home.rang() == CLEARED
    await home.stays(71, 5)
    await home.reading(69)
    assert home.rang() == LOW
    await home.press(notifications[0], "Acknowledge")
    assert home.rang() == CLEARED
    await home.stays(71, 5)
    await home.stays(69, 30)
    assert home.rang() == []


async def test_low_never_rings_with_a_stale_value(home: Home) -> None:
    """Once the value is gone it is cleared and silent, and a low that returns later is a new alert."""
    await home.automate("glucose_low")
    await home.reading(65)
    notifications = home.notifications()
    await home.stale()
    assert home.hass.states.get(GLUCOSE).state == "unavailable"
    assert home.rang() == CLEARED
    await home.later(60)
    assert home.rang() == []
    await home.reading(64)
    again = home.notifications()
    assert [(call["push_token"], call["title"]) for call in again] == LOW
    assert again[0]["data"]["actions"] != notifications[0]["data"]["actions"]
    await home.publish("bridge/state", "offline")
    assert home.rang() == CLEARED
    await home.publish("bridge/state", "online")
    await home.later(10)
    assert [call["message"] for call in home.notifications()][:2] == ["64 mg/dL, steady"] * 2
    await home.later(20)
    assert home.rang()[-2:] == CLEARED, "nothing came any more, and expire_after took the value back"


async def test_low_rings_again_after_a_restart(home: Home) -> None:
    """An automation that starts during a low already rings; buttons of an earlier run have no effect."""
    await home.automate("glucose_low")
    await home.reading(65)
    notifications = home.notifications()
    await home.press(notifications[0], "Acknowledge")
    await home.reload()
    await home.stays(65, 15)
    assert home.rang() == CLEARED, "nothing changed, so the run went on"
    home.automations[0]["description"] = "changed"
    await home.reload()
    await home.stays(65, 5)
    again = home.notifications()
    assert [(call["push_token"], call["title"]) for call in again[:2]] == LOW
    assert again[0]["data"]["tag"] == notifications[0]["data"]["tag"]
    await home.press(notifications[0], "Acknowledge")
    assert home.rang() == []
    await home.press(again[0], "Acknowledge")
    assert home.rang() == CLEARED


async def test_low_only_while_falling(home: Home) -> None:
    """Low waits for a falling trend, very low waits for nothing, and a started alert continues."""
    await home.automate("glucose_low", falling=True)
    await home.stays(65, 10)
    await home.reading(65, "rising_slightly")
    assert home.rang() == []
    await home.reading(64, "falling_slightly")
    assert home.rang() == LOW
    await home.stays(64, 5)
    assert home.rang() == LOW
    await home.stays(80, 10)
    assert home.rang() == CLEARED
    await home.reading(39, out_of_range="low", description=None)
    assert [call["message"] for call in home.notifications()] == ["LOW, no trend"] * 2


async def test_not_critical(home: Home) -> None:
    """Without the switch a notification is an ordinary one."""
    await home.automate("glucose_low", critical=False)
    await home.reading(65)
    assert [call["data"].keys() for call in home.notifications()] == [{"tag", "actions"}] * 2


@pytest.mark.parametrize("how", ["removed", "disabled"])
async def test_a_phone_that_is_gone_does_not_silence_the_other(home: Home, how: str) -> None:
    """A phone that was removed or disabled is left out."""
    await home.automate("glucose_low")
    entries = home.hass.config_entries
    gone = entries.async_entries("mobile_app")[0].entry_id
    if how == "removed":
        await entries.async_remove(gone)
    else:
        await entries.async_set_disabled_by(gone, ConfigEntryDisabler.USER)
    await home.reading(65)
    assert home.rang() == LOW[1:]
    await home.stays(65, 5)
    assert home.rang() == LOW[1:]


async def test_a_button_counts_while_another_phone_cannot_be_reached(home: Home) -> None:
    """A press on the first phone is heard although the push to the second one still hangs."""
    await home.automate("glucose_low")
    reached = home.hang_at(PHONES[1])
    await home.reading(65)
    notifications = home.notifications()
    assert [call["push_token"] for call in notifications] == [*PHONES]
    await home.press(notifications[0], "Acknowledge")
    assert home.rang() == []
    reached.set()
    await home.settle()
    assert home.rang() == CLEARED
    await home.stays(65, 20)
    assert home.rang() == []


@pytest.mark.parametrize("blueprint", ["glucose_low", "glucose_high", "glucose_missing"])
async def test_run_by_hand_it_is_a_test(home: Home, blueprint: str) -> None:
    """*Run actions* reaches the phones once, and its button clears them."""
    await home.automate(blueprint)
    await home.hass.services.async_call(AUTOMATION, "trigger", {"entity_id": "automation.anna"})
    await home.settle()
    notifications = home.notifications()
    assert [(call["push_token"], call["title"]) for call in notifications] == on_both("Anna: this is a test")
    await home.press(notifications[0], "Acknowledge")
    await home.stays(100, 10)
    assert home.rang() == CLEARED
    assert home.hass.states.get("automation.anna").attributes["current"] == 0


# --- high ----------------------------------------------------------------------------------------------------


async def test_high_rings_after_its_time(home: Home) -> None:
    """It rings after it has been high for the configured time; one reading below does not start that time over."""
    await home.automate("glucose_high", minutes=30)
    await home.stays(200, 15)
    await home.stays(180, 5)
    await home.stays(190, 9)
    assert home.rang() == []
    await home.stays(260, 1, "rising")
    notifications = home.notifications()
    assert [(call["push_token"], call["title"]) for call in notifications] == on_both("Anna: glucose is very high")
    assert notifications[0]["message"] == "260 mg/dL, rising"
    assert notifications[0]["data"].keys() == {"tag", "actions"}
    await home.stays(250, 30)
    assert home.rang() == HIGH
    await home.press(notifications[1], "Snooze 60")
    await home.stays(250, 59)
    assert home.rang() == CLEARED
    await home.stays(250, 1)
    assert home.rang() == HIGH
    await home.reading(150)
    assert home.rang() == CLEARED
    await home.stays(150, 10)
    await home.stays(200, 29)
    assert home.rang() == []


async def test_very_high_alone(home: Home) -> None:
    """If high alone should not alert, only very high counts."""
    await home.automate("glucose_high", minutes=0, very_high=True)
    await home.stays(250, 20)
    assert home.rang() == []
    await home.reading(401, out_of_range="high")
    assert [call["message"] for call in home.notifications()] == ["HIGH, steady"] * 2


async def test_quiet_hours(home: Home) -> None:
    """Nothing rings in quiet hours; an alert that still applies when they end rings then."""
    await home.automate("glucose_high", minutes=0, quiet_from="12:30:00", quiet_to="14:00:00")
    await home.stays(200, 70)
    assert home.rang() == HIGH, "at 12:01, and not again at 12:31"
    await home.stays(200, 47)
    assert home.rang() == []
    await home.stays(200, 3)
    assert home.rang() == HIGH


# --- missing -------------------------------------------------------------------------------------------------


async def test_missing_readings_ring_after_their_time(home: Home) -> None:
    """It says what Share's status says, repeats, and is cleared when readings are back."""
    await home.automate("glucose_missing")
    status = {"share": "no_readings", "message": "Look at the phone.", "since": None}
    await home.publish("anna/status", json.dumps(status))
    await home.stale()
    await home.later(9)
    assert home.rang() == []
    await home.later(1)
    notifications = home.notifications()
    assert [(call["push_token"], call["title"]) for call in notifications] == GONE
    assert notifications[0]["message"] == "Look at the phone."
    await home.later(30)
    assert home.rang() == GONE
    await home.press(notifications[0], "Acknowledge")
    await home.later(120)
    assert home.rang() == CLEARED
    await home.stays(100, 10)
    await home.stale()
    await home.later(10)
    assert home.rang() == GONE
    await home.reading(100)
    assert home.rang() == CLEARED


async def test_a_daemon_that_is_gone_rings(home: Home) -> None:
    """If daemon or broker are gone, nobody knows whether readings are missing; their restart is not an alert."""
    await home.automate("glucose_missing")
    await home.publish("bridge/state", "offline")
    await home.later(5)
    await home.publish("bridge/state", "online")
    await home.stays(100, 20)
    assert home.rang() == []
    await home.publish("bridge/state", "offline")
    await home.later(10)
    assert [call["message"] for call in home.notifications()] == ["dexcom2mqtt or its broker is down."] * 2


async def test_missing_rings_again_after_a_restart(home: Home) -> None:
    """An automation that starts while readings are missing already rings when its time is over."""
    await home.stale()
    await home.automate("glucose_missing", quiet_from="22:00:00", quiet_to="07:00:00")
    await home.later(15)
    assert home.rang() == GONE


# --- the clock -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reading", "text", "colour"),
    [
        ({"value": 53, "trend": "falling_quickly"}, "53", "#FF0000"),
        ({"value": 69, "trend": "falling"}, "69", "#FF0000"),
        ({"value": 112, "trend": "rising_slightly"}, "112", "#00FF00"),
        ({"value": 181, "trend": "steady"}, "181", "#FFB000"),
        ({"value": 401, "trend": "rising_quickly", "out_of_range": "high"}, "HIGH", "#FFB000"),
        ({"value": 39, "trend": None, "description": None, "out_of_range": "low"}, "LOW", "#FF0000"),
    ],
)
async def test_the_clock_shows_a_reading(home: Home, reading: dict[str, Any], text: str, colour: str) -> None:
    """It shows the number and an arrow in the colour of the range, as long as the reading is current."""
    await home.automate("awtrix_clock", prefix="awtrix_1")
    await home.reading(**reading)
    shown = home.shown()[-1]
    assert shown is not None
    arrow = [{"dl": [*line, colour]} for line in ARROWS.get(reading["trend"], [])]
    assert shown == {"text": text, "color": colour, "center": False, "draw": arrow, "lifetime": 900}


async def test_the_clock_never_keeps_an_old_reading(home: Home) -> None:
    """A late reading is shown for the rest of its time, and a stale one is removed."""
    await home.automate("awtrix_clock", prefix="awtrix_1")
    old = int(dt_util.utcnow().timestamp() * 1000) - 200_500
    await home.reading(100, date=old)
    assert {shown["lifetime"] if shown else None for shown in home.shown()} == {699}
    await home.reading(101, date=old + 600_000)
    assert {shown["lifetime"] if shown else None for shown in home.shown()} == {900}
    await home.stale()
    assert home.shown()[-1] is None
    await home.reading(102)
    assert home.shown()[-1] is not None
    await home.publish("bridge/state", "offline")
    assert home.shown() == [None]
    await home.publish("bridge/state", "online")
    await home.reading(103, date=old - 1_000_000)
    assert home.shown()[-1] is None, "a lifetime of 0 would mean forever"
