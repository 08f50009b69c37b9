"""The manifests for Kubernetes, as far as they can be checked without a cluster: their pieces fit together."""

from __future__ import annotations

import re
import subprocess
import tomllib
from typing import TYPE_CHECKING, Any

import yaml

from dexcom2mqtt.config import loading
from tests.documents.test_examples import StrictLoader
from tests.e2e.test_kubernetes import VERSIONS
from tests.support.documents import blocks_of, rows_of, section_of, text_of
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dexcom2mqtt.config.settings import Settings

FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
EXAMPLE = "secrets.example.yaml"


def manifests() -> Iterator[dict[str, Any]]:
    """Yield every manifest; a key that comes twice is an error."""
    for path in sorted(FOLDER.glob("*.yaml")):
        if path.name != "kustomization.yaml":
            yield from yaml.load_all(path.read_text(encoding="utf-8"), StrictLoader)


OBJECTS = {(each["kind"], each["metadata"]["name"]): each for each in manifests()}
STATEFUL_SET = OBJECTS["StatefulSet", "dexcom2mqtt"]["spec"]
POD = STATEFUL_SET["template"]["spec"]
(CONTAINER,) = POD["containers"]
DOCKERFILE = text_of("Dockerfile")


def value_at(tree: Any, path: str) -> Any:
    """Return what a field path of kustomize leads to; [name=x] is the element of a list with that name."""
    for part in re.findall(r"\[name=\w+\]|\w+", path):
        if part.startswith("["):
            (tree,) = [each for each in tree if f"[name={each['name']}]" == part]
        else:
            tree = tree[part]
    return tree


def environ(index: int) -> dict[str, str]:
    """Return the environment of a shard."""
    labels = {"apps.kubernetes.io/pod-index": str(index)}
    made = {}
    for variable in CONTAINER["env"]:
        if "value" in variable:
            made[variable["name"]] = variable["value"]
        else:
            (label,) = re.findall(r"^metadata\.labels\['(.+)'\]$", variable["valueFrom"]["fieldRef"]["fieldPath"])
            made[variable["name"]] = labels[label]
    return made


def mounted(folder: Path) -> dict[str, Path]:
    """Write the files of the pod's volumes as the kubelet does, and return the place of each folder."""
    places = {}
    for mount in CONTAINER["volumeMounts"]:
        (volume,) = [each for each in POD["volumes"] if each["name"] == mount["name"]]
        if "configMap" in volume:
            data, mode = OBJECTS["ConfigMap", volume["configMap"]["name"]]["data"], 0o644
        else:
            secret = volume["secret"]
            data, mode = OBJECTS["Secret", secret["secretName"]]["stringData"], secret["defaultMode"]
        place = places[mount["mountPath"]] = folder / mount["name"]
        (place / "..2026_11_25").mkdir(parents=True)
        (place / "..data").symlink_to("..2026_11_25")
        for name, text in data.items():
            (place / "..data" / name).write_text(text.replace("her password at Dexcom", "correct horse"), "utf-8")
            (place / "..data" / name).chmod(mode)
            (place / name).symlink_to(f"..data/{name}")
    return places


def load(places: dict[str, Path], variables: dict[str, str]) -> Settings:
    """Load the configuration of a pod with its volumes in these places."""
    file = places["/etc/dexcom2mqtt"] / "config.yaml"
    file.write_text(file.read_text("utf-8").replace("/run/accounts", str(places["/run/accounts"])), "utf-8")
    return loading.load(file, environ=variables, secrets=[places["/run/secrets"]])


def test_there_is_one_number_of_shards() -> None:
    """kustomization.yaml puts its number into both places; those who do without it find the same number in both."""
    (replicas,) = KUSTOMIZATION["replicas"]
    (replacement,) = KUSTOMIZATION["replacements"]
    (target,) = replacement["targets"]
    (path,) = target["fieldPaths"]
    whole = OBJECTS["StatefulSet", replicas["name"]]
    assert replacement["source"] | target["select"] == {
        "kind": "StatefulSet",
        "name": replicas["name"],
        "fieldPath": "spec.replicas",
    }
    assert value_at(whole, "spec.replicas") == replicas["count"]
    assert value_at(whole, path) == str(replicas["count"])  # kustomize keeps the type of what it replaces: a text
    assert path.endswith(".[name=DEXCOM2MQTT_SHARD__COUNT].value")


