"""The judgement of an instance's final configuration, by who wants it and what the server allows."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from tests.support.instances import instance_row
from utsuwa.core.errors import Forbidden, InvalidConfig, InvalidRequest, UtsuwaError
from utsuwa.core.scope import Policy
from utsuwa.db.profiles import ProfileRow
from utsuwa.instances.context import merge
from utsuwa.instances.lifecycle.profile_follower import judge_profile
from utsuwa.instances.model import Loaded
from utsuwa.instances.policy import judge
from utsuwa.projects.restrictions import Restrictions

FREE, RESTRICTED, UNPRIVILEGED = Policy(), Policy(restricted=True), Policy(unprivileged_only=True)
ROOT = {"root": {"type": "disk", "path": "/", "pool": "default"}}
HOOK = {"raw.lxc": "lxc.hook.pre-start = /bin/true"}
HARMLESS = {"raw.lxc": "lxc.environment = A=B"}
BPF = {"security.bpffs.delegate_cmds": "any"}
IDMAP = {"raw.lxc": "lxc.idmap = u 0 0 1"}
PRIVILEGED = {"security.privileged": "true"}


def profile(**config: dict[str, str]) -> ProfileRow:
    return ProfileRow(0, "default", "p", "", config.get("config", {}), ROOT)


def instance(
    own: dict[str, str],
    of_profile: dict[str, str] | None = None,
    restricted: dict[str, str] | None = None,
) -> Loaded:
    row = instance_row(config=own, profiles=["p"])
    return merge(row, [profile(config=of_profile or {})], Restrictions("default", restricted))


def check(instance: Loaded, policy: Policy) -> None:
    judge(instance.data, instance.expanded, instance.restrictions, policy)


@pytest.mark.parametrize(
    ("config", "policy", "error"),
    [
        ({}, RESTRICTED, None),
        (PRIVILEGED, FREE, None),
        (PRIVILEGED, UNPRIVILEGED, Forbidden),
        ({"security.privileged": "false"}, UNPRIVILEGED, None),
        ({"raw.idmap": "both 0 1000"}, UNPRIVILEGED, Forbidden),
        ({"raw.idmap": "both 1000 1000"}, UNPRIVILEGED, Forbidden),
        ({"raw.idmap": "both 1000 1000"}, FREE, None),
        (BPF, FREE, None),
        (BPF, UNPRIVILEGED, Forbidden),
        ({**BPF, **PRIVILEGED}, FREE, InvalidConfig),
        (HOOK, FREE, None),
        (HOOK, UNPRIVILEGED, None),
        (HOOK, RESTRICTED, InvalidConfig),
        (HARMLESS, RESTRICTED, None),
        (IDMAP, FREE, None),
        (IDMAP, UNPRIVILEGED, InvalidConfig),
    ],
)
@pytest.mark.parametrize("where", ["instance", "profile"])
def test_a_policy_applies_to_instances_and_profiles(
    config: dict[str, str], policy: Policy, error: type[UtsuwaError] | None, where: str
) -> None:
    judged = instance(config) if where == "instance" else instance({}, config)
    with pytest.raises(error) if error else nullcontext():
        check(judged, policy)


def test_the_expanded_configuration_is_checked() -> None:
    """What an instance overrides of its profile is not held against it."""
    check(instance({"security.privileged": "false"}, PRIVILEGED), UNPRIVILEGED)
    with pytest.raises(Forbidden):
        check(instance(PRIVILEGED, {"security.privileged": "false"}), UNPRIVILEGED)


def test_invalid_configurations_are_rejected_for_all_callers() -> None:
    unrestricted = Restrictions("default")
    for wrong, error in (
        (merge(instance_row(profiles=["p", "p"]), [profile()], unrestricted), InvalidRequest),
        (merge(instance_row(), [], unrestricted), InvalidConfig),
        (instance({"limits.cpu": "x"}), InvalidConfig),
        (instance({"raw.lxc": "nonsense"}), InvalidConfig),
    ):
        with pytest.raises(error):
            check(wrong, FREE)


def test_unused_profiles_are_checked_for_restricted_callers() -> None:
    judge_profile(FREE, profile(config=HOOK))
    judge_profile(RESTRICTED, profile(config=HARMLESS))
    with pytest.raises(InvalidConfig, match="restricted callers"):
        judge_profile(RESTRICTED, profile(config=HOOK))


@pytest.mark.parametrize("where", ["instance", "profile"])
def test_restrictions_of_the_project_apply(where: str) -> None:
    def judged(restricted: dict[str, str] | None) -> None:
        own, of_profile = (PRIVILEGED, {}) if where == "instance" else ({}, PRIVILEGED)
        check(instance(own, of_profile, restricted), FREE)

    judged(None)
    judged({"restricted.containers.privilege": "allow"})
    with pytest.raises(Forbidden, match=r"restricted\.containers\.privilege=unprivileged"):
        judged({})
