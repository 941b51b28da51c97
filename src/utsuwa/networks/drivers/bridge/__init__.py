"""Type `bridge`: a bridge with addresses, DHCP and DNS by dnsmasq, and firewall rules."""

from __future__ import annotations

from utsuwa.networks.base import NetworkType
from utsuwa.networks.drivers.bridge.driver import BridgeDriver
from utsuwa.networks.drivers.bridge.keys import BRIDGE_KEYS

__all__ = ["BRIDGE"]

BRIDGE = NetworkType(name="bridge", keys=BRIDGE_KEYS, driver=BridgeDriver.on, new_names="utsuwabr")
