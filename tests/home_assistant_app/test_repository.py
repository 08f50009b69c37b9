"""The repository with the app for Home Assistant: the script's output, checked against the Supervisor's rules."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
import tomllib
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import pytest
import write
import yaml
from starter import daemon, form

from tests.home_assistant_app.test_form import ANNA
from tests.support import supervisor_rules as rules
from tests.support.documents import codes_in, links_of, rows_of, section_of
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
WHEEL = f"dexcom2mqtt-{VERSION}-py3-none-any.whl"
TEMPLATES = ROOT / "home-assistant-app"


def script(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "scripts" / "home-assistant-app", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository written by the script."""
    folder = tmp_path_factory.mktemp("written") / "repository"
    ran = script(folder)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert f"Copy {folder}/dexcom2mqtt into the folder addons" in ran.stdout
    return folder


def config_of(repository: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((repository / "dexcom2mqtt" / "config.yaml").read_text(encoding="utf-8")))


# --- the files ---------------------------------------------------------------------------------------------


def test_it_is_complete(repository: Path) -> None:
    """It has exactly the files that the Supervisor shows or builds from."""
    starter = {f"starter/{file.name}" for file in (TEMPLATES / "starter").glob("*.py")}
    shown = {"DOCS.md", "README.md", "CHANGELOG.md", "icon.png", "logo.png", "translations/en.yaml"}
    app = {"config.yaml", "Dockerfile", "apparmor.txt", WHEEL, *shown, *starter}
    files = {file.relative_to(repository).as_posix() for file in repository.rglob("*") if file.is_file()}
    assert files == {"repository.yaml", *(f"dexcom2mqtt/{name}" for name in app)}


def test_it_has_this_version(repository: Path) -> None:
    """Each version in it is that of the package, and no placeholder is left."""
    assert config_of(repository)["version"] == VERSION
    app = repository / "dexcom2mqtt"
    assert f"BUILD_VERSION={VERSION}" in (app / "Dockerfile").read_text(encoding="utf-8")
    for file in app.rglob("*.*"):
        if file.suffix in {".yaml", ".txt", ".md"}:
            assert not re.search(r"\bVERSION\b", file.read_text(encoding="utf-8")), file
    assert (app / "CHANGELOG.md").read_bytes() == (ROOT / "CHANGELOG.md").read_bytes()


def test_the_package_in_it_is_this_one(repository: Path) -> None:
    """The wheel has the daemon, and nothing of the app."""
    names = zipfile.ZipFile(repository / "dexcom2mqtt" / WHEEL).namelist()
    assert "dexcom2mqtt/cli.py" in names
    assert not [name for name in names if "starter" in name]


def test_home_assistant_finds_one_app(repository: Path) -> None:
    """Home Assistant treats one file in it as an app, and none of the templates here."""

    def found(folder: Path) -> list[str]:
        files = (file.relative_to(folder).as_posix() for file in folder.rglob("*"))
        return [file for file in files if re.search(r"(^|/)config\.(.*\.)?(ya?ml|json)$", file)]

    assert found(repository) == ["dexcom2mqtt/config.yaml"]
    assert found(TEMPLATES) == []
    assert not (ROOT / "repository.yaml").exists()


def test_the_repository_has_a_name(repository: Path) -> None:
    """The repository has a name, which is required, and no unknown keys."""
    named = yaml.safe_load((repository / "repository.yaml").read_text(encoding="utf-8"))
    assert named.keys() <= {"name", "url", "maintainer"}
    assert named["name"]


@pytest.mark.parametrize(("name", "width", "height"), [("icon.png", 128, 128), ("logo.png", 250, 100)])
def test_the_pictures(repository: Path, name: str, width: int, height: int) -> None:
    """Each is a small PNG of the size that Home Assistant requires, and is not blank."""
    content = (repository / "dexcom2mqtt" / name).read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, rest = {}, content[8:]
    while rest:
        (length,), kind = struct.unpack(">I", rest[:4]), rest[4:8]
        chunks[kind] = rest[8 : 8 + length]
        assert rest[8 + length : 12 + length] == struct.pack(">I", zlib.crc32(kind + chunks[kind]))
        rest = rest[12 + length :]
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (width, height, 8, 6, 0, 0, 0)
    pixels = zlib.decompress(chunks[b"IDAT"])
    assert len(pixels) == height * (1 + 4 * width)
    assert len(set(pixels)) > 20
    assert len(content) < 10_000


