"""The command line in a process that the kernel prevents from starting threads, as in old container runtimes.

``python -m tests.support.no_threads now|later ARGUMENTS``: from the beginning, or once the daemon runs. It does exactly
what they do: a seccomp filter answers clone3 with EPERM (seccomp(2), linux/bpf_common.h).
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys
from unittest import mock

from dexcom2mqtt import cli
from dexcom2mqtt.daemon.daemon import Daemon

_CLONE3 = 435  # on every architecture
_SECCOMP = {"x86_64": 317, "aarch64": 277, "armv7l": 383}[platform.machine()]
_NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS
_FILTER_OF_ALL_THREADS = (1, 1)  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_PROGRAM = [
    (_LOAD, 0, 0, 0),  # the number of the system call
    (_JUMP_IF_EQUAL, 0, 1, _CLONE3),
    (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    (_RETURN, 0, 0, _ALLOW),
]


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def forbid() -> None:
    """Prevent every thread of this process from starting another."""
    libc = ctypes.CDLL(None, use_errno=True)
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in _PROGRAM))
    program = _Filter(len(_PROGRAM), ctypes.cast(instructions, ctypes.c_void_p))
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.syscall(
        _SECCOMP, *_FILTER_OF_ALL_THREADS, ctypes.byref(program)
    ):
        raise OSError(ctypes.get_errno(), "no filter of system calls")


def main() -> int:
    """Read when to begin from the command line, and pass on the rest of it."""
    when, *sys.argv[1:] = sys.argv[1:]
    if when == "now":
        forbid()
        return cli.main()
    answer = Daemon.answer_for_health

    def answer_and_forbid(self: Daemon) -> None:
        answer(self)
        forbid()

    with mock.patch.object(Daemon, "answer_for_health", answer_and_forbid):
        return cli.main()


if __name__ == "__main__":
    sys.exit(main())
