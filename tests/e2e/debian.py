"""A Debian in a folder, made by debootstrap from where this machine has its packages, and entered by chroot.

What is not possible on a machine is skipped with the reason, for the verdict of `.ci/run`. What fails although it is
possible is a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
_MINUTES_20 = 1200
_SCRIPTS = Path("/usr/share/debootstrap/scripts")
_WITH_DEVICES = 'mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'

APART = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
"""How a command ends with whoever started it, however that ends, and its processes and its mounts with it."""


class Debian:
    """A small Debian in ``folder``.

    ``arch`` is Debian's word for it, by default this machine's; ``environ`` is what every command in there gets.
    """

    def __init__(
        self,
        folder: Path,
        suite: str,
        packages: Sequence[str],
        arch: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._environ = _environ() | dict(environ or {})
        made = subprocess.run(
            [
                *APART,
                "debootstrap",
                "--variant=minbase",
                f"--include={','.join(('ca-certificates', *packages))}",
                *([f"--arch={arch}"] if arch else []),
                suite,
                folder,
                _mirror(),
                # A debootstrap that is older than a suite makes it as it makes the newest.
                *([] if (_SCRIPTS / suite).exists() else ["sid"]),
            ],
            capture_output=True,
            text=True,
            timeout=_MINUTES_20,
            check=False,
        )
        if made.returncode:
            pytest.skip(f"debootstrap does not make a Debian: {_last_line(made.stdout + made.stderr)}")
        # Names, and whom to trust: as on this machine, whose package index may have an authority of its own.
        for file in ("/etc/hosts", "/etc/resolv.conf", _AUTHORITIES):
            if Path(file).exists():
                shutil.copy(file, self.inside(file))

    def inside(self, path: str | Path) -> Path:
        """Return where a path of that Debian is on this machine."""
        return self.folder / str(path).lstrip("/")

    def entering(self) -> list[str]:
        """Return what enters it before a command, which is the only child of what is started."""
        return [*APART, "sh", "-c", _WITH_DEVICES, str(self.folder)]

    def command(self, *command: str | Path) -> list[str]:
        """Return how to run a command in there."""
        environ = (f"{key}={value}" for key, value in self._environ.items())
        return [*self.entering(), "env", "-i", *environ, *map(str, command)]

    def run(
        self,
        *command: str | Path,
        seconds: float = 600,
        may_fail: bool = False,
        given: str = "",
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in there and return what it said, ``given`` that to read; where it fails, so does the test."""
        extra = [f"{key}={value}" for key, value in (environ or {}).items()]
        ran = subprocess.run(
            self.command("env", *extra, *command),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            input=given,
        )
        assert may_fail or ran.returncode == 0, f"{command} ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}"
        return ran


def needs(*programs: str) -> None:
    """Skip where this is not root, or one of the programs is missing."""
    if os.geteuid():
        pytest.skip("needs root")
    wanted = (*programs, "debootstrap", "setpriv", "unshare")
    if missing := [program for program in wanted if not shutil.which(program)]:
        pytest.skip(f"needs {', '.join(missing)}")


def _environ() -> dict[str, str]:
    """Return what leads to packages here (an index, a proxy, an authority), and the rest as after a login."""
    leads = ("PIP_", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
    kept = {key: value for key, value in os.environ.items() if key.startswith(leads)}
    return kept | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}


def _mirror() -> str:
    """Return where this machine has the packages of Debian from."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SUITE) $(ORIGIN) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for line in listed.splitlines():
        *_, origin, uri = line.split(" ")
        if origin == "Debian" and uri.rstrip("/").endswith("debian"):
            return uri
    pytest.skip("apt knows no mirror of Debian; apt-get update may help")


def _last_line(text: str) -> str:
    return next(iter(text.strip().splitlines()[::-1]), "without a word")
