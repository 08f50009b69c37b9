"""The manifests for Kubernetes: made by kubectl, compared with its schemas, and played by podman without a cluster.

podman 4.3 knows neither StatefulSets nor what a pod learns about itself, and hands on Secrets as base64. So each pod is
made here as the StatefulSet would make it, and its Secrets are written here as the kubelet would write them. The pods
share this machine's network, in which the broker and Share are: only Share on loopback needs no TLS.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from contextlib import closing, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare
from dexcom2mqtt.shards import shard_of
from tests.e2e.containers import Machine, make_python
from tests.e2e.debian import Debian, needs
from tests.support.processes import MOSQUITTO, ROOT, Mosquitto, Subscriber, eventually, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e]

FOLDER = ROOT / "deploy" / "kubernetes"
IMAGE = "localhost/dexcom2mqtt:latest"
VALIDATE = Path(sys.executable).with_name("kubernetes-validate")
VERSIONS = ("1.28", "1.37")
"""The oldest Kubernetes that tells a pod its index, and the newest whose schemas there are."""
PASSWORD = "password of everybody"
PEOPLE = {
    key: SimulatedAccount(f"{key}@example.com", PASSWORD, seed=n) for n, key in enumerate(("anna", "ben", "dora"))
}
LOGIN = ("dexcom2mqtt", "password at the broker")
TOKEN = "TheTokenOfThePage"


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Debian:
    """Return a Debian with kubectl, of which the base image is made, too."""
    needs("buildah", "podman", "catatonit", "nsenter")
    if MOSQUITTO is None:
        pytest.skip("needs mosquitto")
    return Debian(tmp_path_factory.mktemp("debian") / "root", "trixie", ["python3-venv", "kubernetes-client"])


@pytest.fixture(scope="module")
def machine(debian: Debian, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Return a podman with our image, for pods."""
    folder = tmp_path_factory.mktemp("containers")
    machine = Machine(folder, pods=True)
    try:
        make_python(machine, debian)
        machine.run("buildah", "build", "--pull-never", f"--tag={IMAGE}", ROOT, seconds=400)
        yield machine
    finally:
        # Control groups would outlive the namespaces.
        machine.run("podman", "pod", "rm", "--all", "--force", "--time=0", may_fail=True)
        machine.close()
        shutil.rmtree(folder)


def put_together(debian: Debian, count: int) -> str:
    """Return what `kubectl apply -k` would apply, with this number in kustomization.yaml."""
    folder = debian.inside("/kubernetes")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(FOLDER, folder)
    file = folder / "kustomization.yaml"
    text = file.read_text(encoding="utf-8")
    assert text.count("count: 2\n") == 1
    file.write_text(text.replace("count: 2\n", f"count: {count}\n"), encoding="utf-8")
    return debian.run("kubectl", "kustomize", "/kubernetes").stdout


