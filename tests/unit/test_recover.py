"""What becomes of an instance that does not run when the daemon starts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.instances import instance_row
from utsuwa.db.profiles import ProfileRow
from utsuwa.instances.context import merge
from utsuwa.instances.lifecycle.recover import Outcome, outcome_of
from utsuwa.projects.restrictions import Restrictions

BOOT = "this boot"


def outcome(
    power: str = "",
    boot_id: str = "",
    target: str = "",
    autostart: str = "",
    *,
    ephemeral: bool = False,
    autorestart: bool = False,
) -> Outcome:
    notes = {"volatile.last_state.power": power, "volatile.last_state.boot_id": boot_id}
    config = {key: text for key, text in notes.items() if text}
    row = instance_row(state="ready", ephemeral=ephemeral, config=config)
    profile = ProfileRow(0, "default", "p", config={"boot.autostart": autostart} if autostart else {})
    instance = merge(row, [profile], Restrictions("default"))
    return outcome_of(instance, BOOT, target, autorestart=autorestart)


ENDED = Outcome(was_running=True, ended=True, start=False, delete=False)
AGAIN = Outcome(was_running=True, ended=False, start=True, delete=False)
QUIET = Outcome(was_running=False, ended=False, start=False, delete=False)


@pytest.mark.parametrize("target", ["", "stop"])
def test_a_killed_or_halted_container_is_stopped(target: str) -> None:
    assert outcome("RUNNING", BOOT, target) == ENDED


def test_a_rebooted_container_is_started() -> None:
    assert outcome("RUNNING", BOOT, "reboot") == AGAIN
    assert outcome("RUNNING", BOOT, "reboot", "false") == AGAIN
    assert outcome("RUNNING", BOOT, "reboot", ephemeral=True) == AGAIN


@pytest.mark.parametrize("target", ["", "stop"])
def test_a_container_that_ended_by_itself_is_restarted_where_configured(target: str) -> None:
    assert outcome("RUNNING", BOOT, target, autorestart=True) == AGAIN
    assert outcome("RUNNING", BOOT, target, "false", autorestart=True) == AGAIN
    assert outcome("RUNNING", BOOT, target, ephemeral=True, autorestart=True) == AGAIN
    assert outcome("STOPPED", autorestart=True) == QUIET


@pytest.mark.parametrize("boot_id", ["an earlier boot", ""])
@pytest.mark.parametrize("target", ["", "stop", "reboot"])
def test_running_containers_are_started_after_a_reboot_of_the_host(boot_id: str, target: str) -> None:
    """A shutdown by the daemon leaves no boot's id; what the hook recorded before does not count."""
    assert outcome("RUNNING", boot_id, target) == AGAIN
    assert outcome("RUNNING", boot_id, target, "true") == AGAIN
    assert outcome("RUNNING", boot_id, target, "false") == replace(AGAIN, start=False)


def test_a_container_that_another_server_was_told_to_start_is_not_autostarted() -> None:
    assert outcome("MOVED", autostart="true") == QUIET


@pytest.mark.parametrize("power", ["", "STOPPED"])
def test_a_stopped_container_stays_stopped(power: str) -> None:
    assert outcome(power) == QUIET
    assert outcome(power, target="reboot") == QUIET
    assert outcome(power, autostart="false") == QUIET
    assert outcome(power, ephemeral=True) == QUIET


def test_autostart_starts_stopped_and_killed_containers() -> None:
    assert outcome("STOPPED", autostart="true") == replace(QUIET, start=True)
    assert outcome("RUNNING", BOOT, autostart="true") == replace(ENDED, start=True)


def test_an_ended_ephemeral_instance_is_deleted() -> None:
    assert outcome("RUNNING", BOOT, "stop", ephemeral=True) == replace(ENDED, delete=True)
    assert outcome("RUNNING", BOOT, "stop", "true", ephemeral=True) == replace(ENDED, delete=True)


def test_what_has_been_moved_to_another_server_is_not_started() -> None:
    for autostart in ("", "true"):
        for target in ("", "reboot"):
            assert outcome("MOVED", BOOT, target, autostart, ephemeral=True) == Outcome(
                was_running=True, ended=False, start=False, delete=False
            )
        assert outcome("MOVED", autostart=autostart) == QUIET
