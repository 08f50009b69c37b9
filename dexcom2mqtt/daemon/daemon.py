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
from dexcom2mqtt.clock import Clock, Stopped
from dexcom2mqtt.daemon.accounts import Accounts
from dexcom2mqtt.daemon.discovery import Discovery
from dexcom2mqtt.daemon.former import Former
from dexcom2mqtt.daemon.health import Health
from dexcom2mqtt.daemon.heartbeat import Heartbeat
from dexcom2mqtt.daemon.kept_days import KeptDays
from dexcom2mqtt.daemon.ownership import Ownership
from dexcom2mqtt.daemon.reloading import Reloading
from dexcom2mqtt.daemon.serving import Serving
from dexcom2mqtt.logs import redacted_traceback
from dexcom2mqtt.messages.bridge import awaited, bridge_offline
from dexcom2mqtt.messages.mirror import Mirror
from dexcom2mqtt.messages.state import guarded, unprotected
from dexcom2mqtt.messages.stream import Stream
from dexcom2mqtt.mqtt.inbox import READ_BACK_SECONDS, ReadBack
from dexcom2mqtt.mqtt.link import BrokerLink
from dexcom2mqtt.topics import ALONE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from dexcom2mqtt.config.settings import Settings, Web
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.mqtt.connection import Received
    from dexcom2mqtt.mqtt.outcome import Protocol

_log = logging.getLogger(__name__)

STOP: Final = frozenset({signal.SIGTERM, signal.SIGINT})
"""The signals that end the daemon."""

INGRESS: Final = "DEXCOM2MQTT_INGRESS"
"""The environment variable with the address to serve the page for ingress at. The starter of the app sets it."""

ANYTHING_SECONDS: Final = 2.0
"""How many real seconds to wait, after the probe, for messages that an earlier daemon may have left."""

_NO_REFRESH: Final = "asking for a reading by a message to refresh will not work"
_NO_CLAIMS: Final = "this process cannot agree with the others who serves an account, and serves none"


