"""The view on a terminal: panels, colors, the big number, and the plot, drawn by rich.

Owns how it looks and the state of the terminal: the alternate screen and the cursor, both restored at the end.
Must not know where the messages come from, or decide what is current: it draws a `view.Shown`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, TextIO

from rich import box
from rich.align import Align
from rich.console import Console
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dexcom2mqtt.demo import plot, view

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import ConsoleOptions, OverflowMethod, RenderableType, RenderResult

    from dexcom2mqtt.config.settings import Ranges
    from dexcom2mqtt.demo.view import Line, Shown

# The terminal's own colors, without black and white: they are readable on dark and light backgrounds.
_COLORS: Final = {
    "very_low": "bold bright_red",
    "low": "red",
    "in_range": "green",
    "high": "yellow",
    "very_high": "dark_orange",
    "limit": "dim",
    "axis": "dim",
    "": "dim",
}
_DIGITS: Final = {
    "0": ("█▀▀█", "█  █", "█▄▄█"),
    "1": (" ▄█ ", "  █ ", " ▄█▄"),
    "2": ("▀▀▀█", "█▀▀▀", "█▄▄▄"),
    "3": ("▀▀▀█", " ▀▀█", "▄▄▄█"),
    "4": ("█  █", "▀▀▀█", "   █"),
    "5": ("█▀▀▀", "▀▀▀█", "▄▄▄█"),
    "6": ("█▀▀ ", "█▀▀█", "█▄▄█"),
    "7": ("▀▀▀█", "   █", "   █"),
    "8": ("█▀▀█", "█▀▀█", "█▄▄█"),
    "9": ("█▀▀█", "▀▀▀█", " ▄▄█"),
    ".": (" ", " ", "▄"),
    "-": ("    ", "▀▀▀▀", "    "),
    "L": ("█   ", "█   ", "█▄▄▄"),
    "O": ("█▀▀█", "█  █", "█▄▄█"),
    "W": ("█   █", "█ █ █", "▀▄▀▄▀"),
    "H": ("█  █", "█▀▀█", "█  █"),
    "I": ("▀█▀", " █ ", "▄█▄"),
    "G": ("█▀▀▀", "█ ▀█", "█▄▄█"),
    "↑": ("▄▀█▀▄", "  █  ", "  █  "),
    "→": ("   ▀▄ ", "▀▀▀▀█▀", "   ▄▀ "),
    "↓": ("  █  ", "  █  ", "▀▄█▄▀"),
    "↗": ("  ▀▀█", " ▄▀▀ ", "▀    "),
    "↘": ("▄    ", " ▀▄▄ ", "  ▄▄█"),
}
_NO_DIGITS: Final = frozenset({"linux", "vt100", "vt102", "vt220"})
"""Terminals whose fonts lack braille characters."""

_WIDE: Final = 78
_TOPICS_WIDTH: Final = 40
_TOPIC_WIDTH: Final = 18
_NOW_HEIGHT: Final = 5
_DAEMON_HEIGHT: Final = 6
_PLOT_LEAST: Final = 7
_TOPICS_LEAST: Final = 4


def suits(stream: TextIO) -> bool:
    """Return whether the stream is a terminal that can show the view, not only print lines."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in {"", "dumb", "unknown"}


@dataclass(frozen=True, slots=True)
class Look:
    """How the view is drawn: the plot's limits, the lines above and below; ``plain`` means only in ASCII."""

    ranges: Ranges
    head: str
    foot: str
    plain: bool = False

    @property
    def overflow(self) -> OverflowMethod:
        """How a text that is too long ends: rich's ellipsis is not ASCII."""
        return "crop" if self.plain else "ellipsis"


