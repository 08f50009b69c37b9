"""podman in place of docker, apart from whatever else this machine has of it.

It has a storage of its own, and lives with all that it starts in namespaces that end with the tests, however these end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.processes import Process, eventually

if TYPE_CHECKING:
    from collections.abc import Mapping

COMPOSE = Path(sys.executable).with_name("podman-compose")

CONFINED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL", "--security-opt=no-new-privileges")
"""As docker does it: podman alone would mount something writable at /run and /tmp."""

_STORAGE = """\
[storage]
driver = "{driver}"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""
# No control groups: podman does not cope with those that are half of version 1.
_ENGINE = """\
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[network]
network_config_dir = "{folder}/networks"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
_DOCKER = """\
#!/bin/sh
if [ "$1" = compose ]; then
    shift
    exec {compose} --in-pod 0 "$@"
fi
exec podman "$@"
"""
_NAMESPACES = """\
set -e
umount --recursive /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs none /run
mount -t tmpfs none /dev/shm
touch /run/elsewhere
unshare --net=/run/elsewhere ip link set lo up
echo ready
sleep infinity & wait
"""


class Podman:
    """podman, buildah, and a ``docker`` that is podman, with everything they keep in ``folder``."""

    def __init__(self, folder: Path) -> None:
        commands = folder / "bin"
        for sub in (commands, folder / "networks"):
            sub.mkdir()
        self._folder = folder
        self._store_by("overlay")
        (folder / "engine.conf").write_text(_ENGINE.format(folder=folder), encoding="utf-8")
        (commands / "docker").write_text(_DOCKER.format(compose=COMPOSE), encoding="utf-8")
        (commands / "docker").chmod(0o755)
        self._environ = os.environ | {
            "PATH": f"{commands}:/usr/sbin:/usr/bin:/sbin:/bin",
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "CONTAINERS_CONF": str(folder / "engine.conf"),
            "BUILDAH_ISOLATION": "chroot",
            "BUILDAH_FORMAT": "docker",  # the other one knows no HEALTHCHECK
            "DISABLE_HC_SYSTEMD": "true",  # the tests ask for its health themselves
        }
        own = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        self._namespaces = Process(
            ("setpriv", "--pdeathsig", "KILL", *own, "sh", "-c", _NAMESPACES), folder / "namespaces.log"
        )
        eventually(lambda: "ready" in self._namespaces.text() or not self._namespaces.running)
        if not self._namespaces.running:
            pytest.skip(f"namespaces for podman cannot be made: {self._namespaces.text().strip()}")
        if self.run("podman", "info", may_fail=True).returncode:
            self._store_by("vfs")

    def _store_by(self, driver: str) -> None:
        text = _STORAGE.format(folder=self._folder, driver=driver)
        (self._folder / "storage.conf").write_text(text, encoding="utf-8")

    def close(self) -> None:
        """End everything it runs."""
        self._namespaces.kill()

    def command(self, *command: str | Path, folder: Path = Path("/"), elsewhere: bool = False) -> list[str]:
        """Return how to run a command there; ``elsewhere`` has a network of its own, with all ports free."""
        spaces = f"/proc/{self._namespaces.pid}/ns"
        return [
            *("nsenter", f"--mount={spaces}/mnt", f"--pid={spaces}/pid_for_children", f"--wd={folder}"),
            *(("nsenter", "--net=/run/elsewhere") if elsewhere else ()),
            *("env", "-i", *(f"{key}={value}" for key, value in self._environ.items())),
            *map(str, command),
        ]

    def run(
        self,
        *command: str | Path,
        seconds: float = 120,
        may_fail: bool = False,
        folder: Path = Path("/"),
        elsewhere: bool = False,
        said: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there and return what it said; where it fails, so does the test."""
        ran = subprocess.run(
            self.command(*command, folder=folder, elsewhere=elsewhere),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            input=said,
        )
        assert may_fail or ran.returncode == 0, f"{command} ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}"
        return ran

    def inspect(self, image: str) -> dict[str, Any]:
        """Return what an image says about itself."""
        (found,) = json.loads(self.run("podman", "image", "inspect", image).stdout)
        return dict(found)

    def start(self, image: str, name: str, output: Path, environ: Mapping[str, str], *options: str) -> Container:
        """Start a container without rights, in this machine's network."""
        given = [f"--env={key}={value}" for key, value in environ.items()]
        command = ("podman", "run", "--network=host", f"--name={name}", *CONFINED, *given, *options, image)
        return Container(self, name, Process(self.command(*command), output))


class Container:
    """A container that runs, and what it wrote."""

    def __init__(self, podman: Podman, name: str, process: Process) -> None:
        self._podman = podman
        self.name = name
        self.process = process

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return self._podman.run("podman", "exec", self.name, *command)

    def signal(self, name: str) -> None:
        self._podman.run("podman", "kill", f"--signal={name}", self.name)

    def healthy(self) -> bool:
        """Return what the health check of its image says."""
        return self._podman.run("podman", "healthcheck", "run", self.name, may_fail=True).returncode == 0

    def stop(self) -> int:
        """End it as docker does, with SIGTERM first, and return how it ended."""
        self._podman.run("podman", "stop", "--time=30", self.name)
        return self.process.wait()

    def remove(self) -> None:
        self._podman.run("podman", "rm", "--force", "--time=0", self.name)
        self.process.kill()
