"""Which stamps are trusted: single answers in tables, and whole days with a phone whose clock is wrong."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dexcom2mqtt.account.ledger import Ledger
from dexcom2mqtt.account.stamps import Judged, Stamps
from dexcom2mqtt.messages.status import Past
from dexcom2mqtt.readings import Reading
from tests.support.builders import NOON, property_of, reading

if TYPE_CHECKING:
    from collections.abc import Sequence

MINUTE = 60
HOUR = 3600
STALE_AFTER = 900
SLOT = 300


def never(_: Reading) -> bool:
    return False


def judge(stamps: Stamps, *readings: Reading, at: float = 0.0, settled: bool = True) -> Judged:
    """Judge an answer of that many seconds after noon, none of whose readings is known."""
    return stamps.judge(sorted(readings, key=lambda each: each.date), NOON + at, settled=settled, known=never)


# --- one answer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "right"), [(-HOUR, True), (0, True), (300, True), (301, False), (180 * 60, False)])
def test_a_stamp_is_trusted_up_to_five_minutes_ahead(seconds: float, *, right: bool) -> None:
    """A clock set by hand is a little off; more than five minutes ahead is doubtful, and the amount is reported."""
    stamps = Stamps(STALE_AFTER)
    judged = judge(stamps, one := reading(seconds=seconds))
    assert (judged.right, judged.doubtful) == (((one,), ()) if right else ((), (one,)))
    assert stamps.ahead == (None if right else seconds)
    assert stamps.ahead_until(NOON) == (None if right else one.date)


def test_readings_of_one_answer_are_doubtful_if_they_may_be_false() -> None:
    """With a stamp an hour ahead, all readings less than an hour old are doubtful, and older ones are right."""
    behind = [reading(seconds=-minutes * 60) for minutes in (5, 59, 60, 61)]
    judged = judge(Stamps(STALE_AFTER), reading(seconds=HOUR), *behind)
    assert judged.right == (behind[3], behind[2])
    assert judged.doubtful == (behind[1], behind[0], reading(seconds=HOUR))


def test_known_readings_are_not_judged_again() -> None:
    """A reading that was right when it arrived stays right, whatever arrives later."""
    stamps, before = Stamps(STALE_AFTER), reading(seconds=-10)
    judged = stamps.judge([before, reading(seconds=HOUR)], NOON, settled=True, known=lambda each: each == before)
    assert judged.right == ()
    assert judged.doubtful == (reading(seconds=HOUR),)


def test_nothing_is_doubtful_before_the_time_is_settled() -> None:
    """While the time is uncertain, new readings wait for the next answer if some seem to be in the future."""
    stamps = Stamps(STALE_AFTER)
    assert judge(stamps, reading(seconds=-20), settled=False).right == (reading(seconds=-20),)
    judged = judge(stamps, reading(seconds=HOUR), reading(seconds=-20), settled=False)
    assert judged == Judged(withheld=2)
    assert stamps.ahead is None
    assert judge(stamps, reading(seconds=HOUR), reading(seconds=-20), at=HOUR).right == (
        reading(seconds=-20),
        reading(seconds=HOUR),
    )


def test_a_doubtful_reading_stays_doubtful() -> None:
    """It is neither right nor new once its stamp is past, however often Share returns it."""
    stamps = Stamps(STALE_AFTER)
    judge(stamps, false := reading(seconds=HOUR))
    for later in (0, 1800, HOUR, 2 * HOUR):
        assert judge(stamps, false, at=later) == Judged()


def test_a_doubtful_reading_is_published_when_its_stamp_is_past() -> None:
    """Once, and not earlier."""
    stamps = Stamps(STALE_AFTER)
    judge(stamps, first := reading(seconds=20 * MINUTE), second := reading(seconds=25 * MINUTE))
    assert stamps.passed(NOON) == []
    assert stamps.passed(NOON + 21 * MINUTE) == [first]
    assert stamps.passed(NOON + 26 * MINUTE) == [second]
    assert stamps.passed(NOON + HOUR) == []


def test_a_right_reading_is_not_a_double_of_a_false_one() -> None:
    """A right reading with the same stamp and value as a doubtful one is right, and current immediately."""
    stamps = Stamps(STALE_AFTER)
    judge(stamps, false := reading(seconds=HOUR))
    judged = judge(stamps, false, reading(seconds=HOUR), at=HOUR)
    assert judged.right == (reading(seconds=HOUR),)
    assert stamps.ahead is None


def test_a_false_reading_that_was_uploaded_twice_is_published_once() -> None:
    """A watch and the phone upload it 9 s apart: both stay doubtful, and only one is published later."""
    stamps = Stamps(STALE_AFTER)
    pair = reading(seconds=HOUR), reading(seconds=HOUR + 9)
    judge(stamps, *pair)
    assert judge(stamps, *pair, at=HOUR) == Judged()
    assert stamps.passed(NOON + 2 * HOUR) == [pair[0]]


def test_a_right_stamp_ends_the_suspicion() -> None:
    """The first reading with the right time is right despite later stamps; an old one proves nothing."""
    stamps = Stamps(STALE_AFTER)
    judge(stamps, reading(seconds=HOUR))
    judge(stamps, reading(seconds=-HOUR), at=MINUTE)
    assert stamps.ahead == HOUR
    assert judge(stamps, reading(101, seconds=290), at=300).right == (reading(101, seconds=290),)
    assert stamps.ahead is None


def test_false_stamps_that_have_passed_do_not_hide_among_right_ones() -> None:
    """A phone that was off and corrected uploads both: readings after the last false stamp wait."""
    stamps = Stamps(STALE_AFTER)
    judge(stamps, reading(seconds=HOUR))
    right = [reading(120 + slot, seconds=slot * SLOT) for slot in range(1, 12)]
    hidden, later = reading(200, seconds=HOUR + SLOT + 1), reading(201, seconds=HOUR + SLOT)
    judged = judge(stamps, *right, hidden, later, at=HOUR + SLOT + 20)
    assert judged.right == tuple(right)
    assert judged.doubtful == (later, hidden)
    assert judge(stamps, next_one := reading(202, seconds=HOUR + 2 * SLOT), at=HOUR + 2 * SLOT).right == (next_one,)
    assert stamps.ahead is None


def test_a_throttled_phone_that_is_corrected_is_trusted_again() -> None:
    """It uploads two readings at a time: the first pair after the silence waits, the next one is current."""
    stamps = Stamps(STALE_AFTER)
    judge(stamps, reading(seconds=20 * MINUTE))
    late = HOUR
    pairs = [(reading(seconds=late + n * 600), reading(101, seconds=late + n * 600 + SLOT)) for n in range(3)]
    assert judge(stamps, *pairs[0], at=late + 320).right == ()
    assert judge(stamps, *pairs[1], at=late + 920).right == pairs[1]
    assert stamps.ahead is None
    assert judge(stamps, *pairs[2], at=late + 1520).right == pairs[2]


def test_a_date_that_is_days_ahead_for_a_while_erases_nothing() -> None:
    """A doubtful reading is still doubtful when Share sends the right time again."""
    stamps = Stamps(STALE_AFTER)
    judge(stamps, false := reading(seconds=HOUR))
    judge(stamps, false, at=48 * HOUR)
    assert judge(stamps, false, at=HOUR) == Judged()


def readings_in(something: object) -> list[Reading]:
    """Return every reading that an object refers to, directly or not."""
    seen, found, waiting = set[int](), list[Reading](), [something]
    while waiting:
        each = waiting.pop()
        if id(each) not in seen and not isinstance(each, type):
            seen.add(id(each))
            found += [each] if isinstance(each, Reading) else []
            waiting += gc.get_referents(each)
    return found


def test_a_phone_that_is_years_ahead_fills_no_memory() -> None:
    """Its stamps never pass; twice as many as Share returns are kept, without the records they came from."""
    stamps = Stamps(STALE_AFTER)
    year = 365 * 24 * HOUR
    for slot in range(2000):
        one = Reading(100, "Flat", round((NOON + year + slot * SLOT) * 1000), 0, {"WT": "a record"})
        judge(stamps, one, at=slot * SLOT)
    kept = readings_in(stamps)
    assert len(kept) == 2 * 576  # those to recognize again, and those to publish once their stamp is past
    assert not any(each.json for each in kept)


def test_the_latest_false_stamp_is_remembered_for_a_day() -> None:
    """A restart needs it for that long, and not longer."""
    stamps = Stamps(STALE_AFTER)
    judge(stamps, reading(seconds=HOUR))
    judge(stamps, reading(seconds=2 * HOUR), at=30 * MINUTE)
    judge(stamps, reading(101, seconds=35 * MINUTE), at=35 * MINUTE)
    assert stamps.ahead_until(NOON + 24 * HOUR) == reading(seconds=2 * HOUR).date
    assert stamps.ahead_until(NOON + 25 * HOUR) is None


# --- restarts ------------------------------------------------------------------------------------------------


def restarted(*doubtful: Reading, at: float, right: bool = False) -> Stamps:
    """Restart that many seconds after noon, when Share had last answered, with stamps an hour ahead."""
    stamps = Stamps(STALE_AFTER)
    past = Past(ahead_until=(NOON + HOUR) * 1000, last_success=NOON, right=right)
    stamps.restore(doubtful, past, NOON + at)
    return stamps


@pytest.mark.parametrize("after", [10, 50 * MINUTE, 62 * MINUTE, 80 * MINUTE])
def test_a_restart_trusts_nothing_in_its_first_answer(after: float) -> None:
    """Readings not published before it are still doubtful, even if their stamps look right by now."""
    stamps = restarted(at=after)
    seen = [reading(100 + slot, seconds=slot * SLOT) for slot in range(1, 13)]
    assert judge(stamps, *seen, reading(seconds=-2 * HOUR), at=after).right == (reading(seconds=-2 * HOUR),)
    assert stamps.ahead is not None
    judge(stamps, reading(150, seconds=after + 290), at=after + 300)
    assert stamps.ahead is None


def test_a_restart_after_the_phone_was_corrected_suspects_less() -> None:
    """Only readings up to the latest false stamp may be false; once that is long past, all are shown."""
    stamps = restarted(at=2 * HOUR, right=True)
    right = reading(seconds=2 * HOUR - 20)
    assert judge(stamps, reading(seconds=HOUR - 10), right, at=2 * HOUR).right == (right,)
    assert stamps.ahead is None
    soon = restarted(at=HOUR + MINUTE, right=True)
    assert judge(soon, reading(seconds=HOUR + 50), at=HOUR + MINUTE).right == (reading(seconds=HOUR + 50),)
    assert soon.ahead is not None


def test_a_first_answer_without_readings_proves_nothing() -> None:
    """Readings that were doubtful before a restart are so in the first answer that contains any."""
    stamps = restarted(at=58 * MINUTE)
    assert judge(stamps, at=58 * MINUTE) == Judged()
    assert judge(stamps, reading(seconds=HOUR), at=59 * MINUTE).right == ()
    assert stamps.ahead is not None


def test_doubtful_readings_of_the_history_stay_so() -> None:
    """Share returns them again after a restart, and they are neither right nor new."""
    false = reading(seconds=-20)
    assert judge(restarted(false, at=0), false) == Judged()


def test_a_broker_that_connects_later_corrects_the_judgement() -> None:
    """Readings found right before the past was known become doubtful because of it."""
    stamps = Stamps(STALE_AFTER)
    false, unknown, right = reading(seconds=-20), reading(101, seconds=20), reading(102, seconds=-HOUR)
    assert judge(stamps, false, unknown, right, at=30).doubtful == ()
    stamps.restore([false], Past(ahead_until=(NOON + HOUR) * 1000, last_success=NOON), NOON + 60)
    assert stamps.doubt([right, false, unknown]) == [false, unknown]
    assert judge(stamps, false, unknown, at=90) == Judged()
    assert stamps.passed(NOON + 90) == [unknown]


# --- whole days ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Upload:
    """A reading whose direction names its slot, when it was really taken, and from when Share has it."""

    reading: Reading
    taken: float
    arrives: float
    phase: int


@dataclass
class Home:
    """Polls, shows and remembers as the daemon does; also records which readings were seen early, by phase."""

    history: list[Reading] = field(default_factory=list)
    false: list[Reading] = field(default_factory=list)
    past: Past = field(default_factory=Past)
    shown_until: float = 0.0
    shown: Upload | None = None
    seen_soon: set[int] = field(default_factory=set)

    def start(self, now: float) -> None:
        self.stamps, self.ledger = Stamps(STALE_AFTER), Ledger()
        self.ledger.restore(self.history, now)
        self.stamps.restore(self.false, self.past, now)
        self.first_seen: dict[int, float] = {}
        self.shown_until = 0.0

    def poll(self, uploads: Sequence[Upload], now: float) -> None:
        by_name = {upload.reading.direction: upload for upload in uploads}
        self.seen_soon |= {upload.phase for upload in uploads if now - upload.taken <= 2 * MINUTE}
        given = sorted((upload.reading for upload in uploads), key=lambda each: each.date)
        judged = self.stamps.judge(given, now, settled=True, known=self.ledger.has)
        for new in self.ledger.add(judged.right, now):
            self.first_seen[new.date] = now
        newest = self.ledger.newest
        if newest is None or self.stamps.ahead is not None:
            self.shown_until = 0.0
        else:
            self.shown = by_name[newest.direction]
            self.shown_until = min(newest.date / 1000, self.first_seen.get(newest.date, now)) + STALE_AFTER
        self.history, self.false = list(self.ledger.readings), [*self.false, *self.stamps.passed(now)]
        self.past = Past(self.stamps.ahead_until(now), now, self.stamps.ahead is None)


phases = st.lists(
    st.tuples(
        st.integers(1, 30),  # slots
        st.sampled_from([0, 0, 0, 60, 60, 5, 7, 20, 180, 61, -14, -16, -60, 4]) | st.integers(-70, 185),  # minutes
        st.sampled_from(["on", "on", "on", "off", "gap"]),
    ),
    min_size=1,
    max_size=8,
)
downs = st.lists(st.tuples(st.integers(0, 150), st.integers(0, 40)), max_size=4)


def uploads_of(phases: Sequence[tuple[int, int, str]], *, constant: bool) -> list[Upload]:
    """Simulate a phone through its phases: its clock is off by so much, and it is on, off, or has no sensor."""
    ends = list(accumulate(slots for slots, _, _ in phases))
    made: list[Upload] = []
    clock = [(number, skew, how) for number, (slots, skew, how) in enumerate(phases) for _ in range(slots)]
    groups = [0, *(int(a[1] != b[1]) for a, b in pairwise(phases))]
    same = list(accumulate(groups))
    for slot, (number, skew, how) in enumerate(clock):
        if how == "gap":
            continue
        taken = NOON + slot * SLOT + (slot * 7 % 5) / 10
        on_again = next(
            (end for end in [slot, *ends] if end >= slot and (end >= len(clock) or clock[end][2] == "on")), slot
        )
        arrives = max(taken, NOON + on_again * SLOT) + 10
        if on_again >= len(clock):
            continue
        value = 100 if constant else 80 + slot
        made.append(Upload(Reading(value, str(slot), round((taken + skew * 60) * 1000)), taken, arrives, same[number]))
    return made


@given(phases=phases, downs=downs, constant=st.booleans())
@example(phases=[(3, 60, "on"), (1, 60, "off"), (12, 0, "off"), (5, 0, "on")], downs=[], constant=True)
@example(phases=[(3, 60, "on"), (1, 60, "off"), (11, 0, "off"), (5, 0, "on")], downs=[], constant=False)
@example(phases=[(5, 0, "on"), (3, 60, "on"), (30, 60, "off")], downs=[(9, 9)], constant=False)
@example(phases=[(5, 0, "on"), (9, 60, "on"), (30, 60, "off")], downs=[(6, 16)], constant=False)
@property_of
def test_a_value_shown_is_never_much_older_than_it_looks(
    phases: list[tuple[int, int, str]], downs: list[tuple[int, int]], *, constant: bool
) -> None:
    """Whatever the phone's clock does: at most stale_after and 5 minutes, once its fault could be detected."""
    uploads, home = uploads_of(phases, constant=constant), Home()
    home.start(NOON)
    down = {slot for begin, slots in downs for slot in range(begin, begin + slots)}
    for slot in range(sum(slots for slots, _, _ in phases) + 40):
        now = NOON + slot * SLOT + 15
        if slot in down:
            continue
        if slot - 1 in down:
            home.start(now)
        known = [upload for upload in uploads if upload.arrives <= now and upload.reading.date >= (now - 86400) * 1000]
        home.poll(known, now)
        if home.shown is None or home.shown_until <= now:
            continue
        skew = home.shown.reading.date / 1000 - home.shown.taken
        if skew <= 0 or home.shown.phase in home.seen_soon:
            assert home.shown_until - home.shown.taken <= STALE_AFTER + 5 * MINUTE + 15


