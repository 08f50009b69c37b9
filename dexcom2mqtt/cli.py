"""The command line: commands and exit codes.

Each command imports what it needs when it runs, so that small ones start fast on a Raspberry Pi.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import io
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dexcom2mqtt import version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dexcom2mqtt.commands.check import Step
    from dexcom2mqtt.config.settings import Settings

FAILED: Final = 1
MISCONFIGURED: Final = 78  # EX_CONFIG of sysexits.h

_NARROW: Final = 40
"""Columns; text is never wrapped narrower than this."""
_LEVELS: Final = ("debug", "info", "warning", "error")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0, 1 failed, 78 a problem in the configuration. Wrong usage: 2."""
    # Options may stand before or after the command; with defaults, those after it would overwrite those before it.
    given = _parser().parse_args(arguments, argparse.Namespace(command="run", config=None, log_level=None))
    commands = {
        "run": _run,
        "check": _check,
        "demo": _demo,
        "healthcheck": _healthcheck,
        "purge": _purge,
        "schema": _schema,
    }
    # They are None if they were closed when the program started.
    sys.stdout, sys.stderr = (stream or io.StringIO() for stream in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # write a question mark if an arrow cannot be encoded
            stream.reconfigure(errors="replace")
    try:
        code = commands[given.command](given)
    except KeyboardInterrupt:
        code = _fail("interrupted")
    except BrokenPipeError:
        code = FAILED
    try:
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in {errno.EPIPE, errno.EIO}:
            raise
        # Nobody reads anymore, as with `| head -1`, or the terminal is gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument(
        "--config",
        type=Path,
        metavar="PATH",
        help="configuration file (default: $DEXCOM2MQTT_CONFIG, ./config.yaml or /etc/dexcom2mqtt/config.yaml)",
    )
    common.add_argument("--log-level", choices=_LEVELS, help="overrides log_level of the configuration")
    parser = argparse.ArgumentParser(
        prog="dexcom2mqtt", description="Publish glucose readings from Dexcom Share to MQTT.", parents=[common]
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    # prog is given, because argparse would load the module that measures terminals to find it.
    commands = parser.add_subparsers(prog="dexcom2mqtt", metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, parents=[common])
        command.set_defaults(command=name)
        return command

    add("run", "poll and publish in the foreground until SIGTERM or SIGINT (the default)")
    add("check", "try everything once (configuration, accounts, broker), and say how to fix what fails")
    demo = add("demo", "see it work without account or broker: everything is simulated on this machine")
    demo.add_argument(
        "--speed", type=_speed, default=60.0, metavar="N", help="run the clock N times faster (default: 60)"
    )
    demo.add_argument("--duration", type=_duration, metavar="S", help="end after S real seconds")
    demo.add_argument("--mqtt-port", type=_port, default=0, metavar="P", help="the broker's port (default: a free one)")
    add("healthcheck", "ask the daemon on this machine whether its loops are alive; needs no secret")
    purge = add("purge", "remove what the daemon left at the broker: every retained message, including discovery")
    purge.add_argument("--account", type=_account, metavar="NAME", help="only messages of this account")
    for option, what in (("--base-topic", "base topic"), ("--discovery-prefix", "discovery prefix")):
        help_text = f"a {what} used earlier, instead of the configured one"
        purge.add_argument(option, type=_topic, metavar="TOPIC", help=help_text)
    add("schema", "print the JSON Schema of the configuration, for editors")
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(version())
        parser.exit()


def _number(text: str, least: float, most: float) -> float:
    number = float(text)
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{text} is not between {least:g} and {most:g}")
    return number


def _speed(text: str) -> float:
    return _number(text, 0.1, 3600)


def _duration(text: str) -> float:
    return _number(text, 0, 1e9)


def _port(text: str) -> int:
    return int(_number(text, 0, 65535))


def _account(text: str) -> str:
    from dexcom2mqtt.topics import ACCOUNT_KEY  # noqa: PLC0415  # only what a command needs

    return _matching(text, ACCOUNT_KEY, "is not the key of an account")


def _topic(text: str) -> str:
    from dexcom2mqtt.topics import TOPIC  # noqa: PLC0415  # only what a command needs

    return _matching(text, TOPIC, "is not a topic of letters, digits, _ and -, in levels separated by /")


def _matching(text: str, pattern: str, otherwise: str) -> str:
    if not re.fullmatch(pattern, text):
        raise argparse.ArgumentTypeError(f"{text!r} {otherwise}")
    return text


def _run(given: argparse.Namespace) -> int:
    # Before anything that takes time, so that a stop during startup counts.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    gc.disable()  # loaded modules stay; looking for garbage in them would take a fifth of the startup time
    settings = _load(given)
    if settings is None:
        return MISCONFIGURED
    if settings.broken_files:
        import logging  # noqa: PLC0415  # only what a command needs

        for problem in settings.broken_files:
            logging.getLogger("dexcom2mqtt").error("an account is left out: %s", problem)
    # First: Python 3.11 takes far longer to compile the patterns of its libraries deeper in the call stack.
    from dexcom2mqtt.share.errors import VariableError  # noqa: I001, PLC0415
    from dexcom2mqtt import threads  # noqa: PLC0415
    from dexcom2mqtt.daemon import process  # noqa: PLC0415  # only what a command needs
    from dexcom2mqtt.mqtt import tls_files  # noqa: PLC0415

    gc.freeze()  # no need to scan them later either
    gc.enable()
    try:
        code = process.run(settings)
    except (tls_files.TlsFileError, VariableError) as error:
        return _complain([str(error)])
    except (process.SecondDaemonError, threads.ThreadError) as error:
        code = _fail(str(error))
    # The threads still exist, some perhaps inside a call that hangs. To end in time and with this code, do not wait
    # for them, and do not let them run while the interpreter shuts down, which can crash it.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _check(given: argparse.Namespace) -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):  # clean up at the broker first
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    settings = _load(given)
    if settings is None:
        return MISCONFIGURED
    from dexcom2mqtt.clock import Clock  # noqa: PLC0415
    from dexcom2mqtt.commands import check  # noqa: PLC0415  # only what a command needs
    from dexcom2mqtt.mqtt import tls_files  # noqa: PLC0415
    from dexcom2mqtt.share.errors import VariableError  # noqa: PLC0415

    failed = 0
    try:
        for step in check.check(settings, Clock()):
            failed += step.verdict == "failed"
            _print_step(step)
    except (tls_files.TlsFileError, VariableError) as error:
        return _complain([str(error)])
    if failed:
        code = _fail(f"{failed} {'step' if failed == 1 else 'steps'} failed; see above for what to do")
        return MISCONFIGURED if settings.broken_files else code
    print("All is well.")
    return 0


def _print_step(step: Step) -> None:
    """Print a step and its remedies, no wider than the terminal."""
    import shutil  # noqa: PLC0415  # only what a command needs
    import textwrap  # noqa: PLC0415

    width = max(shutil.get_terminal_size().columns, _NARROW)

    def fill(first: str, text: str) -> str:
        return textwrap.fill(
            text, width, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False
        )

    verdict = {"ok": "ok", "note": "note", "failed": "FAILED"}[step.verdict]
    print(fill(f"{verdict:<8}", f"{step.subject}: {step.text}"))
    for number, remedy in enumerate(step.remedies, 1):
        print(fill(f"{'':8}{number}. ", remedy))
    sys.stdout.flush()


def _demo(given: argparse.Namespace) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})  # the imports take time
    from dexcom2mqtt.logs import set_up_logging  # noqa: PLC0415

    set_up_logging(given.log_level or "warning")
    try:
        from dexcom2mqtt.demo import app  # noqa: PLC0415  # its libraries are an extra
    except ImportError as error:
        pip = Path(sys.executable).parent / "pip"
        return _fail(f"the demo needs {error.name}; install the extra demo, in the clone: {pip} install '.[demo]'")
    code = app.run(speed=given.speed, duration=given.duration, mqtt_port=given.mqtt_port)
    with contextlib.suppress(OSError):  # nobody reads anymore, as with `| head -1`
        sys.stdout.flush()
    os._exit(code)  # as in ``_run``


