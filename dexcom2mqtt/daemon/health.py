"""Whether every loop of the daemon is alive; reported to systemd, and to anyone who asks on this machine.

Before a loop does something that may block, it reports by when it will be back. An overdue loop is stuck. A failing
broker or Share does not count as unhealthy: the loops cope with it. Nothing here knows about glucose, Share or MQTT;
the text of systemd's status line is passed in.
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
"""How many real seconds late a loop may be. Every bounded call ends sooner, even on a slow machine.

The slowest is a name lookup: 30 s if no name server answers, and 450 s with the largest numbers that resolv.conf
accepts. A fetch from Share is up to four calls, each of 20 s and a lookup; connecting to the broker is a lookup, 5 s
per address, and 10 s for the broker's answer.
"""

_ROUND: Final = 1.0
_LEAST_ROUND: Final = 0.05
_PAUSE: Final = 10.0
"""If more real seconds pass between two checks, the process was paused, so no other thread ran either."""


class Health:
    """Checks that each loop is back in time, and reports overdue ones.

    ``client_id`` distinguishes the daemons on a machine, and ``broker`` those with the same client id.
    ``summary`` returns how the accounts are doing, in one line for people.
    ``environ`` has systemd's variables: ``NOTIFY_SOCKET``, ``WATCHDOG_USEC``.
    """

    def __init__(
        self,
        clock: Clock,
        client_id: str,
        summary: Callable[[], str],
        environ: Mapping[str, str] = os.environ,
        broker: str = "",
    ) -> None:
        self._clock = clock
        self._client_id = client_id
        self._broker = broker
        self._summary = summary
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
        self._reported = ""

    def loop(self, name: str) -> Callable[[float], None]:
        """Watch a loop from now on; return a function that it calls with the time by which it will be back."""

        def back_by(at: float) -> None:
            self._back_by[name] = at

        back_by(self._clock.now())
        return back_by

    def look(self) -> str:
        """Return ``HEALTHY`` or the overdue loops. Must be called every few seconds."""
        now, patience = self._clock.now(), PATIENCE * self._clock.speed
        if self._clock.real(now - self._looked) > _PAUSE:
            # The machine slept, or the whole process was paused: give the other threads time to wake up, too.
            self._patient_until = now + patience
        self._looked = now
        late = [name for name, at in self._back_by.items() if now > max(at + patience, self._patient_until)]
        return f"overdue: {', '.join(late)}" if late else HEALTHY

    def run(self) -> None:
        """Report readiness and health to systemd, and answer questions, until the clock stops."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(max(min(_ROUND, self._feed_every / 2), _LEAST_ROUND))
            try:
                sock.bind(address(self._client_id))
            except OSError as error:  # without the address nobody can ask, but the rest works
                _log.warning(
                    "healthcheck cannot reach this daemon (%s); is another one with the mqtt.client_id %s running on "
                    "this machine?",
                    error.strerror,
                    self._client_id,
                )
            question, asker = b"", None
            while not self._clock.stopped:
                health = self.look()
                self._report(health)
                if asker:
                    with contextlib.suppress(OSError):  # the asker is gone
                        answer = self._broker if question == WHICH_BROKER else health
                        sock.sendto(answer.encode(), asker)
                asker = None
                with contextlib.suppress(OSError):  # no question in this round
                    question, asker = sock.recvfrom(64)

    def stopping(self) -> None:
        """Tell systemd that the daemon is stopping."""
        self._notify("STOPPING=1")

    def _report(self, health: str) -> None:
        """Report changes to systemd; if sending fails, the next round tries again."""
        healthy, now = health == HEALTHY, self._clock.now()
        status = self._summary() if healthy else health
        if status != self._reported and self._notify("READY=1", f"STATUS={status}"):
            self._reported = status
        if now >= self._feed_at and healthy and self._notify("WATCHDOG=1"):
            self._feed_at = now + self._feed_every * self._clock.speed
        if health != self._last:
            self._last = health
            if healthy:
                _log.info("recovered: no loop is overdue")
            else:
                _log.error("%s: a thread seems to be stuck in a call; please report it", health)

    def _notify(self, *lines: str) -> bool:
        """Send to systemd without waiting; return whether it was sent, or True without systemd."""
        if not self._systemd:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(0)
                sock.sendto("\n".join(lines).encode(), self._systemd)
        except OSError:
            return False
        return True
