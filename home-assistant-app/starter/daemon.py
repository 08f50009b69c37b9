"""The daemon as a process without rights, and what it writes."""

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
FOLDER: Final = Path("/dev/shm/dexcom2mqtt")  # noqa: S108  # ours alone is made in there
"""In memory, so that no password gets onto the disk; the daemon reads it there."""
WITHOUT_RIGHTS: Final = (
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"),
    *("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
)
"""In place of code of our own between fork and exec. It is in util-linux, which every Debian has."""
COMMAND: Final = ("dexcom2mqtt", "run")
INGRESS: Final = {"DEXCOM2MQTT_INGRESS": "0.0.0.0 8099 172.30.32.2"}
"""Where the daemon has the page for ingress: at the port that an app has by default, for the Supervisor alone.

Other apps are in the same network and reach that port, too. If the variable is there already, that counts.
"""
_TOKENS: Final = ("SUPERVISOR_TOKEN", "HASSIO_TOKEN")
_STOP_SECONDS: Final = 5.0
"""The daemon ends within 2 s."""


class Daemon:
    """The daemon, which can be started more than once.

    ``told`` puts a line that it writes into other words, or returns None where nothing need be said.
    """

    def __init__(self, environ: Mapping[str, str], told: Callable[[str], str | None]) -> None:
        allowed = {name: value for name, value in environ.items() if not _is_token(name, value, environ)}
        self._environ = INGRESS | allowed
        self._told = told
        self._process: subprocess.Popen[str] | None = None
        self._passing_on = threading.Thread()

    def start(self, configuration: str) -> None:
        """Start it with this configuration, in YAML."""
        file = _hand_over(configuration)
        command = [*WITHOUT_RIGHTS, *COMMAND, "--config", str(file)]
        self._process = subprocess.Popen(  # noqa: S603  # nothing of it is from outside
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
        """Return the exit code, 128 and more for a signal; None while it runs, or was not started yet."""
        code = self._process.poll() if self._process else None
        if code is not None:
            self._passing_on.join(_STOP_SECONDS)
        return 128 - code if code is not None and code < 0 else code

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it this signal, wait for its end, and return the exit code; 0 if it does not run."""
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
            words = self._told(line.rstrip("\n"))
            if words is not None:
                sys.stderr.write(f"{words}\n")
                sys.stderr.flush()


def _is_token(name: str, value: str, environ: Mapping[str, str]) -> bool:
    """Tell whether a variable is the Supervisor's token, under whatever name."""
    return name in _TOKENS or value in {environ.get(token) for token in _TOKENS} - {None, ""}


def _hand_over(configuration: str) -> Path:
    """Write a file that the daemon alone may read, and nobody change; return it."""
    FOLDER.mkdir(mode=0o755, exist_ok=True)
    file = FOLDER / "config.yaml"
    file.unlink(missing_ok=True)
    with open(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o400), "w", encoding="utf-8") as stream:  # noqa: PTH123
        os.fchown(stream.fileno(), USER, USER)
        stream.write(configuration)
    return file
