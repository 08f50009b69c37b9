"""The daemon for ``bench/footprint.py``: its clock runs ``SPEED`` times too fast, and it records when polls were due.

``DUE`` names a file. When a poll begins, its account and its due time (of the clock) are written there. Everything else
is the command ``dexcom2mqtt``. The tests' launcher does more, and loads far more modules.
"""

from __future__ import annotations

import os
import sys

from dexcom2mqtt import cli
from dexcom2mqtt.account.poller import Poller
from dexcom2mqtt.clock import Clock
from dexcom2mqtt.daemon import process

_run, _poll = process.run, Poller.poll


def main() -> int:
    """Run the command line, with the hooks that the environment names; return the exit code."""
    clock = Clock(float(os.environ["SPEED"]))
    process.run = lambda settings: _run(settings, clock)
    if path := os.environ.get("DUE"):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

        def poll(poller: Poller) -> float:
            os.write(file, f"{poller.key} {poller.due}\n".encode())
            return _poll(poller)

        Poller.poll = poll
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
