"""`nic` of type p2p: a veth pair, one end in the container, the other on the host without a bridge."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping

from utsuwa.core.config_keys import ConfigKey, KeyTable, integer_between
from utsuwa.core.errors import HostError, InvalidConfig, NotSupportedYet
from utsuwa.core.names import check_interface_name
from utsuwa.devices.base import Device, DeviceHost, RunConfig, a_name
from utsuwa.host import veth

NICTYPES = frozenset({"bridged", "ipvlan", "macvlan", "ovn", "p2p", "physical", "routed", "sriov"})

_MAC = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}\Z")
_OUI = "00:16:3e"
"""The prefix that Xen's registration made usual for virtual interfaces, as LXC and LXD use it."""


def _check_mac(value: str) -> None:
    if not _MAC.match(value):
        raise InvalidConfig("must be a MAC address such as 00:16:3e:01:02:03")
    if int(value[:2], 16) & 1:
        raise InvalidConfig("must not be a multicast address")


_check_interface = a_name(check_interface_name)


class P2PNic(Device):
    """A point-to-point interface."""

    keys = KeyTable(
        "nic device",
        (
            ConfigKey("nictype", help="The kind of interface"),
            ConfigKey("name", help="The interface's name inside", validate=_check_interface),
            ConfigKey("host_name", help="The interface's name on the host", validate=_check_interface),
            ConfigKey("hwaddr", help="The MAC address inside", validate=_check_mac),
            ConfigKey(
                "mtu", type="integer", help="The MTU of both ends", validate=integer_between(68, 65535)
            ),
            ConfigKey("boot.priority", type="integer", help="Order of network boot of virtual machines"),
        ),
    )
    later = frozenset(
        {
            "ipv4.routes",
            "ipv6.routes",
            "limits.egress",
            "limits.ingress",
            "limits.max",
            "limits.priority",
            "queue.tx.length",
        }
    )
    live = True
    live_keys = frozenset({"boot.priority"})

    def add(self, host: DeviceHost) -> RunConfig:
        found = RunConfig()
        if not self.config.get("hwaddr") and not host.volatile(self.name, "hwaddr"):
            found.volatile["hwaddr"] = random_mac()
        if not self.config.get("name") and not host.volatile(self.name, "name"):
            found.volatile["name"] = free_nic_name(host)
        return found

    async def start(self, host: DeviceHost) -> RunConfig:
        run = self.add(host)
        run.volatile["host_name"] = await self._host_name()
        run.lxc = [
            ("lxc.net.{nic}.type", "veth"),
            ("lxc.net.{nic}.flags", "up"),
            ("lxc.net.{nic}.name", self._inner_name(host, run)),
            ("lxc.net.{nic}.hwaddr", self._mac(host, run)),
            ("lxc.net.{nic}.veth.pair", run.volatile["host_name"]),
        ]
        if self.config.get("mtu"):
            run.lxc.append(("lxc.net.{nic}.mtu", self.config["mtu"]))
        return run

    async def attach(self, host: DeviceHost) -> RunConfig:
        if host.init_pid is None:
            raise HostError(f"Device {self.name!r}: the instance does not run")
        run = self.add(host)
        run.volatile["host_name"] = await self._host_name()
        mtu = self.config.get("mtu")
        pair = veth.Pair(
            host_name=run.volatile["host_name"],
            name=self._inner_name(host, run),
            mac=self._mac(host, run),
            mtu=int(mtu) if mtu else None,
        )
        await asyncio.to_thread(veth.create, pair, host.init_pid)
        return run

    async def detach(self, host: DeviceHost) -> RunConfig:
        return await self.stop(host)

    async def stop(self, host: DeviceHost) -> RunConfig:
        """The kernel removes the pair some time after the container's namespace: do it now.

        A start that follows at once would find a fixed `host_name` taken.
        """
        host_name = host.volatile(self.name, "host_name")
        if not host_name:
            return RunConfig()
        await asyncio.to_thread(veth.delete, host_name)
        return RunConfig(volatile={"host_name": ""})

    async def _host_name(self) -> str:
        wanted = self.config.get("host_name")
        if wanted:
            if await asyncio.to_thread(veth.exists, wanted):
                raise InvalidConfig(
                    f"Device {self.name!r}: the host has an interface {wanted!r} already: change 'host_name'"
                )
            return wanted
        for _ in range(100):
            name = f"veth{secrets.token_hex(4)}"
            if not await asyncio.to_thread(veth.exists, name):
                return name
        raise HostError("no free name for a network interface was found")

    def _inner_name(self, host: DeviceHost, run: RunConfig) -> str:
        return self.config.get("name") or run.volatile.get("name") or host.volatile(self.name, "name")

    def _mac(self, host: DeviceHost, run: RunConfig) -> str:
        return self.config.get("hwaddr") or run.volatile.get("hwaddr") or host.volatile(self.name, "hwaddr")


class OtherNic(Device):
    """Interfaces of kinds that are known but not served yet."""

    keys = KeyTable("nic device", ())

    def validate(self) -> None:
        nictype, network = self.config.get("nictype", ""), self.config.get("network", "")
        if nictype and nictype not in NICTYPES:
            raise self.invalid("nictype", f"is {nictype!r}: must be one of {', '.join(sorted(NICTYPES))}")
        if not nictype and not network:
            raise self.invalid("nictype", "is required: set nictype=p2p")
        what = f"network={network}" if network else f"nictype={nictype}"
        raise NotSupportedYet(
            f"Device {self.name!r}: network interfaces with {what} are not supported yet: use nictype=p2p"
        )


def load_nic(name: str, config: Mapping[str, str], instance: bool) -> Device:
    p2p = config.get("nictype") == "p2p" and not config.get("network")
    return (P2PNic if p2p else OtherNic)(name, config, instance=instance)


def random_mac() -> str:
    """A fresh address `00:16:3e:xx:xx:xx`."""
    tail = secrets.token_bytes(3)
    return f"{_OUI}:{tail[0]:02x}:{tail[1]:02x}:{tail[2]:02x}"


def free_nic_name(host: DeviceHost) -> str:
    """The first `ethN` that no other interface of the instance has."""
    taken = set()
    for device, config in host.devices.items():
        if config.get("type") in ("nic", "infiniband"):
            taken.add(config.get("name") or host.volatile(device, "name"))
    return next(name for n in range(len(taken) + 1) if (name := f"eth{n}") not in taken)
