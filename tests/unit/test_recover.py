"""What becomes of an instance that does not run when the daemon starts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from utsuwa.core import clock
from utsuwa.db.instances import InstanceRow
from utsuwa.instances.lifecycle.recover import Fate, judge
from utsuwa.instances.model import Loaded

BOOT = "this boot"
ROW = InstanceRow(
    id=1,
    project="default",
    name="c1",
    architecture="x86_64",
    ephemeral=False,
    stateful=False,
    description="",
    created_at=clock.now(),
    last_used_at=None,
    state="ready",
)


def fate(
    power: str = "", boot_id: str = "", target: str = "", autostart: str = "", *, ephemeral: bool = False
) -> Fate:
    notes = {"volatile.last_state.power": power, "volatile.last_state.boot_id": boot_id}
    row = replace(ROW, ephemeral=ephemeral, config={key: text for key, text in notes.items() if text})
    expanded = {**row.config, **({"boot.autostart": autostart} if autostart else {})}
    return judge(Loaded(row, expanded, {}), BOOT, target)


ENDED = Fate(was_running=True, ended=True, start=False, delete=False)
AGAIN = Fate(was_running=True, ended=False, start=True, delete=False)
QUIET = Fate(was_running=False, ended=False, start=False, delete=False)


@pytest.mark.parametrize("target", ["", "stop"])
def test_one_that_was_killed_or_halted_is_stopped(target: str) -> None:
    assert fate("RUNNING", BOOT, target) == ENDED


def test_one_that_rebooted_runs_again() -> None:
    assert fate("RUNNING", BOOT, "reboot") == AGAIN
    assert fate("RUNNING", BOOT, "reboot", "false") == AGAIN
    assert fate("RUNNING", BOOT, "reboot", ephemeral=True) == AGAIN


@pytest.mark.parametrize("boot_id", ["an earlier boot", ""])
@pytest.mark.parametrize("target", ["", "stop", "reboot"])
def test_what_ran_before_the_machine_rebooted_runs_again(boot_id: str, target: str) -> None:
    """A shutdown by the daemon leaves no boot's id; what the hook recorded before does not count."""
    assert fate("RUNNING", boot_id, target) == AGAIN
    assert fate("RUNNING", boot_id, target, "true") == AGAIN
    assert fate("RUNNING", boot_id, target, "false") == replace(AGAIN, start=False)


@pytest.mark.parametrize("power", ["", "STOPPED"])
def test_one_that_was_stopped_stays_so(power: str) -> None:
    assert fate(power) == QUIET
    assert fate(power, target="reboot") == QUIET
    assert fate(power, autostart="false") == QUIET
    assert fate(power, ephemeral=True) == QUIET


def test_autostart_starts_what_was_stopped_or_killed() -> None:
    assert fate("STOPPED", autostart="true") == replace(QUIET, start=True)
    assert fate("RUNNING", BOOT, autostart="true") == replace(ENDED, start=True)


def test_an_ephemeral_one_that_ended_is_deleted_and_not_started() -> None:
    assert fate("RUNNING", BOOT, "stop", ephemeral=True) == replace(ENDED, delete=True)
    assert fate("RUNNING", BOOT, "stop", "true", ephemeral=True) == replace(ENDED, delete=True)
