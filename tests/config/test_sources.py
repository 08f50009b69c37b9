"""Where the configuration comes from: files, environment and secret files, and which of them is the strongest."""

import os
from pathlib import Path

import pytest
import yaml

from dexcom2mqtt.config import sources
from dexcom2mqtt.config.loading import load
from dexcom2mqtt.config.problems import ConfigError
from dexcom2mqtt.config.settings import Tls
from tests.support.configuration import (
    ACCOUNT_KEYS,
    ANNA,
    MQTT_KEYS,
    NOT_SHOWN,
    TEXT,
    account,
    dumped,
    problems,
    read,
    secret,
)

# --- sources -----------------------------------------------------------------------------------------------


def test_environment_beats_secret_files_beat_yaml(tmp_path: Path) -> None:
    """Each key comes from the strongest source that has it; later folders beat earlier ones."""
    text = "accounts: {anna: {username: yaml, password: yaml, name: yaml, unit: mmol/L}}"
    one, two = tmp_path / "one", tmp_path / "two"
    for key in ("username", "password", "name"):
        secret(one, f"accounts__anna__{key}", b"one")
    for key in ("username", "password"):
        secret(two, f"accounts__anna__{key}", b"two")
    got = read(text, {"DEXCOM2MQTT_ACCOUNTS__ANNA__USERNAME": "env"}, one, two).accounts["anna"]
    values = (got.user.get_secret_value(), got.password.get_secret_value(), got.name, got.unit)
    assert values == ("env", "two", "one", "mmol/L")


def test_no_file_is_needed() -> None:
    """The environment is enough."""
    environ = {"DEXCOM2MQTT_ACCOUNTS__ANNA__USERNAME": "+1123", "dexcom2mqtt_accounts__Anna__password": "0123"}
    got = load(environ=environ).accounts["anna"]
    assert (got.user.get_secret_value(), got.password.get_secret_value()) == ("+1123", "0123")


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"pw", "pw"),
        (b"pw\n", "pw"),
        (b"pw\r\n", "pw"),
        (b" pw \n", " pw "),
        (b"\xef\xbb\xbfpw", "pw"),
        (b"{a: 1}", "{a: 1}"),
    ],
)
def test_a_secret_file_is_its_text_without_one_newline(tmp_path: Path, content: bytes, value: str) -> None:
    """A secret file's text is the value, without one newline at its end."""
    got = read(ANNA, {}, secret(tmp_path, "accounts__anna__password", content))
    assert got.accounts["anna"].password.get_secret_value() == value


def test_a_second_newline_is_a_problem(tmp_path: Path) -> None:
    """Only one newline is dropped; the file with the problem is named."""
    secret(tmp_path, "accounts__anna__password", b"pw\n\n")
    place = f"(from the file {tmp_path}/dexcom2mqtt_accounts__anna__password)"
    assert problems(ANNA, {}, tmp_path) == (f"accounts.anna.password: {NOT_SHOWN}; allowed: {TEXT} {place}",)