class Screen:
    """A terminal that shows the view between `__enter__` and `__exit__`, which restores it."""

    def __init__(self, stream: TextIO, ranges: Ranges, head: str, foot: str) -> None:
        self._console = Console(file=stream, force_terminal=True, highlight=False, markup=False, emoji=False)
        plain = self._console.options.ascii_only or os.environ.get("TERM") in _NO_DIGITS
        self._look = Look(ranges, head, foot, plain)
        self._live = Live(
            console=self._console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def draw(self, shown: Shown) -> None:
        """Draw the view in the terminal's present size."""
        self._live.update(Picture(shown, self._look), refresh=True)


@dataclass(frozen=True, slots=True)
class Picture:
    """The whole view as a rich renderable, in the available size."""

    shown: Shown
    look: Look

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.height or options.size.height
        yield _arranged(self.shown, self.look, width, height)


def _arranged(shown: Shown, look: Look, width: int, height: int) -> Layout:
    """Arrange the panels as the size allows: side by side, one above the other, or only the first of them."""
    whole = Layout()
    main = Layout(ratio=1)
    whole.split_column(Layout(_head(shown, look), size=1), main, Layout(_foot(look), size=1))
    body = height - 2
    topics = Layout(_topics(shown, look), name="topics")
    if width >= _WIDE:
        left = Layout(ratio=1)
        left.split_column(*_column(shown, look, body))
        topics.size = min(_TOPICS_WIDTH + max(0, width - 100) // 3, width // 2)
        main.split_row(left, topics)
        return whole
    room = body - _NOW_HEIGHT - _DAEMON_HEIGHT - _PLOT_LEAST
    if room >= _TOPICS_LEAST:
        topics.size = min(room, 8)
        main.split_column(*_column(shown, look, body - topics.size), topics)
    else:
        main.split_column(*_column(shown, look, body))
    return whole


def _column(shown: Shown, look: Look, height: int) -> list[Layout]:
    """Return the panels on the left, without the least important if ``height`` lines are too few."""
    panels = [Layout(_now(shown, look), size=_NOW_HEIGHT)]
    if height >= _NOW_HEIGHT + _PLOT_LEAST + _DAEMON_HEIGHT:
        panels.append(Layout(_daemon(shown, look), size=_DAEMON_HEIGHT))
    if height >= _NOW_HEIGHT + _PLOT_LEAST:
        panels.append(Layout(_Plot(shown, look), ratio=1))
    return panels


def _head(shown: Shown, look: Look) -> RenderableType:
    line = Table.grid(expand=True)
    line.add_column(ratio=1, no_wrap=True, overflow="crop")
    line.add_column(justify="right", no_wrap=True, overflow="crop")
    line.add_row(Text(f" {look.head}", "bold cyan"), Text(f"{shown.clock} ", "bold cyan"))
    return line


def _foot(look: Look) -> RenderableType:
    return Text(f" {look.foot}", "dim", no_wrap=True, overflow="crop")


def _panel(content: RenderableType, title: str, look: Look, style: str = "dim") -> Panel:
    return Panel(
        content,
        box=box.ASCII if look.plain else box.SQUARE,
        title=Text(title, "bold"),
        title_align="left",
        border_style=style,
    )


def _now(shown: Shown, look: Look) -> RenderableType:
    color = _COLORS[shown.range]
    row = Table.grid(padding=(0, 3), expand=True)
    row.add_column(no_wrap=True, overflow="crop")
    row.add_column(no_wrap=True, overflow="crop")
    row.add_column(ratio=1, no_wrap=True, overflow=look.overflow)
    facts = Text("\n", no_wrap=True, overflow=look.overflow).join(
        [
            Text(f"{shown.delta} in 5 minutes" if shown.delta else shown.unit),
            Text(shown.words, color),
            Text(shown.age, "dim" if shown.range else "bold"),
        ]
    )
    row.add_row(_big(shown.value, look, color), _big(shown.arrow, look, color), facts)
    return _panel(row, f"{shown.name}, {shown.unit}", look, color)


def _big(text: str, look: Look, style: str) -> RenderableType:
    """Return large text, three lines high, if the terminal can show it and all characters are known."""
    if look.plain or not all(character in _DIGITS for character in text):
        written = view.in_ascii(text) if look.plain else text
        return Align(Text(written, f"bold {style}" if style else "bold", no_wrap=True), vertical="middle", height=3)
    lines = (" ".join(_DIGITS[character][line] for character in text) for line in range(3))
    return Text("\n".join(lines), style, no_wrap=True)


def _daemon(shown: Shown, look: Look) -> RenderableType:
    lines = Text("\n", no_wrap=True, overflow=look.overflow).join(Text(line) for line in shown.daemon)
    return _panel(lines, "what the daemon does", look)


@dataclass(frozen=True, slots=True)
class _Plot:
    """The curve, in the available size."""

    shown: Shown
    look: Look

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown, look = self.shown, self.look
        frame = plot.Frame(
            width=options.max_width - 4,
            height=(options.height or 2) - 2,
            ranges=look.ranges,
            unit=shown.unit,
            offset_min=shown.offset_min,
            pen=plot.ASCII if look.plain else plot.BRAILLE,
        )
        rows = plot.plot(shown.points, shown.now, frame)
        curve = Text("\n", no_wrap=True, overflow="crop").join(
            Text.assemble(*((piece.text, _COLORS[piece.kind]) for piece in row)) for row in rows
        )
        title = ", ".join(filter(None, (f"the last {frame.hours:.0f} hours", shown.in_range)))
        yield _panel(curve, title, look)


def _topics(shown: Shown, look: Look) -> RenderableType:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True, overflow=look.overflow, max_width=_TOPIC_WIDTH)
    table.add_column(no_wrap=True, overflow=look.overflow, ratio=1)
    for line in shown.topics:
        table.add_row(Text(line.topic, "cyan"), _payload(line, look))
    return _panel(table, "topics below dexcom2mqtt/", look)


def _payload(line: Line, look: Look) -> Text:
    payload = view.in_ascii(line.payload) if look.plain else line.payload
    return Text(payload, "bold cyan" if line.new else "")
