"""The folder of accounts: a broken file costs only its own account, and looking again costs little."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from dexcom2mqtt.config import folder as folder_module
from dexcom2mqtt.config import sources
from dexcom2mqtt.config.folder import Contents, Folder
from dexcom2mqtt.config.loading import load
from dexcom2mqtt.config.problems import ConfigError
from dexcom2mqtt.config.settings import Account, Settings, keys_of
from dexcom2mqtt.config.values import Secret
from dexcom2mqtt.config.yaml_text import parse
from tests.support.configuration import (
    ACCOUNT_KEYS,
    ANNA,
    NOT_SHOWN,
    UUID,
    problems,
    problems_with_lines,
    read,
    secret,
)

BEN = "username: ben@example.com\npassword: 'CANARY'\n"
USABLE = "at least one usable account in it, such as a file anna.yaml with username: and password:"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return the folder, with the account of Ben."""
    place = tmp_path / "accounts"
    place.mkdir()
    write(place, "ben", BEN)
    return place


def write(place: Path, key: str, text: str | bytes) -> Path:
    file = place / f"{key}.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    file.chmod(0o600)
    return file


def person(user: str) -> str:
    return f"username: {user}\npassword: p\n"


def only_problem(place: Path) -> str:
    """Return the text about the only broken file, after its secrets were looked for."""
    (problem,) = Folder(place, {}).read().problems
    assert "CANARY" not in problem
    return problem


# --- good files --------------------------------------------------------------------------------------------


def test_accounts_of_the_folder_follow_those_of_the_configuration(place: Path) -> None:
    """The settings have both, the folder's in the order of their keys, each with the usual defaults."""
    write(place, "a_2", f"account_id: {UUID}\npassword: 0123\nregion: jp\nranges: {{low: 80}}\nname: Al\n")
    got = read(f"accounts_dir: {place}\n{ANNA}")
    assert [*got.accounts] == ["anna", "a_2", "ben"]
    ben, al = got.accounts["ben"], got.accounts["a_2"]
    assert ben == Account(name="Ben", username=Secret("ben@example.com"), password=Secret("CANARY"))
    assert (al.name, al.region, al.ranges.low, al.password) == ("Al", "jp", 80, Secret("0123"))
    assert (got.broken, got.broken_files, got.warnings) == ((), (), ())
    assert "CANARY" not in repr(got)


def test_a_folder_is_enough(place: Path) -> None:
    """Nothing else is needed: the variable may name the folder, and no file has to exist."""
    got = load(environ={"DEXCOM2MQTT_ACCOUNTS_DIR": str(place), "DEXCOM2MQTT_SHARD__COUNT": "2"})
    assert [*got.accounts] == ["ben"]
    assert got.shard.count == 2
    assert [*read(f"accounts_dir: {place}\naccounts:\n").accounts] == ["ben"]


@pytest.mark.parametrize("name", [".ben.yaml", "ben.yml", "ben", "ben.yaml~", "ben.yaml.bak", ".yaml", "ben.YAML"])
def test_other_files_are_ignored(place: Path, name: str) -> None:
    """Only names that end in .yaml and do not begin with a dot are accounts."""
    (place / name).write_text("{")
    assert Folder(place, {}).read().problems == ()


def test_a_mounted_secret_of_kubernetes(tmp_path: Path) -> None:
    """Its files are symlinks, and an update replaces them all at once: only changed ones are parsed again."""
    place = tmp_path / "secret"
    for version in ("..2026_1", "..2026_2"):
        (place / version).mkdir(parents=True)
        for key in ("anna", "ben"):
            write(place / version, key, person(key if key == "anna" else version.replace(".", "_")))
    (place / "..data").symlink_to("..2026_1")
    for key in ("anna", "ben"):
        (place / f"{key}.yaml").symlink_to(f"..data/{key}.yaml")
    folder = Folder(place, {})
    before = folder.read()
    (place / "..new").symlink_to("..2026_2")
    (place / "..new").rename(place / "..data")
    shutil.rmtree(place / "..2026_1")
    after = folder.read()
    assert [*before.accounts] == [*after.accounts] == ["anna", "ben"]
    assert after.accounts["anna"] is before.accounts["anna"]
    assert after.accounts["ben"].user == Secret("__2026_2")
    assert after.problems == ()


