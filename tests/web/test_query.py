"""Which readings a Nightscout client asks for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dexcom2mqtt.web.query import Query, QueryError, parameters, wanted
from tests.support.builders import NOON, any_text, property_of, reading

DAY = [reading(seconds=300 * n - 86_400) for n in range(289)]
MS = NOON * 1000


def dates(query: str, default: int = 10) -> list[float]:
    """Return how many seconds before noon the readings requested by a query were taken."""
    return [(each.date - MS) / 1000 for each in wanted(parameters(query), default).of(DAY)]


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 10),
        ("count=3", 3),
        ("count=1", 1),
        ("count=288", 288),
        ("count=289", 288),
        ("count=999999", 288),
        ("count=0", 288),
        *[(f"count={wrong}", 10) for wrong in ("", "-1", "x", "1.5", "1e2", "٣", "9" * 30)],
        ("count=2&count=4", 4),
        ("foo=bar&find[foo][$gt]=1&rr=1700000000000", 10),
    ],
)
def test_how_many(query: str, count: int) -> None:
    """The newest come first: as many as asked for, ten without a sensible number, and at most those of a day."""
    assert dates(query) == [-300.0 * n for n in range(count)]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (f"find[date][$gt]={MS - 600_000}", [0, -300]),
        (f"find[date][$gte]={MS - 600_000}", [0, -300, -600]),
        (f"find[date][$lt]={MS - 85_800_000}", [-86_100, -86_400]),
        (f"find[date][$lte]={MS - 85_800_000}", [-85_800, -86_100, -86_400]),
        (f"find[date][$gt]={MS - 900_000}&find[date][$lte]={MS - 300_000}&count=30", [-300, -600]),
        (f"find%5Bdate%5D%5B%24gte%5D={MS}.0", [0]),
        ("find[dateString][$gte]=2025-04-19T11:55:00.000Z", [0, -300]),
        ("find[dateString][$gt]=2025-04-19T11:55:00Z", [0]),
        ("find[dateString][$gte]=2025-04-19T11:55", [0, -300]),
        ("find[dateString][$gte]=2025-04-19T13:55:00+02:00", [0, -300]),
        ("find[dateString][$gte]=2025-04-19T13:55:00%2B02:00", [0, -300]),
        ("find[dateString][$lt]=2025-04-18T12:05:00Z&count=5", [-86_400]),
        ("find[dateString][$gte]=2025-04-20", []),
        *[(f"find[date][$gt]={wrong}&count=1", [0]) for wrong in ("", "x", "nan", "inf", "1e999")],
        *[(f"find[dateString][$gt]={wrong}&count=1", [0]) for wrong in ("", "yesterday", "2025-99-01")],
        (f"find[date][$ne]={MS}&count=1", [0]),
    ],
)
def test_from_when(query: str, expected: list[float]) -> None:
    """Dates are Unix milliseconds or ISO 8601, in UTC unless they have an offset; nonsense is ignored."""
    assert dates(query) == expected


@pytest.mark.parametrize(
    ("query", "any_left"),
    [
        ("find[type]=sgv", True),
        ("find[type][$eq]=sgv", True),
        ("find[type]=mbg", False),
        ("find[type][$eq]=cal", False),
        ("find[type]=", False),
        ("find[type][$ne]=mbg", True),
    ],
)
def test_of_which_type(query: str, *, any_left: bool) -> None:
    """Only sensor readings exist, so other types give none."""
    assert bool(dates(query)) is any_left


def test_a_query_has_few_parameters() -> None:
    """A query with too many parameters is refused."""
    with pytest.raises(QueryError):
        parameters("&" + "a=1&" * 60)


@property_of
@given(st.dictionaries(st.sampled_from(["count", "find[date][$gt]", "find[dateString][$lte]", "find[type]"]), any_text))
def test_anything_can_be_asked(given_: dict[str, str]) -> None:
    """Any values of the parameters give a valid query."""
    assert isinstance(wanted(given_, 10), Query)
    assert len(wanted(given_, 10).of(DAY)) <= 288


@property_of
@given(st.text())
def test_any_text_is_a_query_or_too_long(query: str) -> None:
    """Splitting any text raises nothing except QueryError."""
    try:
        parameters(query)
    except QueryError:
        assert query.count("&") >= 50
