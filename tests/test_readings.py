"""The properties of a reading, and the parsing of Share's records."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dexcom2mqtt.messages.state import fresh_messages, stale_messages, state_of
from dexcom2mqtt.readings import (
    RANGES,
    TRENDS,
    MalformedRecordError,
    Reading,
    convert_delta,
    parse_record,
    range_of,
    to_mmol_l,
)
from dexcom2mqtt.topics import Topics
from tests.support.builders import account, any_json, any_text, property_of, reading

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dexcom2mqtt.readings import Unit

TODAYS: Mapping[str, object] = {
    "WT": "Date(1745081013817)",
    "ST": "Date(1745081013817)",
    "DT": "Date(1745081013817-0400)",
    "Value": 224,
    "Trend": "Flat",
}
BEFORE_2021_12: Mapping[str, object] = {
    "DT": "/Date(1426292016000-0700)/",
    "ST": "/Date(1426295616000)/",
    "Trend": 4,
    "Value": 101,
    "WT": "/Date(1426292039000)/",
}

DIRECTIONS = [
    (0, "None", None, None, None),
    (1, "DoubleUp", "rising_quickly", "rising quickly", "↑↑"),
    (2, "SingleUp", "rising", "rising", "↑"),
    (3, "FortyFiveUp", "rising_slightly", "rising slightly", "↗"),
    (4, "Flat", "steady", "steady", "→"),
    (5, "FortyFiveDown", "falling_slightly", "falling slightly", "↘"),
    (6, "SingleDown", "falling", "falling", "↓"),
    (7, "DoubleDown", "falling_quickly", "falling quickly", "↓↓"),
    (8, "NotComputable", None, "unable to determine trend", "?"),
    (9, "RateOutOfRange", None, "trend unavailable", "-"),
]

FULL_SCALE = range(39, 402)

NO_VALUES: list[object] = [None, "", True, False, [224], {}, 100.5, math.nan, math.inf, -math.inf]
NO_VALUES += [10**400, -(10**400), 1e300]

TEXTS = {"224": 224, "224.0": 224, "224.000": 224, "39": 39, "401": 401, "38": 38, "5": 5, "0": 0, "-1": -1}
"""Values as decimal text, and the numbers they mean."""
NO_TEXTS = [" 224 ", "224 ", "224\n", "1e2", "2.24e2", "12O", "٣", "٢٢٤", "\N{FULLWIDTH DIGIT TWO}24", "224.5", "224,0"]
NO_TEXTS += ["224.", ".0", "+224", "-", "0224", "00", "2_24", "0x64", "2001", "-2001", "22400000", "9" * 5000]
NO_TEXTS += ["NaN", "inf", "true", "null", "224 mg/dL", "22٤", "224.\N{ARABIC-INDIC DIGIT ZERO}"]

NO_INSTANTS: list[object] = [None, 1745081013817, "", "Date()", "Date(-1)", "Date(0)", "now", "Date(99999999999999)"]
NO_INSTANTS += ["Date(1745081013817", "Date(١٢٣)", ["Date(1745081013817)"], {}, True, 1.5]

instants = st.integers(-1, 5_000_000_000_000).map(lambda date: f"Date({date})")
zones = st.integers(-3000, 3000).map(lambda zone: f"Date(1745081013817{zone:+05d})")
trends = st.sampled_from([word for _, word, *_ in DIRECTIONS]) | st.integers(-2, 12)
records = st.fixed_dictionaries(
    {},
    optional={
        "WT": instants | any_json,
        "DT": zones | any_json,
        "ST": any_json,
        "Value": st.integers(-10, 500) | st.integers(-10, 500).map(str) | any_json,
        "Trend": trends | any_json,
    },
)
good_records = st.fixed_dictionaries(
    {"WT": st.integers(1, 4_102_444_799_999).map(lambda date: f"Date({date})"), "Value": st.integers(-2000, 2000)},
    optional={"DT": zones | any_json, "ST": any_json, "Trend": trends | any_json},
)


def parse(**changes: object) -> Reading:
    return parse_record({**TODAYS, **changes})


def told(taken: Reading) -> tuple[int, str, str | None, str | None, str | None]:
    return taken.trend_number, taken.direction, taken.trend, taken.description, taken.arrow


# --- records -----------------------------------------------------------------------------------------------


def test_reads_todays_format() -> None:
    """A record as Share sends it today becomes a reading with the wearer's zone."""
    taken = parse_record(TODAYS)
    assert (taken.mg_dl, taken.direction, taken.date, taken.offset_min) == (224, "Flat", 1745081013817, -240)


