"""The daemon: build the parts, let them run, stop them.

Composition only. Each account has a thread, the broker has one, one publishes that the daemon is alive, one reports
health, and the main thread waits for a signal. All are daemon threads: stopping does not wait for them to end.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import signal
import threading
from typing import TYPE_CHECKING, Final

from dexcom2mqtt import threads
from dexcom2mqtt.account.limits import RateLimits
from dexcom2mqtt.account.poller import poller_for
from dexcom2mqtt.account.rationed import client_of
from dexcom2mqtt.clock import Clock, Stopped
from dexcom2mqtt.daemon.discovery import Discovery
from dexcom2mqtt.daemon.health import Health
from dexcom2mqtt.daemon.heartbeat import Heartbeat
from dexcom2mqtt.daemon.kept_days import KeptDays
from dexcom2mqtt.logs import redacted_traceback
from dexcom2mqtt.messages.bridge import Info, awaited, bridge_offline, parse_info
from dexcom2mqtt.messages.message import ForeignError
from dexcom2mqtt.messages.mirror import Mirror
from dexcom2mqtt.messages.state import account_cleared, guarded, unavailable, unprotected
from dexcom2mqtt.messages.stream import Stream
from dexcom2mqtt.mqtt.inbox import READ_BACK_SECONDS, ReadBack
from dexcom2mqtt.mqtt.link import BrokerLink
from dexcom2mqtt.topics import Topics

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from dexcom2mqtt.account.poller import Poller
    from dexcom2mqtt.config.settings import Account, Settings, Web
    from dexcom2mqtt.mqtt.connection import Received
    from dexcom2mqtt.mqtt.outcome import Protocol
    from dexcom2mqtt.share import ShareClient

_log = logging.getLogger(__name__)

STOP: Final = frozenset({signal.SIGTERM, signal.SIGINT})
"""The signals that end the daemon."""

INGRESS: Final = "DEXCOM2MQTT_INGRESS"
"""The environment variable with the address to serve the page for ingress at. The starter of the app sets it."""

ANYTHING_SECONDS: Final = 2.0
"""How many real seconds to wait, after the probe, for messages that an earlier daemon may have left."""

_NO_REFRESH: Final = "asking for a reading by a message to refresh will not work"
_SUMMARIES: Final = 10
"""The most accounts in systemd's status line: it is limited to 4096 bytes, and people read less."""


