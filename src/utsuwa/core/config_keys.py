"""Config keys as data: one record a key feeds validation, the API's metadata and the docs.

The tables themselves stand beside this module, one for each kind of object (`instance_keys`,
`server_keys`, `pool_keys`); devices keep theirs beside their drivers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from utsuwa.core.errors import InvalidConfig
from utsuwa.core.units import parse_bytes

KeyType = Literal["string", "bool", "integer", "size", "list"]
Scope = Literal["", "container", "virtual-machine"]
"""Whom a key is for; empty means every kind of instance, or what is no instance."""
Validator = Callable[[str], None]
"""Raises InvalidConfig (or ValueError with a reason) for a value that is not acceptable."""


@dataclass(frozen=True)
class ConfigKey:
    """One key. `name` may hold `*` for one free part (`environment.*`, `linux.sysctl.*`)."""

    name: str
    type: KeyType = "string"
    default: str = ""
    live: bool = True
    """Whether a change takes effect while the instance or daemon runs."""
    help: str = ""
    validate: Validator | None = None
    since: str = ""
    """The API extension that brought the key, where there is one."""
    scope: Scope = ""
    secret: bool = False
    """Shown as `true` when set, never in full (LXD does so for trust passwords)."""
    part: str = r"[^\n\r\0]+"
    """What the `*` of a name may stand for, as a regular expression."""
    multiline: bool = False
    """Whether values may have line breaks, beyond the families of keys that always may."""
    in_force: bool = True
    """False for a key that is checked and stored, but has no effect in this version."""


@dataclass(frozen=True)
class KeyTable:
    """The keys of one kind of object, looked up by name or by pattern."""

    kind: str
    keys: tuple[ConfigKey, ...]
    free_prefixes: tuple[str, ...] = ("user.",)
    refused_scope: Scope = ""
    """Keys of this scope are known, but not for this kind of object."""
    _exact: dict[str, ConfigKey] = field(default_factory=dict, compare=False, repr=False)
    _patterns: list[tuple[re.Pattern[str], ConfigKey]] = field(
        default_factory=list, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        for key in self.keys:
            if "*" in key.name:
                pattern = re.compile(re.escape(key.name).replace(r"\*", f"(?:{key.part})") + r"\Z")
                self._patterns.append((pattern, key))
            else:
                self._exact[key.name] = key

    def find(self, name: str) -> ConfigKey | None:
        found = self._exact.get(name)
        if found is not None:
            return found
        return next((key for pattern, key in self._patterns if pattern.match(name)), None)

    def check(self, config: Mapping[str, str]) -> None:
        """Refuse unknown keys and invalid values; every problem of the whole config is named."""
        problems = list(self._problems(config))
        if problems:
            raise InvalidConfig("; ".join(problems))

    def _problems(self, config: Mapping[str, str]) -> Iterable[str]:
        for name, value in config.items():
            if any(c in name for c in "\n\r\0"):
                yield f"Invalid config key {name[:60]!r}: control characters"
            elif name.startswith(self.free_prefixes):
                if "\0" in value:
                    yield f"Invalid value for {name[:60]!r}: contains a NUL character"
            else:
                yield from self._known_problems(name, value)

    def _known_problems(self, name: str, value: str) -> Iterable[str]:
        key = self.find(name)
        if key is None:
            yield f"Unknown configuration key {name[:60]!r} for {self.kind}"
        elif key.scope and key.scope == self.refused_scope:
            yield f"Configuration key {name[:60]!r} is for {key.scope.replace('-', ' ')}s only"
        elif value:
            yield from _value_problem(key, name, value)


_TRUE = {"true", "1", "yes", "on"}
_FALSE = {"false", "0", "no", "off"}
_MULTILINE_PREFIXES = (
    "raw.",
    "user.",
    "cloud-init.",
    "security.syscalls.",
    "systemd.credential",
)


def _value_problem(key: ConfigKey, name: str, value: str) -> Iterable[str]:
    try:
        if "\0" in value:
            raise InvalidConfig("contains a NUL character")
        several_lines = key.multiline or name.startswith(_MULTILINE_PREFIXES)
        if ("\n" in value or "\r" in value) and not several_lines:
            raise InvalidConfig("contains a line break")
        match key.type:
            case "bool":
                parse_bool(value)
            case "integer":
                check_integer(value)
            case "size":
                parse_bytes(value)
            case "string" | "list":
                pass
        if key.validate is not None:
            key.validate(value)
    except (InvalidConfig, ValueError) as error:
        yield f"Invalid value {value[:60]!r} for {name!r}: {error}"


def parse_bool(value: str) -> bool:
    """LXD's booleans: true/false, 1/0, yes/no, on/off, in any case; the empty string is false."""
    lowered = value.lower()
    if lowered in _TRUE:
        return True
    if not lowered or lowered in _FALSE:
        return False
    raise InvalidConfig("must be true or false")


def check_integer(value: str) -> None:
    if not re.fullmatch(r"-?[0-9]{1,19}", value):
        raise InvalidConfig("must be a whole number")


VOLATILE = "volatile."
"""How keys begin that the daemon sets for itself."""


def without_volatile(config: Mapping[str, str]) -> dict[str, str]:
    """What somebody else may decide; a request may hold the rest, for it was shown."""
    return {key: value for key, value in config.items() if not key.startswith(VOLATILE)}


def one_of(*allowed: str) -> Validator:
    def check(value: str) -> None:
        if value not in allowed:
            raise InvalidConfig(f"must be one of {', '.join(allowed)}")

    return check


def integer_between(low: int, high: int) -> Validator:
    def check(value: str) -> None:
        check_integer(value)
        if not low <= int(value) <= high:
            raise InvalidConfig(f"must be between {low} and {high}")

    return check
