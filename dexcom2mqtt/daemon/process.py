"""The process of the daemon: its signals, its open files, its end.

It knows nothing of what the daemon does.
"""

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
"""Seconds; a daemon that is about to end, as at a restart, has 30 of these."""
_FILES: Final = 64
"""Open files that are none of an account: the broker's, those of names being looked up, and the like."""
_FILES_OF_WEB: Final = 64
"""Those of the page: each of its connections is one."""


class SecondDaemonError(Exception):
    """Another daemon has the same name at the same broker: each would take the other off it."""


class _End:
    """The end of the process, whatever hangs: even writing to the log may, if nobody reads it.

    Its thread is there from the start, since none may be started any more when it is needed. Raises ThreadError.
    """

    def __init__(self) -> None:
        self._near = threading.Event()
        self._code = 0
        threads.start("end", self._run)

    def is_near(self, code: int) -> None:
        """Let the process end with this code soon, unless it has ended before."""
        self._code = code
        self._near.set()

    def _run(self) -> None:
        self._near.wait()
        threading.Event().wait(_STOP_SECONDS)
        os._exit(self._code)


def _runs_already(mqtt: Mqtt) -> bool:
    """Tell whether another daemon of this machine is what this one would be; wait a moment if it may be ending."""
    if broker_of(mqtt.client_id) != mqtt.place:
        return False
    pause = threading.Event()
    for _ in range(_ENDING_ROUNDS):
        if signal.sigpending() & STOP:
            break
        pause.wait(_ENDING_ROUND)
    return broker_of(mqtt.client_id) == mqtt.place


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
    outlasts one, sigtimedwait of Python returns a signal that never came. Raises TlsFileError, VariableError,
    SecondDaemonError and ThreadError.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    already = _runs_already(settings.mqtt)
    if already and signal.sigpending() & STOP:
        return 0  # a stop while it waits; the broker was not touched
    if already:
        raise SecondDaemonError(
            f"a daemon with the mqtt.client_id {settings.mqtt.client_id} at {settings.mqtt.place} runs on this machine "
            "already, perhaps as a service (systemctl status dexcom2mqtt): end it first, or give this one another "
            "base_topic"
        )
    _allow_open_files(2 * len(settings.accounts) + _FILES + (_FILES_OF_WEB if settings.web else 0))
    daemon = Daemon(settings, clock)
    _log.info("dexcom2mqtt %s: %s", version(), ", ".join(settings.accounts))
    end = _End()
    daemon.start()
    daemon.answer_for_health()
    signal.sigwait(STOP)
    code = 1 if daemon.broken else 0
    end.is_near(code)
    daemon.stop()
    _log.info("stopped")
    return code