# --- broken files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("username: b\npassword: 'CANARY", "{file}, line 2, column 11: a quote is opened here and never closed"),
        (
            "username: b\npassword: @CANARY",
            "{file}, line 2, column 11: a value that begins with @, % or ` must be in quotes",
        ),
        (b"\xff", "{file}: is not UTF-8 text; save it as UTF-8"),
        (b"#" * 524_289, "{file}: is larger than 524288 bytes, so it must be the wrong file"),
        ("CANARY", "{file}: has no keys such as username: or password:"),
        ("- CANARY", "{file}: has no keys such as username: or password:"),
        (
            "username: b\npasword: CANARY\n",
            (
                "accounts.ben.password: missing or empty; allowed: text in quotes ({file}); accounts.ben.pasword: "
                f"unknown key; did you mean password? allowed: {ACCOUNT_KEYS} ({{file}}, line 2)"
            ),
        ),
        (
            "",
            (
                "accounts.ben.username: missing or empty; allowed: either username or account_id, not both ({file}); "
                "accounts.ben.password: missing or empty; allowed: text in quotes ({file})"
            ),
        ),
        (
            f"{BEN}region: usa\n",
            "accounts.ben.region: found 'usa'; allowed: us, ous, jp ({file}, line 3)",
        ),
        (
            f"{BEN}ranges:\n  low: 0\n",
            "accounts.ben.ranges.low: found '0'; allowed: a whole number from 1 to 1000 ({file}, line 4)",
        ),
        (
            "username: ' CANARY'\npassword: p\n",
            (
                f"accounts.ben.username: {NOT_SHOWN}; allowed: only the user name; this one begins with a space "
                "({file}, line 1)"
            ),
        ),
        (
            "username: b\npassword: PASSWORD\n",
            (
                f"accounts.ben.password: {NOT_SHOWN}; allowed: the real password; this is still the example's "
                "placeholder ({file}, line 2)"
            ),
        ),
        (
            "ben: {username: CANARY}",
            (
                "accounts.ben.username: missing or empty; allowed: either username or account_id, not both ({file}); "
                "accounts.ben.password: missing or empty; allowed: text in quotes ({file}); "
                f"accounts.ben.ben: unknown key; allowed: {ACCOUNT_KEYS} ({{file}}, line 1)"
            ),
        ),
    ],
)
def test_a_broken_file_costs_its_own_account(place: Path, text: str | bytes, problem: str) -> None:
    """Its problem is told in the usual words, with file and line and without a secret; the others are used."""
    file = write(place, "ben", text)
    write(place, "zoe", person("zoe"))
    got = Folder(place, {}).read()
    assert [*got.accounts] == ["zoe"]
    assert got.broken == ("ben",)
    assert only_problem(place) == problem.format(file=file)
    loaded = read(f"accounts_dir: {place}")
    assert ([*loaded.accounts], loaded.broken, loaded.broken_files) == (["zoe"], ("ben",), got.problems)
    assert loaded.source_warnings == ()


@examples(deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text("ab:-?[]{}!&*|>'\"%@`#,~<.\\/ \n\t\ufeff", max_size=60).map(str.encode))
@example(b"---")
@example(b"<<: {password: p, username: u}")
@example(b"? {a: b}\n: c")
@example(b"username: &a [*a]")
def test_any_content_is_an_account_or_a_problem(place: Path, content: bytes) -> None:
    """Whatever is in a file, the folder can be read, and its other accounts are used."""
    write(place, "anna", person("anna"))
    write(place, "ben", content)
    got = Folder(place, {}).read()
    assert "anna" in got.accounts
    assert ("ben" in got.accounts) + len(got.problems) == 1
    assert all(problem.isprintable() for problem in got.problems)


