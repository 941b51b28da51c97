"""Type `nic`: veth pairs, whose host end is standalone (p2p) or a port of a bridge."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial

from utsuwa.core.config_keys import ConfigKey, KeyTable, integer_between
from utsuwa.core.errors import HostError, InvalidConfig, NotSupportedYet
from utsuwa.core.names import (
    check_inner_interface_name,
    check_interface_name,
    check_object_name,
    check_veth_name,
)
from utsuwa.core.network_values import ipv4_address, ipv4_subnets, ipv6_address, ipv6_subnets, mac_address
from utsuwa.core.threads import in_thread
from utsuwa.core.units import parse_bits
from utsuwa.devices.base import Device, DeviceHost, DeviceType, RunConfig, a_name
from utsuwa.host.network import routes, traffic, veth
from utsuwa.networks.base import Uplink
from utsuwa.networks.ports import bridge_of, routes_of

NICTYPES = frozenset({"bridged", "ipvlan", "macvlan", "ovn", "p2p", "physical", "routed", "sriov"})

_check_interface = a_name(check_interface_name)
_check_veth = a_name(check_veth_name)
_check_inner = a_name(check_inner_interface_name)
_check_network = a_name(partial(check_object_name, "Network"))


def _check_rate(value: str) -> None:
    parse_bits(value)


def _check_static(value: str, *, version: int) -> None:
    if value != "none":
        (ipv4_address if version == 4 else ipv6_address)(value)


_COMMON = (
    ConfigKey("nictype", help="The kind of interface"),
    ConfigKey("name", help="The interface's name inside", validate=_check_inner),
    ConfigKey("host_name", help="The interface's name on the host", validate=_check_veth),
    ConfigKey("hwaddr", help="The MAC address inside", validate=mac_address),
    ConfigKey("mtu", type="integer", help="The MTU of both ends", validate=integer_between(68, 65535)),
    ConfigKey("boot.priority", type="integer", help="Order of network boot of virtual machines"),
    ConfigKey("limits.ingress", help="Bits a second that may come into the instance", validate=_check_rate),
    ConfigKey("limits.egress", help="Bits a second that may leave the instance", validate=_check_rate),
    ConfigKey("limits.max", help="The same limit for both ways", validate=_check_rate),
    ConfigKey(
        "limits.priority",
        type="integer",
        help="The priority of packets that leave the instance, in place of the instance's own",
        validate=integer_between(0, 2**32 - 1),
    ),
    ConfigKey("ipv4.routes", help="IPv4 subnets that the host reaches over it", validate=ipv4_subnets),
    ConfigKey("ipv6.routes", help="IPv6 subnets that the host reaches over it", validate=ipv6_subnets),
)
_LIMITS = frozenset({"limits.ingress", "limits.egress", "limits.max"})
_PRIORITY = "limits.priority"
_ROUTES = frozenset({"ipv4.routes", "ipv6.routes"})
_ADDRESSES = frozenset({"ipv4.address", "ipv6.address"})


class VethNic(Device):
    """The common part of both nictypes."""

    later = frozenset({"queue.tx.length"})
    live_keys = frozenset({"boot.priority", _PRIORITY}) | _LIMITS | _ROUTES

    def validate(self) -> None:
        super().validate()
        if self.config.get("limits.max") and (
            self.config.get("limits.ingress") or self.config.get("limits.egress")
        ):
            raise self.invalid("limits.max", "is for both directions: omit limits.ingress and limits.egress")

    def add(self, host: DeviceHost) -> RunConfig:
        found = RunConfig()
        if not self.config.get("hwaddr") and not host.volatile(self.name, "hwaddr"):
            reserved = host.reserved.get(self.name, {}).get("hwaddr")
            found.volatile["hwaddr"] = reserved or random_mac(host.naming.mac_pattern)
        if not self.config.get("name") and self._name_is_taken(host):
            found.volatile["name"] = free_nic_name(host)
        return found

    def _name_is_taken(self, host: DeviceHost) -> bool:
        """Whether its assigned name is now that of another device; configured names take precedence."""
        name = host.volatile(self.name, "name")
        return not name or any(
            other != self.name
            and config.get("type") == "nic"
            and (config.get("name") == name or (other < self.name and nic_name(other, config, host) == name))
            for other, config in host.devices.items()
        )

    async def check_start(self, host: DeviceHost) -> None:
        wanted = self.config.get("host_name", "")
        if wanted and wanted != host.volatile(self.name, "host_name"):
            await self._free_host_name(wanted)
        await self._parent(host, RunConfig())

    async def start(self, host: DeviceHost) -> RunConfig:
        run = self.add(host)
        await self._parent(host, run)
        run.volatile["host_name"] = await self._free_host_name(self._host_name(host, run))
        run.nics.append(self._pair(host, run))
        return run

    def _pair(self, host: DeviceHost, run: RunConfig, parent: Uplink | None = None) -> veth.Pair:
        """Return the pair to be created; the default MTU is that of `parent`."""
        mtu = self.config.get("mtu")
        return veth.Pair(
            host_name=run.volatile["host_name"],
            name=self._inner_name(host, run),
            mac=self._mac(host, run),
            mtu=int(mtu) if mtu else parent.mtu if parent is not None else None,
            bridge=bridge_of({**self.config, "type": "nic"}),
        )

    async def started(self, host: DeviceHost) -> None:
        host_name = host.volatile(self.name, "host_name")
        await self._limit(host_name)
        await self.follow_config(host)
        await self._route(host_name, add=routes_of(self.config))

    async def follow_config(self, host: DeviceHost) -> None:
        host_name = host.volatile(self.name, "host_name")
        if host_name:
            await self._prioritize(host, host_name, self._mac(host, RunConfig()))

    async def _prioritize(self, host: DeviceHost, host_name: str, mac: str) -> None:
        priority = int(self.config.get(_PRIORITY) or host.config.get("limits.network.priority") or 0)
        bridge = bridge_of({**self.config, "type": "nic"})
        await host.ports.set_priority(host_name, bridge, mac.lower(), priority)

    async def reserve(self, host: DeviceHost) -> dict[str, str]:
        run = self.add(host)
        host_name = self._host_name(host, run) or await self._free_host_name("")
        return {"host_name": host_name} | {k: v for k, v in run.volatile.items() if k == "hwaddr"}

    async def attach(self, host: DeviceHost) -> RunConfig:
        if host.init_pid is None:
            raise HostError(f"Device {self.name!r}: the instance is not running")
        run = self.add(host)
        parent = await self._parent(host, run)
        reserved = host.reserved.get(self.name, {}).get("host_name", "")
        named = self._host_name(host, run)
        is_free = reserved and not named  # it was chosen as such
        run.volatile["host_name"] = reserved if is_free else await self._free_host_name(reserved or named)
        pair = self._pair(host, run, parent)
        await in_thread(veth.create, pair, host.init_pid)
        try:
            await self._limit(pair.host_name)
            await self._prioritize(host, pair.host_name, pair.mac)
            await self._route(pair.host_name, add=routes_of(self.config))
        except BaseException:
            await self._remove(host, pair.host_name)
            raise
        return run

    async def attached(self, host: DeviceHost) -> bool:
        return await in_thread(veth.exists, host.volatile(self.name, "host_name"))

    async def update(self, host: DeviceHost, old: Mapping[str, str]) -> RunConfig:
        if host.init_pid is None:
            return RunConfig()
        host_name = host.volatile(self.name, "host_name")
        if any(self.config.get(key, "") != old.get(key, "") for key in _LIMITS):
            await traffic.clear(host_name)
            await self._limit(host_name)
        before, now = routes_of(old), routes_of(self.config)
        await self._route(
            host_name,
            add=[subnet for subnet in now if subnet not in before],
            remove=[subnet for subnet in before if subnet not in now],
        )
        return RunConfig()

    async def detach(self, host: DeviceHost) -> RunConfig:
        return await self.stop(host)

    async def killed(self, host: DeviceHost) -> None:
        """Remove the pair early; otherwise, liblxc waits for it after the last process has exited."""
        host_name = host.volatile(self.name, "host_name")
        if host_name:
            await veth.delete(host_name)

    async def stop(self, host: DeviceHost) -> RunConfig:
        """Remove the pair now; the kernel removes it some time after the container's namespace.

        Otherwise, a configured `host_name` would still be in use at an immediate start.
        """
        host_name = host.volatile(self.name, "host_name")
        if not host_name:
            return RunConfig()
        await self._remove(host, host_name)
        return RunConfig(volatile={"host_name": ""})

    async def _remove(self, host: DeviceHost, host_name: str) -> None:
        await self._route(host_name, remove=routes_of(self.config))
        if await in_thread(_remains, host_name):
            await veth.delete(host_name)
            await traffic.remove_helper(host_name)
        await host.ports.set_priority(host_name, "", "", 0)

    async def _route(
        self, host_name: str, *, add: Collection[str] = (), remove: Collection[str] = ()
    ) -> None:
        """Change the host's routes, via the bridge or else via the host's end of the pair."""
        interface = bridge_of({**self.config, "type": "nic"}) or host_name
        if remove:
            await in_thread(routes.remove, interface, remove)
        if add:
            await in_thread(routes.add, interface, add)

    @property
    def _limited(self) -> bool:
        return any(self.config.get(key) for key in _LIMITS)

    async def _limit(self, host_name: str) -> None:
        """Apply the limits, if there are any."""
        if not self._limited:
            return

        def rate(key: str) -> int | None:
            text = self.config.get(key) or self.config.get("limits.max", "")
            return parse_bits(text) if text else None

        await traffic.limit(host_name, to_guest=rate("limits.ingress"), from_guest=rate("limits.egress"))

    async def _parent(self, host: DeviceHost, run: RunConfig) -> Uplink | None:
        """Return the uplink of a managed network, after checking that the interface can use it, or None."""
        return None

    def _host_name(self, host: DeviceHost, run: RunConfig) -> str:
        """Return the name on the host, which may be in use; empty for a random one."""
        if (wanted := self.config.get("host_name", "")) or not host.naming.by_mac:
            return wanted
        return f"lxd{self._mac(host, run).lower().replace(':', '')[2:]}"

    async def _free_host_name(self, wanted: str) -> str:
        """Return `wanted`, or a random name if it is empty. Raises InvalidConfig if it is in use."""
        if wanted:
            if await in_thread(veth.exists, wanted):
                raise InvalidConfig(
                    f"Device {self.name!r}: the host already has an interface {wanted!r}: change 'host_name'"
                )
            return wanted
        for _ in range(100):
            name = f"veth{secrets.token_hex(4)}"
            if not await in_thread(veth.exists, name):
                return name
        raise HostError("cannot find a free name for a network interface")

    def _inner_name(self, host: DeviceHost, run: RunConfig) -> str:
        return self.config.get("name") or run.volatile.get("name") or host.volatile(self.name, "name")

    def _mac(self, host: DeviceHost, run: RunConfig) -> str:
        return self.config.get("hwaddr") or run.volatile.get("hwaddr") or host.volatile(self.name, "hwaddr")


def _remains(host_name: str) -> bool:
    """Return whether a pair is still there; if not, remove what outlives it. Blocking."""
    if veth.exists(host_name):
        return True
    traffic.delete_helper(host_name)
    return False


class P2PNic(VethNic):
    """A point-to-point interface."""

    keys = KeyTable("nic device", _COMMON)


class BridgedNic(VethNic):
    """A port of a bridge: of a network (`network`), or of any bridge of the host (`parent`)."""

    keys = KeyTable(
        "nic device",
        (
            *_COMMON,
            ConfigKey("network", help="The network that the interface belongs to", validate=_check_network),
            ConfigKey(
                "parent", help="The bridge of the host, in place of a network", validate=_check_interface
            ),
            ConfigKey(
                "ipv4.address",
                help="The IPv4 address that the instance gets by DHCP",
                validate=partial(_check_static, version=4),
            ),
            ConfigKey(
                "ipv6.address",
                help="The IPv6 address that the instance gets by DHCP",
                validate=partial(_check_static, version=6),
            ),
        ),
    )
    later = VethNic.later | {
        "ipv4.routes.external",
        "ipv6.routes.external",
        "maas.subnet.ipv4",
        "maas.subnet.ipv6",
        "security.acls",
        "security.acls.default.egress.action",
        "security.acls.default.egress.logged",
        "security.acls.default.ingress.action",
        "security.acls.default.ingress.logged",
        "security.ipv4_filtering",
        "security.ipv6_filtering",
        "security.mac_filtering",
        "security.port_isolation",
        "vlan",
        "vlan.tagged",
    }
    live_keys = VethNic.live_keys | _ADDRESSES

    def validate(self) -> None:
        super().validate()
        if self.config.get("network"):
            for key in ("nictype", "parent"):
                if self.config.get(key):
                    raise self.invalid(key, "cannot be combined with 'network', which determines it")
        elif not self.config.get("parent"):
            raise self.invalid("parent", "is required: set it to a bridge of the host, or set 'network'")

    async def _parent(self, host: DeviceHost, run: RunConfig) -> Uplink | None:
        bridge = self.config.get("network") or self.config["parent"]
        uplink = await host.ports.uplink(self.name, bridge, bool(self.config.get("network")))
        if uplink is not None:
            mac = self._mac(host, run).lower()
            await host.ports.settle_addresses(host.instance, self.name, bridge, mac, self.config)
        return uplink

    async def update(self, host: DeviceHost, old: Mapping[str, str]) -> RunConfig:
        if host.init_pid is not None and any(
            self.config.get(key, "") != old.get(key, "") for key in _ADDRESSES
        ):
            await self._parent(host, RunConfig())
        return await super().update(host, old)


class OtherNic(Device):
    """Types of interfaces that are not supported yet."""

    keys = KeyTable("nic device", ())

    def validate(self) -> None:
        nictype = self.config.get("nictype", "")
        if nictype and nictype not in NICTYPES:
            raise self.invalid("nictype", f"is {nictype!r}: must be one of {', '.join(sorted(NICTYPES))}")
        if not nictype:
            raise self.invalid("nictype", "is required: set network=NAME, or nictype=bridged or p2p")
        raise NotSupportedYet(
            f"Device {self.name!r}: network interfaces with nictype={nictype} are not supported yet: "
            "use bridged or p2p"
        )


def load_nic(name: str, config: Mapping[str, str], instance: bool) -> Device:
    """Return the driver for `network` and `nictype`; the bridged one rejects both together."""
    kind: type[Device] = OtherNic
    if config.get("network") or config.get("nictype") == "bridged":
        kind = BridgedNic
    elif config.get("nictype") == "p2p":
        kind = P2PNic
    return kind(name, config, instance=instance)


def random_mac(pattern: str) -> str:
    """Return a random address of a pattern such as `00:16:3e:xx:xx:xx`; never one for multicast."""
    digits = (
        character if character != "x" else secrets.choice("02468ace" if position == 1 else "0123456789abcdef")
        for position, character in enumerate(pattern)
    )
    return "".join(digits).lower()


def free_nic_name(host: DeviceHost) -> str:
    """Return the first `ethN` that no other interface of the instance has."""
    taken = {
        nic_name(device, config, host)
        for device, config in host.devices.items()
        if config.get("type") in ("nic", "infiniband")
    }
    return next(name for n in range(len(taken) + 1) if (name := f"eth{n}") not in taken)


def nic_name(device: str, config: Mapping[str, str], host: DeviceHost) -> str:
    """Return the name of an interface inside; empty if none was assigned yet."""
    return config.get("name") or host.volatile(device, "name")


def mac_of(device: str, config: Mapping[str, str], host: DeviceHost) -> str:
    """Return the MAC address of an interface; empty if none was assigned yet."""
    return config.get("hwaddr") or host.volatile(device, "hwaddr")


def with_addresses(host: DeviceHost, addresses: Mapping[str, str]) -> DeviceHost:
    """Return the host for a start with these MAC addresses, by names inside, where none is configured."""
    config, reserved = dict(host.config), {}
    for name, device in host.devices.items():
        wanted = addresses.get(nic_name(name, device, host), "") if device.get("type") == "nic" else ""
        if wanted and not device.get("hwaddr") and wanted != host.volatile(name, "hwaddr"):
            config.pop(f"volatile.{name}.hwaddr", None)
            reserved[name] = {"hwaddr": wanted}
    return replace(host, config=config, reserved=reserved)


def check_free_inside(host: DeviceHost, old: Mapping[str, Mapping[str, str]]) -> None:
    """Raise InvalidConfig for a change of a running container in which a name of an interface conflicts.

    `old` are its current devices, `host.devices` the new ones. A name is in use until its interface is
    detached.
    """
    kept = {
        nic_name(name, config, host): name
        for name, config in host.devices.items()
        if config.get("type") == "nic" and _stays(name, config, old)
    }
    for name, config in host.devices.items():
        other = kept.get(config.get("name", ""), name)
        if config.get("type") == "nic" and other != name:
            raise InvalidConfig(
                f"Invalid device {name!r}: 'name' {config['name']!r} is taken by device {other!r} while "
                "the instance is running: use another name, or stop the instance first"
            )


def _stays(name: str, config: Mapping[str, str], old: Mapping[str, Mapping[str, str]]) -> bool:
    return name in old and load_nic(name, config, True).changes_in_place(old[name])


NIC = DeviceType("nic", load_nic, {"nic_bridged": BridgedNic.keys, "nic_p2p": P2PNic.keys})
