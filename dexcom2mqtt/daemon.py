"""The daemon: build the parts, let them run, keep telling the broker that they do, stop them.

Composition only. Each account has a thread, the broker has one, one tells the broker that all live, one answers for
their health, and the main thread waits for a signal. All are daemon threads: the stop waits for none of them.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import resource
import signal
import threading
from typing import TYPE_CHECKING, Final

from dexcom2mqtt import version
from dexcom2mqtt.account.limits import RateLimits
from dexcom2mqtt.account.poller import poller_for
from dexcom2mqtt.account.rationed import client_of
from dexcom2mqtt.clock import Clock, Stopped
from dexcom2mqtt.health import Health
from dexcom2mqtt.logs import redacted_traceback
from dexcom2mqtt.messages import homeassistant
from dexcom2mqtt.messages.bridge import bridge_info, bridge_offline, bridge_online, parse_info
from dexcom2mqtt.messages.message import ForeignError, cleared
from dexcom2mqtt.messages.mirror import Mirror
from dexcom2mqtt.messages.state import account_cleared, stale_messages, unavailable, without_reading
from dexcom2mqtt.messages.stream import Stream
from dexcom2mqtt.mqtt.inbox import ReadBack
from dexcom2mqtt.mqtt.link import BrokerLink
from dexcom2mqtt.topics import Topics

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping

    from dexcom2mqtt.config import Settings
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.mqtt.connection import Protocol, Received

_log = logging.getLogger(__name__)

STOP: Final = frozenset({signal.SIGTERM, signal.SIGINT})
"""The signals that end the daemon."""

_WAIT_FOR_SHARE: Final = 10.0
_HEARTBEAT: Final = 60.0
_HEARTBEAT_EXPIRY: Final = 180.0
_STOP_SECONDS: Final = 1.8
_BIRTH_SPREAD: Final = 3.0
_TICK: Final = 1.0
_FIRST_TICKS: Final = 0.05
_FILES: Final = 64
"""Open files that are none of an account: the broker's, those of names being looked up, and the like."""
_SUMMARIES: Final = 10
"""Accounts in systemd's status line: it takes 4096 bytes, and a person less."""


