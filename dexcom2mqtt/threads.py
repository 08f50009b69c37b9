"""Starting threads, and what to do if the system does not allow it.

Docker before 20.10.10 answers the call with which newer C libraries start a thread (clone3) with EPERM, and they do not
fall back: https://github.com/moby/moby/issues/42680. Other causes are limits on processes, which also count threads.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

REMEDIES: Final = (
    "In a container: Docker before 20.10.10 prevents it. Update Docker, or add --security-opt seccomp=unconfined.",
    "A limit on processes also counts threads. Raise it: TasksMax= in systemd, pids_limit in Docker, or ulimit -u.",
)
"""Possible causes and what to do, the most likely first."""


class ThreadError(Exception):
    """The system does not let this process start a thread; the text says what to do."""


def start(name: str, run: Callable[[], None]) -> None:
    """Start a thread that does not keep the process alive. Raises ThreadError."""
    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError:
        problem = "this system lets the daemon start no more threads; it needs one per account and a few more"
        raise ThreadError(f"{problem}. {' '.join(REMEDIES)}") from None


def startable(count: int) -> int:
    """Return how many of ``count`` more threads the system lets this process start."""
    end, started = threading.Event(), list[threading.Thread]()
    try:
        while len(started) < count:
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        pass
    finally:
        end.set()
        for thread in started:
            thread.join()
    return len(started)
