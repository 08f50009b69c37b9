"""Configurations as the tests write them, and the result of load: settings, or the text of each problem."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from dexcom2mqtt.config.loading import load
from dexcom2mqtt.config.problems import ConfigError
from dexcom2mqtt.config.settings import Account, HomeAssistant, Mqtt, Ranges, Section, Settings, Shard, Tls, Web

ANNA = "accounts: {anna: {username: anna@example.com, password: pw}}\n"
UUID = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
ACCOUNT_KEYS = "name, account_id, username, password, region, unit, ranges, share_url"
MQTT_KEYS = "host, tls, port, username, password, protocol, base_topic, client_id, keepalive"
SECTIONS: dict[tuple[str, ...], type[Section]] = {
    (): Settings,
    ("accounts", "anna"): Account,
    ("accounts", "anna", "ranges"): Ranges,
    ("mqtt",): Mqtt,
    ("mqtt", "tls"): Tls,
    ("home_assistant",): HomeAssistant,
    ("web",): Web,
    ("shard",): Shard,
}
MODELS = SECTIONS.values()
NOT_SHOWN = "found a value (hidden, as it may be a secret)"
TEXT = "1 to 256 characters in quotes, without tabs or line breaks"


def read(text: str | bytes, environ: Mapping[str, str] | None = None, *secrets: Path) -> Settings:
    file = Path("test.yaml")
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    file.chmod(0o600)
    return load(file, environ=environ or {}, secrets=secrets)


def problems(text: str | bytes, environ: Mapping[str, str] | None = None, *secrets: Path) -> tuple[str, ...]:
    """Return the problems of a configuration, without the file's line numbers."""
    with_lines = problems_with_lines(text, environ, *secrets)
    return tuple(re.sub(r" \(test\.yaml, line \d+\)\Z", "", each) for each in with_lines)


def problems_with_lines(text: str | bytes, environ: Mapping[str, str] | None = None, *secrets: Path) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read(text, environ, *secrets)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def account(**keys: object) -> str:
    return str(yaml.safe_dump({"accounts": {"anna": {"username": "a", "password": "p", **keys}}}))


def dumped(section: Section) -> dict[str, Any]:
    """Return the keys of a section and all below it, as a dictionary."""
    tree = asdict(section)
    for not_a_key in ("source_warnings", "broken", "broken_files", "reread"):
        tree.pop(not_a_key, None)
    return tree


def anna(text: str) -> Account:
    return read(text).accounts["anna"]


def secret(folder: Path, name: str, content: bytes = b"from the file\n") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"dexcom2mqtt_{name}").write_bytes(content)
    return folder