def _healthcheck(given: argparse.Namespace) -> int:
    from dexcom2mqtt.config.naming import client_id  # noqa: PLC0415
    from dexcom2mqtt.config.problems import ConfigError  # noqa: PLC0415  # only what a command needs
    from dexcom2mqtt.daemon.asking import HEALTHY, ask  # noqa: PLC0415

    try:
        answer = ask(client_id(given.config))
    except ConfigError as error:
        return _complain(error.problems)
    if answer != HEALTHY:
        return _fail(answer)
    print(answer)
    return 0


def _purge(given: argparse.Namespace) -> int:
    settings = _load(given)
    if settings is None:
        return MISCONFIGURED
    from dexcom2mqtt.clock import Clock  # noqa: PLC0415
    from dexcom2mqtt.commands import purge  # noqa: PLC0415  # only what a command needs
    from dexcom2mqtt.daemon.asking import broker_of  # noqa: PLC0415
    from dexcom2mqtt.mqtt import dialling, tls_files  # noqa: PLC0415

    name = settings.connection.client_id
    if broker_of(name) is not None:
        return _fail(
            f"a daemon with the mqtt.client_id {name} is running on this machine: stop it first, or it would publish "
            "everything again"
        )

    try:
        print(
            purge.purge(
                settings,
                Clock(),
                account=given.account,
                base_topic=given.base_topic,
                discovery_prefix=given.discovery_prefix,
            )
        )
    except tls_files.TlsFileError as error:
        return _complain([str(error)])
    except (dialling.BrokerError, purge.PurgeError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted: some messages may be left; run purge again")
    return 0


def _schema(_given: argparse.Namespace) -> int:
    from dexcom2mqtt.config.editors import schema  # noqa: PLC0415  # only what a command needs

    print(schema())
    return 0


def _load(given: argparse.Namespace) -> Settings | None:
    """Read the configuration and set up logging; if it is not valid, print every problem and return None."""
    import logging  # noqa: PLC0415

    from dexcom2mqtt.config.loading import load  # noqa: PLC0415  # only what a command needs
    from dexcom2mqtt.config.problems import ConfigError  # noqa: PLC0415
    from dexcom2mqtt.logs import set_up_logging  # noqa: PLC0415

    try:
        settings = load(given.config)
    except ConfigError as error:
        _complain(error.problems)
        return None
    set_up_logging(given.log_level or settings.log_level)
    for warning in settings.warnings:
        logging.getLogger("dexcom2mqtt").warning("%s", warning)
    return settings


def _fail(why: str) -> int:
    print(f"dexcom2mqtt: {why}", file=sys.stderr)
    return FAILED


def _complain(problems: Sequence[str]) -> int:
    print("dexcom2mqtt: the configuration cannot be used:", file=sys.stderr)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    return MISCONFIGURED
