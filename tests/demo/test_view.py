"""The demo's view: what it shows for messages, the plot, and the real program in a real pseudo terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from dexcom2mqtt.config.loading import build
from dexcom2mqtt.config.settings import Account, Ranges
from dexcom2mqtt.demo.app import Drawing
from dexcom2mqtt.demo.plot import ASCII, BRAILLE, Frame, Point, plot
from dexcom2mqtt.demo.screen import Look, Picture, Screen, suits
from dexcom2mqtt.demo.view import MISSING, Heard, Seen, Shown, Viewer, closing, in_ascii, span
from dexcom2mqtt.messages.history import history_message
from dexcom2mqtt.messages.message import Message
from dexcom2mqtt.messages.state import fresh_messages, reading_message, state_of
from dexcom2mqtt.readings import RANGES, Reading
from dexcom2mqtt.topics import Topics
from tests.support.processes import BUSY, ROOT, Process, eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

NOW = 1_800_000_000.0
TOPICS = Topics("dexcom2mqtt")
VIEWER = Viewer("anna", "Anna", TOPICS, fresh_for=90)
RED, GREEN, YELLOW = "red", "green", "yellow"


def account(**keys: Any) -> Account:
    return build(Account, {"name": "Anna", "username": "anna", "password": "x"} | keys)


def heard(messages: Iterable[Message], at: float = NOW) -> list[Heard]:
    return [Heard.of(message.topic, message.payload.encode(), at) for message in messages]


def reading(mg_dl: int = 120, ago: float = 60, direction: str = "Flat", offset_min: int = 0) -> Reading:
    return Reading(mg_dl=mg_dl, direction=direction, date=round((NOW - ago) * 1000), offset_min=offset_min)


def picture(newest: Reading | None = None, delta: int | None = None, **keys: Any) -> Seen:
    """Return the messages of an account that works."""
    newest = newest or reading()
    state = state_of(newest, delta, account(**keys))
    history = history_message(TOPICS, "anna", "0", [reading(110, 360), newest])
    messages = [*fresh_messages(TOPICS, "anna", state, 0), history, Message(TOPICS.bridge_state, "online")]
    return Seen().then(heard(messages))


def told(seen: Seen, leaf: str, payload: object) -> Seen:
    """Add one more message of the account."""
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return seen.then([Heard.of(TOPICS.of("anna", leaf), text.encode(), NOW)])


def shown(seen: Seen, now: float = NOW) -> Shown:
    return VIEWER.show(seen, now)


# --- messages -> what is shown ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("newest", "keys", "value"),
    [
        (reading(85), {}, "85"),
        (reading(72), {"unit": "mmol/L"}, "4.0"),
        (reading(39), {}, "LOW"),
        (reading(401), {"unit": "mmol/L"}, "HIGH"),
    ],
)
def test_the_newest_value_is_shown(newest: Reading, keys: dict[str, Any], value: str) -> None:
    """The value is in the account's unit; if the number is only a limit, the view shows LOW or HIGH."""
    assert shown(picture(newest, **keys)).value == value


GONE = [
    ("availability", "offline"),
    ("availability", ""),
    ("state", {"value": None, "unit": "mg/dL", "date": round((NOW - 1200) * 1000)}),
    ("state", {"value": None, "range": "low"}),
    ("state", "hello"),
    ("state", "[1]"),
    ("state", {"value": "120"}),
    ("state", {"value": True}),
    ("state", '{"value": NaN}'),
    ("../bridge/state", "offline"),
    ("../bridge/state", ""),
]


@pytest.mark.parametrize(("leaf", "payload"), GONE)
def test_no_value_is_shown_unless_it_is_current(leaf: str, payload: object) -> None:
    """The view shows no number while the bridge or the account is offline, or if the state has no value."""
    topic = TOPICS.bridge_state if leaf.startswith("..") else TOPICS.of("anna", leaf)
    text = payload if isinstance(payload, str) else json.dumps(payload)
    view = shown(picture(delta=3).then([Heard.of(topic, text.encode(), NOW)]))
    assert (view.value, view.range, view.delta) == (MISSING, "", "")


