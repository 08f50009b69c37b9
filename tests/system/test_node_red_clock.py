"""The flow for a clock of examples/node-red in a real Node-RED, with a real mosquitto and the real daemon."""

from __future__ import annotations

import json
import signal
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.processes import ROOT, Subscriber, eventually
from tests.system.test_delivery import make_system, retain, system
from tests.system.test_node_red import node_red, plain_flow, started

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.processes import Mosquitto
    from tests.system.test_delivery import System
    from tests.system.test_node_red import NodeRed

__all__ = ["make_system", "node_red", "started", "system"]  # the fixtures

FLOW = ROOT / "examples" / "node-red" / "awtrix.json"
APP = "awtrix_1/custom/glucose_anna"
WIDTH, HEIGHT = 32, 8  # pixels of the clock
TEXT_ENDS = 20  # the end of the widest text, HIGH or 22.2


class Clock:
    """What the clock receives, and a publisher that replaces the daemon."""

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber

    @property
    def sent(self) -> list[str]:
        """Every message for its app, in order; empty ones remove it."""
        return [heard.payload for heard in self._subscriber.heard if heard.topic == APP]

    def shows(self) -> dict[str, Any] | None:
        """Return what it shows after the last message."""
        sent = self.sent
        return json.loads(sent[-1]) if sent and sent[-1] else None

    def publish(self, leaf: str, payload: str) -> None:
        retain(self._subscriber, f"dexcom2mqtt/{leaf}", payload)

    def online(self, *, bridge: str = "online", availability: str = "online") -> None:
        self.publish("bridge/state", bridge)
        self.publish("anna/availability", availability)

    def state(self, *, age: float = 0, **keys: Any) -> None:
        """Publish a reading that is some seconds old."""
        date = int((time.time() - age) * 1000)
        state = {"value": 112, "unit": "mg/dL", "trend": "steady", "range": "in_range", "out_of_range": None}
        self.publish("anna/state", json.dumps(state | {"date": date} | keys))


@pytest.fixture
def clock(mosquitto: Mosquitto, node_red: NodeRed) -> Iterator[Clock]:
    flow = json.loads(FLOW.read_text(encoding="utf-8"))
    by_id = {node["id"]: node for node in flow}
    by_id["awtrix-broker"]["port"] = str(mosquitto.port)
    (prefix,) = [given for given in by_id["awtrix"]["env"] if given["name"] == "PREFIX"]
    prefix["value"] = "awtrix_1"
    with Subscriber(mosquitto.port) as subscriber:
        node_red.import_flow(flow)
        eventually(lambda: "Connected to broker" in node_red.log(), why=node_red.process.text())
        yield Clock(subscriber)


def test_the_flow_needs_nothing_but_node_red(node_red: NodeRed, clock: Clock) -> None:
    """Node-RED includes every node, every wire leads to one, and nothing is retained."""
    flow = plain_flow(node_red, FLOW)
    assert clock.sent == []
    assert [node["retain"] for node in flow if node["type"] == "mqtt out"] == ["false"]


def test_the_clock_shows_what_the_daemon_publishes(clock: Clock, mosquitto: Mosquitto, system: System) -> None:
    """Each reading arrives with the time it has left, and the last will removes the app."""
    subscriber = system.subscribe(mosquitto)
    daemon = system.start(mosquitto.port)
    eventually(lambda: clock.shows() is not None)

    def agrees() -> bool:
        state = json.loads(subscriber.latest()["dexcom2mqtt/anna/state"])
        shown = clock.shows()
        return shown is not None and shown["text"] == str(state["value"]) and 1 <= shown["lifetime"] <= 900

    eventually(agrees)
    first = subscriber.latest()["dexcom2mqtt/anna/state"]
    eventually(lambda: subscriber.latest()["dexcom2mqtt/anna/state"] != first)
    eventually(agrees)
    daemon.signal(signal.SIGKILL)
    eventually(lambda: clock.sent[-1] == "")


