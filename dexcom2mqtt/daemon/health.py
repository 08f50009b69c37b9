"""Whether every loop of the daemon is alive; told to systemd, and to whoever asks on this machine.

Each loop says by when it will be back before it does something that may block. One that is overdue is stuck. A
broker or a cloud that fails is no ill health: the loops cope with it. Nothing here knows of glucose, Share or MQTT;
the words for systemd's status line are handed in.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.daemon.asking import HEALTHY, WHICH_BROKER, address

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dexcom2mqtt.clock import Clock

_log = logging.getLogger(__name__)

PATIENCE: Final = 600.0
"""Real seconds that a loop may be late. Whatever is bounded is over by then, on a slow machine, too.

The longest is to look up a name: 30 s where no name server answers, and 450 s with the largest numbers that
resolv.conf takes. A fetch from Share is up to four calls, of 20 s and a look-up each; connecting to the broker is a
look-up, 5 s for each address, and 10 s for the broker's answer.
"""

_ROUND: Final = 1.0
_LEAST_ROUND: Final = 0.05
_PAUSE: Final = 10.0
"""Real seconds after which this thread knows that it did not run, and so the others did not, either."""


class Health:
    """By when each loop will be back, and telling so.

    ``client_id`` tells the daemons of a machine apart, and ``broker`` those that have the same one by accident.
    ``words`` says how it is going, in a line for a person.
    ``environ`` has what systemd wants: ``NOTIFY_SOCKET``, ``WATCHDOG_USEC``.
    """

    def __init__(
        self,
        clock: Clock,
        client_id: str,
        words: Callable[[], str],
        environ: Mapping[str, str] = os.environ,
        broker: str = "",
    ) -> None:
        self._clock = clock
        self._client_id = client_id
        self._broker = broker
        self._words = words
        self._back_by: dict[str, float] = {}
        self._looked = clock.now()
        self._patient_until = -math.inf
        self._last = HEALTHY
        self._systemd = environ.get("NOTIFY_SOCKET", "")
        if self._systemd.startswith("@"):
            self._systemd = f"\0{self._systemd[1:]}"
        watchdog = environ.get("WATCHDOG_USEC", "")
        self._feed_every = int(watchdog) / 2e6 if watchdog.isdecimal() and int(watchdog) else math.inf
        self._feed_at = math.inf if math.isinf(self._feed_every) else -math.inf
        self._told = ""

    def loop(self, name: str) -> Callable[[float], None]:
        """Watch a loop from now on; return what it calls with the time of the clock by which it will be back."""

        def back_by(at: float) -> None:
            self._back_by[name] = at

        back_by(self._clock.now())
        return back_by

    def look(self) -> str:
        """Return ``HEALTHY``, or which loops are overdue. It has to be called every few seconds."""
        now, patience = self._clock.now(), PATIENCE * self._clock.speed
        if self._clock.real(now - self._looked) > _PAUSE:
            # The machine slept, or the whole process was stopped. Who wakes first must not blame the others.
            self._patient_until = now + patience
        self._looked = now
        late = [name for name, at in self._back_by.items() if now > max(at + patience, self._patient_until)]
        return f"overdue: {', '.join(late)}" if late else HEALTHY

    def run(self) -> None:
        """Tell systemd that the daemon is ready and how it is, and answer who asks, until the clock stops."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(max(min(_ROUND, self._feed_every / 2), _LEAST_ROUND))
            try:
                sock.bind(address(self._client_id))
            except OSError as error:  # without a name nobody asks, and the rest goes on
                _log.warning(
                    "healthcheck does not reach this daemon (%s); is another one with the mqtt.client_id %s running on "
                    "this machine?",
                    error.strerror,
                    self._client_id,
                )
            question, asker = b"", None
            while not self._clock.stopped:
                health = self.look()
                self._tell(health)
                if asker:
                    with contextlib.suppress(OSError):  # who asked is gone
                        answer = self._broker if question == WHICH_BROKER else health
                        sock.sendto(answer.encode(), asker)
                asker = None
                with contextlib.suppress(OSError):  # nobody asks in this round
                    question, asker = sock.recvfrom(64)

    def stopping(self) -> None:
        """Tell systemd that the daemon is about to end."""
        self._notify("STOPPING=1")

    def _tell(self, health: str) -> None:
        """Tell systemd what it does not know yet; what could not be told is told in the next round."""
        well, now = health == HEALTHY, self._clock.now()
        words = self._words() if well else health
        if words != self._told and self._notify("READY=1", f"STATUS={words}"):
            self._told = words
        if now >= self._feed_at and well and self._notify("WATCHDOG=1"):
            self._feed_at = now + self._feed_every * self._clock.speed
        if health != self._last:
            self._last = health
            if well:
                _log.info("nothing is overdue any more")
            else:
                _log.error("%s: a thread seems to be stuck in a call; please report it", health)

    def _notify(self, *lines: str) -> bool:
        """Send to systemd without waiting; return whether it was taken, also where nobody wants to know."""
        if not self._systemd:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(0)
                sock.sendto("\n".join(lines).encode(), self._systemd)
        except OSError:
            return False
        return True
