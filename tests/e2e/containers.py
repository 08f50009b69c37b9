"""podman in place of docker, separate from any other podman on this machine.

It has its own storage, and runs with everything it starts in namespaces that end with the tests, however these end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.processes import Process, eventually

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.e2e.debian import Debian

COMPOSE = Path(sys.executable).with_name("podman-compose")

CONFINED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL", "--security-opt=no-new-privileges")
"""As docker does: by default podman would mount something writable at /run and /tmp."""

PYTHON = "docker.io/library/python:3.13-slim"
"""The base of our images; here it is a Debian under that name."""
_PATH = "--change=ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_NOTHING: Mapping[str, str] = MappingProxyType({})

_STORAGE = """\
[storage]
driver = "{driver}"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""
_ENGINE = """\
[containers]
cgroups = "{cgroups}"
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
# podman does not cope with control groups that are half of version 1: it gets a whole one of either version.
_NAMESPACES = """\
set -e
umount --recursive /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup || echo no cgroups
if [ "$0" = enabled ] && grep -qv ^0: /proc/self/cgroup; then
    umount /sys/fs/cgroup
    mount -t tmpfs none /sys/fs/cgroup
    while IFS=: read -r _ groups _; do
        folder=/sys/fs/cgroup/${groups#name=}
        [ -n "$groups" ] && mkdir "$folder" || continue
        case $groups in
            name=*) mount -t cgroup -o "none,$groups" none "$folder" ;;
            *) mount -t cgroup -o "$groups" none "$folder" ;;
        esac
    done </proc/self/cgroup
