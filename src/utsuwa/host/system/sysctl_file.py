"""Utsuwa's file in /etc/sysctl.d, which raises limits at boot and never lowers them. Blocking.

systemd applies the files of all directories in the order of their names; the last one takes precedence. This
file comes after those of Debian's packages (30-lxc-inotify.conf sets 1024 inotify instances) and before the
administrator's 99-*.conf. Values that another file sets at least as high are omitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.errors import HostError
from utsuwa.host.files.atomic import replace_file
from utsuwa.host.system import kernel_limits

FILE = Path("/etc/sysctl.d/60-utsuwa.conf")
_FOLDERS = tuple(
    Path(folder)
    for folder in ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d")
)
"""A file in an earlier directory overrides those of the same name in later ones."""
_HEAD = """\
# Limits for a host of many containers; docs/host-limits.md of Utsuwa explains them.
# Written by `utsuwad check --raise-limits`, which omits values that are set as high elsewhere.
"""


@dataclass(frozen=True)
class Setting:
    """A setting of another file."""

    value: int
    file: Path


@dataclass(frozen=True)
class Plan:
    at_boot: Mapping[str, int]
    """The content of Utsuwa's file."""
    now: Mapping[str, int]
    """What to set immediately."""
    kept_low: Mapping[str, Setting]
    """Lower values in a file that comes after Utsuwa's, which are not changed."""


def plan(
    wanted: Mapping[str, int],
    current: Mapping[str, int],
    own: Mapping[str, int],
    others: Mapping[str, Setting],
) -> Plan:
    """Plan the changes from the current values, those of Utsuwa's file, and those of all other files.

    Limits that the kernel does not have are omitted.
    """
    at_boot, now, kept_low = {}, {}, {}
    for key, value in wanted.items():
        if key not in current:
            continue
        other = others.get(key)
        if other is not None and other.value < value and other.file.name > FILE.name:
            kept_low[key] = other
            continue
        if current[key] < value:
            now[key] = value
        set_elsewhere = other is not None and other.value >= value
        # A value that is in no file was chosen by the kernel, for example by the size of the memory.
        enough_by_itself = current[key] > value or (current[key] == value and key not in own)
        if not set_elsewhere and not enough_by_itself:
            at_boot[key] = value
    return Plan(at_boot, now, kept_low)


def raise_limits() -> tuple[list[str], bool]:
    """Raise limits that are too low, now and at boot; return what was done, and whether all succeeded.

    The first result is empty if there was nothing to do. Raises HostError if the file cannot be written.
    """
    before = kernel_limits.current()
    own = {key: value for key, value in _settings(FILE) if key in kernel_limits.WANTED}
    planned = plan(kernel_limits.WANTED, before, own, _others())
    said, refused, why = [], {}, ""
    for key, value in planned.now.items():
        try:
            kernel_limits.write(key, value)
            said.append(f"raised {key} from {before[key]} to {value}")
        except OSError as error:
            refused[key], why = value, error.strerror or ""
    if refused:
        wanted = " ".join(f"{key}={value}" for key, value in refused.items())
        said.append(f"cannot be set here ({why}), set it on the machine that this system runs on: {wanted}")
    for key, setting in planned.kept_low.items():
        said.append(f"{key} is still {setting.value}, as set in {setting.file}: raise it there")
    at_boot = {key: value for key, value in planned.at_boot.items() if key not in refused}
    if at_boot != own:
        said.append(_store(at_boot))
    return said, not refused and not planned.kept_low


def _store(values: Mapping[str, int]) -> str:
    try:
        if not values:
            FILE.unlink(missing_ok=True)
            return f"removed {FILE}: all values are set elsewhere"
        FILE.parent.mkdir(mode=0o755, exist_ok=True)
        replace_file(FILE, _HEAD + "".join(f"{key} = {value}\n" for key, value in values.items()), 0o644)
    except OSError as error:
        raise HostError(
            f"Cannot write {FILE}, so limits only apply until the next boot: {error.strerror}"
        ) from error
    return f"{FILE} sets limits at each boot"


def _others() -> dict[str, Setting]:
    """Return the settings of all files except Utsuwa's, by key: the last one takes precedence."""
    files: dict[str, Path] = {}
    for folder in reversed(_FOLDERS):
        files |= {path.name: path for path in _listed(folder)}
    files.pop(FILE.name, None)
    return {key: Setting(value, path) for _, path in sorted(files.items()) for key, value in _settings(path)}


def _listed(folder: Path) -> Iterable[Path]:
    return folder.glob("*.conf") if folder.is_dir() else ()


def _settings(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the numeric settings of a sysctl.d file; none if it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        key, separator, value = line.strip().removeprefix("-").partition("=")
        if separator and not key.startswith(("#", ";")) and value.strip().isdecimal():
            yield key.strip().replace("/", "."), int(value)
