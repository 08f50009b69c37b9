"""What a real poller counts and publishes over days on a clock that jumps: against numpy, restarts, late days."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dexcom2mqtt.demo import share_service as share
from dexcom2mqtt.messages.days import counted, days_message
from dexcom2mqtt.messages.history import source_of
from dexcom2mqtt.readings import RANGES, Reading
from tests.account.test_polling import BEGIN, DAY, HOUR, MINUTE, TOPICS, World, make_world
from tests.support import share_faults

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dexcom2mqtt.demo.share_service import Record

__all__ = ["make_world"]  # the fixture

STATISTICS, DAYS = TOPICS.of("anna", "statistics"), TOPICS.of("anna", "days")
SOURCE = source_of("us", "anna@example.com")


def statistics(world: World) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(world.retained[STATISTICS])
    return found


def days(world: World) -> dict[str, int]:
    """Return by day how many readings the broker has counted."""
    return {day["day"]: day["n"] for day in json.loads(world.retained[DAYS])["days"]}


def published_at(world: World, topic: str = STATISTICS) -> list[float]:
    return [at for at, each in world.publications if each == topic]


def truth(world: World, since: float = BEGIN - DAY) -> list[Record]:
    """Return the records that the wearer's sensor took, up to the newest one published."""
    return list(share.series(world.account, max(since, BEGIN - DAY + 5000), max(world.published) / 1000 + 1))


def local_day(record: Record, world: World) -> str:
    return str(np.datetime64(record.taken + world.account.zone_offset_min * 60_000, "ms").astype("datetime64[D]"))


def true_days(world: World) -> dict[str, int]:
    named = [local_day(record, world) for record in truth(world)]
    return {day: named.count(day) for day in sorted(set(named))}


# --- against numpy -----------------------------------------------------------------------------------------


def half_up(value: float) -> float:
    """Round to one decimal as on paper: the sixth decimal place separates a true half from a binary near-half."""
    return float(np.floor(np.round(value * 10, 6) + 0.5) / 10)


def by_numpy(records: Sequence[Record], world: World, minutes: float, *, gmi: bool) -> dict[str, Any]:
    """Compute a window again, directly from all its readings."""
    values = np.array([record.value for record in records], dtype=float)
    mmol = 18.01559 if world.configured.get("unit") == "mmol/L" else 1.0
    mean, sd = np.mean(values), np.std(values, ddof=1)
    edges = [values < 54, (values >= 54) & (values < 70), (values >= 70) & (values <= 180)]
    edges += [(values > 180) & (values <= 250), values > 250]
    tenths = np.array([np.count_nonzero(edge) for edge in edges]) * 1000 / len(values)
    whole = np.floor(np.round(tenths, 9))
    order = np.argsort(-(np.round(tenths - whole, 9)), kind="stable")
    whole[order[: int(1000 - whole.sum())]] += 1
    coverage = 100 * len(values) / (minutes / 5)
    enough = gmi and coverage >= 70
    return {
        "readings": len(values),
        "expected": half_up(minutes / 5),
        "coverage": half_up(min(coverage, 100)),
        "days": len({local_day(record, world) for record in records}),
        "mean": half_up(mean / mmol),
        "sd": half_up(sd / mmol),
        "mean_mg_dl": half_up(mean),
        "sd_mg_dl": half_up(sd),
        "cv": half_up(100 * sd / mean),
        **{name: float(part) for name, part in zip(RANGES, whole / 10, strict=True)},
        "gmi": half_up(3.31 + 0.02392 * mean) if enough else None,
        "gmi_mmol_mol": int(np.floor(12.71 + 4.70587 * mean / 18.01559 + 0.5)) if enough else None,
    }


