"""Believable glucose: a person's curve as a pure function of a seed and the time.

Owns the shape of a day (meals and their insulin, night, dawn, an occasional low or high, the sensor's noise) and the
trend word for a slope. Knows nothing about readings, Share, or the present time: the same seed and time give the same
value in every process, so nothing has to be stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

_HOUR = 3600.0
_DAY = 24 * _HOUR
_SLOT = 300.0

_FLOOR = 45.0  # mg/dL: the body resists a low, and more the deeper it is
_STEADY, _SLANTED, _STEEP = 1.0, 2.0, 3.0  # mg/dL per minute: the limits between trend words

# One name for each independent series of random numbers.
_BASE, _EVENTS, _WANDER, _NOISE = range(4)


@dataclass(frozen=True, slots=True)
class Glucose:
    """The glucose of one person who lives `utc_offset_min` minutes east of UTC.

    Times are any Unix seconds; values are mg/dL. Readings 300 s apart differ as a body's do, rarely by more than
    15 mg/dL, and are mostly between 60 and 260.
    """

    seed: int
    utc_offset_min: int = 0

    def at(self, t: float) -> int:
        """Return the sensor's value at `t`, in whole mg/dL; never LOW or HIGH."""
        return round(self.level_at(t))

    def trend_at(self, t: float) -> str:
        """Return Share's word for the slope of the five minutes before `t`, from `DoubleDown` to `DoubleUp`."""
        return trend_word((self.level_at(t) - self.level_at(t - _SLOT)) / (_SLOT / 60))

    def level_at(self, t: float) -> float:
        """Return the unrounded value at `t`, in mg/dL."""
        local = t + self.utc_offset_min * 60
        day, second = divmod(local, _DAY)
        events = (*_events(self.seed, int(day) - 1), *_events(self.seed, int(day)))
        level = (
            110 + 20 * uniform(self.seed, _BASE, 0)
            + _night_and_dawn(second / _HOUR)
            + sum(event.effect(local) for event in events)
            + 16 * _smooth_noise(self.seed, _WANDER, local / (1.5 * _HOUR))
            + 1.5 * _smooth_noise(self.seed, _NOISE, local / _SLOT)
        )  # fmt: skip
        return _FLOOR + 10 * math.log1p(math.exp((level - _FLOOR) / 10))


def trend_word(rate: float) -> str:
    """Return Share's trend word for a slope in mg/dL per minute."""
    if abs(rate) < _STEADY:
        return "Flat"
    steepness = "FortyFive" if abs(rate) < _SLANTED else "Single" if abs(rate) <= _STEEP else "Double"
    return steepness + ("Up" if rate > 0 else "Down")


def uniform(seed: int, series: int, index: int) -> float:
    """Return number `index` of a series of random numbers in [0, 1), the same in every process.

    Uses SplitMix64's mixing, which gives the numbers in any order; `random.Random` would have to be seeded each
    time.
    """
    mask = 2**64 - 1
    x = (seed * 0x9E3779B97F4A7C15 + series * 0xD1B54A32D192ED03 + index * 0x8CB92BA72F3D8DD7) & mask
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
    return ((x ^ (x >> 31)) >> 11) / 2**53


@dataclass(frozen=True, slots=True)
class _Event:
    """A meal, a dose or exercise: glucose moves by `height` until two `tau` after `start`, then returns."""

    start: float  # local seconds
    tau: float  # seconds
    height: float  # mg/dL

    def effect(self, local: float) -> float:
        x = (local - self.start) / self.tau
        return self.height * (x / 2) ** 2 * math.exp(2 - x) if x > 0 else 0.0


@lru_cache(maxsize=4096)
def _events(seed: int, day: int) -> tuple[_Event, ...]:
    """Return the events of one local day; none has an effect beyond the end of the next day."""
    numbers = iter(range(100))

    def draw(low: float, high: float) -> float:
        return low + (high - low) * uniform(seed, _EVENTS, day * 100 + next(numbers))

    def event(from_hour: float, to_hour: float, minutes: float, height: float) -> _Event:
        return _Event(day * _DAY + draw(from_hour, to_hour) * _HOUR, minutes * 60, height)

    def happens(probability: float) -> bool:
        return draw(0, 1) < probability

    events: list[_Event] = []
    for hour in (7.5, 12.5, 18.5):
        meal = event(hour - 0.75, hour + 0.75, draw(30, 42), draw(45, 105))
        insulin = _Event(meal.start + draw(45, 90) * 60, meal.tau * 1.6, -meal.height * draw(0.15, 0.45))
        events += [meal, insulin]
    if happens(0.4):  # a snack
        events.append(event(14.5, 16.5, 30, draw(20, 40)))
    if happens(0.3):  # a forgotten dose at dinner
        events.append(event(18.5, 19.5, 60, draw(60, 110)))
    if happens(0.4):  # a low, at night as often as by day
        events.append(event(9.5, 27, draw(26, 36), draw(-85, -50)))
    return tuple(events)


def _night_and_dawn(hour: float) -> float:
    """Return the effect of the time of day in mg/dL: a little lower during sleep, a rise before waking."""
    return 18 * math.exp(-(((hour - 7) / 2) ** 2)) - 8 * math.exp(-(((hour - 2.5) / 1.5) ** 2))


def _smooth_noise(seed: int, series: int, x: float) -> float:
    """Return noise in [-1, 1]: random at the whole numbers, interpolated in between."""
    node = math.floor(x)
    before, after = uniform(seed, series, node), uniform(seed, series, node + 1)
    eased = (1 - math.cos(math.pi * (x - node))) / 2
    return 2 * (before + (after - before) * eased) - 1
