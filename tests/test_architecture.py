"""Which modules may import which: the rules that keep the parts apart."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import dexcom2mqtt

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(dexcom2mqtt.__file__).parent
DEMO = ROOT / "demo"
EVERY_MODULE = sorted(ROOT.rglob("*.py"))
MODULES = [path for path in EVERY_MODULE if DEMO not in path.parents]

THIRD_PARTY = {
    "amqtt",
    "certifi",
    "paho",
    "requests",
    "rich",
    "tenacity",
    "urllib3",
    "waitress",
    "yaml",
}
PURE = {
    "readings",
    "shards",
    "mqtt/attempts",
    "mqtt/outcome",
    "mqtt/subscriptions",
    "mqtt/trouble",
    "mqtt/patience",
    "topics",
    "messages",
    "messages/message",
    "messages/state",
    "messages/history",
    "messages/days",
    "messages/status",
    "messages/bridge",
    "messages/homeassistant",
    "messages/mirror",
    "messages/stream",
    "messages/unpublished",
    "messages/delta",
    "messages/overview",
    "messages/percent",
    "web",
    "web/access",
    "web/accounts",
    "web/nightscout",
    "web/query",
    "account/ledger",
    "account/limits",
    "account/schedule",
    "account/stamps",
    "account/statistics",
    "account/verdict",
    "share/errors",
    "share/answers",
    "share/route",
    "share/server_time",
}
NOW = {"now", "utcnow", "today"}


def running(node: ast.AST) -> Iterator[ast.AST]:
    """Walk the code that runs: all but the branches only for type checkers."""
    yield node
    children: Iterator[ast.AST] | list[ast.stmt] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
        children = node.orelse
    for child in children:
        yield from running(child)


def imports(source: str) -> set[str]:
    """Return every module that running code imports, with dots; names from a package count as modules."""
    found = set()
    for node in running(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return found


def libraries(source: str) -> set[str]:
    """Return the imports from outside the package and Python."""
    return {name.partition(".")[0] for name in imports(source)} - sys.stdlib_module_names - {"dexcom2mqtt"}


def own_imports(source: str) -> set[str]:
    """Return the package's own modules that running code imports."""
    return {module for name in imports(source) if (module := module_of(name)) is not None}


def all_imports(source: str) -> set[str]:
    """Return the package's own modules that are imported, including those only for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {module for name in found if (module := module_of(name)) is not None}


def module_of(name: str) -> str | None:
    """Return our module that a dotted name leads to, as a path without suffix; None if it is not ours."""
    package, *parts = name.split(".")
    while package == "dexcom2mqtt" and parts:
        path = "/".join(parts)
        if (ROOT / f"{path}.py").exists() or (ROOT / path / "__init__.py").exists():
            return path
        parts.pop()
    return None


def reads_the_clock(source: str) -> bool:
    """Return whether the source imports ``time`` or asks a datetime or date for the current time."""
    if any(name.partition(".")[0] == "time" for name in imports(source)):
        return True
    return any(
        isinstance(node, ast.Attribute)
        and node.attr in NOW
        and ast.unparse(node.value).rpartition(".")[2] in {"datetime", "date"}
        for node in ast.walk(ast.parse(source))
    )


def place_of(path: Path) -> str:
    """Return the name of a module as ``module_of`` does."""
    return path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__")


def prints(source: str) -> bool:
    """Return whether the source calls ``print``."""
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        for node in ast.walk(ast.parse(source))
    )


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


# --- the rules ---------------------------------------------------------------------------------------------


def test_finds_the_modules() -> None:
    """The rules are checked against the actual package, except the demo."""
    assert set(map(place_of, MODULES)) >= PURE
    assert len(EVERY_MODULE) > len(MODULES)


@pytest.mark.parametrize("library", sorted(THIRD_PARTY))
def test_each_library_is_imported_by_one_module(library: str) -> None:
    """Each third-party library is used by only one module, except in the demo."""
    assert len(users := [path for path in MODULES if library in libraries(path.read_text())]) <= 1, names(users)


def test_uses_no_other_library() -> None:
    """Every import is Python's, the package's own, or one of the known libraries."""
    for path in EVERY_MODULE:
        assert libraries(path.read_text()) <= THIRD_PARTY, path.name


def test_only_the_demo_uses_its_libraries() -> None:
    """The daemon runs without the demo's libraries."""
    for path in MODULES:
        assert libraries(path.read_text()).isdisjoint({"amqtt", "rich"}), path.name