def test_reads_the_format_before_december_2021() -> None:
    """A record with slashes and a numeric trend is read, and WT is its instant rather than ST or DT."""
    taken = parse_record(BEFORE_2021_12)
    assert (taken.mg_dl, taken.direction, taken.date, taken.offset_min) == (101, "Flat", 1426292039000, -420)


def test_keeps_the_record() -> None:
    """A reading keeps the record it came from, which does not affect equality."""
    taken = parse_record(TODAYS)
    assert taken.json == TODAYS
    assert taken == parse(ST="Date(1)")


@pytest.mark.parametrize(
    ("zone", "offset_min"),
    [
        ("-0400", -240),
        ("+0000", 0),
        ("-0000", 0),
        ("+0530", 330),
        ("+0059", 59),
        ("-0330", -210),
        ("+1400", 840),
        ("+1245", 765),
    ],
)
def test_reads_the_wearers_zone(zone: str, offset_min: int) -> None:
    """DT gives the wearer's offset from UTC, in minutes."""
    assert parse(DT=f"Date(1745081013817{zone})").offset_min == offset_min


@pytest.mark.parametrize(
    "unusable",
    [
        None,
        "",
        "Date(1745081013817)",
        "Date(1745081013817+0060)",
        "Date(1745081013817+1401)",
        "Date(1745081013817-9959)",
        "Date(1745081013817-04)",
        "Date(1745081013817-04:00)",
        "Date(1745081013817\N{MINUS SIGN}0400)",
        "yesterday",
        1745081013817,
        True,
        ["Date(1745081013817-0400)"],
    ],
)
def test_zone_that_makes_no_sense_costs_only_itself(unusable: object) -> None:
    """If DT is unusable, the time is in UTC, and the reading counts."""
    taken = parse(DT=unusable)
    assert taken.offset_min == 0
    assert taken.time.isoformat(timespec="milliseconds") == "2025-04-19T16:43:33.817+00:00"


def test_missing_zone_costs_only_itself() -> None:
    """A record without DT is a reading whose time is in UTC."""
    assert parse_record({"WT": TODAYS["WT"], "Value": 224, "Trend": "Flat"}) == parse(DT="Date(1745081013817+0000)")


@pytest.mark.parametrize(
    ("date", "offset_min", "text"),
    [
        (1745081013817, -240, "2025-04-19T12:43:33.817-04:00"),
        (1745081013817, 330, "2025-04-19T22:13:33.817+05:30"),
        (1745081013007, 0, "2025-04-19T16:43:33.007+00:00"),
        (1745081013000, 0, "2025-04-19T16:43:33.000+00:00"),
        (1735689599999, 840, "2025-01-01T13:59:59.999+14:00"),
    ],
)
def test_its_time_is_exact_to_the_millisecond(date: int, offset_min: int, text: str) -> None:
    """The time is the instant of WT, to the millisecond, in the wearer's zone."""
    assert Reading(100, "Flat", date, offset_min).time.isoformat(timespec="milliseconds") == text


@given(date=st.integers(1, 4_102_444_799_999), offset_min=st.integers(-840, 840))
@property_of
def test_no_millisecond_is_lost(date: int, offset_min: int) -> None:
    """The time of every instant is that instant again, whatever the zone."""
    instant = Reading(100, "Flat", date, offset_min).time
    assert round(instant.timestamp() * 1000) == date
    assert instant.microsecond == date % 1000 * 1000


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        "Date(1745081013817)",
        42,
        {},
        {"WT": "Date(1745081013817)"},
        {"Value": 100},
        *({**TODAYS, "WT": instant, "DT": None} for instant in NO_INSTANTS),
        *({**TODAYS, "Value": value} for value in [*NO_VALUES, *NO_TEXTS]),
    ],
)
def test_rejects_a_record_that_is_not_a_reading(record: object) -> None:
    """A record without an instant or a whole number of mg/dL is malformed."""
    with pytest.raises(MalformedRecordError):
        parse_record(record)


@pytest.mark.parametrize("value", [39, 40, 224, 400, 401, 224.0])
def test_accepts_every_value_that_a_sensor_shows(value: float) -> None:
    """From LOW to HIGH each value is kept unchanged, as a whole number."""
    taken = parse(Value=value)
    assert taken.mg_dl == value
    assert isinstance(taken.mg_dl, int)


# --- a new format ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_accepts_a_value_as_decimal_text(text: str) -> None:
    """A whole number in ASCII digits is read as that number, and the reading is drifted."""
    taken = parse(Value=text)
    assert (taken.mg_dl, taken.drifted) == (TEXTS[text], True)
    assert taken == parse(Value=TEXTS[text])