@dataclass
class Cluster:
    """What the pods need, and podman in place of the kubelet."""

    machine: Machine
    debian: Debian
    broker: Mosquitto
    share: SimulatedShare
    folder: Path
    client_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    ports: dict[int, int] = field(default_factory=dict)
    """The port of each pod's page, because they share a network."""

    def start(self, index: int, count: int) -> None:
        """Start the pod that the StatefulSet with this number of replicas would make."""
        objects = {each["kind"]: each for each in yaml.safe_load_all(put_together(self.debian, count))}
        assert objects["StatefulSet"]["spec"]["replicas"] == count
        self.ports[index] = free_port()
        pod = self._pod(objects["StatefulSet"]["spec"]["template"], index)
        file = self.folder / f"pod{index}.yaml"
        file.write_text(yaml.safe_dump_all([self._config(objects["ConfigMap"]), pod]), encoding="utf-8")
        self.machine.run("podman", "kube", "play", file)

    def stop(self, index: int) -> int:
        """Delete the pod as Kubernetes does, and return how it ended."""
        self.machine.run("podman", "pod", "stop", "--time=10", self._name(index))
        (found,) = json.loads(self.machine.run("podman", "inspect", self.container(index)).stdout)
        self.machine.run("podman", "pod", "rm", "--force", self._name(index))
        return int(found["State"]["ExitCode"])

    def container(self, index: int) -> str:
        return f"{self._name(index)}-dexcom2mqtt"

    def read(self, index: int, file: str) -> str:
        """Return a file of the container."""
        return self.machine.run("podman", "exec", self.container(index), "cat", file).stdout

    def log(self, index: int) -> str:
        ran = self.machine.run("podman", "logs", self.container(index), may_fail=True)
        return ran.stdout + ran.stderr

    def ask(self, index: int, path: str) -> int:
        """Return the status that the kubelet, which calls a pod by its address, would get."""
        host = f"10.1.2.3:{self.ports[index]}"
        with suppress(OSError), closing(HTTPConnection("127.0.0.1", self.ports[index], timeout=10)) as connection:
            connection.request("GET", path, headers={"Host": host})
            return connection.getresponse().status
        return 0

    def subscriber(self) -> Subscriber:
        return Subscriber(self.broker.port, login=LOGIN)

    @staticmethod
    def _name(index: int) -> str:
        return f"dexcom2mqtt-{index}"

    def _pod(self, template: dict[str, Any], index: int) -> dict[str, Any]:
        """Make a pod of the template, with its index, and without what podman 4.3 cannot read."""
        spec = deepcopy(template["spec"])
        (container,) = spec["containers"]
        container["image"] = IMAGE
        (variable,) = [each for each in container["env"] if "valueFrom" in each]
        assert variable.pop("valueFrom") == {
            "fieldRef": {"fieldPath": "metadata.labels['apps.kubernetes.io/pod-index']"}
        }
        variable["value"] = str(index)
        spec["hostNetwork"] = True
        container["env"].append({"name": "DEXCOM2MQTT_WEB__PORT", "value": str(self.ports[index])})
        for key in ("ports", "startupProbe", "livenessProbe", "readinessProbe"):  # it would need curl in the image
            del container[key]
        for volume in spec["volumes"]:
            if secret := volume.pop("secret", None):
                volume["hostPath"] = {"path": str(self._written(secret, spec["securityContext"]["fsGroup"]))}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self._name(index), "labels": template["metadata"]["labels"]},
            "spec": spec,
        }

    def _config(self, config_map: dict[str, Any]) -> dict[str, Any]:
        """Lead the ConfigMap to the broker of this test."""
        config = yaml.safe_load(config_map["data"]["config.yaml"])
        config["mqtt"] |= {"host": "127.0.0.1", "port": self.broker.port, "client_id": self.client_id}
        del config["mqtt"]["tls"]
        return config_map | {"data": {"config.yaml": yaml.safe_dump(config)}}

    def _written(self, volume: dict[str, Any], group: int) -> Path:
        """Write a Secret for its volume, with the mode that the volume asks for, and return the folder."""
        texts = {
            "dexcom2mqtt-accounts": {
                f"{key}.yaml": yaml.safe_dump(
                    {"username": who.username, "password": who.password, "share_url": self.share.base_url}
                )
                for key, who in PEOPLE.items()
            },
            "dexcom2mqtt-secrets": {
                "dexcom2mqtt_mqtt__username": LOGIN[0],
                "dexcom2mqtt_mqtt__password": LOGIN[1],
                "dexcom2mqtt_web__token": TOKEN,
            },
        }[volume["secretName"]]
        (example,) = [
            each
            for each in yaml.safe_load_all((FOLDER / "secrets.example.yaml").read_text(encoding="utf-8"))
            if each["metadata"]["name"] == volume["secretName"]
        ]
        assert example["stringData"].keys() <= texts.keys()
        folder = self.folder / str(volume["secretName"])
        if not folder.exists():
            (folder / "..2026_11_25").mkdir(parents=True)
            (folder / "..data").symlink_to("..2026_11_25")
            for name, text in texts.items():
                file = folder / "..data" / name
                file.write_text(text, encoding="utf-8")
                file.chmod(volume["defaultMode"])
                os.chown(file, 0, group)
                (folder / name).symlink_to(f"..data/{name}")
        return folder