class Daemon:
    """Everything that polls and publishes. Call ``start``, then ``stop`` when one of the signals ``STOP`` arrives.

    Raises TlsFileError and VariableError.
    """

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._topics = Topics(settings.mqtt.base_topic)
        self._settings = settings
        self._mirror = Mirror(self._topics.bridge_state, self._wake, functools.partial(guarded, self._topics))
        self._stream = Stream(self._topics, changed=self._wake)
        self._pollers: dict[str, Poller] = {}
        summary = functools.partial(_summary, self._pollers)
        self._health = Health(self._clock, settings.mqtt.client_id, summary, broker=settings.mqtt.place)
        self._rate_limits = RateLimits()
        clients = {key: client_of(account, self._clock) for key, account in settings.accounts.items()}
        self._proxies = dict.fromkeys(client.proxy for client in clients.values() if client.proxy)
        self._pollers |= {key: self._poller(key, account, clients[key]) for key, account in settings.accounts.items()}
        self._refreshes = {self._topics.of(key, "refresh"): poller for key, poller in self._pollers.items()}
        self._discovery = Discovery(settings, self._topics, self._clock, self._mirror)
        self._kept_days = KeptDays(
            settings, self._topics, self._pollers, clock=self._clock, mirror=self._mirror, reconnect=self._reconnect
        )
        self._heartbeat = Heartbeat(
            self._topics, self._clock, self._mirror, settings.accounts, self._pollers, self._kept_days
        )
        self._alarm = self._clock.alarm(self._health.loop("the heartbeat"))
        self._link = self._broker_link()
        self.broken = False
        """Whether a thread stopped unexpectedly."""

    def _poller(self, key: str, account: Account, client: ShareClient) -> Poller:
        return poller_for(
            key,
            account,
            client,
            clock=self._clock,
            topics=self._topics,
            put=self._mirror.put,
            stream=self._stream,
            stale_after=self._settings.stale_after_seconds,
            rate_limits=self._rate_limits,
            statistics=self._settings.statistics,
            back_by=self._account_loop(key),
        )

    def _account_loop(self, key: str) -> Callable[[float], None]:
        """Watch the loop of an account. Each wait of it may be the end of a poll, which others wait for."""
        watched = self._health.loop(f"account {key}")

        def back_by(at: float) -> None:
            watched(at)
            self._health.changed()
            if self._heartbeat.awaits_share:
                self._alarm.ring()

        return back_by

    def _broker_link(self) -> BrokerLink:
        left_behind = [self._topics.of(key, leaf) for key in self._pollers for leaf in ("history", "status")]
        return BrokerLink(
            self._settings.mqtt,
            self._clock,
            self._mirror,
            self._stream,
            will=bridge_offline(self._topics),
            unprotected=functools.partial(unprotected, self._topics),
            read_back=ReadBack(
                topics=(self._topics.bridge_info, *left_behind, *self._kept_days.topics, *self._discovery.leftovers),
                probe=self._topics.sync(self._settings.mqtt.client_id),
                done=self._take_read_back,
                still=self._still,
                awaited=lambda: self._kept_days.awaited,
            ),
            subscriptions={self._topics.of("+", "refresh"): _NO_REFRESH} | self._discovery.subscriptions,
            connected=self._on_connected,
            received=self._on_message,
            back_by=self._health.loop("the broker's connection"),
        )

    def _still(self, found: Mapping[str, bytes], asked: Collection[str]) -> float:
        """Return how many more seconds to wait for retained messages; at a first start there are none."""
        match awaited(self._topics, found, asked):
            case "anything":
                return ANYTHING_SECONDS
            case "the rest":
                return READ_BACK_SECONDS
            case "nothing":
                return 0.0

    def start(self) -> None:
        """Start the threads. Raises ThreadError."""
        threading.excepthook = self._on_exception
        for proxy in self._proxies:
            _log.info("Share is reached through the proxy %s", proxy)
        self._heartbeat.start()
        self._discovery.put()
        for key, poller in self._pollers.items():
            self._spawn(key, poller.run)
        # After the pollers, which wait for it anyway: beside a busy thread, starting a thousand others takes long.
        self._spawn("broker", self._link.run)
        if self._settings.web:
            self._spawn("web", functools.partial(self._serve, self._settings.web))
        if ingress := os.environ.get(INGRESS):
            self._spawn("ingress", functools.partial(self._serve, ingress))
        self._spawn("heart", self._beat)

    def _serve(self, where: Web | str) -> None:
        """Serve the page to browsers, or to ingress; an error there affects nothing else."""
        try:
            from dexcom2mqtt.daemon import page  # noqa: PLC0415  # load a server only if configured

            place = page.ingress(where) if isinstance(where, str) else page.configured(where)
            if place:
                page.serve(place, self._settings.accounts, self._pollers, self._clock, self._health.look)
        except Exception as error:  # noqa: BLE001  # see above
            _log.error("web: the page is no longer served; please report it:\n%s", redacted_traceback(error))

    def answer_for_health(self) -> None:
        """Start reporting readiness and health to systemd, and answering ``healthcheck``. Raises ThreadError."""
        self._spawn("health", self._health.run)

    def stop(self) -> None:
        """Publish offline and end the threads; takes no longer than 1.5 seconds."""
        self._health.stopping()
        self._mirror.put(self._stream.histories(math.inf))
        gone = [unavailable(self._topics, key) for key in self._pollers]
        self._mirror.close([*gone, bridge_offline(self._topics)])
        self._clock.stop()
        self._link.join()

    def _beat(self) -> None:
        while True:
            self._alarm.wait(min(self._discovery.tick(), self._heartbeat.tick(), self._kept_days.tick()))

    def _on_connected(self, protocol: Protocol) -> None:
        for poller in () if self._heartbeat.has_read_back else self._pollers.values():
            poller.expect_read_back()
        self._discovery.connected()  # everything is sent after connecting, discovery too
        self._heartbeat.connected(protocol)
        self._kept_days.connected()
        self._alarm.ring()

    def _take_read_back(self, found: Mapping[str, bytes]) -> None:
        info = self._read_info(found)
        self._clear_former(info.accounts if info else (), found)
        days_awaited = self._kept_days.read_back(info, found)
        for key, poller in self._pollers.items():
            history, status, days = (found.get(self._topics.of(key, leaf)) for leaf in ("history", "status", "days"))
            poller.take_read_back(history, status, days, days_awaited=days_awaited.get(key, False))
        self._heartbeat.read_back()
        self._alarm.ring()

    def _read_info(self, found: Mapping[str, bytes]) -> Info | None:
        """Return the earlier daemon's ``bridge/info``; None if not found, and an empty one if it is not ours."""
        if not (info := found.get(self._topics.bridge_info)):
            return None
        try:
            return parse_info(info)
        except ForeignError as why:
            _log.warning("ignoring the retained bridge/info: %s", why)
            return Info()

    def _clear_former(self, before: tuple[str, ...], found: Mapping[str, bytes]) -> None:
        """Clear the messages of removed accounts, and discovery if it was switched off."""
        for key in before:
            self._discovery.clear(key, found)
            if key not in self._pollers:
                self._mirror.put(account_cleared(self._topics, key))

    def _on_message(self, message: Received) -> None:
        if self._kept_days.take(message.topic, message.payload) or message.retained:
            return
        poller = self._refreshes.get(message.topic)
        if poller is not None:
            poller.refresh()
        elif self._discovery.is_birth(message.topic, message.payload):
            self._discovery.born()
            self._alarm.ring()

    def _wake(self) -> None:
        self._link.wake()

    def _reconnect(self) -> None:
        self._link.reconnect()

    def _spawn(self, name: str, run: Callable[[], None]) -> None:
        def until_stopped() -> None:
            with contextlib.suppress(Stopped):
                run()

        threads.start(name, until_stopped)

    def _on_exception(self, args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            _log.critical("a thread stopped unexpectedly; please report it:\n%s", redacted_traceback(args.exc_value))
        self.broken = True
        os.kill(os.getpid(), signal.SIGTERM)


def _summary(pollers: Mapping[str, Poller]) -> str:
    """Return how the accounts are doing; if there are many, those in trouble come first."""
    ordered = sorted(pollers.values(), key=lambda poller: poller.well)
    more = [f"and {len(ordered) - _SUMMARIES} more"] if len(ordered) > _SUMMARIES else []
    return "; ".join([*(poller.summary() for poller in ordered[:_SUMMARIES]), *more])