@pytest.mark.parametrize("wt", NO_INSTANTS)
@pytest.mark.parametrize("dt", ["Date(1745081013817-0400)", "/Date(1745081013817-0400)/"])
def test_uses_dt_if_wt_makes_no_sense(wt: object, dt: str) -> None:
    """If WT is not an instant, DT with its zone is the instant, and the reading is drifted."""
    taken = parse(WT=wt, DT=dt)
    assert (taken.date, taken.offset_min, taken.drifted) == (1745081013817, -240, True)


def test_uses_dt_if_wt_is_missing() -> None:
    """If there is no WT, DT with its zone is the instant."""
    taken = parse_record({key: value for key, value in TODAYS.items() if key != "WT"})
    assert taken == parse_record(TODAYS)
    assert taken.drifted


@pytest.mark.parametrize(
    "dt",
    [
        None,
        "",
        1745081013817,
        "Date(1745081013817)",
        "Date(1745081013817+0060)",
        "Date(1745081013817+1401)",
        "Date(1745081013817-04)",
        "Date(1745081013817-04:00)",
        "Date(0-0400)",
        "Date(99999999999999-0400)",
        "Date(-0400)",
        "2025-04-19T12:43:33-04:00",
    ],
)
def test_an_ambiguous_dt_is_not_used(dt: object) -> None:
    """Without a WT, a DT without a valid zone leaves the record malformed, whatever ST says."""
    with pytest.raises(MalformedRecordError):
        parse(WT=None, DT=dt)


@pytest.mark.parametrize("record", [TODAYS, BEFORE_2021_12, {**TODAYS, "DT": "x", "Value": 224.0, "Trend": 42}])
def test_known_formats_are_not_drifted(record: object) -> None:
    """Today's format and the one before it are not drifted, nor are records with a bad zone or trend."""
    assert not parse_record(record).drifted


def test_a_reading_without_a_record_is_not_drifted() -> None:
    """A reading without a record is not drifted."""
    assert not Reading(100, "Flat", 1745081013817).drifted


@given(value=st.integers(-2000, 2000), zeros=st.integers(0, 30))
@property_of
def test_a_value_as_text_is_read_as_its_number(value: int, zeros: int) -> None:
    """However a whole number is written, with or without zeros after the decimal point, it is read as itself."""
    assert parse(Value=f"{value}.{'0' * zeros}" if zeros else str(value)) == parse(Value=value)


@given(st.from_regex(r"\A-?[0-9]{1,5}(\.[0-9]{1,3})?\Z") | st.floats().map(str) | any_text)
@example("224\n")
@property_of
def test_only_a_plain_text_is_a_value(text: str) -> None:
    """A text is a value only if formatting the value gives the text again, except for zeros after the point."""
    try:
        taken = parse(Value=text)
    except MalformedRecordError:
        return
    whole, _, rest = text.partition(".")
    assert whole in {str(taken.mg_dl), f"-{taken.mg_dl}"}  # "-0" is 0
    assert set(rest) <= {"0"}
    assert -2000 <= taken.mg_dl <= 2000


@given(
    wt=instants | any_json,
    date=st.integers(1, 4_102_444_799_999),
    zone=st.integers(-1400, 1400).filter(lambda zone: abs(zone) % 100 < 60),
)
@property_of
def test_dt_is_used_only_if_wt_is_unusable(wt: object, date: int, zone: int) -> None:
    """A record with a good DT is a reading whatever WT is, and a WT that is an instant always wins."""
    taken = parse(WT=wt, DT=f"Date({date}{zone:+05d})")
    try:
        told = parse(WT=wt, DT=None).date
    except MalformedRecordError:
        assert (taken.date, taken.drifted) == (date, True)
    else:
        assert (taken.date, taken.drifted) == (told, False)


@given(any_json | records)
@example({**TODAYS, "Value": 10**5000})
@example({**TODAYS, "Trend": 10**5000})
@example({**TODAYS, "Trend": -(10**5000)})
@example({**TODAYS, "DT": "Date(" + "9" * 5000 + "+0000)"})
@property_of
def test_survives_any_record(record: object) -> None:
    """Nothing that a JSON parser can return makes parse_record raise anything but MalformedRecordError."""
    try:
        taken = parse_record(record)
    except MalformedRecordError:
        return
    assert isinstance(taken.mg_dl, int)
    assert 0 <= taken.trend_number <= 9
    assert isinstance(taken.drifted, bool)