def test_each_shard_gets_a_whole_configuration(tmp_path: Path) -> None:
    """ConfigMap, Secrets and environment give each shard all it needs, and an index, name and client id of its own."""
    places = mounted(tmp_path)
    shards = [load(places, environ(index)) for index in range(STATEFUL_SET["replicas"])]
    assert [settings.shard.index for settings in shards] == list(range(len(shards)))
    assert {settings.shard.count for settings in shards} == {len(shards)}
    assert len({settings.connection.client_id for settings in shards}) == len(shards)
    assert len({settings.topics.bridge_state for settings in shards}) == len(shards)
    for settings in shards:
        assert settings.accounts.keys() == {"anna", "ben"}
        assert settings.broken == ()
        assert len(settings.own_accounts) == 1  # the example has one for each of its shards
        assert settings.mqtt.username
        assert settings.mqtt.password
        assert settings.web
        assert settings.web.token
        assert settings.source_warnings == ()


def test_every_name_leads_somewhere() -> None:
    """The labels agree everywhere, and each manifest but the example is applied, in the same namespace."""
    labels = STATEFUL_SET["template"]["metadata"]["labels"]
    service = OBJECTS["Service", STATEFUL_SET["serviceName"]]["spec"]
    (spread,) = POD["topologySpreadConstraints"]
    budget = OBJECTS["PodDisruptionBudget", "dexcom2mqtt"]["spec"]
    policy = OBJECTS["NetworkPolicy", "dexcom2mqtt"]["spec"]
    chosen = [STATEFUL_SET["selector"], spread["labelSelector"], budget["selector"], policy["podSelector"]]
    assert chosen == [{"matchLabels": labels}] * 4
    assert service["selector"] == labels
    files = {path.name for path in FOLDER.iterdir()}
    assert {*KUSTOMIZATION["resources"], "kustomization.yaml", EXAMPLE} == files
    assert ("Namespace", KUSTOMIZATION["namespace"]) in OBJECTS
    assert {each["metadata"].get("namespace") for (kind, _), each in OBJECTS.items() if kind == "Secret"} == {
        KUSTOMIZATION["namespace"]
    }


def test_there_is_no_secret_outside_the_secrets() -> None:
    """ConfigMap and environment hold no password, and the example only the placeholder, which the daemon refuses."""
    config = yaml.safe_load(OBJECTS["ConfigMap", "dexcom2mqtt"]["data"]["config.yaml"])
    assert not {"accounts"} & config.keys()
    assert not {"username", "password"} & config["mqtt"].keys()
    assert "token" not in config["web"]
    assert [each["name"] for each in CONTAINER["env"]] == ["DEXCOM2MQTT_SHARD__INDEX", "DEXCOM2MQTT_SHARD__COUNT"]
    for text in OBJECTS["Secret", "dexcom2mqtt-accounts"]["stringData"].values():
        assert yaml.safe_load(text)["password"] == "her password at Dexcom"