def test_only_the_command_line_starts_the_demo() -> None:
    """Only the command line knows the demo."""
    knowing = [path for path in MODULES if any(each.startswith("demo") for each in own_imports(path.read_text()))]
    assert names(knowing) in ([], ["cli.py"])


def test_only_the_clock_reads_clocks() -> None:
    """Only the clock module reads the time, so that a test can set it."""
    assert names([path for path in MODULES if reads_the_clock(path.read_text())]) == ["clock.py"]


TIMELESS = {f"dexcom2mqtt.clock.{name}" for name in ("DAY", "iso", "parse_iso", "growing_pause")}
"""What the clock module offers that reads no clock."""


def test_pure_modules_stay_pure() -> None:
    """Modules that decide neither connect nor wait: they import no library, and only other pure modules."""
    for path in MODULES:
        if place_of(path) in PURE:
            source = path.read_text()
            assert libraries(source) == set(), path.name
            assert own_imports(source) <= PURE | {"clock"}, path.name
            assert {name for name in imports(source) if "dexcom2mqtt.clock" in name} <= TIMELESS
            assert imports(source) & {"socket", "select", "http.client", "urllib.request", "subprocess"} == set()


def test_readings_know_nothing_else() -> None:
    """A reading is made only from the record: the module imports none of the package's own."""
    assert own_imports((ROOT / "readings.py").read_text()) == set()


WINGS = {
    "share": {"share"},
    "account": {"account"},
    "messages": {"messages"},
    "mqtt": {"mqtt"},
    "web": {"web"},
    "config": {"config"},
    "daemon": {"daemon"},
    "commands": {"commands"},
}
"""Which modules or folders belong together. All others may be used by all."""
COMMON = {"readings", "clock", "topics", "shards", "logs", "threads", "waker"}
NEVER = {
    "share": {"account", "messages", "mqtt", "web", "config", "daemon", "commands"},
    "messages": {"account", "mqtt", "web", "share", "daemon", "commands"},
    "account": {"mqtt", "web", "daemon", "commands"},
    "mqtt": {"share", "account", "web", "daemon", "commands"},
    "web": {"share", "account", "mqtt", "daemon", "commands"},
    "config": {"messages", "share", "account", "mqtt", "web", "daemon", "commands"},
    "daemon": {"commands"},
    "commands": {"daemon"},
}
"""What each of them must never import."""


def wing_of(module: str) -> str | None:
    return next((wing for wing, parts in WINGS.items() if module.partition("/")[0] in parts), None)


def test_every_module_has_a_place() -> None:
    """A new module belongs to a wing, or may be used by all."""
    places = set(map(place_of, MODULES))
    assert places == {place for place in places if wing_of(place)} | COMMON | {"cli", "__main__", "__init__"}


def test_no_wing_has_a_forbidden_import() -> None:
    """Data flows one way, including imports for type checkers."""
    known = {(place_of(path), other) for path in MODULES for other in all_imports(path.read_text())}
    broken = {
        (module, other)
        for module, other in known
        if (wing := wing_of(module)) is not None and wing_of(other) in NEVER[wing]
    }
    assert broken == set()
    assert not {(module, other) for module, other in known if module in COMMON and wing_of(other) is not None}