@given(record=good_records, unit=st.sampled_from(["mg/dL", "mmol/L"]))
@example({**TODAYS, "Trend": "\ud800"}, "mg/dL")
@example({**TODAYS, "Value": -10}, "mmol/L")
@example({**TODAYS, "WT": "Date(1)", "DT": "Date(1-1400)"}, "mmol/L")
@property_of
def test_every_reading_can_be_published(record: object, unit: Unit) -> None:
    """A record with an instant and a value becomes a state in valid JSON and UTF-8, whatever else it contains."""
    state = state_of(parse_record(record), None, account(unit))
    for message in stale_messages(Topics("b"), "a", state):
        assert message.payload.encode()
    for message in fresh_messages(Topics("b"), "a", state, 0):
        assert message.payload.encode()
        if message.topic == "b/a/state":
            assert json.loads(message.payload, parse_constant=pytest.fail) == state


@given(good_records)
@property_of
def test_every_parsed_reading_can_be_restored(record: object) -> None:
    """Every result of parse_record is a reading that Share could have sent, unless it is an error code."""
    taken = parse_record(record)
    if taken.mg_dl >= 39:
        assert taken.checked() is taken
    else:
        with pytest.raises(MalformedRecordError):
            taken.checked()


@pytest.mark.parametrize(
    "impossible",
    [
        Reading(38, "Flat", 1745081013817),
        Reading(10**9, "Flat", 1745081013817),
        Reading(-100, "Flat", 1745081013817),
        Reading(100, "Flat", 0),
        Reading(100, "Flat", -1745081013817),
        Reading(100, "Flat", 10**18),
        Reading(100, "Flat", 1745081013817, 841),
        Reading(100, "Flat", 1745081013817, -841),
        Reading(100, "x" * 10_000, 1745081013817),
        Reading(100, "\ud800", 1745081013817),
    ],
)
def test_rejects_readings_that_share_could_not_have_sent(impossible: Reading) -> None:
    """A reading with a value, time, zone or word that cannot be Share's is malformed."""
    with pytest.raises(MalformedRecordError):
        impossible.checked()


# --- trends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "word", "trend", "description", "arrow"), DIRECTIONS)
def test_knows_every_trend(
    number: int, word: str, trend: str | None, description: str | None, arrow: str | None
) -> None:
    """Each of the ten trends, sent as word or number, has its number, word, name, description and arrow."""
    for sent in (word, number, str(number)):
        assert told(parse(Trend=sent)) == (number, word, trend, description, arrow)


@pytest.mark.parametrize(
    ("spelling", "word"),
    [
        ("NONE", "None"),
        ("none", "None"),
        ("NOT COMPUTABLE", "NotComputable"),
        ("notcomputable", "NotComputable"),
        ("NOT_COMPUTABLE", "NotComputable"),
        ("RATE OUT OF RANGE", "RateOutOfRange"),
        ("Rate Out Of Range", "RateOutOfRange"),
        ("DOUBLE_UP", "DoubleUp"),
        ("double up", "DoubleUp"),
        ("singleUp", "SingleUp"),
        ("forty-five up", "FortyFiveUp"),
        ("FORTY_FIVE_DOWN", "FortyFiveDown"),
        ("FLAT", "Flat"),
        (" Flat ", "Flat"),
    ],
)
def test_normalizes_spellings_to_shares_own(spelling: str, word: str) -> None:
    """Whatever the case and the separators, the direction is Share's own word."""
    assert parse(Trend=spelling) == parse(Trend=word)
    assert parse(Trend=spelling).direction == word


@pytest.mark.parametrize("missing", [None, "", "  "])
def test_missing_trend_is_none(missing: object) -> None:
    """If no trend is sent, the direction is None and its number 0."""
    assert told(parse(Trend=missing)) == (0, "None", None, None, None)


def test_record_without_trend_is_a_reading() -> None:
    """A record without the key Trend counts, with the direction None."""
    taken = parse_record({key: value for key, value in TODAYS.items() if key != "Trend"})
    assert (taken.mg_dl, told(taken)) == (224, (0, "None", None, None, None))


@pytest.mark.parametrize(
    ("sent", "word"),
    [
        ("TripleUp", "TripleUp"),
        ("Sideways!", "Sideways!"),
        ("→", "→"),
        ("10", "10"),
        (10, "10"),
        (42, "42"),
        (-1, "-1"),
    ],
)
def test_unknown_trend_stays_as_sent(sent: object, word: str) -> None:
    """An unknown trend has the number 8 and stays as sent, and the value counts."""
    taken = parse(Trend=sent)
    assert (taken.mg_dl, told(taken)) == (224, (8, word, None, None, None))


