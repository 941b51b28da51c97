"""The judgement of an instance's final configuration, by who wants it and what the server allows."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from utsuwa.core.errors import Forbidden, InvalidConfig, InvalidRequest, UtsuwaError
from utsuwa.core.scope import Policy
from utsuwa.db.instances import InstanceRow
from utsuwa.db.profiles import ProfileRow
from utsuwa.instances.context import merge
from utsuwa.instances.lifecycle.update import judge_profile
from utsuwa.instances.model import Loaded
from utsuwa.instances.policy import judge

FREE, RESTRICTED, UNPRIVILEGED = Policy(), Policy(restricted=True), Policy(unprivileged_only=True)
ROOT = {"root": {"type": "disk", "path": "/", "pool": "default"}}
HOOK = {"raw.lxc": "lxc.hook.pre-start = /bin/true"}
HARMLESS = {"raw.lxc": "lxc.environment = A=B"}
IDMAP = {"raw.lxc": "lxc.idmap = u 0 0 1"}
PRIVILEGED = {"security.privileged": "true"}


def profile(**config: dict[str, str]) -> ProfileRow:
    return ProfileRow(0, "default", "p", "", config.get("config", {}), ROOT)


def instance(own: dict[str, str], of_profile: dict[str, str] | None = None) -> Loaded:
    row = InstanceRow(
        id=1,
        project="default",
        name="c1",
        architecture="x86_64",
        ephemeral=False,
        stateful=False,
        description="",
        created_at=datetime(2030, 1, 1, tzinfo=UTC),
        last_used_at=None,
        config=own,
        devices={},
        profiles=["p"],
        state="ready",
    )
    return merge(row, [profile(config=of_profile or {})])


@pytest.mark.parametrize(
    ("config", "policy", "error"),
    [
        ({}, RESTRICTED, None),
        (PRIVILEGED, FREE, None),
        (PRIVILEGED, UNPRIVILEGED, Forbidden),
        ({"security.privileged": "false"}, UNPRIVILEGED, None),
        (HOOK, FREE, None),
        (HOOK, UNPRIVILEGED, None),
        (HOOK, RESTRICTED, InvalidConfig),
        (HARMLESS, RESTRICTED, None),
        (IDMAP, FREE, None),
        (IDMAP, UNPRIVILEGED, InvalidConfig),
    ],
)
@pytest.mark.parametrize("where", ["instance", "profile"])
def test_what_a_policy_allows_wherever_it_is_set(
    config: dict[str, str], policy: Policy, error: type[UtsuwaError] | None, where: str
) -> None:
    judged = instance(config) if where == "instance" else instance({}, config)
    with pytest.raises(error) if error else nullcontext():
        assert judge(judged, policy) is judged


def test_the_merged_configuration_counts() -> None:
    """What an instance overrides of its profile is not held against it."""
    judge(instance({"security.privileged": "false"}, PRIVILEGED), UNPRIVILEGED)
    with pytest.raises(Forbidden):
        judge(instance(PRIVILEGED, {"security.privileged": "false"}), UNPRIVILEGED)


def test_what_is_invalid_whoever_wants_it() -> None:
    judged = instance({})
    for wrong, error in (
        (replace(judged, row=replace(judged.row, profiles=["p", "p"])), InvalidRequest),
        (replace(judged, expanded_devices={}), InvalidConfig),
        (instance({"limits.cpu": "x"}), InvalidConfig),
        (instance({"raw.lxc": "nonsense"}), InvalidConfig),
    ):
        with pytest.raises(error):
            judge(wrong, FREE)


def test_a_profile_that_nothing_uses_is_judged_for_restricted_callers() -> None:
    judge_profile(FREE, profile(config=HOOK))
    judge_profile(RESTRICTED, profile(config=HARMLESS))
    with pytest.raises(InvalidConfig, match="restricted callers"):
        judge_profile(RESTRICTED, profile(config=HOOK))
