"""The statistics of the last 24 hours and the last 7 to 90 days, as published on ``statistics``. Pure.

Where each figure comes from:

- Time in range and its five bands, the coefficient of variation as the measure of variability, and 70 % of 14 days as
  the data needed for a report: the international consensus on time in range (Battelino and others, Diabetes Care 2019,
  volume 42, pages 1593 to 1603).
- The glucose management indicator (GMI), in percent and in mmol/mol: Bergenstal and others, Diabetes Care 2018, volume
  41, pages 2275 to 2280.

Everything is computed from whole numbers of mg/dL and rounded once, at the end: half up, to one decimal.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dexcom2mqtt.clock import DAY
from dexcom2mqtt.messages.days import counted, day_of, limits_of
from dexcom2mqtt.messages.percent import percentages
from dexcom2mqtt.readings import MG_DL_PER_MMOL_L, RANGES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dexcom2mqtt.config.settings import Account
    from dexcom2mqtt.messages.days import Day, Days, Limits
    from dexcom2mqtt.readings import Reading

STATISTICS_VERSION: Final = 1
"""The version of the payload."""
LONG_WINDOWS: Final = (7, 14, 30, 90)
"""The windows of whole days, in days."""
ENOUGH: Final = 70
"""Percent of the expected readings: with fewer, a window of 14 days is not reliable (consensus 2019)."""

_CADENCE_MIN: Final = 5  # schedule.INTERVAL in minutes
_DAY_MIN: Final = DAY // 60
_LEAST_FOR_GMI: Final = 14
_TENTH: Final = Decimal("0.1")

Window = dict[str, Any]
"""The figures of one window, by the public keys of ``statistics``."""


class _Sums(NamedTuple):
    """The sums over some days; ``bands`` only over those counted with today's ranges."""

    days: int
    readings: int
    total: int
    squares: int
    bands: tuple[int, ...]

    @classmethod
    def of(cls, days: Sequence[Day], ranges: Limits) -> _Sums:
        bands = [day.bands for day in days if day.ranges == ranges]
        return cls(
            days=len(days),
            readings=sum(day.readings for day in days),
            total=sum(day.total for day in days),
            squares=sum(day.squares for day in days),
            bands=tuple(map(sum, zip(*bands, strict=True))) or (0,) * len(RANGES),
        )


def last_day(readings: Iterable[Reading], account: Account, now: float) -> Window | None:
    """Return the figures of the 24 hours before ``now`` (Unix seconds); None if there are no readings in that time.

    A reading is identified by its date, and counts once.
    """
    within = {reading.date: reading for reading in readings if reading.date > (now - DAY) * 1000}
    return _window([*counted({}, within.values(), limits_of(account.ranges)).values()], _DAY_MIN, account)


def last_days(count: int, days: Days, account: Account, now: float, offset_min: int) -> Window | None:
    """Return the figures of today so far and the days before, ``count`` in all; None if they have no readings.

    ``now`` is in Unix seconds, ``offset_min`` the wearer's offset from UTC, which decides what today is. A day on which
    the offset changed counts as 24 hours.
    """
    today = day_of(now, offset_min)
    minutes = (count - 1) * _DAY_MIN + int(now + offset_min * 60 - today * DAY) // 60
    within = [day for number, day in days.items() if number > today - count]
    return _window(within, minutes, account, gmi=count >= _LEAST_FOR_GMI)


def statistics_of(
    readings: Iterable[Reading], days: Days | None, account: Account, now: float, offset_min: int
) -> dict[str, object]:
    """Return the payload of ``statistics``; ``now`` is in Unix seconds, ``offset_min`` the wearer's offset from UTC.

    ``readings`` cover at least the last 24 hours. Without ``days`` the longer windows are null.
    """
    return {
        "version": STATISTICS_VERSION,
        "unit": account.unit,
        "24h": last_day(readings, account, now),
        **{f"{count}d": last_days(count, days or {}, account, now, offset_min) for count in LONG_WINDOWS},
    }


def _window(days: Sequence[Day], minutes: int, account: Account, *, gmi: bool = False) -> Window | None:
    sums = _Sums.of(days, limits_of(account.ranges))
    if not sums.readings:
        return None
    expected = Decimal(minutes) / _CADENCE_MIN
    covered = 100 * sums.readings >= ENOUGH * expected
    mean = Decimal(sums.total) / sums.readings
    sd = _deviation(sums)
    in_unit = 1 if account.unit == "mg/dL" else MG_DL_PER_MMOL_L
    return {
        "readings": sums.readings,
        "expected": _rounded(expected),
        "coverage": _rounded(min(100 * sums.readings / expected, Decimal(100)) if expected else Decimal(100)),
        "days": sums.days,
        "mean": _rounded(mean / in_unit),
        "sd": None if sd is None else _rounded(sd / in_unit),
        "mean_mg_dl": _rounded(mean),
        "sd_mg_dl": None if sd is None else _rounded(sd),
        "cv": None if sd is None else _rounded(100 * sd / mean),
        **_percentages(sums),
        "gmi": _rounded(gmi_percent(mean)) if gmi and covered else None,
        "gmi_mmol_mol": int(gmi_mmol_mol(mean).quantize(Decimal(1), ROUND_HALF_UP)) if gmi and covered else None,
    }


def gmi_percent(mean_mg_dl: Decimal) -> Decimal:
    """Return the glucose management indicator in percent (Bergenstal 2018)."""
    return Decimal("3.31") + Decimal("0.02392") * mean_mg_dl


def gmi_mmol_mol(mean_mg_dl: Decimal) -> Decimal:
    """Return the glucose management indicator in mmol/mol, from the mean in mmol/L (Bergenstal 2018)."""
    return Decimal("12.71") + Decimal("4.70587") * mean_mg_dl / MG_DL_PER_MMOL_L


def _deviation(sums: _Sums) -> Decimal | None:
    """Return the sample standard deviation (n - 1) in mg/dL; None for a single reading."""
    n = sums.readings
    if n < 2:  # noqa: PLR2004  # divided by n - 1
        return None
    return (Decimal(n * sums.squares - sums.total**2) / (n * (n - 1))).sqrt()


def _percentages(sums: _Sums) -> dict[str, float | None]:
    """Return the percentage of each range, or null if too few readings were counted with today's ranges."""
    if 100 * sum(sums.bands) < ENOUGH * sums.readings:
        return dict.fromkeys(RANGES)
    return dict(zip(RANGES, percentages(sums.bands), strict=True))


def _rounded(exact: Decimal) -> float:
    return float(exact.quantize(_TENTH, ROUND_HALF_UP))