@pytest.fixture(scope="module")
def cluster(machine: Machine, debian: Debian, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start two shards, with the broker and Share on this machine's loopback."""
    folder = tmp_path_factory.mktemp("cluster")
    passwords = folder / "passwords"
    subprocess.run(["/usr/bin/mosquitto_passwd", "-c", "-b", passwords, *LOGIN], check=True)
    broker = Mosquitto(folder, "allow_anonymous false", f"password_file {passwords}")
    with SimulatedShare(PEOPLE.values(), time.time) as share:
        cluster = Cluster(machine, debian, broker, share, folder)
        for index in (0, 1):
            cluster.start(index, 2)
        yield cluster
    broker.kill()


def wait_for_health(cluster: Cluster, index: int) -> None:
    """Wait until the kubelet would call a pod ready."""
    try:
        eventually(lambda: cluster.ask(index, "/health") == 200, 30)
    except AssertionError as error:
        error.add_note(cluster.log(index))
        raise


def wait_for_owners(cluster: Cluster, subscriber: Subscriber, count: int) -> None:
    """Wait until each account is current, and owned by the shard that wins it among this many."""

    def owners() -> dict[str, str]:
        latest = subscriber.latest()
        return {
            key: json.loads(latest.get(f"dexcom2mqtt/{key}/status", "{}")).get("bridge")
            for key in PEOPLE
            if latest.get(f"dexcom2mqtt/{key}/availability") == "online"
        }

    wanted = {key: f"bridge-{shard_of(key, count)}" for key in PEOPLE}
    try:
        eventually(lambda: owners() == wanted, 30)
    except AssertionError as error:
        for index in cluster.ports:
            error.add_note(f"shard {index}:\n{cluster.log(index)}")
        error.add_note(f"{owners()} instead of {wanted}")
        raise


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_knows_all_of_it(debian: Debian, version: str, tmp_path: Path) -> None:
    """Every object, and the example of Secrets, follows the schema of that version, without an unknown key."""
    if not VALIDATE.exists():
        pytest.skip("needs kubernetes-validate from PyPI")
    made = tmp_path / "made.yaml"
    made.write_text(put_together(debian, 2), encoding="utf-8")
    command = (VALIDATE, "--strict", "--kubernetes-version", version, made, FOLDER / "secrets.example.yaml")
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (ran.stdout + ran.stderr).count("passed for resource") == 8


def test_one_number_is_replicas_and_count(debian: Debian) -> None:
    """A new number in kustomization.yaml reaches both places, each in its type."""
    (made,) = [each for each in yaml.safe_load_all(put_together(debian, 7)) if each["kind"] == "StatefulSet"]
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert made["spec"]["replicas"] == 7
    assert {"name": "DEXCOM2MQTT_SHARD__COUNT", "value": "7"} in container["env"]


def test_each_account_is_served_by_its_shard(cluster: Cluster) -> None:
    """The pods read ConfigMap and Secrets, and each publishes its own accounts; no secret is in their logs."""
    with cluster.subscriber() as subscriber:
        wait_for_owners(cluster, subscriber, 2)
        for key in PEOPLE:
            assert 39 <= int(subscriber.wait_for(f"dexcom2mqtt/{key}/value").payload) <= 401
        for index in (0, 1):
            subscriber.wait_for(f"dexcom2mqtt/bridge-{index}/state", "online")
            for secret in (PASSWORD, LOGIN[1], TOKEN, "@example.com"):
                assert secret not in cluster.log(index)


def test_each_pod_is_healthy(cluster: Cluster) -> None:
    """The kubelet's probes succeed, without a token; the page itself needs one."""
    for index in (0, 1):
        wait_for_health(cluster, index)
        assert cluster.ask(index, "/") == 401
        assert cluster.ask(index, f"/?token={TOKEN}") == 200


def test_the_pods_have_no_privileges_and_write_nothing(cluster: Cluster) -> None:
    """Each is the user of the image, without capabilities or a way to get them, and can write no file."""
    for index in (0, 1):
        status = dict(
            line.split(":\t", 1) for line in cluster.read(index, "/proc/1/status").splitlines() if "\t" in line
        )
        assert status["Name"] == "dexcom2mqtt"
        assert {status["Uid"], status["Gid"]} == {"\t".join(["65532"] * 4)}
        assert {int(status[f"Cap{of}"], 16) for of in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        mounts = [line.split() for line in cluster.read(index, "/proc/1/mountinfo").splitlines()]
        writable = {mount[4] for mount in mounts if mount[5].startswith("rw")}
        assert not [place for place in writable if not place.startswith(("/proc", "/dev", "/sys/fs/cgroup"))]


def test_the_number_grows_and_shrinks(cluster: Cluster) -> None:
    """Step by step as documented, each account moves to its new shard and back; each pod ends by itself, with 0."""
    assert shard_of("dora", 2) != shard_of("dora", 3)
    with cluster.subscriber() as subscriber:
        wait_for_owners(cluster, subscriber, 2)
        cluster.start(2, 3)
        for index in (0, 1):
            assert cluster.stop(index) == 0
            cluster.start(index, 3)
            wait_for_health(cluster, index)
        wait_for_owners(cluster, subscriber, 3)
        for index in (0, 1):
            assert cluster.stop(index) == 0
            cluster.start(index, 2)
            wait_for_health(cluster, index)
        assert cluster.stop(2) == 0
        del cluster.ports[2]
        wait_for_owners(cluster, subscriber, 2)