# --- the Supervisor's rules --------------------------------------------------------------------------------


def test_config_follows_the_rules(repository: Path) -> None:
    """The configuration breaks no rule of the Supervisor or the linter."""
    assert list(rules.broken_by(config_of(repository))) == []


def test_config_is_as_promised(repository: Path) -> None:
    """It has the architectures, the oldest Home Assistant, the broker, and a form with a list of accounts."""
    config = config_of(repository)
    assert sorted(config["arch"]) == ["aarch64", "amd64"]
    assert (config["homeassistant"], config["services"]) == ("2025.10.0", ["mqtt:want"])
    (account,) = config["schema"]["accounts"]
    assert list(account) == ["name", "username", "password", "region", "unit", "low", "high", "key"]
    assert list(config["schema"]["mqtt"]) == ["host", "port", "username", "password"]
    assert config["schema"].keys() == {"accounts", "mqtt", "web_token", "stale_after", "log_level"}


def test_the_page_is_in_the_sidebar(repository: Path) -> None:
    """Everybody in Home Assistant may open it there; its own port is closed until the user opens it."""
    config = config_of(repository)
    assert (config["ingress"], config["panel_admin"]) == (True, False)
    _, port, supervisor = daemon.INGRESS["DEXCOM2MQTT_INGRESS"].split()
    assert (int(port), supervisor) == (config.get("ingress_port", rules.DEFAULTS["ingress_port"]), "172.30.32.2")
    assert config["ports"] == {f"{form.WEB['port']}/tcp": None}


def test_the_form_accepts_valid_entries(repository: Path) -> None:
    """The usual entry is valid, and so is every field; values that the daemon would reject cannot be saved."""
    schema = config_of(repository)["schema"]
    full = ANNA | {"low": 80, "high": 200, "key": "anna"}
    mqtt = {"host": "10.0.0.3", "port": 1884, "username": "me", "password": "mine"}
    valid = [
        {"accounts": [ANNA], "mqtt": {}},
        {"accounts": [full], "mqtt": mqtt, "web_token": "x", "stale_after": 20, "log_level": "info"},
    ]
    assert [list(rules.not_valid(schema, options, "options")) for options in valid] == [[], []]
    for wrong in ({"region": "mars"}, {"unit": "mg"}, {"name": None}):
        assert list(rules.not_valid(schema, {"accounts": [ANNA | wrong], "mqtt": {}}, "options"))
    assert list(rules.not_valid(schema, {"accounts": [], "mqtt": {}, "stale_after": 5}, "options"))


def test_every_option_is_explained(repository: Path) -> None:
    """Each field of the form has a name and a description, and there are no others."""
    file = repository / "dexcom2mqtt" / "translations" / "en.yaml"
    translations = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert translations.keys() == {"configuration", "network"}
    assert list(rules.untranslated(config_of(repository)["schema"], translations["configuration"])) == []
    assert translations["network"].keys() == config_of(repository)["ports"].keys()
    for limit in ("low", "high"):
        description = translations["configuration"]["accounts"]["fields"][limit]["description"]
        assert "(multiply mmol/L by 18 and round)" in description
    assert "From 10 to 60" in translations["configuration"]["stale_after"]["description"]
    assert all(isinstance(text, str) for text in translations["network"].values())


