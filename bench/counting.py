"""What the statistics cost: CPU time for each reading, and memory for each account.

Part of ``footprint.py``, which prints the result and compares it with its targets. It measures in one process what a
reading adds to a poll, from counting it to the two payloads, with 90 full days and 24 hours of readings.
"""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.account.statistics import statistics_of
from dexcom2mqtt.config.settings import Account
from dexcom2mqtt.config.values import Secret
from dexcom2mqtt.demo.share_service import SimulatedAccount, series
from dexcom2mqtt.messages.days import counted, days_message, limits_of, resumed
from dexcom2mqtt.messages.message import to_json
from dexcom2mqtt.readings import Reading
from dexcom2mqtt.topics import Topics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dexcom2mqtt.messages.days import Tally

DAY: Final = 86_400
NOW: Final = 1_800_000_000
TIMES: Final = 300
ACCOUNTS: Final = 20
ANNA: Final = Account(username=Secret("anna@example.com"), password=Secret("the password"))
TOPICS: Final = Topics("dexcom2mqtt")


def measure_counting() -> tuple[float, float]:
    """Return the milliseconds of CPU time that a reading adds (the median), and the kB for each account."""
    simulated = SimulatedAccount("anna@example.com", "the password", seed=7)
    records = series(simulated, NOW - 90 * DAY, NOW)
    readings = [Reading(each.value, each.trend, each.taken, simulated.zone_offset_min) for each in records]
    tally = _tally(readings[:-TIMES])
    milliseconds = []
    for place in range(len(readings) - TIMES, len(readings)):
        day, reading = readings[place - 287 : place + 1], readings[place]
        began = time.process_time()
        tally = tally.count(reading)
        _payloads(tally, day)
        milliseconds.append((time.process_time() - began) * 1000)
    return statistics.median(milliseconds), _kilobytes(readings)


def _tally(readings: Sequence[Reading]) -> Tally:
    return resumed(counted({}, readings, limits_of(ANNA.ranges)), (), limits_of(ANNA.ranges), NOW // DAY)


def _payloads(tally: Tally, day: Sequence[Reading]) -> tuple[str, str]:
    days = days_message(TOPICS, "anna", "0123abcd", tally.days)
    return days.payload, to_json(statistics_of(day, tally.days, ANNA, NOW, day[-1].offset_min))


def _kilobytes(readings: Sequence[Reading]) -> float:
    """Return the kB that an account keeps: its tally, and the two payloads in the mirror."""
    gc.collect()
    tracemalloc.start()
    kept = []
    for _ in range(ACCOUNTS):
        tally = _tally(readings)
        kept.append((tally, _payloads(tally, readings[-288:])))
    gc.collect()
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return used / len(kept) / 1000