@pytest.mark.parametrize("key", [*keys_of(Account), "unknown"])
@pytest.mark.parametrize(
    "form", ["{}", "'{}'", "'{}\\t'", "[{}]", "{{{}: x}}", "{{x: {}}}", "*{}", "!{} x", "'{}", "|{}", "@{}"]
)
def test_no_secret_in_any_problem_of_a_file(place: Path, key: str, form: str) -> None:
    """A secret at any key, in any form, appears in no text, warning or repr."""
    if key in {"region", "unit"} and form in {"{}", "'{}'", "'{}\\t'"}:
        return  # they cannot be secrets, and are shown
    write(place, "ben", f"username: u\n{key}: {form.format('CANARY/s3cr3t!')}\n")
    got = Folder(place, {}).read()
    assert "CANARY" not in repr(got)


@pytest.mark.parametrize("name", ["Ben", "bridge", "a__b", "ben smith", "ben-smith", "b\nERROR forged", "b\udc80"])
def test_a_name_that_cannot_be_a_key(place: Path, name: str) -> None:
    """The file is named, in one line, and has no key."""
    write(place, name, BEN)
    problem = only_problem(place)
    allowed = "lowercase letters and digits, separated by single _, such as anna_marie; not bridge"
    assert f": invalid key; allowed: {allowed} ({place}/" in problem
    assert problem.isprintable()
    assert name.split("\n", maxsplit=1)[0].rstrip("\udc80") in problem
    assert [*Folder(place, {}).read().accounts] == ["ben"]


def test_a_key_that_is_also_in_the_configuration(place: Path) -> None:
    """The account below ``accounts:`` stays, and the file is the broken one, even if it is the same person."""
    write(place, "anna", person("x"))
    got = read(f"accounts_dir: {place}\n{ANNA}")
    assert got.accounts["anna"].user == Secret("anna@example.com")
    assert got.broken_files == (
        f"accounts.anna: is also below accounts:, which wins; keep only one ({place}/anna.yaml)",
    )
    assert got.broken == ()  # this key has an account


def test_the_same_person_twice(place: Path) -> None:
    """The first key stays, or the one in the configuration; another region is another person."""
    write(place, "aaron", person("BEN@example.com"))
    write(place, "abe", person("ben@example.com") + "region: jp\n")
    write(place, "zoe", person("Anna@example.com"))
    got = read(f"accounts_dir: {place}\n{ANNA}")
    assert [*got.accounts] == ["anna", "aaron", "abe"]
    assert got.broken == ("ben", "zoe")
    assert got.broken_files == (
        f"accounts: aaron and ben are the same person; keep only one ({place}/ben.yaml)",
        f"accounts: anna and zoe are the same person; keep only one ({place}/zoe.yaml)",
    )


def test_what_is_not_a_file(place: Path) -> None:
    """A folder, a pipe (which would never end) and a link to nothing are broken files."""
    (place / "a.yaml").mkdir()
    os.mkfifo(place / "b.yaml")
    (place / "c.yaml").symlink_to("missing")
    got = Folder(place, {}).read()
    assert got.problems == (
        f"{place}/a.yaml: cannot be read: not a regular file",
        f"{place}/b.yaml: cannot be read: not a regular file",
        f"{place}/c.yaml: cannot be read: No such file or directory",
    )
    assert [*got.accounts] == ["ben"]