@pytest.mark.parametrize(
    ("changed", "broken"),
    [
        ({"init": True}, "init has its default"),
        ({"boot": "auto"}, "boot has its default"),
        ({"watchdog": "tcp://[HOST]:1"}, "watchdog is no key"),
        ({"codenotary": "a@b"}, "codenotary is no key"),
        ({"arch": ["armv7"]}, "arch"),
        ({"slug": "a b"}, "slug"),
        ({"version": 1}, "version is no text"),
        ({"services": ["mqtt"]}, "services: mqtt"),
        ({"ports": {"8017/http": None}}, "ports: 8017/http"),
        ({"ports": {8017: None}}, "ports: 8017"),
        ({"ports": {"8017/tcp": 0}}, "ports: 8017/tcp"),
        ({"ingress_port": 8099}, "ingress_port has its default"),
        ({"panel_title": 1}, "panel_title is no text"),
        ({"schema": {"a": "text"}, "options": {"a": "b"}}, "schema.a: text is no type"),
        ({"schema": {"a": [["str"]]}, "options": {"a": []}}, "schema.a: neither a type nor keys nor a list of one"),
        ({"schema": {"a": {"b": "str?"}, "c": "str?"}, "options": {"c": "d"}}, "options.a is missing"),
        ({"schema": {"a": "str?"}, "options": {"b": 1}}, "options.b is not in the schema"),
        ({"schema": {"a": "str?"}, "options": {"a": None}}, "options.a: not str?"),
    ],
)
def test_a_broken_rule_is_found(changed: dict[str, object], broken: str, repository: Path) -> None:
    """Each rule reports a configuration that breaks it."""
    assert list(rules.broken_by(config_of(repository) | changed)) == [broken]


def test_the_profile(repository: Path, tmp_path: Path) -> None:
    """There is one AppArmor profile, named after the app, and AppArmor's own parser accepts it."""
    file = repository / "dexcom2mqtt" / "apparmor.txt"
    assert rules.PROFILE.findall(file.read_text(encoding="utf-8")) == ["dexcom2mqtt"]
    parser = shutil.which("apparmor_parser", path="/usr/sbin:/sbin")
    if parser is None:
        pytest.skip("apparmor_parser is not installed; install the package apparmor to run them")
    broken = tmp_path / "broken"
    broken.write_text(file.read_text(encoding="utf-8").replace("/data/ r,", "/data/ raw,"), encoding="utf-8")
    codes = [subprocess.run([parser, "-Q", "-K", each], capture_output=True, check=False) for each in (file, broken)]
    assert [ran.returncode for ran in codes] == [0, 1]
    assert b"rror" not in codes[0].stderr


def test_the_image_is_built_from_the_folder(repository: Path) -> None:
    """The Dockerfile copies only files of the folder, and names the base image and the health check."""
    text = (repository / "dexcom2mqtt" / "Dockerfile").read_text(encoding="utf-8")
    copied = re.findall(r"(?m)^COPY (?!--from)(\S+) ", text)
    assert all(list((repository / "dexcom2mqtt").glob(pattern)) for pattern in copied)
    bases = re.findall(r"(?m)^FROM (\S+)", text)
    main = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert set(bases) == set(re.findall(r"(?m)^FROM (\S+)", main))
    (check,) = re.findall(r"(?m)^HEALTHCHECK (.*)$", text)
    assert check in main
    assert json.loads(check.rpartition("CMD ")[2]) == ["dexcom2mqtt", "healthcheck"]


# --- its documentation -------------------------------------------------------------------------------------


def test_the_documentation_has_every_option(repository: Path) -> None:
    """Each option of the schema is documented, with the name that the form shows."""
    text = (repository / "dexcom2mqtt" / "DOCS.md").read_text(encoding="utf-8")
    schema = config_of(repository)["schema"]
    translations = yaml.safe_load((TEMPLATES / "translations" / "en.yaml").read_text(encoding="utf-8"))["configuration"]
    fields = translations["accounts"]["fields"]
    assert [cells[0] for cells in rows_of(section_of(text, "## Options"))] == [
        f"{fields[key]['name'].removesuffix(' at Dexcom')} (`{key}`)" for key in schema["accounts"][0]
    ]
    for key in schema.keys() - {"accounts"}:
        assert f"**{translations[key]['name']}** (`{key}`)" in text


