"""Config keys as data: one record per key is the source of validation, the API's metadata and the docs.

The tables are separate modules, one for each kind of object (`instance_keys`, `server_keys`,
`pool_keys`); devices define their keys next to their drivers.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from utsuwa.core.errors import InvalidConfig
from utsuwa.core.units import parse_bytes

KeyType = Literal["string", "bool", "integer", "size", "list"]
Scope = Literal["", "container", "virtual-machine"]
"""The instance type that a key applies to; empty means all types, or an object other than an instance."""
Validator = Callable[[str], None]
"""Raises InvalidConfig (or ValueError with a reason) if the value is invalid."""


@dataclass(frozen=True)
class _OneOf:
    """The validator of keys with a few values, which clients are told."""

    allowed: tuple[str, ...]

    def __call__(self, value: str) -> None:
        if value not in self.allowed:
            raise InvalidConfig(f"must be one of {', '.join(self.allowed)}")


@dataclass(frozen=True)
class ConfigKey:
    """One key. `name` may contain one `*` wildcard (`environment.*`, `linux.sysctl.*`)."""

    name: str
    type: KeyType = "string"
    default: str = ""
    live: bool = True
    """Whether a change takes effect without restarting the instance or daemon."""
    help: str = ""
    validate: Validator | None = None
    since: str = ""
    """The API extension that introduced the key, if any."""
    scope: Scope = ""
    secret: bool = False
    """Shown as `true` when set, never in clear text (as LXD does for trust passwords)."""
    part: str = r"[^\n\r\0]+"
    """Regular expression for what the `*` of the name matches."""
    multiline: bool = False
    """Whether values may contain line breaks, in addition to the key families that always may."""
    in_force: bool = True
    """False for a key that is validated and stored, but has no effect in this version."""

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it can have, if these are few."""
        if self.type == "bool":
            return ("true", "false")
        return self.validate.allowed if isinstance(self.validate, _OneOf) else ()


@dataclass(frozen=True)
class KeyTable:
    """The keys of one kind of object, looked up by name or by pattern."""

    kind: str
    keys: tuple[ConfigKey, ...]
    free_prefixes: tuple[str, ...] = ("user.",)
    refused_scope: Scope = ""
    """Keys of this scope are known, but rejected on this kind of object."""

    @cached_property
    def _exact(self) -> Mapping[str, ConfigKey]:
        return {key.name: key for key in self.keys if "*" not in key.name}

    @cached_property
    def _families(self) -> Mapping[str, ConfigKey]:
        """The keys with a wildcard, by the group of `_pattern` that matches their names."""
        keys = (key for key in self.keys if "*" in key.name)
        return {f"_{number}": key for number, key in enumerate(keys)}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """One for all: a name of an unknown or late family would be matched with each of dozens otherwise."""
        names = (
            f"(?P<{group}>{re.escape(key.name)})".replace(r"\*", f"(?:{key.part})")
            for group, key in self._families.items()
        )
        return re.compile(rf"(?:{'|'.join(names)})\Z")

    def find(self, name: str) -> ConfigKey | None:
        found = self._exact.get(name)
        if found is not None:
            return found
        match = self._pattern.match(name) if self._families else None
        return None if match is None else self._families[match.lastgroup or ""]

    def without_effect(self, names: Iterable[str]) -> list[str]:
        """Return the keys, of those that are set, that have no effect in this version."""
        found = ((name, self.find(name)) for name in sorted(names))
        return [name for name, key in found if key is not None and not key.in_force]

    def check(self, config: Mapping[str, str]) -> None:
        """Raise InvalidConfig, listing every problem, if any key is unknown or any value is invalid."""
        problems = list(self._problems(config))
        if problems:
            raise InvalidConfig("; ".join(problems))

    def set_only(self, config: Mapping[str, str], old: Collection[str] = ()) -> dict[str, str]:
        """Return the config without keys whose value is empty, which means unset; raises as `check_unset`."""
        self.check_unset(config, old)
        return {key: value for key, value in config.items() if value}

    def check_unset(self, config: Mapping[str, str], old: Collection[str] = ()) -> None:
        """Raise InvalidConfig for empty values of keys that are neither known nor in the `old` config.

        Who unsets a key that is spelled wrongly would believe it gone.
        """
        self.check({key: value for key, value in config.items() if not value and key not in old})

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
            yield f"Unknown configuration key {name[:60]!r} for {self.kind}: {self._instead_of(name)}"
        elif key.scope and key.scope == self.refused_scope:
            yield f"Configuration key {name[:60]!r} is for {key.scope.replace('-', ' ')}s only"
        elif value:
            yield from _value_problem(key, name, value)

    def _instead_of(self, name: str) -> str:
        """Return what to use in place of an unknown key."""
        near = difflib.get_close_matches(name[:60], self._exact, n=1, cutoff=0.8)
        if near:
            return f"did you mean {near[0]!r}?"
        prefix = self.free_prefixes[0] if self.free_prefixes else ""
        return f"remove it, or use the prefix {prefix!r} for a key of your own" if prefix else "remove it"


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
    """Parse an LXD boolean: true/false, 1/0, yes/no, on/off, case-insensitive; the empty string is false."""
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
"""Prefix of the keys that the daemon sets itself."""


def without_volatile(config: Mapping[str, str]) -> dict[str, str]:
    """Return the config without volatile keys, which clients send back because they were shown."""
    return {key: value for key, value in config.items() if not key.startswith(VOLATILE)}


def one_of(*allowed: str) -> Validator:
    return _OneOf(allowed)


def integer_between(low: int, high: int) -> Validator:
    def check(value: str) -> None:
        check_integer(value)
        if not low <= int(value) <= high:
            raise InvalidConfig(f"must be between {low} and {high}")

    return check
