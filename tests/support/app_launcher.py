"""The starter of Home Assistant's app as a process; otherwise it is ``python -m starter``.

In the app, the Supervisor has that name, and all paths are fixed. Here the environment has ``STUB``, the port of its
stub on loopback; ``OPTIONS``, the user's options; ``HANDED``, the folder for the daemon's configuration; and ``EVERY``
and ``SECONDS``, how often it asks, and how long an answer may take. If this is not root, or nobody else may read the
program, it cannot switch users: then the daemon keeps this user.
"""

from __future__ import annotations

import http.client
import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest import mock

from starter import daemon, run, supervisor

from tests.support.processes import ROOT

CONNECTION = http.client.HTTPConnection


def can_become_another() -> bool:
    """Return whether this is root, and the daemon's user may read the program; a clone may be for root alone."""
    programs = (ROOT, Path(sys.executable).absolute(), Path(sys.executable).resolve())
    way = {place for program in programs for place in (program, *program.parents)}
    return os.geteuid() == 0 and all(place.stat().st_mode & 0o001 for place in way)


def main() -> int:
    """Read the hooks from the environment, and run the starter."""
    given = {name: os.environ.pop(name) for name in ("STUB", "OPTIONS", "HANDED", "EVERY", "SECONDS")}
    with ExitStack() as hooks:

        def patch(of: object, name: str, value: object) -> None:
            hooks.enter_context(mock.patch.object(of, name, value))

        patch(run, "OPTIONS", Path(given["OPTIONS"]))
        patch(daemon, "FOLDER", Path(given["HANDED"]))
        patch(supervisor, "EVERY", float(given["EVERY"]))
        patch(supervisor, "SECONDS", float(given["SECONDS"]))
        patch(supervisor, "FIRST_PAUSE", 0.05)
        patch(supervisor, "LONGEST_PAUSE", 0.2)
        patch(http.client, "HTTPConnection", partial(_connect, int(given["STUB"])))
        if not can_become_another():
            patch(daemon, "WITHOUT_RIGHTS", ())
            patch(daemon, "USER", os.geteuid())
        return run.main()


def _connect(port: int, host: str, timeout: float) -> http.client.HTTPConnection:
    """Connect to the stub under the Supervisor's name."""
    assert host == "supervisor"
    return CONNECTION("127.0.0.1", port, timeout=timeout)


if __name__ == "__main__":
    sys.exit(main())