def test_says_how_old_the_newest_reading_is() -> None:
    """Without a current reading, the view says how old the newest one is, or that there is none yet."""
    assert shown(told(picture(reading(ago=1200)), "availability", "offline")).age == (
        "no current reading; the last was 20 min ago"
    )
    assert shown(Seen()).age == "no reading yet"
    assert shown(picture(reading(ago=60))).age == "1 min 00 s ago"


@pytest.mark.parametrize(
    ("delta", "keys", "text"),
    [
        (7, {}, "+7 mg/dL"),
        (-12, {}, "-12 mg/dL"),
        (0, {}, "+0 mg/dL"),
        (None, {}, ""),
        (18, {"unit": "mmol/L"}, "+1.0 mmol/L"),
        (-2, {"unit": "mmol/L"}, "-0.1 mmol/L"),
        (0, {"unit": "mmol/L"}, "+0.0 mmol/L"),
    ],
)
def test_the_delta_has_a_sign(delta: int | None, keys: dict[str, Any], text: str) -> None:
    """The delta has a sign, and the account's unit."""
    assert shown(picture(delta=delta, **keys)).delta == text


def test_range_and_trend_are_in_words() -> None:
    """The view can be read without color and arrows."""
    view = shown(picture(reading(60, direction="FortyFiveDown")))
    assert view.words == "low, falling slightly"
    assert (view.range, view.arrow) == ("low", "↘")


STATUS = {
    "share": "ok", "message": "Readings arrive.", "next_poll_at": "2027-01-15T08:02:10+00:00", "delay": 9.84,
    "requests_24h": 290, "logins_24h": 2,
}  # fmt: skip


def test_says_what_the_daemon_does() -> None:
    """The view says how Share is doing, the wearer's time of the next poll, the learned delay, and the requests."""
    view = shown(told(picture(reading(offset_min=60)), "status", STATUS))
    assert view.share == "ok"
    assert view.daemon == (
        "daemon online, Share ok: Readings arrive.",
        "asks Share in 2 min 10 s, at 09:02:10",
        "has learned that a reading takes 9.8 s to get there",
        "24 hours: 290 requests, 2 sign-ins",
    )
    assert view.clock == "09:00:00"


def test_says_that_a_poll_is_due_and_that_nothing_was_learned() -> None:
    """A time in the past is shown as now, and an unknown delay in words."""
    view = shown(told(picture(), "status", STATUS | {"delay": None, "next_poll_at": "2027-01-15T07:59:59+00:00"}))
    assert view.daemon[1:3] == ("asks Share now", "has not learned yet")
    view = shown(told(picture(reading(offset_min=60)), "status", STATUS | {"next_poll_at": "9999-12-31T23:59:59Z"}))
    assert view.daemon[1].endswith(" days, at ?")
    assert shown(Seen()).daemon == ("daemon not seen yet, Share not seen yet",)


def test_topics_are_listed_and_new_ones_marked() -> None:
    """Topics and payloads are listed, the most useful first; new ones are marked, and cleared ones are gone."""
    seen = picture(reading(85)).then([Heard.of("dexcom2mqtt/anna/value", b"86", NOW - 200)])
    lines = shown(told(seen, "delta", "")).topics
    assert [(line.topic, line.payload, line.new) for line in lines[:3]] == [
        ("bridge/state", "online", True),
        ("anna/value", "86", False),
        ("anna/arrow", "→", True),
    ]
    assert "anna/delta" in {line.topic for line in shown(seen).topics}
    assert "anna/delta" not in {line.topic for line in lines}
    assert len(lines) == len({line.topic for line in lines}) == 17


def test_counts_new_and_backfilled_readings() -> None:
    """New readings and backfill are counted separately, and only from the topic reading."""
    state = state_of(reading(), 1, account())
    stream = [reading_message(TOPICS, "anna", state, backfill=late) for late in (True, True, False)]
    seen = picture().then(heard(stream))
    assert (seen.readings, seen.earlier) == (1, 2)
    assert closing(seen) == "the demo has ended: 1 reading shown as they arrived, and 2 earlier ones"
    assert "3 readings" in closing(Seen(readings=3))


