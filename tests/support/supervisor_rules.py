"""The rules for an app of Home Assistant, according to its Supervisor and the add-on linter of 2026.

Based on supervisor/apps/validate.py, apps/options.py and store/ of home-assistant/supervisor (2026-08), and on
src/lint.py and src/config.schema.json of frenck/action-addon-linter (2026-04). Neither can be installed here. For the
linter, an unknown key is an error, and so is a key with its default.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

REQUIRED: Final = {"name", "version", "slug", "description", "arch"}
DEFAULTS: Final[Mapping[str, object]] = {
    **dict.fromkeys(
        ("advanced", "audio", "auth_api", "devicetree", "docker_api", "full_access", "gpio", "hassio_api"), False
    ),
    **dict.fromkeys(
        ("homeassistant_api", "host_dbus", "host_ipc", "host_network", "host_pid", "host_uts", "ingress"), False
    ),
    **dict.fromkeys(("ingress_stream", "journald", "kernel_modules", "legacy", "realtime", "stdin", "tmpfs"), False),
    **dict.fromkeys(("uart", "udev", "usb", "video"), False),
    **dict.fromkeys(("apparmor", "init", "panel_admin"), True),
    "backup": "hot",
    "boot": "auto",
    "hassio_role": "default",
    "homeassistant": False,
    "ingress_port": 8099,
    "options": {},
    "panel_icon": "mdi:puzzle",
    "schema": {},
    "stage": "stable",
    "startup": "application",
    "timeout": 10,
    "ulimits": {},
}
OTHERS: Final = {
    *("backup_exclude", "backup_pre", "backup_post", "breaking_versions", "devices", "discovery", "environment"),
    *("image", "ingress_entry", "machine", "map", "panel_title", "ports", "ports_description", "privileged"),
    *("services", "url"),
}
"""Other allowed keys; not ``watchdog``, ``webui``, ``codenotary`` and ``auto_uart``, which the linter rejects."""
ARCHITECTURES: Final = {"amd64", "aarch64"}
SLUG: Final = re.compile(r"[-_.A-Za-z0-9]+")
SERVICE: Final = re.compile(r"(mqtt|mysql):(provide|want|need)")
TYPE: Final = re.compile(
    r"(|bool|email|url|port|device(\(subsystem=[a-z]+\))?|str(\(\d*,\d*\))?|password(\(\d*,\d*\))?|int(\(-?\d*,-?\d*\))?"
    r"|float(\(-?[\d.]*,-?[\d.]*\))?|match\(.*\)|list\(.+\))\??"
)
PORT: Final = re.compile(r"\d+(/tcp|/udp)?")
PROFILE: Final = re.compile(r"^profile ([^ ]+).*$", re.MULTILINE)


def broken_by(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield each rule that config.yaml breaks."""
    keys = config.keys()
    yield from (f"{key} is missing" for key in REQUIRED - keys)
    yield from (f"{key} is no key" for key in keys - REQUIRED - DEFAULTS.keys() - OTHERS)
    yield from (f"{key} has its default" for key, value in DEFAULTS.items() if key in keys and config[key] == value)
    texts = ("name", "version", "slug", "description", "homeassistant", "image", "panel_icon", "panel_title")
    yield from (f"{key} is no text" for key in texts if not isinstance(config.get(key, ""), str))
    if not SLUG.fullmatch(config.get("slug", "")):
        yield "slug"
    if not ARCHITECTURES >= {*config.get("arch", ())} > set():
        yield "arch"
    yield from (f"services: {each}" for each in config.get("services", ()) if not SERVICE.fullmatch(each))
    yield from (f"ports: {port}" for port, at in config.get("ports", {}).items() if not _may_be_port(port, at))
    yield from _in_schema(config.get("schema", {}), "schema")
    yield from not_valid(config.get("schema", {}), config.get("options", {}), "options")


def _may_be_port(port: object, at: object) -> bool:
    """Check a port of the container and the host's, which is None until the user opens it."""
    usable = at is None or (isinstance(at, int) and 0 < at <= 65_535)
    return isinstance(port, str) and PORT.fullmatch(port) is not None and usable


def _in_schema(element: Any, place: str, *, in_list: bool = False) -> Iterator[str]:  # YAML
    """Check for the text of a type, a list of one such element (no list in a list), or elements by their keys."""
    if isinstance(element, str):
        if not TYPE.fullmatch(element):
            yield f"{place}: {element} is no type"
    elif isinstance(element, list) and not in_list and len(element) == 1:
        yield from _in_schema(element[0], place, in_list=True)
    elif isinstance(element, dict):
        for key, each in element.items():
            yield from _in_schema(each, f"{place}.{key}")
    else:
        yield f"{place}: neither a type nor keys nor a list of one"


def not_valid(schema: Any, options: Any, place: str) -> Iterator[str]:  # YAML
    """Yield the options that the Supervisor rejects, defaults included: it then does not start the app."""
    if isinstance(schema, list):
        if not isinstance(options, list):
            yield f"{place}: not a list"
            return
        for number, option in enumerate(options):
            yield from not_valid(schema[0], option, f"{place}.{number}")
    elif isinstance(schema, dict):
        if not isinstance(options, dict):
            yield f"{place}: no keys"
            return
        yield from (f"{place}.{key} is not in the schema" for key in options.keys() - schema.keys())
        for key, each in schema.items():
            if key in options:
                yield from not_valid(each, options[key], f"{place}.{key}")
            elif not _may_be_missing(each):
                yield f"{place}.{key} is missing"
    elif options is None or not _fits(schema, options):
        yield f"{place}: not {schema}"


def _may_be_missing(element: object) -> bool:
    first = element[0] if isinstance(element, list) and element else element
    return isinstance(first, str) and first.endswith("?")


def _fits(kind: str, option: object) -> bool:
    kind = kind.removesuffix("?")
    if choices := re.fullmatch(r"list\((.+)\)", kind):
        return str(option) in choices[1].split("|")
    if kind.startswith(("int", "port")):
        lowest, highest = (int(each) for each in re.findall(r"\d+", kind) or (0, 65_535))
        return isinstance(option, int) and lowest <= option <= highest
    return isinstance(option, str)


def untranslated(schema: Any, translations: Any, place: str = "") -> Iterator[str]:  # YAML
    """Yield each option without a name in the translations, and each translation without an option."""
    element = schema[0] if isinstance(schema, list) else schema
    if not isinstance(element, dict):
        return
    yield from (f"{place}{key}" for key in element.keys() ^ translations.keys())
    for key in element.keys() & translations.keys():
        entry = translations[key]
        if not isinstance(entry.get("name"), str) or not isinstance(entry.get("description", ""), str):
            yield f"{place}{key}: its name and description are texts"
        if entry.keys() - {"name", "description", "fields"}:
            yield f"{place}{key}: something else than name, description, fields"
        yield from untranslated(element[key], entry.get("fields", {}), f"{place}{key}.")