fi
names=$(cat /etc/resolv.conf)
file=$(readlink -f /etc/resolv.conf)
mount -t tmpfs none /run
case $file in
    /run/*) mkdir -p "${file%/*}" && echo "$names" >"$file" ;;
esac
mount -t tmpfs none /dev/shm
touch /run/elsewhere
unshare --net=/run/elsewhere ip link set lo up || echo no other network
echo ready
sleep infinity & wait
"""
_ENTER = """\
set -e
root=$0 secrets=$1
shift
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
if [ -n "$secrets" ]; then
    mount -t tmpfs tmpfs "$root/run"
    mkdir "$root/run/secrets"
    mount --bind "$secrets" "$root/run/secrets"
    mount -o remount,bind,ro "$root/run/secrets"
    mount -o remount,ro "$root/run"
fi
exec chroot "$root" "$@"
"""


class Machine:
    """podman, buildah, and a ``docker`` that is podman; they keep everything in ``folder``.

    Without ``pods`` there are no control groups, which pods need and containers do not.
    """

    def __init__(self, folder: Path, *, pods: bool = False) -> None:
        cgroups = "enabled" if pods else "disabled"
        commands = folder / "bin"
        for sub in (commands, folder / "networks"):
            sub.mkdir()
        self._folder = folder
        self._store_by("overlay")
        (folder / "engine.conf").write_text(_ENGINE.format(folder=folder, cgroups=cgroups), encoding="utf-8")
        (commands / "docker").write_text(_DOCKER.format(compose=COMPOSE), encoding="utf-8")
        (commands / "docker").chmod(0o755)
        self._environ = os.environ | {
            "PATH": f"{commands}:/usr/sbin:/usr/bin:/sbin:/bin",
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "CONTAINERS_CONF": str(folder / "engine.conf"),
            "BUILDAH_ISOLATION": "chroot",
            "BUILDAH_FORMAT": "docker",  # the other format has no HEALTHCHECK
            "DISABLE_HC_SYSTEMD": "true",  # the tests run the health check themselves
        }
        own = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        self._namespaces = Process(
            ("setpriv", "--pdeathsig", "KILL", *own, "sh", "-c", _NAMESPACES, cgroups), folder / "namespaces.log"
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
        """End everything that runs there."""
        self._namespaces.kill()

    def command(self, *command: str | Path, folder: Path = Path("/"), elsewhere: bool = False) -> list[str]:
        """Return how to run a command there; ``elsewhere`` has its own network, with all ports free."""
        spaces = f"/proc/{self._namespaces.pid}/ns"
        return [
            *("nsenter", f"--mount={spaces}/mnt", f"--pid={spaces}/pid_for_children"),
            *(("nsenter", "--net=/run/elsewhere") if elsewhere else ()),
            *("env", "-i", f"--chdir={folder}", *(f"{key}={value}" for key, value in self._environ.items())),
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
        """Run a command there and return its output; if it fails, so does the test."""
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
        """Return the metadata of an image."""
        (found,) = json.loads(self.run("podman", "image", "inspect", image).stdout)
        return dict(found)


def make_python(machine: Machine, debian: Debian) -> None:
    """Make Python's image from a Debian that has python3-venv.

    pip in it uses the same package index as here, without a word of that in our Dockerfiles.
    """
    debian.inside("/usr/local/bin/python").symlink_to("/usr/bin/python3")
    settings = [
        f"{key[4:].lower().replace('_', '-')} = {value}" for key, value in os.environ.items() if key[:4] == "PIP_"
    ]
    debian.inside("/etc/pip.conf").write_text("\n".join(["[global]", *settings, ""]), encoding="utf-8")
    machine.run("sh", "-c", f"tar -C {debian.folder} --one-file-system -c . | podman import '{_PATH}' - {PYTHON}")


@dataclass(frozen=True)
class Container:
    """A running container, its output, and the commands to control it."""

    machine: Machine
    process: Process
    inside: tuple[str, ...]
    send: tuple[str, ...]
    end: tuple[str, ...]
    check: tuple[str, ...]
    diff: tuple[str, ...]

    def run(self, *command: str) -> str:
        """Run a command in it and return its output."""
        return self.machine.run(*self.inside, *command).stdout

    def signal(self, name: str) -> None:
        self.machine.run(*self.send, f"--signal={name}")

    def healthy(self) -> bool:
        """Return the result of its image's health check."""
        return self.machine.run(*self.check, may_fail=True).returncode == 0

    def changes(self) -> list[str]:
        """Return the changes in its file system."""
        return [line[2:] for line in self.machine.run(*self.diff).stdout.split("\n") if line.startswith("A ")]

    def stop(self) -> int:
        """End it as docker does, with its image's signal, and return its exit code."""
        self.machine.run(*self.end)
        return self.process.wait()


class Podman:
    """Containers run by podman, without privileges, in this machine's network."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._names = (f"container{number}" for number in count())

    def trouble(self, image: str) -> str:
        """Return what runs containers instead, and why, if podman cannot run any; else nothing."""
        ran = self._machine.run("podman", "run", "--rm", "--network=host", *CONFINED, image, "true", may_fail=True)
        return f"chroot, for podman cannot: {ran.stderr.strip()}" if ran.returncode else ""

    def command(
        self,
        image: str,
        *arguments: str,
        environ: Mapping[str, str] = _NOTHING,
        secrets: Path | None = None,
        name: str = "",
    ) -> list[str]:
        """Return how to run a container."""
        return [
            *("podman", "run", "--rm", "--network=host", f"--name={name or next(self._names)}", *CONFINED),
            *(f"--env={key}={value}" for key, value in environ.items()),
            *([f"--volume={secrets}:/run/secrets:ro"] if secrets else []),
            *(image, *arguments),
        ]

    def start(self, image: str, output: Path, environ: Mapping[str, str], secrets: Path | None = None) -> Container:
        """Start a container with its image's command."""
        name = next(self._names)
        command = self.command(image, environ=environ, secrets=secrets, name=name)
        return Container(
            self._machine,
            Process(self._machine.command(*command), output),
            inside=("podman", "exec", name),
            send=("podman", "kill", name),
            end=("podman", "stop", "--time=30", name),
            check=("podman", "healthcheck", "run", name),
            diff=("podman", "diff", name),
        )


class Chroot:
    """The image's files entered by chroot as its user, for a machine on which podman cannot run containers."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self._machine = machine
        self._pids = (folder / f"pid{number}" for number in count())
        self._roots: dict[str, str] = {}

    def command(
        self,
        image: str,
        *arguments: str,
        environ: Mapping[str, str] = _NOTHING,
        secrets: Path | None = None,
        pid: Path | None = None,
    ) -> list[str]:
        """Return how to run a container."""
        config = self._machine.inspect(image)["Config"]
        return [
            *("sh", "-c", 'echo $$ >"$0"; exec "$@"', str(pid or next(self._pids))),
            *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
            *("sh", "-c", _ENTER, self._root(image), str(secrets or "")),
            *self._as_user(image, environ),
            *(*config["Entrypoint"], *(arguments or config["Cmd"])),
        ]

    def start(self, image: str, output: Path, environ: Mapping[str, str], secrets: Path | None = None) -> Container:
        """Start a container with its image's command."""
        file = next(self._pids)
        process = Process(
            self._machine.command(*self.command(image, environ=environ, secrets=secrets, pid=file)), output
        )
        pid = eventually(lambda: file.exists() and file.read_text(encoding="utf-8").strip())
        spaces = f"/proc/{pid}/ns"
        enter = ("nsenter", f"--mount={spaces}/mnt", f"--pid={spaces}/pid_for_children")
        inside = (*enter, "chroot", self._root(image), *self._as_user(image, environ))
        check = self._machine.inspect(image)["Healthcheck"]["Test"][1:]
        send = ("pkill", f"--parent={pid}")
        end = (*send, "--signal=TERM")
        return Container(self._machine, process, inside, send, end, check=(*inside, *check), diff=("true",))

    def _root(self, image: str) -> str:
        if image not in self._roots:
            made = self._machine.run("buildah", "from", "--pull-never", image).stdout.strip()
            self._roots[image] = self._machine.run("buildah", "mount", made).stdout.strip()
        return self._roots[image]

    def _as_user(self, image: str, environ: Mapping[str, str]) -> tuple[str, ...]:
        config = self._machine.inspect(image)["Config"]
        user, group = config["User"].split(":")
        rights = ("--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all")
        given = (*config["Env"], *(f"{key}={value}" for key, value in environ.items()))
        return ("setpriv", f"--reuid={user}", f"--regid={group}", *rights, "env", "-i", *given)
