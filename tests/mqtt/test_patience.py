"""The wait for acknowledgements from a broker: when it ends, and when it does not."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest

from dexcom2mqtt.mqtt.patience import Patience

STEP = 0.25
ALWAYS = 86_400.0


@dataclass
class Broker:
    """A broker that received a message at 0, and its behavior from then on, in seconds."""

    acknowledges: tuple[float, ...] = ()
    pings_take: float = 0.1
    speaks_every: float = math.inf
    frozen: tuple[float, float] = (math.inf, math.inf)
    catches_up: float = 1.0
    """Seconds from the answers to pings until the late acknowledgements of a broker that was frozen."""
    pauses: dict[float, float] = field(default_factory=dict)
    """The seconds that our own process is paused, by the running time when the pause begins."""

    def thawed(self, at: float) -> float:
        begin, end = self.frozen
        return end if begin <= at < end else at

    def told(self) -> dict[float, bool]:
        """Return when it sends something unasked, and whether that is an acknowledgement."""
        acknowledged = {
            self.thawed(at) + (self.catches_up if self.thawed(at) > at else 0): True for at in self.acknowledges
        }
        spoken = {number * self.speaks_every: False for number in range(1, 200) if self.speaks_every < math.inf}
        return {self.thawed(at): False for at in spoken} | acknowledged


def ends_after(broker: Broker, seconds: float = 600.0) -> float | None:
    """Return when the patience runs out, in our own running time; None if it lasts for ``seconds``."""
    patience, told, now, running = Patience(), broker.told(), 0.0, 0.0
    while running < seconds:
        step = STEP + broker.pauses.pop(running, 0.0)
        now, running = now + step, running + STEP
        for at in sorted(at for at in told if at <= now):
            if told.pop(at):
                patience.acknowledged()
            else:
                patience.alive()
        patience.passed(step)
        if patience.exhausted:
            return running
        if patience.question_due:
            patience.asked()
            told[broker.thawed(now + broker.pings_take)] = False
    return None


@pytest.mark.parametrize(
    ("broker", "expected"),
    [
        pytest.param(Broker(), 30, id="only answers pings"),
        pytest.param(Broker(pings_take=math.inf, speaks_every=0.5), 30, id="only sends messages"),
        pytest.param(Broker(acknowledges=(20, 40, 60)), 90, id="acknowledges three messages and then nothing"),
        pytest.param(Broker(pings_take=4), 30 + 2 * 4, id="is slow to answer, and the wait for it is not counted"),
        pytest.param(
            Broker(pauses={10.0: 3600.0, 20.0: 3600.0}), 30 - 2 * 2, id="we slept twice, for two steps at most"
        ),
        pytest.param(Broker(frozen=(10, 50)), 50 + 15, id="was frozen, and then acknowledges nothing"),
        pytest.param(Broker(acknowledges=tuple(range(20, 700, 20))), None, id="takes 20 s for each"),
        pytest.param(Broker(acknowledges=tuple(range(29, 700, 29))), None, id="takes 29 s for each"),
        pytest.param(Broker(frozen=(0, ALWAYS)), None, id="stays frozen: the keepalive detects that"),
        pytest.param(Broker(frozen=(20, ALWAYS)), None, id="froze after it had answered a ping"),
        pytest.param(Broker(frozen=(29, ALWAYS)), None, id="froze just before the end"),
        pytest.param(
            Broker(acknowledges=tuple(range(1, 700)), frozen=(0, 40)), None, id="was frozen for 40 s from the beginning"
        ),
        pytest.param(
            Broker(acknowledges=tuple(range(1, 700)), frozen=(17, 57)), None, id="was frozen for 40 s later on"
        ),
        pytest.param(
            Broker(acknowledges=(25, *range(28_820, 30_000, 20)), pauses={3.0: 28_800.0}),
            None,
            id="we slept for a night",
        ),
    ],
)
def test_it_runs_out_only_if_a_running_broker_acknowledges_nothing(broker: Broker, expected: float | None) -> None:
    """Thirty seconds without an acknowledgement, while the broker answers and the process runs."""
    ends = ends_after(broker)
    assert ends == (None if expected is None else pytest.approx(expected, abs=1.0))


def test_a_broker_is_asked_every_15_s_until_it_answers() -> None:
    """There is one ping every 15 s, whether or not the previous one was answered."""
    patience, asked = Patience(), []
    for second in range(1, 62):
        patience.passed(1)
        if patience.question_due:
            patience.asked()
            asked.append(second)
        if second == 50:
            patience.acknowledged()
    assert asked == [15, 30, 45]


def test_an_answer_to_an_earlier_ping_is_not_the_end() -> None:
    """An answer from before the end of the wait does not show that the broker is running now."""
    patience = Patience()
    for _ in range(15):
        patience.passed(1)
    patience.asked()
    patience.alive()
    for _ in range(15):
        patience.passed(1)
    patience.alive()
    assert patience.question_due
    assert not patience.exhausted
    patience.asked()
    assert not patience.exhausted
    patience.alive()
    assert patience.exhausted