def test_a_file_for_others(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that this user may not read is broken, and works as soon as it may be read."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    folder = Folder(place, {})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert folder.read().problems == (f"{place}/ben.yaml: cannot be read: Permission denied",)
    assert [*folder.read().accounts] == ["ben"]


# --- no account at all -------------------------------------------------------------------------------------


def test_without_one_good_file_the_configuration_has_problems(place: Path) -> None:
    """Every broken file is named, below the folder's own problem."""
    write(place, "ben", "{")
    write(place, "zoe", "CANARY")
    first, *others = problems_with_lines(f"\naccounts_dir: {place}\n")
    assert first == f"accounts_dir: found '{str(place)[:60]}'; allowed: {USABLE} (test.yaml, line 2)"
    assert [each.split(",")[0].split(": ")[0] for each in others] == [f"{place}/ben.yaml", f"{place}/zoe.yaml"]
    assert not [each for each in others if "CANARY" in each]
    assert read(f"accounts_dir: {place}\n{ANNA}").broken == ("ben", "zoe")


def test_an_empty_folder(tmp_path: Path) -> None:
    """Without any account, the message says what a file needs; with one elsewhere it is fine."""
    place = tmp_path / "a"
    place.mkdir()
    assert problems(f"accounts_dir: {place}") == (f"accounts_dir: found '{str(place)[:60]}'; allowed: {USABLE}",)
    assert [*read(f"accounts_dir: {place}\n{ANNA}").accounts] == ["anna"]


def test_a_folder_that_cannot_be_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a problem like any other, and the folder says so when it is read again."""
    settings = read(f"accounts_dir: {place}\n{ANNA}")
    assert settings.reread is not None

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        assert problems(f"accounts_dir: {place}\nstale_after: 5\n{ANNA}") == (
            "stale_after: found '5'; allowed: a whole number from 10 to 60",
            f"accounts_dir: {place} cannot be read: Permission denied",
        )
        with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
            settings.reread()
    shutil.rmtree(place)
    with pytest.raises(ConfigError, match=f"^accounts_dir: {place} cannot be read: No such file or directory$"):
        settings.reread()


def test_problems_of_both_are_named_at_once(place: Path) -> None:
    """With a problem in the configuration itself, the broken files are named, too."""
    file = write(place, "zoe", "{")
    got = problems(f"accounts_dir: {place}\nstale_after: 5\n")
    assert got[0] == "stale_after: found '5'; allowed: a whole number from 10 to 60"
    assert got[1].startswith(f"{file}, line 1")
    assert len(got) == 2


# --- other sources -----------------------------------------------------------------------------------------


def test_a_variable_adds_nothing_to_a_file(place: Path, tmp_path: Path) -> None:
    """A part of an account in a variable or secret file is a problem that says so, once, and shows no value."""
    words = "ben.yaml in accounts_dir is used as it is: write the value there, or write the whole account here"
    variable = "DEXCOM2MQTT_ACCOUNTS__BEN__PASSWORD"
    text = f"accounts_dir: {place}"
    assert problems(text, {variable: "CANARY2"}) == (
        f"accounts.ben: {words} (from the environment variable {variable})",
    )
    file = secret(tmp_path / "secrets", "accounts__ben__region", b"us")
    (only,) = problems(f"{text}\n{ANNA}", {}, file)
    assert only == f"accounts.ben: {words} (from the file {file}/dexcom2mqtt_accounts__ben__region)"


def test_a_whole_account_in_variables_beats_the_file(place: Path) -> None:
    """It is as good as one below ``accounts:``."""
    name = "DEXCOM2MQTT_ACCOUNTS__BEN"
    got = read(f"accounts_dir: {place}", {f"{name}__USERNAME": "env", f"{name}__PASSWORD": "env"})
    assert got.accounts["ben"].user == Secret("env")
    assert len(got.broken_files) == 1


@pytest.mark.parametrize(
    "environ", [{"DEXCOM2MQTT_ACCOUNTS__ZOE__PASSWORD": "p"}, {"DEXCOM2MQTT_ACCOUNTS__BEN": "null"}]
)
def test_an_incomplete_account_is_told_as_ever(place: Path, environ: dict[str, str]) -> None:
    """Without a file of that name, or without a value, the folder has nothing to do with it."""
    got = problems(f"accounts_dir: {place}", environ)
    assert len(got) == 1
    assert "missing or empty" in got[0]


# --- warnings ----------------------------------------------------------------------------------------------


def test_an_odd_password_earns_a_warning(place: Path) -> None:
    """It is used as written; the warning names file and line, but not the password."""
    file = write(place, "ben", 'username: b\npassword: "CANARY "\n')
    other = write(place, "zoe", "username: z\npassword: CANARY #1\n")
    odd, cut = read(f"accounts_dir: {place}").warnings
    remedy = "Unless that is correct, fix it now: a few wrong sign-ins lock the account"
    assert odd == f"accounts.ben.password: the password ends with a space. {remedy} ({file}, line 2)"
    assert cut.startswith('accounts.zoe.password: the password is not in quotes, so everything after " #" is cut off')
    assert cut.endswith(f" ({other}, line 2)")


def test_files_that_everybody_can_read_earn_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the command that fixes it, for all files at once."""
    place = tmp_path / "my accounts"
    place.mkdir()
    folder = Folder(place, {})
    write(place, "anna", person("a")).chmod(0o640)
    assert folder.read().warnings == ()
    write(place, "ben", person("b")).chmod(0o644)
    remedy = f"chmod 600 '{place}'/*.yaml"
    start = "accounts_dir: everybody on this machine may read"
    assert folder.read().warnings == (f"{start} {place}/ben.yaml with passwords; fix it with: {remedy}",)
    write(place, "zoe", "{").chmod(0o604)
    assert folder.read().warnings == (f"{start} 2 files with passwords; fix it with: {remedy}",)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 4711)
        (warning,) = Folder(place, {}).read().warnings
        assert warning.endswith(f"fix it with: sudo chown 4711 '{place}'/*.yaml && sudo {remedy}")
    os.system(remedy)  # noqa: S605  # the command itself is what is tested
    assert folder.read().warnings == ()
    (place / "ben.yaml").chmod(0o644)
    (place / "..data").symlink_to("..2026")
    (warning,) = folder.read().warnings
    assert warning.endswith("; in the pod, set defaultMode: 0440 for the volume, and fsGroup: in its securityContext")