@pytest.mark.parametrize(
    ("state", "text", "color"),
    [
        ({"value": 53, "range": "very_low"}, "53", "#FF0000"),
        ({"value": 69, "range": "low"}, "69", "#FF0000"),
        ({"value": 112, "range": "in_range"}, "112", "#00FF00"),
        ({"value": 4.0, "unit": "mmol/L"}, "4.0", "#00FF00"),
        ({"value": 181, "range": "high"}, "181", "#FFB000"),
        ({"value": 401, "range": "very_high", "out_of_range": "high"}, "HIGH", "#FFB000"),
        ({"value": 39, "range": "very_low", "out_of_range": "low"}, "LOW", "#FF0000"),
        ({"range": "unheard of"}, "112", "#FFFFFF"),
    ],
)
def test_a_value_looks_like_what_it_means(clock: Clock, state: dict[str, Any], text: str, color: str) -> None:
    """The color follows the range, mmol/L has one decimal, and a limit is a word."""
    clock.state(**state)
    clock.online()
    eventually(lambda: clock.shows() is not None)
    shown = clock.shows()
    assert shown
    assert shown.keys() == {"text", "color", "center", "draw", "lifetime"}
    assert (shown["text"], shown["color"], shown["center"]) == (text, color, False)
    assert 890 <= shown["lifetime"] <= 900
    assert {color} == {line["dl"][4] for line in shown["draw"]}


def drawn(shown: dict[str, Any]) -> set[tuple[int, int]]:
    """Return the pixels that an arrow lights; its lines are straight or diagonal."""
    pixels = set()
    for line in shown["draw"]:
        (command,) = line
        assert command == "dl"
        x0, y0, x1, y1, _ = line["dl"]
        steps = max(abs(x1 - x0), abs(y1 - y0))
        assert {abs(x1 - x0), abs(y1 - y0)} <= {0, steps}
        pixels |= {(x0 + (x1 - x0) * step // steps, y0 + (y1 - y0) * step // steps) for step in range(steps + 1)}
    return pixels


def test_each_trend_has_its_own_arrow(clock: Clock) -> None:
    """Falling mirrors rising, all arrows fit on the clock beside the text, and no trend means no arrow."""
    clock.online()
    arrows = {}
    order = ("rising_quickly", "rising", "rising_slightly", "steady", "falling_slightly", "falling", "falling_quickly")
    for count, trend in enumerate((*order, None)):
        clock.state(value=100 + count, trend=trend)
        eventually(lambda: (clock.shows() or {}).get("text") == str(100 + count))  # noqa: B023  # at once
        arrows[trend] = drawn(clock.shows() or {})
    assert arrows.pop(None) == set()
    assert all(a != b for a, b in pairwise(map(frozenset, arrows.values())))
    assert {(x, y) for pixels in arrows.values() for x, y in pixels} <= {
        (x, y) for x in range(TEXT_ENDS + 1, WIDTH) for y in range(HEIGHT)
    }
    for rising, falling in zip(order, reversed(order), strict=True):
        assert {(x, HEIGHT - y) for x, y in arrows[rising]} == arrows[falling]


def test_nothing_old_stays_on_the_clock(clock: Clock) -> None:
    """A late reading gets the time it has left; one that is not current removes the app, and so does offline."""
    clock.online()
    clock.state(age=300)
    eventually(lambda: clock.shows() is not None)
    assert 590 <= (clock.shows() or {})["lifetime"] <= 600
    clock.state(age=-250)
    eventually(lambda: (clock.shows() or {})["lifetime"] == 900)
    ways: tuple[Callable[[], None], ...] = (
        lambda: clock.state(age=899.9),  # a lifetime of 0 would mean forever
        lambda: clock.state(value=None, range=None, trend=None),
        lambda: clock.online(availability="offline"),
        lambda: clock.online(bridge="offline"),
    )
    for take_away in ways:
        clock.state()
        clock.online()
        eventually(lambda: clock.shows() is not None)
        take_away()
        eventually(lambda: clock.sent[-1] == "")


def test_after_the_broker_was_down_nothing_counts_as_current(clock: Clock, mosquitto: Mosquitto) -> None:
    """A broker that comes back empty has lost its values, and until it has them again the clock shows nothing."""
    clock.state()
    clock.online()
    eventually(lambda: clock.shows() is not None)
    mosquitto.kill()
    mosquitto.start()
    with Subscriber(mosquitto.port) as subscriber:
        again = Clock(subscriber)
        again.state()
        eventually(lambda: again.sent[-1:] == [""])
        again.online()
        eventually(lambda: again.shows() is not None)
