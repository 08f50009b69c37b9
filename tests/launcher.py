"""The daemon as a process whose clock runs faster; otherwise it is the command ``dexcom2mqtt run``.

The command line itself has no switch for this: a user has no use for it. From the environment come ``SPEED``;
``CALL_SECONDS``, a time limit of calls to Share that suits the speed; ``BUG_IN``, an account whose third and
fourth poll end in an exception that nobody expects.
"""

from __future__ import annotations

import itertools
import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING
from unittest import mock

from dexcom2mqtt import cli, daemon, share
from dexcom2mqtt.clock import Clock
from dexcom2mqtt.poller import Poller

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> int:
    """Take the hooks from the environment and the rest from the command line."""
    run = daemon.run
    clock = Clock(float(os.environ["SPEED"]))
    with ExitStack() as hooks:
        hooks.enter_context(mock.patch.object(daemon, "run", lambda settings: run(settings, clock)))
        if seconds := os.environ.get("CALL_SECONDS"):
            hooks.enter_context(mock.patch.object(share, "CALL_SECONDS", float(seconds)))
        if key := os.environ.get("BUG_IN"):
            hooks.enter_context(mock.patch.object(Poller, "_poll", _with_a_bug(key, Poller._poll)))  # noqa: SLF001  # where it hurts
        return cli.main(sys.argv[1:])


def _with_a_bug(key: str, poll: Callable[[Poller], float]) -> Callable[[Poller], float]:
    polls = itertools.count(1)

    def broken(poller: Poller) -> float:
        if poller.key == key and next(polls) in {3, 4}:
            raise RuntimeError("a bug that a test put here")
        return poll(poller)

    return broken


if __name__ == "__main__":
    sys.exit(main())
