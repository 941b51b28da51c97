"""The link settings and the firmware of network interfaces, by the kernel's ethtool interface."""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import struct
from dataclasses import dataclass

_SIOCETHTOOL = 0x8946
_GET_DRIVER, _GET_SETTINGS = 0x03, 0x4C
_REQUEST = struct.Struct("16sP16x")
"""`ifreq`: the interface, and where the request is."""
_DRIVER = struct.Struct("=I32s32s32s32s128x")
_SETTINGS = struct.Struct("=IIBBBBBBBbBBBB28x")
_MASKS = 3 * 127
"""Words of the largest masks: of supported, advertised, and the link partner's modes."""
_NO_TRANSCEIVER = 0xFF

_PORTS = {0: "twisted pair", 1: "AUI", 2: "MII", 3: "fibre", 4: "BNC", 5: "directly attached", 0xEF: "none"}
_TRANSCEIVERS = {0: "internal", 1: "external"}
_PORT_BITS = {7: "twisted pair", 8: "AUI", 9: "MII", 10: "fibre", 11: "BNC", 16: "backplane"}
_MODES = {
    0: "10baseT/Half", 1: "10baseT/Full", 2: "100baseT/Half", 3: "100baseT/Full",
    4: "1000baseT/Half", 5: "1000baseT/Full", 12: "10000baseT/Full", 15: "2500baseX/Full",
    17: "1000baseKX/Full", 18: "10000baseKX4/Full", 19: "10000baseKR/Full", 20: "10000baseR/FEC",
    21: "20000baseMLD2/Full", 22: "20000baseKR2/Full", 23: "40000baseKR4/Full", 24: "40000baseCR4/Full",
    25: "40000baseSR4/Full", 26: "40000baseLR4/Full", 27: "56000baseKR4/Full", 28: "56000baseCR4/Full",
    29: "56000baseSR4/Full", 30: "56000baseLR4/Full", 31: "25000baseCR/Full", 32: "25000baseKR/Full",
    33: "25000baseSR/Full", 34: "50000baseCR2/Full", 35: "50000baseKR2/Full", 36: "100000baseKR4/Full",
    37: "100000baseSR4/Full", 38: "100000baseCR4/Full", 39: "100000baseLR4_ER4/Full",
    40: "50000baseSR2/Full", 41: "1000baseX/Full", 42: "10000baseCR/Full", 43: "10000baseSR/Full",
    44: "10000baseLR/Full", 45: "10000baseLRM/Full", 46: "10000baseER/Full", 47: "2500baseT/Full",
    48: "5000baseT/Full", 52: "50000baseKR/Full", 53: "50000baseSR/Full", 54: "50000baseCR/Full",
    55: "50000baseLR_ER_FR/Full", 56: "50000baseDR/Full", 57: "100000baseKR2/Full",
    58: "100000baseSR2/Full", 59: "100000baseCR2/Full", 60: "100000baseLR2_ER2_FR2/Full",
    61: "100000baseDR2/Full", 62: "200000baseKR4/Full", 63: "200000baseSR4/Full",
    64: "200000baseLR4_ER4_FR4/Full", 65: "200000baseDR4/Full", 66: "200000baseCR4/Full",
    67: "100baseT1/Full", 68: "1000baseT1/Full", 69: "400000baseKR8/Full", 70: "400000baseSR8/Full",
    71: "400000baseLR8_ER8_FR8/Full", 72: "400000baseDR8/Full", 73: "400000baseCR8/Full",
}  # fmt: skip
"""The bits of the masks, by include/uapi/linux/ethtool.h."""


@dataclass(frozen=True)
class Link:
    """What an interface's driver reports; the defaults are those of one that reports nothing."""

    port_type: str = ""
    transceiver_type: str = ""
    auto_negotiation: bool = False
    supported_modes: tuple[str, ...] = ()
    supported_ports: tuple[str, ...] = ()
    firmware_version: str = ""


def link(interface: str) -> Link:
    """Ask the kernel about an interface of this network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as opened:
        settings = firmware = b""
        with contextlib.suppress(OSError):
            settings = _settings(opened, interface)
        with contextlib.suppress(OSError):
            firmware = _ask(opened, interface, struct.pack("=I", _GET_DRIVER).ljust(_DRIVER.size, b"\0"))
    return parse(settings, firmware)


def parse(settings: bytes, driver: bytes) -> Link:
    """Parse the kernel's `ethtool_link_settings` with its masks, and `ethtool_drvinfo`; both may be empty."""
    version = _DRIVER.unpack(driver)[3].split(b"\0")[0].decode(errors="replace") if driver else ""
    firmware = "" if version in ("N/A", "") else version
    if not settings:
        return Link(firmware_version=firmware)
    _, _, _, port, _, negotiation, _, _, _, words, transceiver, *_ = _SETTINGS.unpack_from(settings)
    mask = settings[_SETTINGS.size : _SETTINGS.size + 4 * words]
    bits = int.from_bytes(mask, "little")
    return Link(
        port_type=_PORTS.get(port, "other"),
        transceiver_type=_TRANSCEIVERS.get(transceiver, ""),
        auto_negotiation=negotiation == 1,
        supported_modes=tuple(name for bit, name in _MODES.items() if bits >> bit & 1),
        supported_ports=tuple(name for bit, name in _PORT_BITS.items() if bits >> bit & 1),
        firmware_version=firmware,
    )


def _settings(opened: socket.socket, interface: str) -> bytes:
    """The kernel first returns the size of its masks as a negative number, and then fills them."""
    size = _SETTINGS.size + 4 * _MASKS
    first = _ask(opened, interface, _request(0).ljust(size, b"\0"))
    words = -_SETTINGS.unpack_from(first)[9]
    return _ask(opened, interface, _request(words).ljust(size, b"\0"))


def _request(words: int) -> bytes:
    return _SETTINGS.pack(_GET_SETTINGS, 0, 0, 0, 0, 0, 0, 0, 0, words, 0, 0, 0, 0)


def _ask(opened: socket.socket, interface: str, request: bytes) -> bytes:
    """Raises OSError if the driver does not support the request."""
    data = array.array("B", request)
    address, _ = data.buffer_info()
    fcntl.ioctl(opened, _SIOCETHTOOL, _REQUEST.pack(interface.encode(), address))
    return data.tobytes()
