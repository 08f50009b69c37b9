"""The tests of brokers on the next Debian, which has newer ones: those that people will have in a few years."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.e2e.test_debian import BARE, CLONE, cloned, in_the_clone
from tests.support.real_brokers import AEDES

pytestmark = [pytest.mark.e2e]

BROKERS = ("mosquitto", "rabbitmq-server", "ejabberd", "nats-server")
SECONDS = 900


def test_the_brokers_of_the_next_debian() -> None:
    """Each of them passes the tests that the brokers of this Debian pass, and Mosquitto is 2.1 or later."""
    if not AEDES.exists():
        pytest.skip("aedes is not installed; .ci/run lets npm install it")
    with cloned((*BARE, "nodejs"), "forky", "sid") as debian:
        policy = debian.inside("/usr/sbin/policy-rc.d")
        policy.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")  # only the tests start services
        policy.chmod(0o755)
        install = (
            "env",
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "install",
            "-y",
            "-qq",
            "--no-install-recommends",
        )
        debian.run(*install, *BROKERS)
        found = re.search(r"mosquitto version 2\.(\d+)", debian.run("mosquitto", "-h", may_fail=True).stdout)
        assert found
        assert int(found[1]) >= 1
        shutil.copytree(AEDES, debian.inside(CLONE / AEDES.name), symlinks=True)
        suite = "scripts/test -m e2e -n 0 tests/e2e/test_brokers.py"
        said = in_the_clone(debian, suite, seconds=SECONDS)
        assert re.search(r"= \d+ passed, \d+ deselected in |= \d+ passed in ", said), said
