"""Services that systemd confines, in unprivileged containers without `security.nesting`."""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import images
from tests.support.daemon import Daemon
from tests.support.long import usually
from tests.support.systemd import system_state

pytestmark = [pytest.mark.root, pytest.mark.debian]

TABLE = tomllib.loads((Path(__file__).parents[1] / "support/sandboxing.toml").read_text())
UNITS: dict[str, dict[str, Any]] = TABLE["units"]
"""The same options are tested under AppArmor by `tests/stock/checks/apparmor.py`."""
RELEASES = {"debian12": images.debian, "debian13": images.debian_13}


@pytest.fixture(scope="module", params=["debian12", pytest.param("debian13", marks=pytest.mark.long)])
def guest(request: pytest.FixtureRequest, module_daemon: Daemon) -> str:
    """A container that has just booted, with what the lines of the table look for."""
    name: str = request.param
    image = RELEASES[name]()
    module_daemon.import_image(image.metadata, image.rootfs, alias=name)
    module_daemon.lxc("launch", name, name)
    assert (system_state(module_daemon, name), failed(module_daemon, name)) == ("running", "")
    module_daemon.lxc("exec", name, "--", "sh", input=TABLE["prepare"])
    return name


def failed(daemon: Daemon, name: str) -> str:
    return daemon.lxc("exec", name, "--", "systemctl", "--failed", "--no-legend").stdout


def properties(name: str) -> list[str]:
    found: list[str] = UNITS[name].get("properties", [f"{name}=yes"])
    return found


def serve(
    daemon: Daemon, guest: str, options: Sequence[str], script: str
) -> subprocess.CompletedProcess[str]:
    """Run a script as a service with these properties."""
    words = ["systemd-run", "--wait", "--pipe", "--quiet", "--collect", *(f"--property={o}" for o in options)]
    return daemon.lxc("exec", guest, "--", *words, "sh", "-c", script, check=False)


@pytest.mark.parametrize("name", usually([name for name in UNITS if UNITS[name].get("alone")], UNITS))
def test_an_option_is_in_force(module_daemon: Daemon, guest: str, name: str) -> None:
    """Those that can be combined are in short runs, too: below."""
    unit = UNITS[name]
    version = module_daemon.lxc("exec", guest, "--", "systemctl", "--version").stdout.split()[1]
    if int(version) < unit.get("since", 0):
        pytest.skip(f"systemd {version} does not have it")
    ended = serve(module_daemon, guest, properties(name), unit.get("shows", "true"))
    assert ended.returncode == unit.get("refused", 0), ended.stdout + ended.stderr


def test_options_go_together(module_daemon: Daemon, guest: str) -> None:
    together = {name: unit for name, unit in UNITS.items() if not unit.get("alone")}
    options = [option for name in together for option in properties(name)]
    lines = (
        f"{{ {unit['shows']}; }} >/dev/null || echo {name}"
        for name, unit in together.items()
        if "shows" in unit
    )
    ended = serve(module_daemon, guest, options, "\n".join(lines))
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr


def test_what_shows_an_option_fails_without_it(module_daemon: Daemon, guest: str) -> None:
    lines = (
        f"if {{ {unit['shows']}; }} >/dev/null; then echo {name}; fi"
        for name, unit in UNITS.items()
        if "shows" in unit
    )
    ended = serve(module_daemon, guest, [], "\n".join(lines))
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr


def test_no_unit_has_failed(module_daemon: Daemon, guest: str) -> None:
    """The last of all: some options start units of their own, such as a journal."""
    assert (system_state(module_daemon, guest), failed(module_daemon, guest)) == ("running", "")