def test_the_pods_are_confined() -> None:
    """They are the image's user, have no privileges, cannot gain any, and know nothing of the cluster."""
    (user, group) = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)[0]
    assert POD["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(user),
        "runAsGroup": int(group),
        "fsGroup": int(group),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert CONTAINER["securityContext"] == {
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False
    assert POD["enableServiceLinks"] is False
    assert not POD.keys() & {"hostNetwork", "hostPID", "hostIPC", "hostUsers"}
    assert not CONTAINER.keys() & {"command", "args", "lifecycle", "envFrom"}
    assert all(mount["readOnly"] for mount in CONTAINER["volumeMounts"])
    assert {volume["secret"]["defaultMode"] for volume in POD["volumes"] if "secret" in volume} == {0o440}
    namespace = OBJECTS["Namespace", KUSTOMIZATION["namespace"]]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_probes_reach_the_page(tmp_path: Path) -> None:
    """All ask for /health at the port on which the configuration has the page, and wait for a slow answer."""
    web = load(mounted(tmp_path), environ(0)).web
    assert web
    (port,) = CONTAINER["ports"]
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = CONTAINER[kind]
        assert probe["httpGet"] == {"path": "/health", "port": port["name"]}
        assert probe["timeoutSeconds"] > 5  # which the daemon itself may take
    assert port["containerPort"] == web.port
    assert web.host == "0.0.0.0"
    assert f"\nEXPOSE {web.port}\n" in DOCKERFILE
    (of_service,) = OBJECTS["Service", "dexcom2mqtt"]["spec"]["ports"]
    assert (of_service["port"], of_service["targetPort"]) == (web.port, port["name"])


def test_the_pods_connect_only_to_what_they_need(tmp_path: Path) -> None:
    """Names, the broker of the configuration, and Share at public addresses; nobody connects to them."""
    broker = load(mounted(tmp_path), environ(0)).mqtt
    policy = OBJECTS["NetworkPolicy", "dexcom2mqtt"]["spec"]
    assert (policy["policyTypes"], policy["ingress"]) == (["Ingress", "Egress"], [])
    ports = [[port["port"] for port in rule["ports"]] for rule in policy["egress"]]
    assert ports == [[53, 53], [broker.port], [443]]
    assert broker.tls
    assert all(block["ipBlock"]["except"] for block in policy["egress"][2]["to"])


def test_they_are_changed_one_at_a_time() -> None:
    """Nothing but the person who changes the number restarts a pod, and draining machines takes one after the other."""
    assert STATEFUL_SET["updateStrategy"] == {"type": "OnDelete"}
    assert STATEFUL_SET["podManagementPolicy"] == "Parallel"
    assert OBJECTS["PodDisruptionBudget", "dexcom2mqtt"]["spec"]["maxUnavailable"] == 1
    assert POD["terminationGracePeriodSeconds"] >= 5  # stopping takes two at most


def test_the_memory_is_enough_for_a_thousand_accounts() -> None:
    """What is requested is more than was measured with a thousand accounts, and the limit leaves as much again."""
    rows = rows_of(section_of(text_of("docs/footprint.md"), "## Many accounts"))
    (measured,) = [int(row[2].removesuffix(" MiB")) for row in rows if row[0] == "1000"]
    assert CONTAINER["resources"] == {
        "requests": {"cpu": "100m", "memory": "512Mi"},
        "limits": {"memory": "1Gi"},
    }
    assert measured < 512


def test_the_image_is_this_version() -> None:
    """The name in the StatefulSet is replaced by that of a registry, with this version."""
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    (image,) = KUSTOMIZATION["images"]
    assert image["name"] == CONTAINER["image"]
    assert image["newTag"] == project["version"]


def test_the_page_creates_what_the_manifests_need() -> None:
    """The commands on the page create the Secrets of the example, with the same files, and are valid for a shell."""
    commands = "".join(block.text for block in blocks_of("docs/kubernetes.md") if block.language == "sh")
    subprocess.run(["sh", "-n"], input=commands, text=True, check=True)
    created = set(re.findall(r"create secret generic (\S+) --from-file", commands))
    assert created == {name for kind, name in OBJECTS if kind == "Secret"}
    files = set(re.findall(r"> secrets/(\S+)", commands))
    assert files == OBJECTS["Secret", "dexcom2mqtt-secrets"]["stringData"].keys()
    assert set(re.findall(r"statefulset[/ ](\S+)", commands)) == {"dexcom2mqtt"}
    assert set(re.findall(r"DEXCOM2MQTT_\w+", commands)) == {"DEXCOM2MQTT_SHARD__COUNT"}


def test_the_page_names_the_versions_of_kubernetes_that_are_checked() -> None:
    """The oldest is the required one, and the newest is that of the schemas which CI installs."""
    oldest, newest = VERSIONS
    page = re.sub(r"\s+", " ", text_of("docs/kubernetes.md"))
    assert f"needs Kubernetes {oldest} or later" in page
    assert f"schemas of Kubernetes {oldest} and {newest}" in page
    assert f"kubernetes-validate=={newest}." in text_of(".ci/run")