def check_all_windows(world: World) -> None:
    """Compare the last payload with numpy, to the decimal."""
    now, said = published_at(world)[-1], statistics(world)
    records = [record for record in truth(world) if record.taken in world.published]
    day = [record for record in records if record.taken > (now - DAY) * 1000]
    assert said["24h"] == by_numpy(day, world, 1440, gmi=False)
    local = now + world.account.zone_offset_min * 60
    for count in (7, 14, 30, 90):
        since = (local // DAY - count + 1) * DAY - world.account.zone_offset_min * 60
        minutes = (count - 1) * 1440 + local % DAY // 60
        within = [record for record in records if record.taken >= since * 1000]
        assert said[f"{count}d"] == by_numpy(within, world, minutes, gmi=count >= 14)


def sleep(world: World, seconds: float) -> None:
    """Let time pass while no daemon runs, then start one."""
    world.clock.time += seconds
    world.restart()


@pytest.mark.parametrize(("unit", "last"), [pytest.param("mg/dL", 92, marks=pytest.mark.faults), ("mmol/L", 15)])
def test_90_days_equal_what_numpy_computes(make_world: Callable[..., World], unit: str, last: int) -> None:
    """Every figure of every window is right to the decimal, with missing and late readings, and restarts.

    On most days the daemon runs only for a while, and catches up later. In the other unit, two weeks suffice.
    """
    world = make_world(seed=11, zone_offset_min=-240 if unit == "mg/dL" else 330)
    world.configured = {"unit": unit}
    world.restart()
    for step in range(last + 1):
        away = BEGIN + world.clock.time + 3 * HOUR
        world.service.distort(share_faults.during(away, away + 5 * MINUTE * (step % 9), share_faults.missing))
        if step % 20 == 7:
            world.live(12 * HOUR)
            sleep(world, 0)
            world.live(11 * HOUR)
        else:
            sleep(world, 23 * HOUR)
        if step % 5 == 0:
            world.service.distort(share.unchanged)  # they were only late
        world.live(HOUR + 7)
        if step in {1, 8, 15, 31, 60, 92}:
            check_all_windows(world)
    assert len(days(world)) == min(last + 2, 90)
    assert (statistics(world)["90d"]["gmi"] is not None) is (last > 62)


# --- when it is published ----------------------------------------------------------------------------------


def test_it_is_published_after_each_reading_at_most_once_a_minute(make_world: Callable[..., World]) -> None:
    """It is published seconds after the reading, which is then in every window."""
    world = make_world()
    world.live(6 * HOUR)
    times = published_at(world)
    assert min(later - earlier for earlier, later in pairwise(times)) >= 60
    for date, at in sorted(world.published.items())[-60:]:
        assert any(0 <= said - at <= 60 for said in times), date
    said = statistics(world)
    assert said["24h"]["readings"] in {287, 288, 289}
    assert said["7d"]["readings"] == sum(days(world).values()) == len(world.published)


def test_it_is_published_once_an_hour_whatever_happens(make_world: Callable[..., World]) -> None:
    """Windows move by themselves: also while Share is down, or asks for an hour without requests."""
    world = make_world()
    world.live(HOUR)
    world.service.fault = share_faults.status(429, {"Retry-After": "3600"})
    world.live(30 * HOUR)
    times = published_at(world)
    assert max(later - earlier for earlier, later in pairwise(times)) <= 3602
    said = statistics(world)
    assert said["24h"] is None
    assert said["7d"]["readings"] == len(world.published)


def test_a_first_start_has_a_day_immediately(make_world: Callable[..., World]) -> None:
    """All 24 hours that Share has are counted on the days when they were taken."""
    world = make_world()
    world.live(2 * HOUR)
    assert days(world) == true_days(world)
    assert len(days(world)) == 2


# --- restarts ----------------------------------------------------------------------------------------------


def test_restarts_continue_to_count(make_world: Callable[..., World]) -> None:
    """Each reading counts once, including those while no daemon ran, and late ones of the day before."""
    world = make_world()
    world.live(HOUR)
    away = BEGIN + world.clock.time
    world.service.distort(share_faults.during(away, away + 2 * HOUR, share_faults.missing))
    for _ in range(4):
        world.live(3 * HOUR)
        sleep(world, 2 * HOUR)
    assert sum(days(world).values()) < sum(true_days(world).values())
    world.service.distort(share.unchanged)  # after midnight
    world.live(2 * HOUR)
    assert days(world) == true_days(world)


def test_a_version_that_counts_starts_with_the_history(make_world: Callable[..., World]) -> None:
    """The readings that an older version published in the last 24 hours count too."""
    world = make_world()
    world.statistics = "24h"
    world.restart()
    world.live(3 * HOUR)
    assert DAYS not in world.retained
    assert [statistics(world)[window] is None for window in ("24h", "7d", "90d")] == [False, True, True]
    world.statistics = "90d"
    history, published = json.loads(world.retained[TOPICS.of("anna", "history")])["readings"], len(world.published)
    sleep(world, 60)
    world.live(2 * HOUR)
    assert sum(days(world).values()) == len(history) + len(world.published) - published


def test_statistics_that_are_off_are_not_published(make_world: Callable[..., World]) -> None:
    """Neither statistics nor days are published."""
    world = make_world()
    world.statistics = "off"
    world.restart()
    world.live(2 * HOUR)
    assert not {STATISTICS, DAYS} & world.retained.keys()


def test_other_ranges_count_today_again(make_world: Callable[..., World]) -> None:
    """It is counted from the history; percentages of longer windows are null until most readings use the new ranges."""
    world = make_world()
    world.live(4 * DAY)
    before = {day["day"]: day for day in json.loads(world.retained[DAYS])["days"]}
    world.configured = {"ranges": {"high": 140}}
    sleep(world, 60)
    world.live(HOUR)
    after = {day["day"]: day for day in json.loads(world.retained[DAYS])["days"]}
    today = max(after)
    assert {day["ranges"][2] for name, day in after.items() if name != today} == {180}
    assert after[today]["ranges"] == [54, 70, 140, 250]
    assert {name: day for name, day in before.items() if name != today}.items() <= after.items()
    assert days(world)[today] == true_days(world)[today]
    assert statistics(world)["7d"]["in_range"] is None
    assert statistics(world)["24h"]["in_range"] is not None


def test_a_lost_history_doubles_no_day(make_world: Callable[..., World]) -> None:
    """Share returns its readings again, and they are published again, but count only once."""
    world = make_world()
    world.live(2 * DAY)
    del world.retained[TOPICS.of("anna", "history")]
    sleep(world, 60)
    world.live(3 * HOUR)
    assert days(world) == true_days(world)


def test_days_of_another_person_are_ignored(make_world: Callable[..., World], caplog: pytest.LogCaptureFixture) -> None:
    """One line reports it, and counting starts with the history."""
    world = make_world()
    world.retained[DAYS] = days_message(
        TOPICS, "anna", "ffffffff", counted({}, [Reading(100, "Flat", 10**12)], (54, 70, 180, 250))
    ).payload.encode()
    world.restart()
    world.live(10 * MINUTE)
    assert caplog.text.count("ignoring the retained record of days") == 1
    assert days(world) == true_days(world)


# --- late days ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [MINUTE, 30 * MINUTE, 20 * HOUR])
def test_late_days_are_joined(make_world: Callable[..., World], late: float) -> None:
    """Until then no days are published, and afterwards everything is as if they had come in time."""
    world = make_world()
    world.live(2 * DAY)
    kept = world.retained[DAYS]
    world.clock.time += 3 * HOUR
    world.restart(broker=False)
    world.read_back(days_awaited=True)
    world.live(late)
    assert world.retained[DAYS] == kept
    assert statistics(world)["7d"]["readings"] < sum(true_days(world).values())
    world.poller.take_days(kept)
    world.live(10 * MINUTE)
    assert days(world) == true_days(world)
    assert statistics(world)["7d"]["readings"] == sum(days(world).values())


def test_late_days_before_share_sends_the_time(make_world: Callable[..., World]) -> None:
    """They arrive late, but before anything else was counted."""
    world = make_world()
    world.live(DAY)
    kept = world.retained[DAYS]
    world.service.fault = share_faults.status(503)
    world.restart(broker=False)
    world.read_back(days_awaited=True)
    world.live(HOUR)
    world.poller.take_days(kept)
    world.live(HOUR)
    assert world.retained[DAYS] == kept
    world.service.fault = share.no_fault
    world.live(HOUR)
    assert days(world) == true_days(world)


def test_days_that_are_given_up_start_over_with_one_line(
    make_world: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    """Counting starts with the history, and what was counted since."""
    world = make_world()
    world.live(3 * DAY)
    world.restart(broker=False)
    world.read_back(days_awaited=True)
    world.live(HOUR)
    history = json.loads(world.retained[TOPICS.of("anna", "history")])["readings"]
    world.poller.take_days(None)
    world.live(10 * MINUTE)
    assert caplog.text.count("so counting starts over") == 1
    assert len(history) <= sum(days(world).values()) <= len(history) + 16
