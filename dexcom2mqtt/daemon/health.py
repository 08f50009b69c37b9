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
import select
import socket
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.clock import LOOK_SECONDS
from dexcom2mqtt.daemon.asking import HEALTHY, WHICH_BROKER, address
from dexcom2mqtt.waker import Waker

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

_AGAIN: Final = 1.0
"""Real seconds between two reports to systemd, and until one that it did not take is sent again."""
_A_MOMENT: Final = 0.01
"""Real seconds; a loop is overdue after its time, not at it."""
_PAUSE: Final = LOOK_SECONDS + 10.0
"""Real seconds without a look that mean the process was paused, so the other threads did not run either."""


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
        self._waker = Waker()
        clock.at_stop(self._waker.wake)
        self._patient_until = -math.inf
        self._last = HEALTHY
        self._systemd = environ.get("NOTIFY_SOCKET", "")
        if self._systemd.startswith("@"):
            self._systemd = f"\0{self._systemd[1:]}"
        watchdog = environ.get("WATCHDOG_USEC", "")
        self._feed_every = int(watchdog) / 2e6 if watchdog.isdecimal() and int(watchdog) else math.inf
        self._feed_at = math.inf if math.isinf(self._feed_every) else -math.inf
        self._reported: str | None = None
        self._reported_at = -math.inf

    def loop(self, name: str) -> Callable[[float], None]:
        """Watch a loop from now on; return a function that it calls with the time by which it will be back."""

        def back_by(at: float) -> None:
            self._back_by[name] = at
            if self._last != HEALTHY:  # it may have recovered
                self._waker.wake()

        back_by(self._clock.now())
        return back_by

    def forget(self, name: str) -> None:
        """Stop watching a loop that has ended; for any thread."""
        self._back_by.pop(name, None)

    def changed(self) -> None:
        """Report to systemd soon, since there may be something new in the summary; for any thread."""
        if self._systemd:
            self._waker.wake()

    def look(self) -> str:
        """Return ``HEALTHY``, or which loops are overdue. Must be called once a minute."""
        now, patience = self._clock.now(), PATIENCE * self._clock.speed
        if self._clock.real(now - self._looked) > _PAUSE:
            # The machine slept, or the whole process was paused: give the other threads time to wake up, too.
            self._patient_until = now + patience
        self._looked = now
        late = [name for name, at in dict(self._back_by).items() if now > max(at + patience, self._patient_until)]
        return f"overdue: {', '.join(late)}" if late else HEALTHY

    def run(self) -> None:
        """Report readiness and health to systemd, and answer questions, until the clock stops."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0)
            try:
                sock.bind(address(self._client_id))
            except OSError as error:  # without the address nobody can ask, but the rest works
                _log.warning(
                    "healthcheck cannot reach this daemon (%s); is another one with the mqtt.client_id %s running on "
                    "this machine?",
                    error.strerror,
                    self._client_id,
                )
            while not self._clock.stopped:
                health = self.look()
                seconds = self._report(health)
                if self._answer(sock, health):
                    seconds = 0.0  # there may be more questions
                if _readable(seconds, sock, self._waker) & {self._waker.fileno()}:
                    self._waker.clear()
                    _readable(self._clock.real(self._reported_at - self._clock.now()) + _AGAIN, sock)
        self.close()

    def close(self) -> None:
        """Close what wakes ``run``, if that is not running."""
        self._waker.close()

    def _answer(self, sock: socket.socket, health: str) -> bool:
        """Answer one question, if there is one; return whether there was."""
        with contextlib.suppress(OSError):
            question, asker = sock.recvfrom(64)
            if asker:
                with contextlib.suppress(OSError):  # the asker is gone
                    sock.sendto((self._broker if question == WHICH_BROKER else health).encode(), asker)
            return True
        return False

    def stopping(self) -> None:
        """Tell systemd that the daemon is stopping."""
        self._notify("STOPPING=1")

    def _report(self, health: str) -> float:
        """Report changes to systemd; return for how many real seconds there is nothing more to do."""
        healthy, now = health == HEALTHY, self._clock.now()
        status = self._summary() if healthy else health
        if status != self._reported and self._notify("READY=1", f"STATUS={status}"):
            self._reported = status
        owes = status != self._reported
        if now >= self._feed_at and healthy and not owes:
            owes = not self._notify("WATCHDOG=1")
            self._feed_at = self._feed_at if owes else now + self._feed_every * self._clock.speed
        if health != self._last:
            self._last = health
            if healthy:
                _log.info("recovered: no loop is overdue")
            else:
                _log.error("%s: a thread seems to be stuck in a call; please report it", health)
        self._reported_at = now
        return self._rest(now, owes=owes)

    def _rest(self, now: float, *, owes: bool) -> float:
        """Return for how many real seconds there is nothing to do, unless a loop or a question ends that."""
        last = dict(self._back_by).values()
        overdue_at = (max(at + PATIENCE * self._clock.speed, self._patient_until) for at in last)
        due = min((at for at in (*overdue_at, self._feed_at) if at > now), default=math.inf)
        return min(self._clock.real(due - now) + _A_MOMENT, _AGAIN if owes else LOOK_SECONDS)

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


def _readable(seconds: float, *sources: socket.socket | Waker) -> set[int]:
    """Wait until there is something to read, but not for longer than these real seconds; return where."""
    poll = select.poll()
    for source in sources:
        poll.register(source, select.POLLIN)
    return {number for number, _ in poll.poll(max(math.ceil(seconds * 1000), 0))}
