"""The daemon as a process without rights, and its output."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

USER: Final = 65532
FOLDER: Final = Path("/dev/shm/dexcom2mqtt")  # noqa: S108  # only our own folder is made there
"""In memory, so that no password is written to disk; the daemon reads its configuration there."""
WITHOUT_RIGHTS: Final = (
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"),
    *("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
)
"""Saves us code between fork and exec. It is part of util-linux, which every Debian has."""
COMMAND: Final = ("dexcom2mqtt", "run")
INGRESS: Final = {"DEXCOM2MQTT_INGRESS": "0.0.0.0 8099 172.30.32.2"}
"""Where the daemon serves the page for ingress: on the default port of an app, for the Supervisor only.

Other apps are in the same network and can reach that port, too. A variable that is already set has priority.
"""
_TOKENS: Final = ("SUPERVISOR_TOKEN", "HASSIO_TOKEN")
_STOP_SECONDS: Final = 5.0
"""The daemon needs at most 2 s to stop."""


class Daemon:
    """The daemon, which can be started more than once.

    ``reworded`` rewords a line of its output, or returns None for a line to leave out.
    """

    def __init__(self, environ: Mapping[str, str], reworded: Callable[[str], str | None]) -> None:
        allowed = {name: value for name, value in environ.items() if not _is_token(name, value, environ)}
        self._environ = INGRESS | allowed
        self._reworded = reworded
        self._process: subprocess.Popen[str] | None = None
        self._passing_on = threading.Thread()

    def start(self, configuration: str) -> None:
        """Start it with this configuration, in YAML."""
        file = _hand_over(configuration)
        command = [*WITHOUT_RIGHTS, *COMMAND, "--config", str(file)]
        self._process = subprocess.Popen(  # noqa: S603  # no part of it comes from outside
            command,
            cwd="/",
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        self._passing_on = threading.Thread(target=self._pass_on, args=(self._process,), daemon=True)
        self._passing_on.start()

    def ended(self) -> int | None:
        """Return the exit code, 128 plus its number for a signal; None while the daemon runs or has not started."""
        code = self._process.poll() if self._process else None
        if code is not None:
            self._passing_on.join(_STOP_SECONDS)
        return 128 - code if code is not None and code < 0 else code

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the daemon this signal, wait for its end, and return the exit code; 0 if it is not running."""
        if self._process:
            self._process.send_signal(number)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(FOLDER, ignore_errors=True)
        return self.ended() or 0

    def _pass_on(self, process: subprocess.Popen[str]) -> None:
        for line in process.stderr or ():
            words = self._reworded(line.rstrip("\n"))
            if words is not None:
                sys.stderr.write(f"{words}\n")
                sys.stderr.flush()


def _is_token(name: str, value: str, environ: Mapping[str, str]) -> bool:
    """Return whether a variable is the Supervisor's token, under any name."""
    return name in _TOKENS or value in {environ.get(token) for token in _TOKENS} - {None, ""}


def _hand_over(configuration: str) -> Path:
    """Write a file that only the daemon may read, and nobody may change; return its path."""
    FOLDER.mkdir(mode=0o755, exist_ok=True)
    file = FOLDER / "config.yaml"
    file.unlink(missing_ok=True)
    with open(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o400), "w", encoding="utf-8") as stream:  # noqa: PTH123
        os.fchown(stream.fileno(), USER, USER)
        stream.write(configuration)
    return file