# --- looking again -----------------------------------------------------------------------------------------


def test_an_unchanged_folder_is_not_read_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is opened; a file written again with the same text is opened, but not parsed; the result is the same."""
    write(place, "zoe", "{")
    folder = Folder(place, {})
    first = folder.read()
    opened, parsed = list[object](), list[object]()

    def read_text(file: Path) -> str:
        opened.append(file)
        return file.read_text()

    def noted(name: str, text: str) -> object:
        parsed.append(name)
        return parse(name, text)

    monkeypatch.setattr(sources, "read_text", read_text)
    monkeypatch.setattr(folder_module, "parse", noted)
    assert folder.read() is first
    assert (opened, parsed) == ([], [])
    for key, text in (("ben", BEN), ("zoe", "{")):
        write(place, "new", text).rename(place / f"{key}.yaml")
    assert folder.read() is first
    assert (len(opened), parsed) == (2, [])
    write(place, "ben", BEN.replace("CANARY", "CANNOT"))  # of the same size
    assert folder.read().accounts["ben"].password == Secret("CANNOT")
    assert parsed == [f"{place}/ben.yaml"]


def test_changes_are_found(place: Path) -> None:
    """A file may come, go, break and be mended; while one is broken, the others stay the same objects."""
    settings = read(f"accounts_dir: {place}\n{ANNA}")
    reread = settings.reread
    assert reread is not None
    assert reread() is settings
    write(place, "zoe", person("z"))
    more = reread()
    assert ([*more.accounts], more.broken) == (["anna", "ben", "zoe"], ())
    assert more.accounts["ben"] is settings.accounts["ben"]
    file = write(place, "ben", "{")
    less = reread()
    assert ([*less.accounts], less.broken) == (["anna", "zoe"], ("ben",))
    assert less.broken_files[0].startswith(f"{file}, line 1")
    file.unlink()
    assert ([*reread().accounts], reread().broken) == (["anna", "zoe"], ())
    write(place, "ben", BEN)
    assert reread() == more
    assert reread().stale_after == settings.stale_after
    assert more.reread is reread


def test_a_folder_may_become_empty(place: Path) -> None:
    """Only at the start an account is needed; what happens to those that run is not decided here."""
    settings = read(f"accounts_dir: {place}")
    assert settings.reread is not None
    (place / "ben.yaml").unlink()
    assert settings.reread().accounts == {}


def test_without_a_folder_there_is_nothing_to_look_at() -> None:
    """Families have no folder."""
    assert read(ANNA).reread is None
    assert (Settings().broken, Settings().broken_files) == ((), ())
    assert Contents().accounts == {}
