"""The daemon for ``bench/footprint.py``: its clock runs ``SPEED`` times too fast, and it says when polls were due.

``DUE`` names a file, which gets the account and the due time (of the clock) of each poll when it begins. All else is
the command ``dexcom2mqtt``. The launcher of the tests does more, and loads far more for it.
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
    """Take the hooks from the environment and the rest from the command line."""
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
