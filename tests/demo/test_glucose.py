"""The simulated glucose looks like a person's, and is the same in every process."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from itertools import pairwise

import pytest

from dexcom2mqtt.demo.glucose import Glucose, trend_word, uniform

START = 1_745_000_000.0
TWO_WEEKS = range(14 * 288)
PEOPLE = [Glucose(seed, utc_offset_min=-240) for seed in range(20)]


@cache
def values(person: Glucose) -> list[int]:
    return [person.at(START + 300 * slot) for slot in TWO_WEEKS]


def test_is_mostly_in_a_persons_range() -> None:
    """At least 95 % of the values are between 60 and 260 mg/dL, and none is outside a sensor's range."""
    everything = [value for person in PEOPLE for value in values(person)]
    assert sum(60 <= value <= 260 for value in everything) > 0.95 * len(everything)
    assert min(everything) >= 40
    assert max(everything) <= 400


@pytest.mark.parametrize("person", PEOPLE[:8])
def test_is_smooth(person: Glucose) -> None:
    """At most 1 % of neighboring values differ by more than 15 mg/dL, and none by more than 25."""
    steps = [abs(after - before) for before, after in pairwise(values(person))]
    assert sum(step > 15 for step in steps) <= len(steps) / 100
    assert max(steps) <= 25


def test_has_lows_and_highs() -> None:
    """Within two weeks everybody is sometimes below 70 and sometimes above 180 mg/dL."""
    for person in PEOPLE:
        curve = values(person)
        assert 0 < sum(value < 70 for value in curve) < len(curve) / 5
        assert 0 < sum(value > 180 for value in curve) < len(curve) / 2


def test_rises_before_waking() -> None:
    """On average over many days, glucose is higher at dawn than at night."""

    def mean_at(hour: float) -> float:
        midnight = START - START % 86400
        days = [Glucose(3).at(midnight + 86400 * day + 3600 * hour) for day in range(200)]
        return sum(days) / len(days)

    assert mean_at(6.5) > mean_at(3) + 10


def test_lives_by_local_time() -> None:
    """The same person two hours farther east has the same day two hours earlier."""
    assert Glucose(5, utc_offset_min=120).at(START) == Glucose(5).at(START + 7200)


@pytest.mark.parametrize("person", PEOPLE[:8])
def test_trend_follows_the_slope(person: Glucose) -> None:
    """The trend word agrees with the difference from the previous reading, except for rounding."""
    limits = {"FortyFive": (1, 2), "Single": (2, 3), "Double": (3, 9)}
    for before, after in pairwise(START + 300 * slot for slot in TWO_WEEKS):
        rate = (person.at(after) - person.at(before)) / 5
        word = person.trend_at(after)
        if word == "Flat":
            assert abs(rate) <= 1.2
            continue
        least, most = limits[word.removesuffix("Up").removesuffix("Down")]
        assert least - 0.2 <= (rate if word.endswith("Up") else -rate) <= most + 0.2


@pytest.mark.parametrize(
    ("rate", "word"),
    [
        (-3.1, "DoubleDown"),
        (-3.0, "SingleDown"),
        (-2.0, "SingleDown"),
        (-1.0, "FortyFiveDown"),
        (-0.9, "Flat"),
        (0.0, "Flat"),
        (0.9, "Flat"),
        (1.0, "FortyFiveUp"),
        (2.0, "SingleUp"),
        (3.0, "SingleUp"),
        (3.1, "DoubleUp"),
    ],
)
def test_trend_words_begin_where_dexcom_says(rate: float, word: str) -> None:
    """Flat is below 1 mg/dL per minute, FortyFive 1 to 2, Single 2 to 3, Double above 3."""
    assert trend_word(rate) == word


def test_is_the_same_in_every_process() -> None:
    """A process with another hash seed gets the same curve."""
    program = f"from dexcom2mqtt.demo.glucose import Glucose; print(Glucose(7).at({START}))"
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert int(answer.stdout) == Glucose(7).at(START)


def test_seeds_give_different_people() -> None:
    """Different seeds give different fortnights."""
    assert len({tuple(values(person)) for person in PEOPLE}) == len(PEOPLE)


def test_random_numbers_are_even() -> None:
    """The numbers are evenly distributed in [0, 1)."""
    numbers = [uniform(1, 2, index) for index in range(10_000)]
    assert all(0 <= number < 1 for number in numbers)
    assert sum(numbers) / len(numbers) == pytest.approx(0.5, abs=0.02)