@given(phases=phases, constant=st.booleans())
@example(phases=[(1, 25, "off"), (4, 0, "off"), (1, 0, "on")], constant=False)
@property_of
def test_nothing_is_lost_and_right_stamps_are_current(phases: list[tuple[int, int, str]], *, constant: bool) -> None:
    """Every reading becomes right or doubtful exactly once; one with a right stamp is current immediately."""
    phases = [(slots, max(skew, 0), how) for slots, skew, how in phases]
    uploads, home = uploads_of(phases, constant=constant), Home()
    home.start(NOON)
    for slot in range(sum(slots for slots, _, _ in phases) + 40):
        now = NOON + slot * SLOT + 15
        home.poll([upload for upload in uploads if upload.arrives <= now], now)
        fresh = [upload for upload in uploads if upload.arrives <= now and upload.taken > now - SLOT]
        before = [upload for upload in uploads if upload.arrives <= now - SLOT and upload.taken > now - SLOT * 2]
        soon = fresh and any(is_believed_ahead(upload, fresh[0]) for upload in uploads)
        right = all(upload.reading.date / 1000 - upload.taken < 1 for upload in (*fresh, *before))
        if fresh and before and right and not soon:
            assert home.shown == fresh[0]
            assert home.shown_until > now
    found = {each.direction for each in (*home.history, *home.false)}
    passed = {upload.reading.direction for upload in uploads if upload.reading.date <= now * 1000}
    assert passed - found <= doubles_of(uploads)


def doubles_of(uploads: Sequence[Upload]) -> set[str]:
    """Return the readings within 30 s of another of equal value, or with the same stamp."""
    ordered = sorted(uploads, key=lambda upload: upload.reading.date)
    close = [
        (a, b)
        for number, a in enumerate(ordered)
        for b in ordered[number + 1 : number + 5]
        if b.reading.date - a.reading.date <= (30_000 if a.reading.mg_dl == b.reading.mg_dl else 0)
    ]
    return {upload.reading.direction for pair in close for upload in pair}


def is_believed_ahead(upload: Upload, other: Upload) -> bool:
    """Return whether a reading is older than another, not stamped earlier, and was within 5 minutes when seen."""
    older = upload.taken < other.taken and upload.reading.date >= other.reading.date
    return older and upload.reading.date / 1000 - upload.arrives <= 5 * MINUTE + 10
