"""Validators of config values: each takes a non-empty value and raises InvalidConfig if it is invalid."""

from __future__ import annotations

import ipaddress
import re
import uuid
from base64 import b64decode

from utsuwa.core import clock, schedules
from utsuwa.core.architectures import canonical_architecture
from utsuwa.core.compression import parse_compression
from utsuwa.core.config_keys import Validator, check_integer, parse_bool
from utsuwa.core.errors import InvalidConfig
from utsuwa.core.origins import ANY, parse_origin
from utsuwa.core.units import parse_bytes

MAX_CPUS = 8192
"""The largest number of CPUs that a Linux kernel can be built for."""
MAX_ID = 2**32 - 2
"""The highest user or group id; the one above it means "no id"."""

_DELEGATION = re.compile(r"[A-Za-z0-9_]{1,60}(?:[:,] ?[A-Za-z0-9_]{1,60})*\Z")
_MAX_OPTION = 255
"""Maximum length of a mount option of the kernel."""
_ALLOWANCE = re.compile(r"(?:([0-9]{1,3})%|([0-9]{1,6})ms/([0-9]{1,6})ms)\Z")
_SET_PART = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?\Z")
_KERNEL_LIMIT = re.compile(r"(unlimited|[0-9]{1,19})(?::(unlimited|[0-9]{1,19}))?\Z")
_IDMAP_LINE = re.compile(
    r"(?:uid|gid|both)\s+([0-9]{1,10})(?:-([0-9]{1,10}))?\s+([0-9]{1,10})(?:-([0-9]{1,10}))?\Z"
)
_LISTED_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::[0-9]{1,5})?\Z")
_ID_RANGE = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?\Z")
_HWADDR_PATTERN = re.compile(r"[0-9A-Fa-fx]{2}(?::[0-9A-Fa-fx]{2}){5}\Z")
_SYSCALL_LINE = re.compile(r"(?:[a-z0-9_]+(?:[ \t][ -~\t]*)?|\[[a-z0-9_]+\]|#[ -~\t]*)\Z")
_LXC_LINE = re.compile(r"lxc\.[A-Za-z0-9_.\[\]-]+\s*=.*\Z")
_FUSE_PROGRAM = re.compile(r"[a-z0-9_.]{1,32}=[A-Za-z0-9_+.-]{1,64}\Z")
_MODE = re.compile(r"0?[0-7]{3}\Z")
_MODULE = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_HOST = r"(?:\[[0-9A-Fa-f:.%a-z]*\]|[A-Za-z0-9_.-]*)"
_ADDRESS = re.compile(rf"({_HOST})(?::([0-9]{{1,5}}))?\Z")
_PROXY = re.compile(rf"(?:https?://)?(?:[^\s/@]+@)?{_HOST}(?::[0-9]{{1,5}})?/?\Z")
_TOKENS = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?: *, *[A-Za-z0-9!#$%&'*+.^_`|~-]+)*\Z")
_BARE_IPV6 = re.compile(r"[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*\Z")


def number_set(value: str) -> None:
    """Comma-separated numbers and ranges without duplicates: `0-3,7`."""
    seen: set[int] = set()
    for part in value.split(","):
        match = _SET_PART.match(part.strip())
        if not match or int(match[1]) >= MAX_CPUS or int(match[2] or match[1]) >= MAX_CPUS:
            raise InvalidConfig("must be a set such as 0-3,7")
        numbers = _range(match[1], match[2])
        if not numbers:
            raise InvalidConfig(f"the range {part.strip()} runs backwards")
        if not seen.isdisjoint(numbers):
            raise InvalidConfig(f"{part.strip()} appears more than once")
        seen.update(numbers)


def cpus(value: str) -> None:
    """A number of CPUs, or a set: `2`, `0-3,7`."""
    if re.fullmatch(r"[0-9]{1,9}", value):
        if not 1 <= int(value) <= MAX_CPUS:
            raise InvalidConfig(f"must be between 1 and {MAX_CPUS} CPUs, or a set such as 0-3,7")
        return
    number_set(value)


def numa_nodes(value: str) -> None:
    if value != "balanced":
        number_set(value)


def cpu_allowance(value: str) -> None:
    """A share when the host is busy (`50%`), or time per period (`25ms/100ms`)."""
    match = _ALLOWANCE.match(value)
    if not match:
        raise InvalidConfig("must be a percentage such as 50%, or times such as 25ms/100ms")
    if match[1] and not 1 <= int(match[1]) <= 100:
        raise InvalidConfig("must be between 1% and 100%")
    if match[2] and not (int(match[2]) >= 1 and 1 <= int(match[3]) <= 1000):
        raise InvalidConfig("the time must be at least 1ms, in a period of 1ms to 1000ms")


def size_or_percent(value: str) -> None:
    if not value.endswith("%"):
        parse_bytes(value)
    elif not re.fullmatch(r"[0-9]{1,3}%", value) or not 1 <= int(value[:-1]) <= 100:
        raise InvalidConfig("must be a size such as 512MiB, or between 1% and 100% of the host's memory")


def swap(value: str) -> None:
    """A boolean, or the amount of swap."""
    try:
        parse_bool(value)
    except InvalidConfig:
        parse_bytes(value)


def kernel_limit(value: str) -> None:
    """`soft:hard`, or one value for both; numbers or `unlimited`."""
    match = _KERNEL_LIMIT.match(value)
    if not match:
        raise InvalidConfig("must be a number, unlimited, or soft:hard of these")
    soft, hard = match[1], match[2] or match[1]
    if hard != "unlimited" and (soft == "unlimited" or int(soft) > int(hard)):
        raise InvalidConfig("the soft limit exceeds the hard limit")


def user_id(value: str) -> None:
    check_integer(value)
    if not 0 <= int(value) <= MAX_ID:
        raise InvalidConfig(f"must be between 0 and {MAX_ID}")


def idmap_size(value: str) -> None:
    check_integer(value)
    if not 1 <= int(value) <= MAX_ID:
        raise InvalidConfig(f"must be between 1 and {MAX_ID} ids")


def raw_idmap(value: str) -> None:
    """Lines of `uid|gid|both HOST CONTAINER`, each an id or a range; both ranges have the same length."""
    for line in _lines(value):
        match = _IDMAP_LINE.match(line)
        if not match:
            raise InvalidConfig(
                f"the line {line[:60]!r} is not of the form 'both 1000 1000' or 'uid 50-60 500-510'"
            )
        host, container = _range(match[1], match[2]), _range(match[3], match[4])
        if len(host) == 0 or len(host) != len(container):
            raise InvalidConfig(f"the ranges of the line {line[:60]!r} differ in length or run backwards")
        if max(host[-1], container[-1]) > MAX_ID:
            raise InvalidConfig(f"the line {line[:60]!r} names an id above {MAX_ID}")


def _range(first: str, last: str | None) -> range:
    return range(int(first), int(last or first) + 1)


def fuse_programs(value: str) -> None:
    """Comma-separated programs by file system: `ext4=fuse2fs`."""
    for word in filter(None, (part.strip() for part in value.split(","))):
        if not _FUSE_PROGRAM.match(word):
            raise InvalidConfig(f"{word[:60]!r} is not a file system and the name of a program: ext4=fuse2fs")


def syscalls(value: str) -> None:
    """One system call per line, each optionally followed by what liblxc's policy format allows."""
    for line in _lines(value):
        if not _SYSCALL_LINE.match(line):
            raise InvalidConfig(f"the line {line[:60]!r} does not begin with a system call's name")


def raw_lxc(value: str) -> None:
    """Lines of `lxc.KEY = VALUE`; liblxc's own parser checks them with the rest of the config."""
    for line in _lines(value):
        if not line.startswith("#") and not _LXC_LINE.match(line):
            raise InvalidConfig(f"the line {line[:60]!r} is not of the form lxc.KEY = VALUE")


def kernel_modules(value: str) -> None:
    for name in value.split(","):
        if not _MODULE.match(name.strip()):
            raise InvalidConfig(f"{name.strip()[:40]!r} is not a module name; separate names by commas")


def expiry(value: str) -> None:
    """A time span such as `1H 30M`."""
    schedules.add_span(value, clock.now())


def schedule(value: str) -> None:
    schedules.parse_schedule(value)


def compression(value: str) -> None:
    """A compressor's name and level, and `--rsyncable`: nothing else may reach its command line."""
    parse_compression(value)


def proxy(value: str) -> None:
    """`http://HOST:PORT`, with user and password if needed; the scheme may be omitted."""
    if not _PROXY.match(value):
        raise InvalidConfig("must be a URL such as http://proxy.example:3128")


def architecture(value: str) -> None:
    if canonical_architecture(value) is None:
        raise InvalidConfig("must be an architecture such as x86_64, aarch64 or amd64")


def listen_address(value: str) -> None:
    """`ADDRESS`, `ADDRESS:PORT` or `:PORT`; IPv6 addresses are in brackets if a port follows."""
    if _BARE_IPV6.match(value):
        return
    match = _ADDRESS.match(value)
    if not match or (match[2] and not 1 <= int(match[2]) <= 65535):
        raise InvalidConfig("must be an address and port such as 10.0.0.1:8443, [::]:8443 or :8443")


def ip_addresses(value: str) -> None:
    """Comma-separated IPv4 or IPv6 addresses."""
    for part in value.split(","):
        try:
            ipaddress.ip_address(part.strip())
        except ValueError:
            raise InvalidConfig(
                "must be comma-separated IP addresses such as 192.0.2.1, 2001:db8::1"
            ) from None


def pool_volume(value: str) -> None:
    """Check a custom volume of the default project."""
    pool, slash, volume = value.partition("/")
    if not (pool and slash and volume) or "/" in volume:
        raise InvalidConfig("must be POOL/VOLUME")


def at_least(low: int) -> Validator:
    def check(value: str) -> None:
        check_integer(value)
        if int(value) < low:
            raise InvalidConfig(f"must be {low} or more")

    return check


def list_of(*allowed: str) -> Validator:
    """Return a validator of comma-separated words out of `allowed`."""

    def check(value: str) -> None:
        for word in value.split(","):
            if word.strip() not in allowed:
                raise InvalidConfig(f"{word.strip()[:40]!r} is not one of {', '.join(allowed)}")

    return check


def from_base64(value: str) -> bytes:
    """Decode a value, which may have line breaks. Raises ValueError."""
    return b64decode("".join(value.split()), validate=True)


def base64(value: str) -> None:
    try:
        from_base64(value)
    except ValueError as error:
        raise InvalidConfig("must be in base64") from error


def mode(value: str) -> None:
    if not _MODE.match(value):
        raise InvalidConfig("must be an octal mode such as 0660")


def absolute_path(value: str) -> None:
    if not value.startswith("/") or not value.isprintable():
        raise InvalidConfig("must be an absolute path")


def delegation(value: str) -> None:
    """Check a mount option of bpffs: `any`, or names, which the kernel knows, or masks."""
    if len(value) > _MAX_OPTION or not _DELEGATION.match(value):
        raise InvalidConfig(
            f"must be 'any', or names or numbers with ':' or ',' in between, {_MAX_OPTION} characters at most"
        )


def absolute_paths(value: str) -> None:
    for path in value.split(","):
        absolute_path(path.strip())


def hosts(value: str) -> None:
    """Comma-separated names or addresses of hosts, each with or without a port."""
    if not all(_LISTED_HOST.match(entry.strip()) for entry in value.split(",")):
        raise InvalidConfig("must be hosts such as images.example.com, 192.0.2.1:8443 or [2001:db8::1]")


def id_ranges(value: str) -> None:
    """Comma-separated ids and ranges of them: `1000,2000-2999`."""
    parse_id_ranges(value)


def parse_id_ranges(value: str) -> list[range]:
    """Return the ranges of `id_ranges`. Raises InvalidConfig."""
    found = []
    for part in value.split(","):
        match = _ID_RANGE.match(part.strip())
        ids = _range(match[1], match[2]) if match else range(0)
        if not ids or ids[-1] > MAX_ID:
            raise InvalidConfig("must be ids and ranges of ids such as 1000,2000-2999")
        found.append(ids)
    return found


def hwaddr_pattern(value: str) -> None:
    if not _HWADDR_PATTERN.match(value):
        raise InvalidConfig(
            "must be a MAC address with an x for each random digit, such as 00:16:3e:xx:xx:xx"
        )
    if "x" not in value:
        raise InvalidConfig("must have an x for each random digit: otherwise, all addresses would be equal")
    if value[1] not in "02468aceACEx":
        raise InvalidConfig("is for multicast addresses: the second digit must be even, or an x")


def is_uuid(value: str) -> None:
    try:
        uuid.UUID(value)
    except ValueError:
        raise InvalidConfig("must be a UUID") from None


def _lines(value: str) -> list[str]:
    """Return the non-empty lines of a text."""
    return [line for line in map(str.strip, value.split("\n")) if line]


def allowed_origin(value: str) -> None:
    """An origin as browsers send it, or `*`."""
    if value != ANY and parse_origin(value) is None:
        raise InvalidConfig("must be an origin such as https://panel.example:8443 (without a path), or *")


def tokens(value: str) -> None:
    """Comma-separated names of methods or headers."""
    if not _TOKENS.match(value):
        raise InvalidConfig("must be comma-separated names")
