"""What instances share, and others see by its name, while the daemon is killed: profiles and projects."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.support.crash_disks import Devices
from tests.support.crash_steps import Step, same

if TYPE_CHECKING:
    from tests.support.crash_world import World

_DEFAULT = "/1.0/profiles/default"
NIC = "third"
NAMES = ("shared", "node", NIC)
"""The devices that instances have from their profile."""


class Shared:
    """The devices of the profile `default`, the name of another profile, and that of a project."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.profile, self.project = "role0", "room0"
        self.devices: list[Devices] = [{}]
        """What the devices of the profile may be."""
        self.operations: dict[str, Callable[[], Step]] = {
            "profile device change": self.change,
            "profile rename": lambda: self._rename("profiles"),
            "project rename": lambda: self._rename("projects"),
        }
        world.daemon.do("POST", "/1.0/profiles", {"name": self.profile})
        world.daemon.do("POST", "/1.0/projects", {"name": self.project})

    def change(self) -> Step:
        """Give all instances other devices by their profile; at least one instance runs."""
        world = self._world
        world.have(running=True)
        choices: Devices = {
            "shared": {"type": "disk", "source": str(world.disks.sources[1]), "path": "/media"},
            "node": {"type": "unix-char", "source": "/dev/full", "path": "/dev/shared"},
            NIC: {"type": "nic", "nictype": "p2p", "name": "eth2"},
        }
        if world.random.random() < 0.5:
            choices["shared"]["readonly"] = "true"
        new = {name: device for name, device in choices.items() if world.random.random() < 0.6}
        profile = world.daemon.get(_DEFAULT)
        kept = {name: device for name, device in profile["devices"].items() if name not in NAMES}

        def after(done: bool) -> None:
            self.devices = [new] if done else [*self.devices, new]

        return world.step("PUT", _DEFAULT, {"config": profile["config"], "devices": kept | new}, after)

    def _rename(self, kind: str) -> Step:
        old = self.profile if kind == "profiles" else self.project
        new = f"{old[:4]}{int(old[4:]) + 1}"

        def after(done: bool) -> None:
            there = {
                name
                for name in (old, new)
                if self._world.daemon.api("GET", f"/1.0/{kind}/{name}").status == 200
            }
            assert len(there) == 1, f"{old} was renamed to {new}: there are {there}"
            assert new in there or not done, f"{old} was renamed to {new}, and has its old name again"
            if kind == "profiles":
                (self.profile,) = there
            else:
                (self.project,) = there

        return self._world.step("POST", f"/1.0/{kind}/{old}", {"name": new}, after)

    def check(self) -> None:
        daemon = self._world.daemon
        same(
            {p["name"] for p in daemon.get("/1.0/projects?recursion=1")},
            {"default", self.project},
            "projects",
        )
        profiles = {p["name"]: p for p in daemon.get("/1.0/profiles?recursion=1")}
        same(set(profiles), {"default", self.profile}, "profiles")
        found = shared_of(profiles["default"]["devices"])
        assert found in self.devices, f"the profile has {found}, not one of {self.devices}"
        self.devices = [found]
        users = {f"/1.0/instances/{name}" for name in self._world.instances}
        assert users <= set(profiles[self.profile]["used_by"]), "users of the profile"


def shared_of(devices: dict[str, Any]) -> Devices:
    """The devices of these names."""
    return {name: device for name, device in devices.items() if name in NAMES}
