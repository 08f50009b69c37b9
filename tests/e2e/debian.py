"""A Debian in a folder, made by debootstrap from this machine's mirror, and entered by chroot.

A test that is not possible on a machine is skipped with the reason, for the verdict of `.ci/run`.
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
"""How to run a command so that it, its processes and its mounts end when whoever started it ends."""


class Debian:
    """A small Debian in ``folder``.

    ``arch`` is Debian's name of the architecture, by default this machine's; every command in it gets ``environ``.
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
                # A debootstrap that is older than a suite can make it with the script of the newest.
                *([] if (_SCRIPTS / suite).exists() else ["sid"]),
            ],
            capture_output=True,
            text=True,
            timeout=_MINUTES_20,
            check=False,
        )
        if made.returncode:
            pytest.skip(f"debootstrap cannot make a Debian: {_last_line(made.stdout + made.stderr)}")
        # Name servers and certificate authorities as on this machine, whose package index may need its own authority.
        for file in ("/etc/hosts", "/etc/resolv.conf", _AUTHORITIES):
            if Path(file).exists():
                shutil.copy(file, self.inside(file))

    def inside(self, path: str | Path) -> Path:
        """Return the path on this machine of a path in that Debian."""
        return self.folder / str(path).lstrip("/")

    def entering(self) -> list[str]:
        """Return the prefix that runs a command in it; the command is the only child of the started process."""
        return [*APART, "sh", "-c", _WITH_DEVICES, str(self.folder)]

    def command(self, *command: str | Path) -> list[str]:
        """Return how to run a command in it."""
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
        """Run a command in it with ``given`` as its input, and return its output; if it fails, so does the test."""
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
    """Skip unless this is root and all these programs exist."""
    if os.geteuid():
        pytest.skip("needs root")
    wanted = (*programs, "debootstrap", "setpriv", "unshare")
    if missing := [program for program in wanted if not shutil.which(program)]:
        pytest.skip(f"needs {', '.join(missing)}")


def _environ() -> dict[str, str]:
    """Return the variables needed to reach packages (an index, a proxy, an authority), and those of a login."""
    leads = ("PIP_", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
    kept = {key: value for key, value in os.environ.items() if key.startswith(leads)}
    return kept | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}


def _mirror() -> str:
    """Return the mirror from which this machine gets Debian's packages."""
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
