"""Type `none`: masks a device of the same name from a profile."""

from __future__ import annotations

from utsuwa.core.config_keys import KeyTable
from utsuwa.devices.base import Device, DeviceHost, DeviceType, RunConfig


class NoDevice(Device):
    keys = KeyTable("none device", ())

    async def attach(self, host: DeviceHost) -> RunConfig:
        return RunConfig()

    async def detach(self, host: DeviceHost) -> RunConfig:
        return RunConfig()


NONE = DeviceType("none", lambda name, config, instance: NoDevice(name, config, instance=instance))
