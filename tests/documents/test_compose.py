"""compose.yaml and the image, as far as they can be checked without running them: their pieces fit together."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from dexcom2mqtt.config import loading
from tests.support.processes import ROOT

EXAMPLES = ROOT / "examples" / "mosquitto"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
DAEMON = COMPOSE["services"]["dexcom2mqtt"]
BROKER = COMPOSE["services"]["mosquitto"]
BROKER_FILE = (EXAMPLES / "mosquitto.conf").read_text(encoding="utf-8")
ACL = (EXAMPLES / "acl").read_text(encoding="utf-8")


def test_the_daemon_gets_a_whole_configuration(tmp_path: Path) -> None:
    """compose.yaml and its secrets together give the daemon all it needs."""
    for name in DAEMON["secrets"]:
        (tmp_path / name).write_text("anna", encoding="utf-8")
    settings = loading.load(environ=DAEMON["environment"], secrets=[tmp_path])
    assert settings.accounts.keys() == {"anna"}
    assert settings.mqtt.host in COMPOSE["services"]
    assert f"listener {settings.mqtt.port}\n" in BROKER_FILE
    assert settings.mqtt.username
    assert f"user {settings.mqtt.username.get_secret_value()}\n" in ACL
    assert COMPOSE["secrets"] == {name: {"file": f"./secrets/{name}"} for name in DAEMON["secrets"]}


@pytest.mark.parametrize("service", [DAEMON, BROKER], ids=["daemon", "broker"])
def test_both_are_confined(service: dict[str, Any]) -> None:
    """Neither can write outside its volume, has privileges, or can gain any; and both are restarted."""
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert not service.keys() & {"privileged", "cap_add", "devices", "pid", "network_mode"}


def test_the_broker_finds_its_files_and_admits_nobody_without_a_password() -> None:
    """Each path in mosquitto.conf is mounted: as a file of this clone, or in a volume."""
    mounts = dict(volume.split(":")[1::-1] for volume in BROKER["volumes"])
    copied = {
        copy: Path(source) for source, copy in re.findall(r"install -m 600 (\S+) (\S+) &&", BROKER["command"][-1])
    }
    assert "allow_anonymous false\n" in BROKER_FILE
    for path in map(Path, re.findall(r"^\w+ (/\S+)$", BROKER_FILE, re.MULTILINE)):
        place = copied.get(str(path), path)
        source = next(mounts[str(place)] for place in (place, *place.parents) if str(place) in mounts)
        assert source in COMPOSE["volumes"] or (ROOT / source).is_file()
    assert (ROOT / mounts["/mosquitto/config/mosquitto.conf"]).samefile(EXAMPLES / "mosquitto.conf")


def test_the_labels_of_the_image_describe_the_project() -> None:
    """The labels in the Dockerfile match the project's metadata."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    labels = dict(re.findall(r'org\.opencontainers\.image\.([\w.]+)="([^"]*)"', DOCKERFILE))
    assert labels == {
        "title": project["name"],
        "description": project["description"],
        "version": project["version"],
        "licenses": project["license"],
        "authors": project["authors"][0]["name"],
        "base.name": "docker.io/library/python:3.13-slim",
    }
    assert f"FROM {labels['base.name'].removeprefix('docker.io/library/')}\n" in DOCKERFILE


def test_the_page_is_two_lines_away(tmp_path: Path) -> None:
    """It is off; with two lines uncommented it listens in the container, and is published only on this machine."""
    for name in DAEMON["secrets"]:
        (tmp_path / name).write_text("anna", encoding="utf-8")
    assert loading.load(environ=DAEMON["environment"], secrets=[tmp_path]).web is None
    written = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    switched_on = yaml.safe_load(re.sub(r"(?m)^( *)#(DEXCOM2MQTT_WEB|ports:)", r"\1\2", written))["services"][
        "dexcom2mqtt"
    ]
    web = loading.load(environ=switched_on["environment"], secrets=[tmp_path]).web
    assert web is not None
    assert web.host == "0.0.0.0"
    assert switched_on["ports"] == [f"127.0.0.1:{web.port}:{web.port}"]
    assert f"\nEXPOSE {web.port}\n" in DOCKERFILE
