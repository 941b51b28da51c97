"""The messages between daemon and helper, for type checking only: at run time they are plain JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict


class Confinement(TypedDict):
    """The confinement of a process inside a container."""

    namespaces: int
    """Flags of `setns`."""
    cgroups: list[str]
    """The process's cgroup directory in each hierarchy."""
    dropped: list[int]
    """Capabilities that are not in the bounding set."""
    personality: int
    no_new_privs: int
    filters: list[str]
    """Seccomp programs in hexadecimal, the oldest first."""
    label: str | None
    """The AppArmor profile, if any."""


class ContainerRequest(TypedDict):
    """`init_pid`, `state`, `console`."""

    name: str
    lxcpath: str


class FreezeRequest(ContainerRequest):
    """`freeze`: freeze or thaw."""

    frozen: bool


class ConfigRequest(TypedDict):
    """`check_config` parses a liblxc config file; `config` also reads the values of `keys`."""

    conf: str
    keys: NotRequired[list[str]]


class NetworkRequest(TypedDict):
    """`network`: the interfaces inside containers, by the pids of their inits."""

    pids: list[int]


class TerminalSize(TypedDict):
    """A pty to create: its size, and the host ids of the slave's owner."""

    width: int
    height: int
    uid: int
    gid: int


class CommandRequest(ContainerRequest):
    """The command of `attach` and `attach_confined`. Without a terminal, three streams are passed."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    uid: int
    gid: int
    terminal: TerminalSize | None
    rlimits: Sequence[tuple[int, int, int]]


class AttachRequest(CommandRequest):
    """`attach`: by liblxc; with `read_back`, the reply contains the confinement of the command."""

    read_back: bool


class ConfinedAttachRequest(CommandRequest):
    """`attach_confined`: with a confinement that was read back; the last descriptor is init's pidfd."""

    confinement: Confinement


class Refused(TypedDict):
    """The reply to a request that failed: the reason, and liblxc's log."""

    error: str
    log: str


class Ended(TypedDict):
    """Sent when a command has ended: -N if killed by signal N; the errno if it could not be executed."""

    code: int
    errno: int | None