def test_the_usual_folders_of_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker's folder is read, and systemd's beats it."""
    docker, systemd = tmp_path / "docker", tmp_path / "systemd"
    monkeypatch.setattr(sources, "DOCKER_SECRETS", docker)
    secret(docker, "accounts__anna__username", b"docker")
    secret(docker, "accounts__anna__password", b"docker")
    assert load(environ={}).accounts["anna"].password.get_secret_value() == "docker"
    secret(systemd, "accounts__anna__password", b"systemd")
    got = load(environ={"CREDENTIALS_DIRECTORY": str(systemd)}).accounts["anna"]
    assert (got.user.get_secret_value(), got.password.get_secret_value()) == ("docker", "systemd")


def test_secret_files_that_cannot_be_read_are_all_named(tmp_path: Path) -> None:
    """A folder instead of a secret and a secret that is not text are problems; other files are not."""
    (tmp_path / "dexcom2mqtt_mqtt__password").mkdir()
    secret(tmp_path, "accounts__anna__password", b"\xff")
    secret(tmp_path, "port", b"\xff")
    (tmp_path / "other").write_bytes(b"\xff")
    got = problems(ANNA, {}, tmp_path, tmp_path / "missing", tmp_path / "other")
    assert got == (
        f"{tmp_path}/dexcom2mqtt_accounts__anna__password: is not UTF-8 text; save it as UTF-8",
        f"{tmp_path}/dexcom2mqtt_mqtt__password: cannot be read: Is a directory",
    )


def test_foreign_and_empty_variables_are_ignored() -> None:
    """Variables of container platforms, and variables without a value, are ignored."""
    foreign = ["PORT", "PORT_1883_TCP", "MQTT_SERVICE_HOST", "CONFIG", "X__Y", "STALE_AFTER__X", "", "_MQTT__HOST"]
    environ = {f"DEXCOM2MQTT_{name}": "x" for name in foreign} | {"XDEXCOM2MQTT_MQTT__HOST": "x", "MQTT__HOST": "x"}
    empty = {"DEXCOM2MQTT_MQTT__HOST": "", "DEXCOM2MQTT_MQTT__TYPO": "", "DEXCOM2MQTT_ACCOUNTS": ""}
    assert read(ANNA, environ | empty) == read(ANNA)


def test_a_variable_can_hold_a_section() -> None:
    """A variable for a section is read as YAML; a variable for one of its keys beats that."""
    environ = {
        "DEXCOM2MQTT_ACCOUNTS": "{anna: {region: jp, name: 0x1}}",
        "DEXCOM2MQTT_ACCOUNTS__ANNA__RANGES": "{low: 65}",
        "DEXCOM2MQTT_MQTT": "host: broker\nport: 1\n",
        "DEXCOM2MQTT_MQTT__PORT": "2",
        "DEXCOM2MQTT_MQTT__TLS": "{}",
        "DEXCOM2MQTT_STALE_AFTER": "20",
    }
    got = read(ANNA, environ)
    assert {key: dumped(got.accounts["anna"])[key] for key in ("region", "name", "ranges")} == {
        "region": "jp",
        "name": "0x1",
        "ranges": {"very_low": 54, "low": 65, "high": 180, "very_high": 250},
    }
    assert (got.mqtt.host, got.mqtt.port, got.mqtt.tls, got.stale_after) == ("broker", 2, Tls(), 20)


def test_a_secret_file_can_hold_a_section(tmp_path: Path) -> None:
    """A file for a section is read as YAML; a file for one of its keys beats that."""
    secret(tmp_path, "mqtt", b"{host: broker, keepalive: 10}")
    secret(tmp_path, "mqtt__host", b"other")
    got = read(ANNA, {}, tmp_path).mqtt
    assert (got.host, got.keepalive) == ("other", 10)


def test_a_null_section_switches_a_weaker_one_off() -> None:
    """A stronger source can switch off TLS that the file switches on."""
    assert read(f"{ANNA}mqtt: {{tls: {{}}}}", {"DEXCOM2MQTT_MQTT__TLS": "null"}).mqtt.tls is None


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        (
            {"DEXCOM2MQTT_ACCOUNTS__ANNA__REGION": "usa"},
            (
                "accounts.anna.region: found 'usa'; allowed: us, ous, jp"
                " (from the environment variable DEXCOM2MQTT_ACCOUNTS__ANNA__REGION)"
            ),
        ),
        (
            {"dexcom2mqtt_accounts__anna__pasword": "CANARY"},
            (
                f"accounts.anna.pasword: unknown key; did you mean password? allowed: {ACCOUNT_KEYS}"
                " (from the environment variable dexcom2mqtt_accounts__anna__pasword)"
            ),
        ),
        (
            {"DEXCOM2MQTT_MQTT": "{hots: x}", "DEXCOM2MQTT_MQTT__HOST": "x"},
            (
                f"mqtt.hots: unknown key; did you mean host? allowed: {MQTT_KEYS}"
                " (from the environment variable DEXCOM2MQTT_MQTT)"
            ),
        ),
        (
            {"DEXCOM2MQTT_MQTT__HOST__X": "CANARY"},
            (
                "mqtt.host: found keys or a list; allowed: text in quotes"
                " (from the environment variable DEXCOM2MQTT_MQTT__HOST__X)"
            ),
        ),
        (
            {"DEXCOM2MQTT_MQTT": "CANARY"},
            (
                "mqtt: expected a section with indented keys (value hidden)"
                " (from the environment variable DEXCOM2MQTT_MQTT)"
            ),
        ),
        (
            {"DEXCOM2MQTT_MQTT__TLS": "{a: b"},
            (
                "the environment variable DEXCOM2MQTT_MQTT__TLS, line 1, column 1: a value that begins with [ or {"
                " must be in quotes; otherwise its end or a comma is missing"
            ),
        ),
        (
            {"DEXCOM2MQTT_ACCOUNTS__BRIDGE": "{username: b, password: p}"},
            (
                "accounts.bridge: invalid key; allowed: lowercase letters and digits, separated by single _,"
                " such as anna_marie; not bridge (from the environment variable DEXCOM2MQTT_ACCOUNTS__BRIDGE)"
            ),
        ),
        (
            {"DEXCOM2MQTT_MQTT__\n": "x"},
            f"mqtt.?: unknown key; allowed: {MQTT_KEYS} (from the environment variable ?)",
        ),
    ],
)
def test_a_problem_names_the_variable(environ: dict[str, str], problem: str) -> None:
    """A problem outside the file says where it is."""
    assert problems(ANNA, environ) == (problem,)


def test_a_problem_in_the_file_names_no_variable() -> None:
    """A correct variable next to a wrong key in the file is not blamed."""
    got = problems(f"{ANNA}mqtt: {{port: x}}", {"DEXCOM2MQTT_MQTT__HOST": "broker"})
    assert got == ("mqtt.port: found 'x'; allowed: a whole number from 1 to 65535",)


# --- which file --------------------------------------------------------------------------------------------


def test_where_the_file_is_looked_for(tmp_path: Path) -> None:
    """The argument beats the variable beats ./config.yaml beats the one in /etc."""
    here, etc = sources.DEFAULT_FILES
    for file, name in ((etc, "etc"), (here, "here"), (tmp_path / "env", "env"), (tmp_path / "arg", "arg")):
        file.write_text(account(name=name))
        environ = {"DEXCOM2MQTT_CONFIG": str(file)} if name in {"env", "arg"} else {"DEXCOM2MQTT_CONFIG": ""}
        got = load(tmp_path / "arg" if name == "arg" else None, environ=environ)
        assert got.accounts["anna"].name == name
    assert load(tmp_path / "arg", environ={"DEXCOM2MQTT_CONFIG": "/missing"}).accounts["anna"].name == "arg"


def test_nothing_at_all() -> None:
    """Without any configuration the message says where to put one and what it looks like."""
    with pytest.raises(ConfigError) as caught:
        load(environ={})
    first, second = caught.value.problems
    assert first == f"no configuration: write config.yaml or {sources.DEFAULT_FILES[1]}, or name one with --config"
    assert yaml.safe_load(second.partition("below accounts:")[2])["anna"].keys() == {"username", "password"}
    assert second.startswith("accounts: missing or empty; allowed: at least one account;")


@pytest.mark.parametrize("by_variable", [True, False])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file or directory"),
        ("folder", "cannot be read: Is a directory"),
        (b"\xff\xfea\0", "is not UTF-8 text; save it as UTF-8"),
        (b"#" * 524_289, "is larger than 524288 bytes, so it must be the wrong file"),
        (b"CANARY", "has no keys such as accounts: or mqtt:"),
        (b"- CANARY", "has no keys such as accounts: or mqtt:"),
    ],
)
def test_a_named_file_must_be_valid(
    tmp_path: Path, content: bytes | str | None, problem: str, *, by_variable: bool
) -> None:
    """A file that was named but cannot be used is a problem, even if the environment says enough."""
    file = tmp_path / "named.yaml"
    if content == "folder":
        file.mkdir()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    environ = {"DEXCOM2MQTT_ACCOUNTS": "{anna: {username: a, password: p}}"}
    path = None if by_variable else file
    with pytest.raises(ConfigError) as caught:
        load(path, environ=environ | ({"DEXCOM2MQTT_CONFIG": str(file)} if by_variable else {}))
    assert caught.value.problems == (f"{file}: {problem}",)


def test_a_missing_credential_is_reported_as_systemds() -> None:
    """Users do not know that path: the cause is the unit, or the container around it."""
    with pytest.raises(ConfigError, match=r"No such file or directory; systemd did not hand it over .*lxc\.conf"):
        load(Path("/run/credentials/dexcom2mqtt.service/config.yaml"), environ={})


def test_a_folder_in_place_of_the_usual_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder named config.yaml, which Docker makes if the file to mount is missing, is reported."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"^config\.yaml: cannot be read: Is a directory$"):
        load(environ={})


def test_a_file_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that this user may not read is a problem."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "c.yaml").write_text(ANNA)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"c\.yaml: cannot be read: Permission denied$"):
        load(tmp_path / "c.yaml", environ={})


@pytest.mark.parametrize(
    "text", [b"", b"# nothing\n", b"---\n", b"\xef\xbb\xbf", b"null", b"~\n", b"{}", b"---\n...\n"]
)
def test_an_empty_file_is_no_configuration(text: bytes) -> None:
    """In an empty file only the accounts are missing."""
    (only,) = problems(text)
    assert only.startswith("accounts: missing or empty; allowed: at least one account;")
    environ = {"DEXCOM2MQTT_ACCOUNTS": ANNA.removeprefix("accounts: ")}
    assert read(text, environ) == read(b"\xef\xbb\xbf" + ANNA.encode())


# --- warnings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mode", "warned"),
    [
        (ANNA, 0o600, False),
        (ANNA, 0o640, True),
        (ANNA, 0o604, True),
        (ANNA, 0o644, True),
        (ANNA, 0o611, False),
        ("mqtt: {username: u, password: p}", 0o644, True),
        ("accounts: {anna: {username: u}}", 0o644, False),
        ("stale_after: 20", 0o644, False),
    ],
)
def test_a_password_that_others_can_read_earns_a_warning(tmp_path: Path, text: str, mode: int, *, warned: bool) -> None:
    """If others may read a file with a password, a warning shows the command that fixes it."""
    file = tmp_path / "my config.yaml"
    file.write_text(text)
    file.chmod(mode)
    environ = {"DEXCOM2MQTT_ACCOUNTS__ANNA__USERNAME": "a", "DEXCOM2MQTT_ACCOUNTS__ANNA__PASSWORD": "p"}
    remedy = f"chmod 600 '{file}'"
    expected = (f"{file}: holds a password, and others on this machine may read it; fix it with: {remedy}",)
    assert load(file, environ=environ).warnings == (expected if warned else ())
    os.system(remedy)  # noqa: S605  # the command itself is what is tested
    assert load(file, environ=environ).warnings == ()


def test_the_remedy_does_not_lock_the_daemon_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of another user changes its owner before others lose access."""
    file = tmp_path / "c.yaml"
    file.write_text(ANNA)
    file.chmod(0o640)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    (warning,) = load(file, environ={}).warnings
    assert warning.endswith(f"fix it with: sudo chown 4711 {file} && sudo chmod 600 {file}")


def test_a_credential_of_systemd_earns_no_warning(tmp_path: Path) -> None:
    """A file that systemd hands over only looks open to a group; any other file still causes a warning."""
    file = tmp_path / "config.yaml"
    file.write_text(ANNA)
    file.chmod(0o440)
    assert load(file, environ={"CREDENTIALS_DIRECTORY": str(tmp_path)}).warnings == ()
    assert load(file, environ={"CREDENTIALS_DIRECTORY": str(tmp_path / "other")}).warnings != ()
