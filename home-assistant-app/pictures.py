"""Draws the app's icon and logo: a drop, and a line of readings that runs through it.

Both are PNG, made with only Python's zlib.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

Colour = tuple[int, int, int, int]
"""Red, green, blue, opacity."""

_NOTHING: Final = (0, 0, 0, 0)
_DROP: Final = (3, 155, 211, 255)
_LINE: Final = (255, 255, 255, 255)
_BESIDE: Final = (3, 155, 211, 255)
_FINE: Final = 4
"""Sampling points per pixel in each direction, for smooth edges."""


def icon(size: int = 128) -> bytes:
    """Draw the square icon."""
    return _png(size, size, lambda x, y: _drop(x / size * 2 - 1, y / size * 2 - 1))


def logo(width: int = 250, height: int = 100) -> bytes:
    """Draw the wide logo: the drop in the middle of the line."""

    def at(x: float, y: float) -> Colour:
        across, down = (x - width / 2) / height * 2, y / height * 2 - 1
        colour = _drop(across, down)
        return _BESIDE if colour == _NOTHING and _on_line(across, down) else colour

    return _png(width, height, at)


def _drop(x: float, y: float) -> Colour:
    """Return the colour at a point of the square from -1 to 1."""
    round_part = math.hypot(x, y - 0.3) <= 0.62  # noqa: PLR2004  # the radius below
    pointed = -0.92 <= y <= 0 and abs(x) <= 0.62 * math.sin((y + 0.92) / 1.22 * math.pi / 2) ** 1.3  # noqa: PLR2004
    if not round_part and not pointed:
        return _NOTHING
    return _LINE if _on_line(x, y) else _DROP


def _on_line(x: float, y: float) -> bool:
    wave = 0.3 + 0.22 * math.sin(3.4 * x) * math.exp(-0.3 * x * x)
    return abs(y - wave) < 0.07 and abs(x) < 2.3  # noqa: PLR2004  # its thickness and its length


def _png(width: int, height: int, at: Callable[[float, float], Colour]) -> bytes:
    rows = (b"\0" + b"".join(bytes(_pixel(x, y, at)) for x in range(width)) for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"".join(rows), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def _pixel(x: int, y: int, at: Callable[[float, float], Colour]) -> Colour:
    """Mix the colours of a pixel's points, weighted by their opacity."""
    points = [at(x + (i + 0.5) / _FINE, y + (j + 0.5) / _FINE) for i in range(_FINE) for j in range(_FINE)]
    opaque = sum(point[3] for point in points) or 1
    red, green, blue = (round(sum(point[part] * point[3] for point in points) / opaque) for part in range(3))
    return red, green, blue, round(sum(point[3] for point in points) / len(points))


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
