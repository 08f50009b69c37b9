"""The process of the daemon: its signals, its open files, its end. It does not know what the daemon does."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import threading
from typing import TYPE_CHECKING, Final

from dexcom2mqtt import threads, version
from dexcom2mqtt.daemon.asking import broker_of
from dexcom2mqtt.daemon.daemon import STOP, Daemon

if TYPE_CHECKING:
    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config.settings import Mqtt, Settings

_log = logging.getLogger(__name__)

_STOP_SECONDS: Final = 1.8
_ENDING_ROUNDS: Final = 30
_ENDING_ROUND: Final = 0.1
"""Seconds. Another daemon that is stopping, as during a restart, gets 30 times as long."""
_FILES: Final = 64
"""Open files that belong to no account: for the broker, name lookups, and the like."""
_MAY_COME: Final = 1000
"""The accounts that a folder may have later."""
_FILES_OF_WEB: Final = 64
"""Open files of the page: one per connection."""


class SecondDaemonError(Exception):
    """Another daemon has the same client id at the same broker, so each would disconnect the other."""


class _End:
    """Ends the process, whatever hangs: even writing to the log does if nobody reads it.

    Its thread starts early, because starting one later may fail. Raises ThreadError.
    """

    def __init__(self) -> None:
        self._near = threading.Event()
        self._code = 0
        threads.start("end", self._run)

    def is_near(self, code: int) -> None:
        """End the process with this code after 1.8 s, unless it ends earlier by itself."""
        self._code = code
        self._near.set()

    def _run(self) -> None:
        self._near.wait()
        threading.Event().wait(_STOP_SECONDS)
        os._exit(self._code)


def _already_running(mqtt: Mqtt) -> bool:
    """Return whether this machine already runs a daemon like this one; wait a moment in case it is stopping."""
    if broker_of(mqtt.client_id) != mqtt.place:
        return False
    pause = threading.Event()
    for _ in range(_ENDING_ROUNDS):
        if signal.sigpending() & STOP:
            break
        pause.wait(_ENDING_ROUND)
    return broker_of(mqtt.client_id) == mqtt.place


def _allow_open_files(count: int) -> None:
    """Raise the limit of open files to ``count``, as far as the system allows; the usual limit is 1024.

    All accounts may be polling Share at once, each with its own connection or name lookup.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != soft < count:
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        with contextlib.suppress(OSError):  # with the old limit most accounts still work, and the others retry
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def run(settings: Settings, clock: Clock | None = None) -> int:
    """Run in the foreground until SIGTERM or SIGINT; return the exit code, or end the process with it after 1.8 s.

    The signals are blocked before any thread starts, and then waited for: without a handler there is no deadlock. The
    wait has no timeout: if the whole process pauses for longer (SIGSTOP, a debugger, a frozen container), Python's
    sigtimedwait returns a signal that never arrived. Raises TlsFileError, VariableError, SecondDaemonError and
    ThreadError.
    """
    look = frozenset[signal.Signals]() if settings.reread is None else frozenset({signal.SIGHUP})
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP | look)
    already = _already_running(settings.connection)
    if already and signal.sigpending() & STOP:
        return 0  # stopped while waiting; the broker was not touched
    if already:
        raise SecondDaemonError(
            f"a daemon with the mqtt.client_id {settings.connection.client_id} at {settings.mqtt.place} is already "
            "running on this machine, perhaps as a service (systemctl status dexcom2mqtt): stop it first, or give this "
            "one another base_topic"
        )
    accounts = len(settings.accounts) if settings.reread is None else max(len(settings.accounts), _MAY_COME)
    _allow_open_files(2 * accounts + _FILES + (_FILES_OF_WEB if settings.web else 0))
    daemon = Daemon(settings, clock)
    _log.info("dexcom2mqtt %s: %s", version(), _named(settings))
    end = _End()
    daemon.start()
    daemon.answer_for_health()
    while signal.sigwait(STOP | look) in look:
        daemon.look_again()
    code = 1 if daemon.broken else 0
    end.is_near(code)
    daemon.stop()
    _log.info("stopped")
    return code


def _named(settings: Settings) -> str:
    """Say which accounts this process serves."""
    if settings.shard.count == 1:
        return ", ".join(settings.accounts)
    shard = f"shard {settings.shard.index} of {settings.shard.count}"
    return f"{shard} is to serve {len(settings.own_accounts)} of {len(settings.accounts)} accounts"
