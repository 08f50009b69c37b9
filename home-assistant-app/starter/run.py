"""From the form to the running daemon, until a signal or the end of the daemon.

The main thread only waits for signals: a request to stop, the end of the daemon, and another broker. They are blocked
before anything else starts, so that none is lost.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starter import form, supervisor
from starter.daemon import Daemon

if TYPE_CHECKING:
    from starter.form import Broker, Form

_log = logging.getLogger(__name__)

OPTIONS: Final = Path("/data/options.json")
MISCONFIGURED: Final = 78  # the daemon's exit code in that case
_STOP: Final = {signal.SIGTERM, signal.SIGINT}
_OTHER_BROKER: Final = signal.SIGUSR1


def main() -> int:
    """Run until SIGTERM, SIGINT or the end of the daemon; return its exit code, 78 if the form cannot be used."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_STOP, signal.SIGCHLD, _OTHER_BROKER})
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(message)s", level=logging.INFO)
    try:
        filled_in = form.read(_options())
    except form.FormError as error:
        return _complain(error)
    return Starter(filled_in).run()


class Starter:
    """Runs the daemon with the right broker."""

    def __init__(self, filled_in: Form) -> None:
        self._form = filled_in
        self._daemon = Daemon(os.environ, filled_in.reworded)
        self._broker: Broker | None = None

    def run(self) -> int:
        """Start the daemon once the broker is known, restart it when that changes; return the exit code."""
        if self._form.names_a_broker:
            self._start()
        else:
            token = os.environ.get("SUPERVISOR_TOKEN", "")
            threading.Thread(target=supervisor.keep_asking, args=(token, self._use), daemon=True).start()
        while True:
            number = signal.sigwait({*_STOP, signal.SIGCHLD, _OTHER_BROKER})
            if number in _STOP:
                return self._daemon.stop(signal.Signals(number))
            if number == _OTHER_BROKER:
                self._daemon.stop()
                self._start()
            elif (code := self._daemon.ended()) is not None:
                return _say_how_it_ended(code)

    def _use(self, broker: Broker) -> None:
        """Let the main thread start the daemon with this broker; called by the asking thread."""
        self._broker = broker
        os.kill(os.getpid(), _OTHER_BROKER)

    def _start(self) -> None:
        self._daemon.start(self._form.configuration(self._broker))


def _options() -> str:
    try:
        return OPTIONS.read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise form.FormError(f"{OPTIONS} cannot be read; this image runs only as an app in Home Assistant") from None


def _complain(error: form.FormError) -> int:
    lines = ("dexcom2mqtt: the configuration cannot be used:", *(f"  {problem}" for problem in error.problems))
    sys.stderr.write("\n".join([*lines, ""]))
    return _say_how_it_ended(MISCONFIGURED)


def _say_how_it_ended(code: int) -> int:
    if code == MISCONFIGURED:
        _log.error("change it on the tab Configuration, save, and start the app again")
    elif code:
        _log.error("the daemon ended with %s; if the app's switch Watchdog is on, it restarts", code)
    return code