def test_the_plot_has_the_readings_of_the_history() -> None:
    """The plot has the readings of the history, in order, and ignores invalid entries."""
    entries = [{"date": 2000, "mg_dl": 90}, {"date": 1000, "mg_dl": 80}, {"date": "x", "mg_dl": 1}, 5, {"date": 1}]
    assert shown(told(Seen(), "history", {"readings": entries})).points == (Point(1, 80), Point(2, 90))
    assert shown(told(Seen(), "history", {"readings": 3})).points == ()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (599, "9 min 59 s"), (600, "10 min"), (3600, "1 h 00 min"),
        (90_000, "25 h 00 min"), (172_800, "2 days"),
    ],
)  # fmt: skip
def test_durations_in_words(seconds: float, text: str) -> None:
    """The longer a duration, the less precise its text."""
    assert span(seconds) == text


def test_control_characters_are_not_shown() -> None:
    """No message can control the terminal: control characters and broken UTF-8 become replacement characters."""
    message = Heard.of("a/\x1b[2J", b"\x1b]0;x\x07 \n\xff \xe2\x86\x92", NOW)
    assert message.topic == "a/?[2J"
    assert message.payload == "?]0;x? ?\ufffd →"


TEXT: Any = st.text("0x→\x1b ", max_size=5)
JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.just("2026-01-01T00:00:00+24:00"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
KEYS: Any = st.sampled_from(
    [
        "value", "unit", "date", "mg_dl", "delta", "range", "arrow", "measurement_timestamp", "out_of_range",
        "description", "share", "message", "next_poll_at", "delay", "requests_24h", "readings",
    ]
)  # fmt: skip
ENTRIES: Any = st.lists(
    st.fixed_dictionaries({"date": st.integers() | st.floats(), "mg_dl": st.integers()}), max_size=5
)


@settings(max_examples=100, deadline=None)  # each is a whole picture
@given(st.dictionaries(KEYS, JSON), st.dictionaries(KEYS, JSON), st.dictionaries(st.just("readings"), ENTRIES | JSON))
def test_whatever_is_published_can_be_drawn(state: object, status: object, history: object) -> None:
    """The view can draw anything that clients publish on the demo's broker."""
    seen = picture()
    for leaf, payload in (("state", state), ("status", status), ("history", history)):
        seen = told(seen, leaf, payload)
    assert "Anna" in drawn(shown(seen), 80, 24)


# --- the plot ----------------------------------------------------------------------------------------------

FRAME = Frame(width=65, height=20, ranges=Ranges())
CURVE = [Point(NOW - 300 * ago, 120) for ago in range(200, -1, -1)]


def text(rows: Sequence[Sequence[Any]]) -> list[str]:
    return ["".join(piece.text for piece in row) for row in rows]


def dots(rows: Sequence[Sequence[Any]]) -> str:
    """Return the first letter of the range in each column of the curve, a space if there is none."""
    columns = [" "] * 500
    for row in rows[:-1]:
        at = 0
        for piece in row:
            for _ in piece.text:
                if piece.kind in RANGES:
                    columns[at] = "".join(word[0] for word in piece.kind.split("_"))
                at += 1
    return "".join(mark[-1] for mark in columns[5:]).rstrip()


@pytest.mark.parametrize(
    ("mg_dl", "kind"),
    [
        (39, "very_low"), (53, "very_low"), (60, "low"), (70, "in_range"), (180, "in_range"), (200, "high"),
        (251, "very_high"), (401, "very_high"), (2000, "very_high"),
    ],
)  # fmt: skip
def test_a_reading_is_plotted_by_its_range(mg_dl: int, kind: str) -> None:
    """Each reading has its range's kind, even beyond the scale."""
    pieces = [piece for row in plot([Point(NOW, mg_dl)], NOW, FRAME) for piece in row if piece.kind in RANGES]
    assert {piece.kind for piece in pieces} == {kind}
    assert all(piece.text.strip("\u2800 ") for piece in pieces)


def test_the_newest_is_on_the_right_and_a_dot_is_a_reading() -> None:
    """The plot shows one reading per dot of its width, the newest in the last column."""
    rows = plot(CURVE, NOW, FRAME)
    assert FRAME.hours == 10
    assert dots(rows) == "r" * 60
    assert dots(plot(CURVE[-4:], NOW, FRAME)) == " " * 58 + "rr"
    assert all(len(line) == FRAME.width for line in text(rows))
    assert len(rows) == FRAME.height


def test_a_gap_stays_open() -> None:
    """Missing readings leave a gap without a line."""
    points = [*CURVE[:-21], *CURVE[-5:]]
    assert dots(plot(points, NOW, FRAME)) == "r" * 50 + " " * 7 + "rrr"


def test_neighboring_readings_are_connected() -> None:
    """The rows between two readings of a steep curve have dots."""
    rows = plot([Point(NOW - 300, 60), Point(NOW, 200)], NOW, FRAME)
    assert [line[-1] not in " ╌" for line in text(rows)[2:-1]].count(True) >= 12


def test_the_curve_moves_while_readings_are_missing() -> None:
    """While readings are missing, the curve moves left, and its dots keep their distances."""
    assert dots(plot(CURVE, NOW + 3000, FRAME)) == "r" * 55
    assert text(plot(CURVE, NOW + 299, FRAME)) == text(plot(CURVE, NOW, FRAME))


def test_an_empty_plot_has_limits_and_axes() -> None:
    """Without readings the plot has the limits, their values, and the hours."""
    rows = text(plot([], NOW, FRAME))
    assert [line[:5] for line in rows if "╌" in line] == [" 180 ", "  70 "]
    assert rows[0].startswith(" 220 ")
    assert "06:00" in rows[-1]
    assert dots(plot([], NOW, FRAME)) == ""


def test_axes_are_in_the_accounts_unit_and_time() -> None:
    """The values are in the account's unit, and the hours in the wearer's time."""
    rows = text(plot([], NOW, Frame(65, 20, Ranges(), "mmol/L", offset_min=-60)))
    assert [line[:5] for line in rows if "╌" in line] == ["10.0 ", " 3.9 "]
    assert [hour in rows[-1] for hour in ("06:00", "04:00")] == [True, True]
    assert NOW % 86400 == 8 * 3600
    assert rows[-1].index("06:00") == 65 - 1 - 6 - 2  # an hour has 6 columns; its text is centered


def test_a_plot_has_at_most_a_day() -> None:
    """A wide plot shows no more than 24 hours."""
    assert Frame(400, 20, Ranges()).hours == pytest.approx(24)
    assert dots(plot(CURVE, NOW, Frame(205, 20, Ranges()))).count("r") == 140  # 16 h 40 min of 24 h in 200 columns


@pytest.mark.parametrize(("width", "height"), [(5, 20), (0, 0), (-3, 20), (65, 2), (65, -1)])
def test_no_room_no_plot(width: int, height: int) -> None:
    """Without enough room, nothing is drawn."""
    assert plot(CURVE, NOW, Frame(width, height, Ranges())) == []


def test_pens_draw_each_dot() -> None:
    """Eight dots make a braille character, two an ASCII one."""
    assert [BRAILLE.characters[1 << dot] for dot in range(8)] == list("⠁⠂⠄⡀⠈⠐⠠⢀")
    assert (BRAILLE.characters[255], ASCII.characters) == ("⣿", " '.:")


# --- how it looks ------------------------------------------------------------------------------------------


def drawn(view: Shown, width: int, height: int, *, plain: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    look = Look(Ranges(), "the head", "the foot", plain)
    lines = console.render_lines(Picture(view, look), console.options.update(width=width, height=height))
    assert len(lines) == height
    assert all(sum(segment.cell_length for segment in line) == width for line in lines)
    return "\n".join("".join(segment.text for segment in line) for line in lines)


def colors_of(view: Shown, characters: str) -> set[str]:
    """Return the colors in which the picture has any of the characters."""
    console = Console(file=io.StringIO(), width=100, height=30, force_terminal=True, color_system="256")
    segments = console.render(Picture(view, Look(Ranges(), "", "")), console.options.update(width=100, height=30))
    found = {s.style.color.name if s.style and s.style.color else "" for s in segments if set(s.text) & set(characters)}
    return found - {""}


@pytest.mark.parametrize(
    ("mg_dl", "color"),
    [(50, "bright_red"), (60, RED), (120, GREEN), (200, YELLOW), (300, "dark_orange")],
)
def test_the_big_number_has_the_ranges_color(mg_dl: int, color: str) -> None:
    """The big number has the color of its range; without a current value there is no color."""
    seen = picture(reading(mg_dl))
    assert colors_of(shown(seen), "█▀▄") == {color}
    assert colors_of(shown(told(seen, "availability", "offline")), "█▀▄") == set()


def test_the_curve_has_the_ranges_colors() -> None:
    """Each part of the curve has the color of its range."""
    entries = [{"date": (NOW - 300 * ago) * 1000, "mg_dl": mg_dl} for ago, mg_dl in ((40, 60), (20, 120), (0, 200))]
    view = shown(told(picture(), "history", {"readings": entries}))
    assert colors_of(view, BRAILLE.characters[1:]) == {RED, GREEN, YELLOW}


SIZES = [(20, 7), (40, 12), (60, 20), (77, 24), (78, 24), (80, 24), (104, 27), (250, 80)]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_fits_every_size(width: int, height: int, *, plain: bool) -> None:
    """The view fills a terminal of any size, and always shows the most important parts."""
    view = shown(told(picture(reading(123)), "status", STATUS))
    screen = drawn(view, width, height, plain=plain)
    assert "Anna" in screen
    assert ("123" if plain else "▀▀▀█") in screen
    assert ("the last" in screen) is (height >= 20)
    assert ("asks Share" in screen) is (height >= 20)
    assert ("anna/value" in screen) is (height >= 24)
    assert ("topics" in screen.splitlines()[1]) is (width >= 78)  # beside the value
    if plain:
        assert screen.isascii()


@pytest.mark.parametrize("plain", [False, True])
def test_fits_the_smallest_terminal(*, plain: bool) -> None:
    """The view can be drawn on even the smallest terminal."""
    for width in range(1, 20):
        for height in range(1, 9):
            screen = drawn(shown(picture()), width, height, plain=plain)
            assert screen.isascii() or not plain


def test_arrows_in_ascii() -> None:
    """With only ASCII, arrows are drawn in ASCII, and other characters become question marks."""
    assert [in_ascii(arrow) for arrow in ("↑↑", "↗", "→", "?", "ü")] == ["^^", "/^", "->", "?", "?"]


def test_every_value_is_written_large() -> None:
    """Digits, LOW and HIGH, the arrows, and a missing value have large characters."""
    for number in (103, 245, 367, 89):
        assert str(number) not in drawn(shown(picture(reading(number))), 80, 24).partition("topics")[0]
    for mg_dl, word in ((39, "LOW"), (401, "HIGH")):
        assert word not in drawn(shown(picture(reading(mg_dl, direction="DoubleUp"))), 80, 24)
    assert "---" not in drawn(shown(Seen()), 80, 24)


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The view is not used on a terminal that can only print lines."""
    master, slave = pty.openpty()
    with open(master, "rb"), open(slave, "w", encoding="utf-8") as terminal:  # noqa: PTH123  # not paths
        for name, fits in (("xterm", True), ("dumb", False), ("unknown", False), ("", False)):
            monkeypatch.setenv("TERM", name)
            assert suits(terminal) is fits
        monkeypatch.delenv("TERM")
        assert not suits(terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert not suits(io.StringIO())


def test_draws_again_without_messages() -> None:
    """Ages and waits change even if no message arrives."""
    stream = io.StringIO()
    with Screen(stream, Ranges(), "", "") as terminal:
        draw = Drawing(terminal, VIEWER, lambda: NOW)
        draw(heard([Message(TOPICS.bridge_state, "online")]))
        before = len(stream.getvalue())

        def again() -> bool:
            draw([])
            return len(stream.getvalue()) > before

        eventually(again)


# --- the program in a terminal -----------------------------------------------------------------------------

PROGRAM = (sys.executable, "-m", "dexcom2mqtt", "demo")
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


class Terminal:
    """A pseudo terminal with a program in it, and what a person sees; the program ends with the test."""

    def __init__(
        self, *command: str, columns: int = 100, rows: int = 30, environ: Mapping[str, str] | None = None
    ) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (rows, columns))
        self.before = termios.tcgetattr(slave)
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self.written = b""
        # With setsid it is the program's controlling terminal, so that Ctrl-C sends a signal.
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if key not in {"COLUMNS", "LINES", "NO_COLOR"}}
            | {"TERM": "xterm-256color"}
            | dict(environ or {}),
        )
        self._slave = slave  # kept open, so that the last output can still be read
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):
            while data := os.read(self._master, 65536):
                with self._lock:
                    self.written += data
                    self._stream.feed(data)

    def text(self) -> str:
        with self._lock:
            return "\n".join(self._screen.display)

    def color_of(self, characters: str) -> set[str]:
        with self._lock:
            cells = [cell for line in self._screen.buffer.values() for cell in line.values()]
            return {cell.fg for cell in cells if cell.data in characters}

    @property
    def cursor_hidden(self) -> bool:
        with self._lock:
            return bool(self._screen.cursor.hidden)

    @property
    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def resize(self, columns: int, rows: int) -> None:
        with self._lock:
            self._screen.resize(rows, columns)
            termios.tcsetwinsize(self._slave, (rows, columns))

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float = 10 * BUSY) -> int:
        return self._process.wait(seconds)

    def hang_up(self) -> None:
        os.close(self._slave)
        os.close(self._master)
        self._slave = self._master = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(10 * BUSY)
        for fd in (self._slave, self._master):
            if fd >= 0:
                os.close(fd)


def test_the_terminal_shows_value_plot_and_topics_until_ctrl_c() -> None:
    """The view has all its parts and advances; Ctrl-C restores the terminal and leaves a last line."""
    with Terminal(*PROGRAM, "--speed", "300", "--mqtt-port", "0") as terminal:
        eventually(lambda: "anna/value" in terminal.text() and "daemon online" in terminal.text(), why=terminal.text())
        eventually(lambda: re.search("[⠁-⣿]", terminal.text()))
        eventually(lambda: terminal.cursor_hidden)
        parts = ("the last 8 hours", "300 times as fast", r"MQTT at 127\.0\.0\.1:\d{4,5}")
        eventually(lambda: all(re.search(part, terminal.text()) for part in parts))  # otherwise it was only half drawn
        first = eventually(lambda: re.search(r"anna/date +(\d+)", terminal.text()))
        assert first
        eventually(lambda: (now := re.search(r"anna/date +(\d+)", terminal.text())) and now[1] != first[1])
        terminal.press(b"\x03")
        assert terminal.wait() == 0
        eventually(lambda: b"the demo has ended: " in terminal.written)
        assert not terminal.cursor_hidden
        assert terminal.modes == terminal.before
        assert terminal.written.count(ENTER) == terminal.written.count(LEAVE) == 1
        after = terminal.written.partition(LEAVE)[2]
        assert re.search(rb"ended: \d+ readings? shown as they arrived, and \d+ earlier ones\r\n$", after)
        assert b"Traceback" not in terminal.written


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, None])
def test_ends_cleanly_in_a_terminal(how: signal.Signals | None) -> None:
    """After a signal or the end of the duration, the demo restores the terminal and ends with 0 within 2 s."""
    duration = () if how else ("--duration", "10")
    with Terminal(*PROGRAM, *duration) as terminal:
        if how:
            eventually(lambda: "anna/value" in terminal.text())
            terminal.signal(how)
        assert terminal.wait(2 if how else 10 * BUSY) == 0
        eventually(lambda: b"the demo has ended: " in terminal.written)
        assert b"anna/value" in terminal.written
        assert not terminal.cursor_hidden
        assert terminal.written.count(ENTER) == terminal.written.count(LEAVE) == 1


def test_follows_the_terminals_size() -> None:
    """If the terminal becomes narrower or wider, the view adapts, without remains of the old one."""
    with Terminal(*PROGRAM) as terminal:
        eventually(lambda: "anna/value" in terminal.text())
        terminal.resize(60, 20)
        eventually(lambda: "anna/value" not in terminal.text() and "the last 8 hours" in terminal.text())
        terminal.resize(140, 40)
        eventually(lambda: "anna/value" in terminal.text() and "the last 13 hours" in terminal.text())
        eventually(lambda: terminal.text().count("Ctrl-C ends it") == 1)


def test_no_color_if_none_is_wanted() -> None:
    """With NO_COLOR there are no colors; without it, the number has one."""
    with Terminal(*PROGRAM) as terminal:
        eventually(lambda: "anna/value" in terminal.text())
        eventually(lambda: terminal.color_of("█▀▄") - {"default"})
    with Terminal(*PROGRAM, environ={"NO_COLOR": "1"}) as terminal:
        eventually(lambda: "anna/value" in terminal.text() and re.search("[█▀▄]", terminal.text()))
        assert terminal.color_of("█▀▄│") == {"default"}


@pytest.mark.parametrize(
    ("environ", "ascii_alone"),
    [
        ({"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}, True),
        ({"TERM": "linux"}, True),
        ({"LANG": "C"}, False),
    ],
)
def test_a_terminal_without_the_characters(environ: dict[str, str], *, ascii_alone: bool) -> None:
    """Without UTF-8, or if the font lacks braille, the view is drawn in ASCII."""
    with Terminal(*PROGRAM, environ=environ) as terminal:
        eventually(lambda: "anna/arrow" in terminal.text() and "daemon online" in terminal.text())
        assert (b"\xe2" not in terminal.written.partition(b"anna/arrow")[0]) is ascii_alone
        eventually(lambda: ("+- Anna" if ascii_alone else "┌─ Anna") in terminal.text())
        assert "???" not in terminal.text()
        terminal.press(b"\x03")
        assert terminal.wait() == 0
        assert b"Traceback" not in terminal.written


def test_the_log_does_not_break_the_view() -> None:
    """Log lines for the terminal are held back until the view is gone."""
    with Terminal(*PROGRAM, "--log-level", "info", columns=200) as terminal:
        eventually(lambda: "anna/value" in terminal.text() and "daemon online" in terminal.text())
        terminal.press(b"\x03")
        assert terminal.wait() == 0
        eventually(lambda: b"the demo has ended: " in terminal.written)
        during, _, after = terminal.written.partition(LEAVE)
    assert b" INFO " not in during.partition(ENTER)[2]
    assert b" INFO " in after


def test_a_stop_during_the_start_ends_it(tmp_path: Path) -> None:
    """Ctrl-C while the demo is loading ends it cleanly."""
    with Process(PROGRAM, tmp_path / "log", {"PYTHONPROFILEIMPORTTIME": "1"}) as demo:
        eventually(lambda: re.search(r"\| +paho\.mqtt\.properties", demo.text()))
        demo.signal(signal.SIGINT)
        assert demo.wait() == 0
        assert "Traceback" not in demo.text()


def test_a_dumb_terminal_shows_lines() -> None:
    """A dumb terminal gets one line for each message, and no control sequences."""
    with Terminal(*PROGRAM, columns=200, environ={"TERM": "dumb"}) as terminal:
        eventually(lambda: b"dexcom2mqtt/anna/value " in terminal.written)
        terminal.press(b"\x03")
        assert terminal.wait() == 0
        eventually(lambda: b"the demo has ended: " in terminal.written)
        assert b"\x1b" not in terminal.written


@pytest.mark.parametrize("environ", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}])
def test_lines_without_a_terminal(environ: dict[str, str], tmp_path: Path) -> None:
    """A pipe or a file gets plain lines, in any encoding."""
    with Process(PROGRAM, tmp_path / "log", environ) as demo:
        eventually(lambda: re.search("^dexcom2mqtt/anna/state {", demo.text(), re.MULTILINE))
        eventually(lambda: re.search("^dexcom2mqtt/anna/arrow .", demo.text(), re.MULTILINE))
        demo.signal(signal.SIGTERM)
        assert demo.wait() == 0
        lines = demo.text().splitlines()
    assert lines[-1].startswith("the demo has ended: ")
    assert "\x1b" not in "".join(lines)
    assert "Traceback" not in "".join(lines)


@pytest.mark.parametrize("trap", ["", "trap '' HUP;"])
def test_a_terminal_that_goes_away_ends_it(trap: str, tmp_path: Path) -> None:
    """If the terminal is closed, the demo ends without a traceback, even if nohup blocks the signal."""
    errors = tmp_path / "errors"
    command = f"{trap} exec {' '.join(PROGRAM)} 2>{errors}"
    with Terminal("sh", "-c", command) as terminal:
        eventually(lambda: "anna/value" in terminal.text())
        terminal.hang_up()
        assert terminal.wait() == 0
    assert errors.read_text() == ""


def test_a_pipe_that_breaks_ends_it(tmp_path: Path) -> None:
    """`demo | head` ends without an error."""
    errors = tmp_path / "errors"
    command = f"set -o pipefail; {' '.join(PROGRAM)} 2>{errors} | head -n 8"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, timeout=30, check=False)
    assert len(done.stdout.splitlines()) == 8
    assert done.returncode == 0
    assert errors.read_text() == ""
