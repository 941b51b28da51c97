"""The messages between daemon and helper, for the type checker alone: at run time they are plain JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict


class Confinement(TypedDict):
    """What the kernel holds of a process inside a container."""

    namespaces: int
    """Flags of `setns`."""
    cgroups: list[str]
    """The process's folder in each hierarchy."""
    dropped: list[int]
    """Capabilities that the bounding set lacks."""
    personality: int
    no_new_privs: int
    filters: list[str]
    """Seccomp programs in hexadecimal, the oldest first."""
    label: str | None
    """The AppArmor profile, where there is one."""


class ContainerRequest(TypedDict):
    """`init_pid`, `state`, `console`."""

    name: str
    lxcpath: str


class FreezeRequest(ContainerRequest):
    """`freeze`: freeze or thaw."""

    frozen: bool


class ConfigRequest(TypedDict):
    """`check_config` parses a file of liblxc; `config` also reads the values of `keys`."""

    conf: str
    keys: NotRequired[list[str]]


class NetworkRequest(TypedDict):
    """`network`: the interfaces inside of containers, by the pids of their inits."""

    pids: list[int]


class TerminalSize(TypedDict):
    """A pty to make: its size, and the host ids that are to own its slave."""

    width: int
    height: int
    uid: int
    gid: int


class CommandRequest(ContainerRequest):
    """What `attach` and `attach_again` run. Beside it: three streams where there is no terminal."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    uid: int
    gid: int
    terminal: TerminalSize | None
    rlimits: Sequence[tuple[int, int, int]]


class AttachRequest(CommandRequest):
    """`attach`: by liblxc; with `read_back` the answer tells the confinement of the command."""

    read_back: bool


class AttachAgainRequest(CommandRequest):
    """`attach_again`: with a confinement that was read back. Beside it, last: a pidfd of the init."""

    confinement: Confinement


class Refused(TypedDict):
    """The answer to a request that failed: a reason, and what liblxc wrote into its log."""

    error: str
    log: str


class Ended(TypedDict):
    """Sent when a command has ended: -N where signal N ended it; the errno where it could not be executed."""

    code: int
    errno: int | None