class Daemon:
    """Everything that polls and publishes; ``start`` it, and ``stop`` it when one of ``STOP`` came.

    Raises TlsFileError.
    """

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._topics = Topics(settings.mqtt.base_topic)
        self._settings = settings
        home_assistant = settings.home_assistant
        self._mirror = Mirror(last=self._topics.bridge_state, changed=self._wake)
        self._stream = Stream(self._topics, changed=self._wake)
        self._health = Health(self._clock, settings.mqtt.client_id, self._summary)
        rate_limits = RateLimits()
        self._pollers = {
            key: poller_for(
                key,
                account,
                client_of(account, self._clock),
                clock=self._clock,
                topics=self._topics,
                put=self._mirror.put,
                stream=self._stream,
                stale_after=settings.stale_after_seconds,
                rate_limits=rate_limits,
                back_by=self._health.loop(f"account {key}"),
            )
            for key, account in settings.accounts.items()
        }
        self._refreshes = {self._topics.of(key, "refresh"): poller for key, poller in self._pollers.items()}
        prefix = home_assistant.discovery_prefix
        self._discovery_topics = [homeassistant.discovery_topic(prefix, self._topics, key) for key in self._pollers]
        self._link = BrokerLink(
            settings.mqtt,
            self._clock,
            self._mirror,
            self._stream,
            will=bridge_offline(self._topics),
            read_back=ReadBack(
                topics=frozenset(
                    {
                        self._topics.bridge_info,
                        *(self._topics.of(key, leaf) for key in self._pollers for leaf in ("history", "status")),
                        *([] if home_assistant.discovery else self._discovery_topics),
                    }
                ),
                probe=self._topics.sync(settings.mqtt.client_id),
                done=self._take_read_back,
            ),
            subscriptions=(*self._refreshes, *((home_assistant.status_topic,) if home_assistant.discovery else ())),
            connected=self._take_connected,
            received=self._take_received,
            back_by=self._health.loop("the broker's connection"),
        )
        self._protocol: Protocol | None = None
        self._started = self._clock.now()
        self._started_at: float | None = None  # Unix seconds, once an account's server has told the time
        self._read_back_done = False
        self._may_ask_since = 0.0  # the accounts, with their passwords
        self._online = False
        self._next_heartbeat = 0.0
        self._alarm = self._clock.alarm(self._health.loop("the heartbeat"))
        self._born = False  # Home Assistant, and not yet taken note of
        self._discovery_sent = -math.inf
        self._discovery_due = math.inf
        self.broken = False
        """Whether a thread ended that must not."""

    def start(self) -> None:
        """Start the threads."""
        threading.excepthook = self._take_exception
        self._started = self._clock.now()
        # If broker and daemon lost power together, the broker still says online: not before it is true again.
        self._mirror.put([bridge_offline(self._topics), *self._discovery()])
        for key, poller in self._pollers.items():
            self._spawn(key, poller.run)
        # After those, which wait for what it reads back: a busy thread makes starting a thousand others take long.
        self._spawn("broker", self._link.run)
        self._spawn("heart", self._beat)

    def answer_for_health(self) -> None:
        """Tell systemd that the threads run and how they are, and answer ``healthcheck``."""
        self._spawn("health", self._health.run)

    def _beat(self) -> None:
        while True:
            self._alarm.wait(self._tick())

    def _tick(self) -> float:
        """Do what is due now; return after how many seconds to come again."""
        now = self._clock.now()
        self._welcome_home_assistant(now)
        if not self._online:
            if not self._may_be_online(now):
                tick = _FIRST_TICKS if self._read_back_done else _TICK
                return min(tick * self._clock.speed, self._discovery_due - now)
            self._online = True
            self._put_what_is_missing()
        self._put_info()
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + _HEARTBEAT
            self._mirror.put([bridge_online(self._topics, now + _HEARTBEAT_EXPIRY)])
        return min(_TICK * self._clock.speed, _HEARTBEAT / 4, self._discovery_due - now)

    def _may_be_online(self, now: float) -> bool:
        """Tell whether all is known that ``online`` says, or was waited for: what was left behind, and Share."""
        answered = all(poller.answered.is_set() for poller in self._pollers.values())
        waited = self._clock.real(now - max(self._started, self._may_ask_since))
        return self._read_back_done and (answered or waited >= _WAIT_FOR_SHARE)

    def _welcome_home_assistant(self, now: float) -> None:
        """Send the discovery again after a birth message: at some moment of the next 3 seconds.

        Then not all programs answer at once. It never follows the last time closer than that either: while Home
        Assistant still works on a device, it loses parts of the same device sent again.
        """
        spread = _BIRTH_SPREAD * self._clock.speed
        if self._born:
            self._born = False
            soon = now + random.uniform(0, spread)  # noqa: S311  # spreads out clients, guards nothing
            self._discovery_due = min(self._discovery_due, max(soon, self._discovery_sent + spread))
        if now >= self._discovery_due:
            self._discovery_due = math.inf
            self._discovery_sent = now
            self._mirror.send_again(self._discovery_topics)

    def stop(self) -> None:
        """Say goodbye to the broker and end the threads; takes no longer than 1.5 seconds."""
        self._health.stopping()
        self._mirror.put(self._stream.histories(math.inf))
        gone = [unavailable(self._topics, key) for key in self._pollers]
        self._mirror.close([*gone, bridge_offline(self._topics)])
        self._clock.stop()
        self._link.join()

    def _put_what_is_missing(self) -> None:
        """Declare every account without a current reading as such: what the broker still holds may be old."""
        for key, account in self._settings.accounts.items():
            nothing = stale_messages(self._topics, key, without_reading(account))
            self._mirror.put(nothing, only_missing=True)

    def _discovery(self) -> list[Message]:
        """Describe the accounts to Home Assistant, unless it is not to know of them."""
        if not self._settings.home_assistant.discovery:
            return []
        prefix, stale_after = self._settings.home_assistant.discovery_prefix, self._settings.stale_after_seconds
        return [
            homeassistant.discovery_message(
                prefix, self._topics, key, account, stale_after=stale_after, version=version()
            )
            for key, account in self._settings.accounts.items()
        ]

    def _clear(self, accounts: Iterable[str], found: Container[str]) -> None:
        """Clear what the daemon left behind of the accounts that it had: those removed, discovery switched off."""
        prefix = self._settings.home_assistant.discovery_prefix
        for key in accounts:
            topic = homeassistant.discovery_topic(prefix, self._topics, key)
            removed = key not in self._pollers
            if removed or (topic in found and not self._settings.home_assistant.discovery):
                self._mirror.put([cleared(topic)])
            if removed:
                self._mirror.put(account_cleared(self._topics, key))

    def _put_info(self) -> None:
        if self._started_at is None:
            times = (poller.time.unix(self._started) for poller in self._pollers.values())
            self._started_at = next((at for at in times if at is not None), None)
        info = bridge_info(
            self._topics,
            version=version(),
            started_at=self._started_at,
            protocol=self._protocol,
            accounts=self._pollers,
        )
        self._mirror.put([info])

    def _take_connected(self, protocol: Protocol) -> None:
        self._protocol = protocol
        for poller in () if self._read_back_done else self._pollers.values():
            poller.expect_read_back()
        self._discovery_sent, self._discovery_due = self._clock.now(), math.inf  # it comes with the picture
        if self._online:
            self._put_info()

    def _take_read_back(self, found: Mapping[str, bytes]) -> None:
        if info := found.get(self._topics.bridge_info):
            try:
                self._clear(parse_info(info), found)
            except ForeignError as why:
                _log.warning("bridge/info that the broker retained is not taken over: %s", why)
        for key, poller in self._pollers.items():
            history, status = (found.get(self._topics.of(key, leaf)) for leaf in ("history", "status"))
            poller.take_read_back(history, status)
        self._read_back_done = True
        self._may_ask_since = self._clock.now()
        self._alarm.ring()

    def _take_received(self, message: Received) -> None:
        if message.retained:
            return
        poller = self._refreshes.get(message.topic)
        if poller is not None:
            poller.refresh()
        elif message.topic == self._settings.home_assistant.status_topic and message.payload == b"online":
            self._born = True
            self._alarm.ring()

    def _summary(self) -> str:
        """Say how the accounts are doing; where there are many, those in trouble come first."""
        pollers = sorted(self._pollers.values(), key=lambda poller: poller.well)
        more = [f"and {len(pollers) - _SUMMARIES} more"] if len(pollers) > _SUMMARIES else []
        return "; ".join([*(poller.summary() for poller in pollers[:_SUMMARIES]), *more])

    def _wake(self) -> None:
        self._link.wake()

    def _spawn(self, name: str, run: Callable[[], None]) -> None:
        def until_stopped() -> None:
            with contextlib.suppress(Stopped):
                run()

        threading.Thread(target=until_stopped, name=name, daemon=True).start()

    def _take_exception(self, args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            _log.critical("a thread ended that must not; please report it:\n%s", redacted_traceback(args.exc_value))
        self.broken = True
        os.kill(os.getpid(), signal.SIGTERM)


def _allow_open_files(count: int) -> None:
    """Let that many files be open, as far as the system lets us: usually it starts a program with 1024.

    All accounts may be asking Share at once, each by a connection of its own, or be looking up its name.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != soft < count:
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        with contextlib.suppress(OSError):  # then most of them still get through, and the others try again
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def run(settings: Settings, clock: Clock | None = None) -> int:
    """Run in the foreground until SIGTERM or SIGINT; return the exit code, or end the process with it after 1.8 s.

    The signals are blocked before a thread starts and are waited for: no handler, and so no deadlock. They are
    waited for without a timeout: where a pause of the whole process (SIGSTOP, a debugger, a frozen container)
    outlasts one, sigtimedwait of Python returns a signal that never came. Raises TlsFileError.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    _allow_open_files(2 * len(settings.accounts) + _FILES)
    daemon = Daemon(settings, clock)
    _log.info("dexcom2mqtt %s: %s", version(), ", ".join(settings.accounts))
    daemon.start()
    daemon.answer_for_health()
    signal.sigwait(STOP)
    code = 1 if daemon.broken else 0
    # Even writing to the log may hang, where nobody reads it.
    at_last = threading.Timer(_STOP_SECONDS, os._exit, [code])
    at_last.daemon = True
    at_last.start()
    daemon.stop()
    _log.info("stopped")
    return code