def test_the_documentation_quotes_the_messages(repository: Path) -> None:
    """Each message it explains is the starter's or the daemon's, and all of the starter's warnings are explained."""
    text = (repository / "dexcom2mqtt" / "DOCS.md").read_text(encoding="utf-8")
    quotes = [codes_in(cells[0])[0] for cells in rows_of(section_of(text, "## If something is wrong"))]
    starter = "".join(file.read_text(encoding="utf-8") for file in (TEMPLATES / "starter").glob("*.py"))
    daemon = (ROOT / "dexcom2mqtt" / "mqtt" / "codes.py").read_text(encoding="utf-8")
    assert [quote for quote in quotes if quote not in starter + daemon] == []
    said = re.findall(r'NoBrokerError\(f?"(.+?)"\)|return f?"(the\w* .+?)"', starter)
    assert len(said) > 3
    assert [words for words in map("".join, said) if not any(quote in words for quote in quotes)] == []


def test_the_documentation_has_no_links() -> None:
    """It is read within Home Assistant, without the other files of the project."""
    assert links_of((TEMPLATES / "DOCS.md").read_text(encoding="utf-8")) == []
    assert links_of((TEMPLATES / "README.md").read_text(encoding="utf-8")) == []


# --- the script --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image", ["registry.example.com/you/dexcom2mqtt", "you/dexcom2mqtt", "localhost:5000/{arch}-dexcom2mqtt"]
)
def test_a_published_image_can_be_named(image: str, repository: Path, tmp_path: Path) -> None:
    """With --image the configuration names the image; everything else stays the same."""
    folder = tmp_path / "repository"
    assert script(folder, "--image", image).returncode == 0
    assert config_of(folder) == config_of(repository) | {"image": image}
    assert list(rules.broken_by(config_of(folder))) == []


@pytest.mark.parametrize(
    "image",
    ["registry.example.com/you/x:1", "registry.example.com/You/x", "REGISTRY.example.com/you/x", "", "a b", "x/", "/x"],
)
def test_an_invalid_image_name_is_refused(image: str, tmp_path: Path) -> None:
    """A name that Home Assistant would refuse is reported before anything is written."""
    ran = script(tmp_path / "repository", "--image", image)
    assert ran.returncode == 2
    assert "must look like registry.example.com/you/dexcom2mqtt: lowercase, without a tag" in ran.stderr
    assert not (tmp_path / "repository").exists()


def test_it_overwrites_its_own_files(repository: Path, tmp_path: Path) -> None:
    """It updates a repository of an older version, keeps the Git history, and removes the older package."""
    folder = tmp_path / "repository"
    shutil.copytree(repository, folder)
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").touch()
    (folder / "dexcom2mqtt" / WHEEL).rename(folder / "dexcom2mqtt" / "dexcom2mqtt-0.0.9-py3-none-any.whl")
    (folder / "dexcom2mqtt" / "starter" / "older.py").touch()
    assert script(folder).returncode == 0
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    expected = {file.relative_to(repository).as_posix() for file in repository.rglob("*") if file.is_file()}
    assert files == {*expected, ".git/HEAD"}


@pytest.mark.parametrize("name", ["notes.txt", "dexcom2mqtt/pyproject.toml", "dexcom2mqtt/starter/my.txt"])
def test_it_overwrites_nothing_else(name: str, tmp_path: Path) -> None:
    """A folder with any other files, such as a clone, stays unchanged."""
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    ran = script(tmp_path)
    assert ran.returncode == 1
    assert f"contains something else ({name}); name a new or empty folder" in ran.stderr
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [tmp_path / name]


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    """If the folder is a file, the error says so."""
    (tmp_path / "file").touch()
    ran = script(tmp_path / "file")
    assert (ran.returncode, ran.stderr) == (1, f"home-assistant-app: {tmp_path}/file is a file; name a folder\n")


def test_a_failed_build_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If pip fails, its last line is reported, and nothing is written."""
    monkeypatch.setattr(write, "ROOT", tmp_path / "nothing")
    assert write.main([str(tmp_path / "repository")]) == 1
    assert "home-assistant-app: the package cannot be built: " in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()


def test_it_needs_only_python() -> None:
    """The script imports only the standard library, because it runs on systems with nothing installed."""
    for file in (TEMPLATES / "write.py", TEMPLATES / "pictures.py"):
        used = set(re.findall(r"(?m)^(?:import|from) (\w+)", file.read_text(encoding="utf-8")))
        assert used <= {*sys.stdlib_module_names, "pictures"}