@pytest.mark.parametrize("sent", [4.5, math.nan, True, False, [4], {"Flat": 4}])
def test_trend_that_makes_no_sense_costs_only_itself(sent: object) -> None:
    """A trend that is neither word nor number means no trend, and the value counts."""
    taken = parse(Trend=sent)
    assert (taken.mg_dl, taken.trend, taken.description, taken.arrow) == (224, None, None, None)


def test_lists_the_seven_trends() -> None:
    """The trends are the seven of the contract, from rising quickly to falling quickly."""
    assert TRENDS == (
        "rising_quickly",
        "rising",
        "rising_slightly",
        "steady",
        "falling_slightly",
        "falling",
        "falling_quickly",
    )


# --- units -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mg_dl", "mmol_l"), [(39, 2.2), (40, 2.2), (72, 4.0), (85, 4.7), (100, 5.6), (180, 10.0), (400, 22.2), (401, 22.3)]
)
def test_converts_to_mmol_l(mg_dl: int, mmol_l: float) -> None:
    """A value in mmol/L equals the one in other programs."""
    assert Reading(mg_dl, "Flat", 1).mmol_l == mmol_l
    assert Reading(mg_dl, "Flat", 1).value("mmol/L") == mmol_l
    assert Reading(mg_dl, "Flat", 1).value("mg/dL") == mg_dl


def test_rounds_half_up_over_the_whole_scale() -> None:
    """Each value in mmol/L is mg/dL ÷ 18.01559, rounded half up to one decimal, and is written so."""
    for mg_dl in FULL_SCALE:
        tenths = math.floor(Fraction(mg_dl * 10) / Fraction("18.01559") + Fraction(1, 2))
        assert json.dumps(to_mmol_l(mg_dl)) == f"{tenths // 10}.{tenths % 10}"


def test_differs_from_pydexcom_where_its_factor_is_too_coarse() -> None:
    """At exactly eight values mmol/L differs from the result of pydexcom's factor of 0.0555."""
    different = [mg_dl for mg_dl in FULL_SCALE if to_mmol_l(mg_dl) != round(mg_dl * 0.0555, 1)]
    assert different == [100, 109, 300, 309, 318, 327, 336, 345]


@pytest.mark.parametrize(
    ("mg_dl", "mmol_l"), [(0, "0.0"), (1, "0.1"), (-1, "-0.1"), (9, "0.5"), (-9, "-0.5"), (-10, "-0.6"), (18, "1.0")]
)
def test_converts_a_delta(mg_dl: int, mmol_l: str) -> None:
    """A difference is converted to mmol/L with one decimal, and unchanged in mg/dL."""
    assert json.dumps(convert_delta(mg_dl, "mmol/L")) == mmol_l
    assert json.dumps(convert_delta(mg_dl, "mg/dL")) == str(mg_dl)


@given(st.integers(1, 361))
@property_of
def test_rounds_a_delta_symmetrically(mg_dl: int) -> None:
    """A fall is the same number as an equal rise, except for the sign."""
    assert convert_delta(-mg_dl, "mmol/L") == -convert_delta(mg_dl, "mmol/L")
    assert convert_delta(mg_dl, "mmol/L") == to_mmol_l(mg_dl)


# --- ranges ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mg_dl", "out_of_range"), [(38, "low"), (39, "low"), (40, None), (400, None), (401, "high"), (402, "high")]
)
def test_knows_the_limits_of_the_sensor(mg_dl: int, out_of_range: str | None) -> None:
    """39 and 401 are limits rather than measurements, and all values between them are measurements."""
    assert reading(mg_dl).out_of_range == out_of_range


@pytest.mark.parametrize(
    ("mg_dl", "name"),
    [
        (39, "very_low"),
        (53, "very_low"),
        (54, "low"),
        (69, "low"),
        (70, "in_range"),
        (180, "in_range"),
        (181, "high"),
        (250, "high"),
        (251, "very_high"),
        (401, "very_high"),
    ],
)
def test_names_the_range(mg_dl: int, name: str) -> None:
    """Low is below the limit, high is above it, and the limit itself belongs to the range nearer to the target."""
    assert range_of(mg_dl, very_low=54, low=70, high=180, very_high=250) == name


def test_names_the_range_by_the_limits_given() -> None:
    """The limits are the account's own."""
    names = [range_of(mg_dl, very_low=60, low=80, high=140, very_high=200) for mg_dl in (59, 60, 80, 141, 201)]
    assert tuple(names) == RANGES == ("very_low", "low", "in_range", "high", "very_high")