def test_no_circle() -> None:
    """No module imports itself through others, not even for type checkers."""
    waiting = {place_of(path): all_imports(path.read_text()) for path in MODULES}
    while free := {module for module, others in waiting.items() if not (others - {module}) & waiting.keys()}:
        waiting = {module: others for module, others in waiting.items() if module not in free}
    assert waiting == {}


MOST_LINES = {ast.Module: 400, ast.ClassDef: 200, ast.FunctionDef: 45}
"""The most lines of a module, class and function, so that each can be read in one go."""


def too_long(source: str) -> set[str]:
    """Return what has too many lines, with their number."""
    tree = ast.parse(source)
    found = {f"module: {lines}" for lines in [len(source.splitlines())] if lines > MOST_LINES[ast.Module]}
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.end_lineno is not None:
            first = min(each.lineno for each in [node, *node.decorator_list])
            lines = node.end_lineno - first + 1
            found |= {f"{node.name}: {lines}"} if lines > MOST_LINES[type(node)] else set()
    return found


def test_nothing_is_too_long_to_read() -> None:
    """A module has at most 400 lines, a class 200 and a function 45, except in the demo."""
    assert {place_of(path): long for path in MODULES if (long := too_long(path.read_text()))} == {}


@pytest.mark.parametrize("path", EVERY_MODULE, ids=names(EVERY_MODULE))
def test_every_module_says_what_it_is(path: Path) -> None:
    """Each module begins with a sentence."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert docstring.split("\n", 1)[0].rstrip().endswith(".")


def test_only_the_command_line_prints() -> None:
    """A daemon logs, and only commands print, except the demo."""
    assert names([path for path in MODULES if prints(path.read_text())]) in ([], ["cli.py"])


# --- the rules find what breaks them -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import requests.adapters as a", {"requests"}),
        ("from paho.mqtt import client", {"paho"}),
        ("def f():\n    import yaml", {"yaml"}),
        ("if TYPE_CHECKING:\n    import yaml\nelse:\n    import certifi", {"certifi"}),
        ("if typing.TYPE_CHECKING:\n    import yaml", set()),
        ("try:\n    import yaml\nexcept ImportError:\n    import tenacity", {"yaml", "tenacity"}),
        ("import json\nfrom dexcom2mqtt import clock", set()),
    ],
)
def test_finds_libraries(source: str, found: set[str]) -> None:
    """An import counts wherever it is, except for type checkers."""
    assert libraries(source) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import time", True),
        ("from time import sleep", True),
        ("import datetime\ndatetime.datetime.now()", True),
        ("from datetime import datetime\nnow = datetime.now", True),
        ("datetime.utcnow()", True),
        ("date.today()", True),
        ("if TYPE_CHECKING:\n    import time", False),
        ("self._clock.now()\nself.time.now()", False),
        ("from datetime import datetime\ndatetime.fromtimestamp(0)", False),
    ],
)
def test_finds_clocks(source: str, *, found: bool) -> None:
    """Every way to ask Python for the time counts; asking our own clock does not."""
    assert reads_the_clock(source) is found


def test_finds_modules_classes_and_functions_that_are_too_long() -> None:
    """Decorators count, and a method is a function."""
    method = "class A:\n    @one\n    def f(self):\n" + 43 * "        pass\n"
    assert too_long(method) == set()
    assert too_long(method + "        pass\n") == {"f: 46"}
    assert too_long("class A:\n" + 200 * "    a = 1\n") == {"A: 201"}
    assert too_long(401 * "a = 1\n") == {"module: 401"}


def test_finds_own_imports_and_prints() -> None:
    """Own modules are found in both forms of import, and print only if it is called."""
    assert own_imports(
        "from dexcom2mqtt import clock\nimport dexcom2mqtt.share\nfrom dexcom2mqtt.demo import app, nothing"
    ) == {"clock", "share", "demo", "demo/app"}
    assert prints("def f():\n    print(1)")
    assert not prints("log(print_it)\nself.print()")