class Daemon:
    """Everything that polls and publishes. Call ``start``, then ``stop`` when one of the signals ``STOP`` arrives.

    Raises TlsFileError and VariableError.
    """

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._topics = topics = settings.topics
        self._settings = settings
        self._alone = topics.bridge == ALONE
        self._mirror = Mirror(topics.bridge_state, self._wake, functools.partial(guarded, topics))
        self._stream = Stream(topics, changed=self._wake)
        self._health = Health(self._clock, settings.connection.client_id, self._summary, broker=settings.mqtt.place)
        self._alarm = self._clock.alarm(self._health.loop("the heartbeat"))
        self._accounts = Accounts(
            settings,
            self._clock,
            self._mirror,
            self._stream,
            self._health,
            may_ask=lambda key: self._alone or (key in self._ownership.holdings.owned and self._link.trusted),
            polled=self._on_wait,
            ended=self._alarm.ring,
        )
        self._discovery = Discovery(settings, topics, self._clock, self._mirror, self._accounts)
        self._kept_days = KeptDays(
            settings, topics, self._accounts, clock=self._clock, mirror=self._mirror, reconnect=self._reconnect
        )
        once = self._mirror.put if self._alone else self._tell
        self._serving = Serving(
            topics, self._mirror, self._stream, self._accounts, self._discovery, self._kept_days, once
        )
        self._ownership = Ownership(
            topics,
            self._clock,
            self._serving,
            owned=self._accounts.pollers,
            link=lambda: self._link,
            changed=self._alarm.ring,
            over=lambda: self._heartbeat.read_back(),  # noqa: PLW0108  # it is made below
        )
        holdings = self._ownership.holdings
        self._heartbeat = Heartbeat(topics, self._clock, self._mirror, self._accounts, self._kept_days, holdings)
        self._reloading = Reloading(settings, self._clock, self._ownership)
        self._former = Former(self._reloading, self._serving, self._ownership, once)
        self._link = self._broker_link()
        self.broken = False
        """Whether a thread stopped unexpectedly."""

    def _summary(self) -> str:
        return self._accounts.summary()

    def _on_wait(self) -> None:
        """Note that the loop of an account begins to wait, which may be the end of a poll that others wait for."""
        self._health.changed()
        if self._heartbeat.awaits_share:
            self._alarm.ring()

    def _broker_link(self) -> BrokerLink:
        topics = self._topics
        subscriptions = {topics.of("+", "refresh"): _NO_REFRESH} | self._discovery.subscriptions
        return BrokerLink(
            self._settings.connection,
            self._clock,
            self._mirror,
            self._stream,
            will=bridge_offline(topics),
            unprotected=functools.partial(unprotected, topics),
            read_back=ReadBack(
                topics=(topics.bridge_info, *self._serving.topics_of(self._accounts.pollers)),
                probe=topics.sync(self._settings.connection.client_id),
                done=self._take_read_back,
                still=self._still,
                awaited=lambda: (*self._kept_days.awaited, *self._ownership.waiting.watched, *self._former.watched),
            ),
            subscriptions=subscriptions if self._alone else subscriptions | {topics.claims: _NO_CLAIMS},
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
        for proxy in self._accounts.proxies:
            _log.info("Share is reached through the proxy %s", proxy)
        self._heartbeat.start()
        for key in self._accounts.pollers:
            self._accounts.start(key)
        # After the pollers, which wait for it anyway: beside a busy thread, starting a thousand others takes long.
        self._spawn("broker", self._link.run)
        if self._settings.web:
            self._spawn("web", self._page(self._settings.web))
        if ingress := os.environ.get(INGRESS):
            self._spawn("ingress", self._page(ingress))
        self._spawn("heart", self._beat)

    def _page(self, where: Web | str) -> Callable[[], None]:
        return functools.partial(_serve, where, self._accounts, self._reloading, self._clock, self._health.look)

    def answer_for_health(self) -> None:
        """Start reporting readiness and health to systemd, and answering ``healthcheck``. Raises ThreadError."""
        self._spawn("health", self._health.run)

    def look_again(self) -> None:
        """Look at the folder with the accounts now."""
        self._reloading.ask()
        self._alarm.ring()

    def stop(self) -> None:
        """Publish offline and end the threads; takes no longer than 1.5 seconds."""
        self._health.stopping()
        self._mirror.put(self._stream.histories(math.inf))
        self._mirror.close([*self._serving.farewell(self._ownership.holdings.owned), bridge_offline(self._topics)])
        self._clock.stop()
        self._link.join()

    def _beat(self) -> None:
        while True:
            parts = (
                self._accounts,
                self._reloading,
                self._ownership,
                self._discovery,
                self._heartbeat,
                self._kept_days,
            )
            self._alarm.wait(min([part.tick() for part in parts]))

    def _on_connected(self, protocol: Protocol) -> None:
        for poller in () if self._heartbeat.has_read_back else self._accounts.pollers.values():
            poller.expect_read_back()
        self._ownership.connected()
        self._former.connected(self._link)
        self._discovery.connected()  # everything is sent after connecting, discovery too
        self._heartbeat.connected(protocol)
        self._kept_days.connected()
        self._alarm.ring()

    def _take_read_back(self, found: Mapping[str, bytes]) -> None:
        """Resume from what the broker retains; accounts that another process serves have to wait."""
        info = self._former.read_back(found)
        mine = [key for key in self._accounts.pollers if self._former.owner(key) in {None, ALONE}]
        self._discovery.put({key: self._accounts.configured[key] for key in mine})
        self._serving.hand_over(mine, found, self._kept_days.read_back(info, found, mine))
        for key in self._accounts.pollers.keys() - set(mine):
            self._ownership.lose(key)
        if self._alone:
            self._heartbeat.read_back()
        self._former.begin(self._link)
        self._alarm.ring()

    def _on_message(self, message: Received) -> None:
        if self._kept_days.take(message.topic, message.payload):
            return
        heard = [part.heard(message.topic, message.payload) for part in (self._ownership, self._former)]
        if any(heard) or message.retained:
            return
        if self._discovery.is_birth(message.topic, message.payload):
            self._discovery.born()
            self._alarm.ring()
        else:
            self._accounts.refresh(message.topic)

    def _tell(self, messages: Iterable[Message]) -> None:
        self._link.tell(messages)

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
        if isinstance(args.exc_value, threads.ThreadError):
            _log.critical("%s", args.exc_value)
        elif args.exc_value is not None:
            _log.critical("a thread stopped unexpectedly; please report it:\n%s", redacted_traceback(args.exc_value))
        self.broken = True
        os.kill(os.getpid(), signal.SIGTERM)


def _serve(where: Web | str, accounts: Accounts, reloading: Reloading, clock: Clock, health: Callable[[], str]) -> None:
    """Serve the page to browsers, or to ingress; an error there affects nothing else."""
    try:
        from dexcom2mqtt.daemon import page  # noqa: PLC0415  # load a server only if configured

        place = page.ingress(where) if isinstance(where, str) else page.configured(where)
        if place:
            page.serve(place, accounts, lambda: reloading.settings, clock, health)
    except Exception as error:  # noqa: BLE001  # see above
        _log.error("web: the page has stopped working; please report it:\n%s", redacted_traceback(error))
