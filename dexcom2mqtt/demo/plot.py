"""The last hours as characters: which dots of a grid are set, and which range each character belongs to.

Owns the scale, the axes and the dots. Pure: it knows no terminal, no color and no MQTT; its result is drawn unchanged.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from dexcom2mqtt.readings import range_of, to_mmol_l

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dexcom2mqtt.config.settings import Ranges
    from dexcom2mqtt.config.values import Unit

_CADENCE: Final = 300.0
_DAY: Final = 86_400.0
_GAP: Final = 450.0  # seconds; no line is drawn across a longer gap
_BOTTOM, _TOP, _CEILING, _STEP = 40, 220, 400, 20  # mg/dL; the top is raised in steps
_MARGIN: Final = 5  # characters for the numbers on the left
_CLOCK: Final = len("00:00")
_LEAST_HEIGHT: Final = 3


@dataclass(frozen=True, slots=True)
class Pen:
    """How dots become characters: each character has ``across`` x ``down`` dots, numbered column by column.

    ``characters`` has one for every set of dots, at the index that is the sum of 2 to the power of the dots' numbers.
    """

    across: int
    down: int
    characters: str
    limit: str
    thickness: int = 1
    """How many dots high the curve is."""


def _braille(dots: int) -> str:
    bits = (0x01, 0x02, 0x04, 0x40, 0x08, 0x10, 0x20, 0x80)  # Unicode numbers the fourth row last
    return chr(0x2800 + sum(bit for number, bit in enumerate(bits) if dots >> number & 1))


BRAILLE: Final = Pen(2, 4, "".join(map(_braille, range(256))), "╌", thickness=2)
ASCII: Final = Pen(1, 2, " '.:", "-")


class Point(NamedTuple):
    """A reading: Unix seconds and mg/dL."""

    at: float
    mg_dl: int


class Piece(NamedTuple):
    """Some characters of one kind: a range of glucose, ``limit``, or ``axis``."""

    text: str
    kind: str


Row = list[Piece]


@dataclass(frozen=True, slots=True)
class Frame:
    """Size and style of the plot: ``width`` x ``height`` characters, axes included.

    Times are shown ``offset_min`` minutes east of UTC, values in ``unit``.
    """

    width: int
    height: int
    ranges: Ranges
    unit: Unit = "mg/dL"
    offset_min: int = 0
    pen: Pen = BRAILLE

    @property
    def dots(self) -> int:
        """How many dots the curve is wide."""
        return (self.width - _MARGIN) * self.pen.across

    @property
    def rows(self) -> int:
        """How many rows of characters the curve has; the row below them is the time axis."""
        return self.height - 1

    @property
    def seconds_per_dot(self) -> float:
        """One reading per dot, so that the curve moves evenly; less only if a whole day fits."""
        return min(_CADENCE, _DAY / self.dots)

    @property
    def hours(self) -> float:
        """How many hours fit."""
        return max(self.dots, 0) * self.seconds_per_dot / 3600 if self.dots > 0 else 0.0


def plot(points: Sequence[Point], now: float, frame: Frame) -> list[Row]:
    """Draw the readings up to ``now`` (Unix seconds), the newest on the right; return no rows if there is no room."""
    if frame.dots <= 0 or frame.height < _LEAST_HEIGHT:
        return []
    end = _end(points, now, frame)
    shown = [point for point in points if end - frame.dots * frame.seconds_per_dot < point.at <= end]
    top = min(_CEILING, max(_TOP, *(_STEP * math.ceil(point.mg_dl / _STEP) for point in shown), 0))
    cells = _cells(shown, end, top, frame)
    lines = [_line(row, cells, top, frame) for row in range(frame.rows)]
    return [*lines, [Piece(_times(end, frame), "axis")]]


def _end(points: Sequence[Point], now: float, frame: Frame) -> float:
    """Return the time of the right edge: a whole number of dots after the newest reading.

    If it were ``now``, the dots of a curve would jitter against each other as time passes.
    """
    newest = points[-1].at if points else now
    return newest + max(0.0, (now - newest) // frame.seconds_per_dot * frame.seconds_per_dot)


def _cells(points: Sequence[Point], end: float, top: int, frame: Frame) -> dict[tuple[int, int], tuple[int, int]]:
    """Return, for each (column, row) of the curve, its dots and one of its values in mg/dL."""
    cells: dict[tuple[int, int], tuple[int, int]] = {}
    for x, y, mg_dl in (*_joints(points, end, top, frame), *_dots(points, end, top, frame)):
        column, dot_across = divmod(x, frame.pen.across)
        for thick in range(frame.pen.thickness):
            row, dot_down = divmod(y + thick, frame.pen.down)
            dots, _ = cells.get((column, row), (0, 0))
            cells[column, row] = (dots | 1 << dot_across * frame.pen.down + dot_down, mg_dl)
    return cells


def _dots(points: Sequence[Point], end: float, top: int, frame: Frame) -> Iterator[tuple[int, int, int]]:
    for point in points:
        x = frame.dots - 1 - round((end - point.at) / frame.seconds_per_dot)
        yield max(x, 0), _y(point.mg_dl, top, frame), point.mg_dl


def _joints(points: Sequence[Point], end: float, top: int, frame: Frame) -> Iterator[tuple[int, int, int]]:
    """Yield the dots that connect neighboring readings, so that a steep curve has no gaps."""
    dots = list(_dots(points, end, top, frame))
    for (before, (x0, _, from_mg_dl)), (after, (x1, _, to_mg_dl)) in pairwise(zip(points, dots, strict=True)):
        if after.at - before.at > _GAP:
            continue
        steps = max(1, abs(_y(from_mg_dl, top, frame) - _y(to_mg_dl, top, frame)), x1 - x0)
        for step in range(1, steps):
            mg_dl = round(from_mg_dl + (to_mg_dl - from_mg_dl) * step / steps)
            yield round(x0 + (x1 - x0) * step / steps), _y(mg_dl, top, frame), mg_dl


def _y(mg_dl: int, top: int, frame: Frame) -> int:
    """Return how many dots below the top a value is."""
    part = (top - min(max(mg_dl, _BOTTOM), top)) / (top - _BOTTOM)
    return round(part * (frame.rows * frame.pen.down - frame.pen.thickness))


def _line(row: int, cells: dict[tuple[int, int], tuple[int, int]], top: int, frame: Frame) -> Row:
    limits = {_y(limit, top, frame) // frame.pen.down: limit for limit in (frame.ranges.low, frame.ranges.high)}
    between = frame.pen.limit if row in limits else " "
    kinds: list[str] = []
    text = ""
    for column in range(frame.width - _MARGIN):
        dots, mg_dl = cells.get((column, row), (0, 0))
        text += frame.pen.characters[dots] if dots else between
        kinds.append(range_of(mg_dl, **asdict(frame.ranges)) if dots else "limit")
    label = _label(limits.get(row, top if row == 0 else None), frame.unit)
    return [Piece(label, "axis"), *_pieces(text, kinds)]


def _pieces(text: str, kinds: Sequence[str]) -> Iterator[Piece]:
    """Split a text wherever the kind of its characters changes."""
    for kind, places in groupby(range(len(text)), kinds.__getitem__):
        first, *others = places
        yield Piece(text[first : first + 1 + len(others)], kind)


def _label(mg_dl: int | None, unit: Unit) -> str:
    value = "" if mg_dl is None else mg_dl if unit == "mg/dL" else to_mmol_l(mg_dl)
    return f"{value:>{_MARGIN - 1}} "


def _times(end: float, frame: Frame) -> str:
    """Return the labels of the full hours below the curve, as many as fit."""
    text = " " * frame.width
    column_seconds = frame.seconds_per_dot * frame.pen.across
    step = next((hours for hours in (1, 2, 3, 4, 6) if hours * 3600 / column_seconds > _CLOCK + 3), 12) * 3600
    local = end + frame.offset_min * 60
    hour = local // step * step
    while (column := frame.width - 1 - round((local - hour) / column_seconds)) >= _MARGIN:
        start = column - _CLOCK // 2
        if start + _CLOCK <= frame.width:
            text = f"{text[:start]}{hour // 3600 % 24:02.0f}:00{text[start + _CLOCK :]}"
        hour -= step
    return text
