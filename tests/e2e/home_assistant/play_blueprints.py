"""The blueprints played through in a real Home Assistant, whose clock is moved by hand.

`test_home_assistant.py` runs this there, with the tests' fixtures of Home Assistant itself: its MQTT integration gets what
the daemon publishes, and its mobile_app integration posts to two phones, whose push service is all that is pretended.
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
from homeassistant.helpers import device_registry as dr
from homeassistant.setup import async_setup_component
from homeassistant.util import dt as dt_util
from pytest_homeassistant_custom_component.common import (
    MockConfigEntry,
    async_fire_mqtt_message,
    async_fire_time_changed,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from freezegun.api import FrozenDateTimeFactory
    from homeassistant.core import HomeAssistant
    from pytest_homeassistant_custom_component.test_util.aiohttp import AiohttpClientMocker
    from pytest_homeassistant_custom_component.typing import MqttMockHAClient

# Of Home Assistant's voice, which mobile_app imports and nothing here uses: they want a compiler.
for name, attribute in (("pymicro_vad", "MicroVad"), ("pyspeex_noise", "AudioProcessor")):
    sys.modules[name] = ModuleType(name)
    setattr(sys.modules[name], attribute, object)

ROOT = Path(__file__).parents[3]
BLUEPRINTS = ROOT / "examples" / "home-assistant" / "blueprints"
DISCOVERY = ROOT / "tests" / "messages" / "golden" / "discovery.json"
PUSH = "https://push.example.com/send"
GLUCOSE = "sensor.anna_glucose_value"
MISSING = "binary_sensor.anna_readings_missing"
PHONES = ("Mum's phone", "Großvater")
ROUND = 20  # seconds by which the clock moves
RANGES = ((54, "very_low"), (70, "low"), (181, "in_range"), (251, "high"))


class Home:
    """A Home Assistant with one person's glucose and two phones."""

    def __init__(self, hass: HomeAssistant, freezer: FrozenDateTimeFactory, push: AiohttpClientMocker) -> None:
        self.hass = hass
        self._freezer = freezer
        self._push = push
        self._told = 0
        self.automations: list[dict[str, Any]] = []

    async def settle(self) -> None:
        """Let everything run until it waits; an alert never ends by itself, so there is no end to wait for."""
        for _ in range(300):
            await asyncio.sleep(0)

    async def publish(self, topic: str, payload: str) -> None:
        """Publish as the daemon does."""
        async_fire_mqtt_message(self.hass, f"dexcom2mqtt/{topic}", payload)
        await self.settle()

    async def reading(self, value: int, trend: str = "steady", **other: Any) -> None:
        """Publish a reading that has just been taken."""
        state = {
            "value": value,
            "unit": "mg/dL",
            "range": next((name for limit, name in RANGES if value < limit), "very_high"),
            "trend": trend,
            "description": trend.replace("_", " "),
            "out_of_range": None,
            "measurement_timestamp": dt_util.utcnow().isoformat(),
        }
        await self.publish("anna/state", json.dumps(state | other))
        await self.publish("anna/availability", "online")

    async def stale(self) -> None:
        """Take the value back, as the daemon does when the newest reading has grown old."""
        await self.publish("anna/availability", "offline")
        await self.publish("anna/state", json.dumps(dict.fromkeys(("value", "range", "trend"))))

    async def automate(self, blueprint: str, **inputs: Any) -> None:
        """Make an automation of a blueprint, as the form does, and reload."""
        entity = {"missing": MISSING} if blueprint == "glucose_missing" else {"glucose": GLUCOSE}
        used = {"path": f"dexcom2mqtt/{blueprint}.yaml", "input": {"phones": self.phones(), **entity, **inputs}}
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

    def told(self) -> list[dict[str, Any]]:
        """Return what was sent to the phones since this was asked last."""
        calls = [call[2] for call in self._push.mock_calls]
        told, self._told = calls[self._told :], len(calls)
        return told

    def rang(self) -> list[tuple[str, str]]:
        """Return who was told what since this was asked last: the phone, and the title or "cleared"."""
        return [
            (call["push_token"], "cleared" if call["message"] == "clear_notification" else call["title"])
            for call in self.told()
        ]

    async def press(self, told: Mapping[str, Any], title: str) -> None:
        """Press a button of a notification, as the app reports it."""
        (action,) = [one["action"] for one in told["data"]["actions"] if one["title"].startswith(title)]
        self.hass.bus.async_fire("mobile_app_notification_action", {"action": action})
        await self.settle()


def on_both(text: str) -> list[tuple[str, str]]:
    """Return what `rang` says when both phones are told the same."""
    return [(name, text) for name in PHONES]


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
    limits = {"successful": 1, "errors": 0, "maximum": 500, "resetsAt": "2026-01-16T00:00:00.000Z"}
    aioclient_mock.post(PUSH, json={"rateLimits": limits}, status=201)
    assert await async_setup_component(hass, "mobile_app", {})
    for name in PHONES:
        await add_phone(hass, name)
    assert await async_setup_component(hass, AUTOMATION, {AUTOMATION: []})
    discovery = json.loads(DISCOVERY.read_text(encoding="utf-8"))["mg/dL"]
    async_fire_mqtt_message(hass, discovery.pop("topic"), json.dumps(discovery))
    await hass.async_block_till_done()
    home = Home(hass, freezer, aioclient_mock)
    await home.publish("bridge/state", "online")
    await home.reading(100)
    assert hass.states.get(GLUCOSE).state == "100"
    return home


async def test_low(home: Home) -> None:
    await home.automate("glucose_low")
    await home.later(10)
    assert home.rang() == []
    await home.reading(65, "falling")
    print(home.hass.states.get(GLUCOSE)); print(home.hass.states.get("automation.anna")); print(home.hass.services.async_services()["notify"].keys())
    print(home.told())
    await home.later(5)
    print(home.rang())
