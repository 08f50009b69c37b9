"""The daemon as a process whose clock runs faster; otherwise it is the command ``dexcom2mqtt run``.

The command line itself has no switch for this: a user has no use for it.
"""

from __future__ import annotations

import os
import sys
from unittest import mock

from dexcom2mqtt import cli, daemon
from dexcom2mqtt.clock import Clock


def main() -> int:
    """Take the speed from the environment and the rest from the command line."""
    run = daemon.run
    clock = Clock(float(os.environ["SPEED"]))
    with mock.patch.object(daemon, "run", lambda settings: run(settings, clock)):
        return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
