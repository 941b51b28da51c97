"""The messages between daemon and helper, for type checking only: at run time they are plain JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

if TYPE_CHECKING:
    from utsuwa.host.files.confined import Entry


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


class DeviceRequest(ContainerRequest):
    """`allow_device`: let the container's cgroup use a device, or not any more."""

    rule: str
    allow: bool


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
    oom_score: int | None


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


class FilesRequest(TypedDict):
    """`files`: a session.

    Its descriptors are the socket for calls, the root directory, the shared memory, and for unprivileged
    containers the user namespace.
    """


class MountsRequest(TypedDict):
    """`mounts`: a session, whose only descriptor is the socket for calls."""


class SandboxRequest(TypedDict):
    """`sandbox`: its descriptors are the socket on which it is told its job, and its stderr.

    The reply, when it has ended, is the exit status.
    """


class SandboxJob(TypedDict):
    """The job of a sandbox: `send` or `receive`.

    Its descriptors are the mount of the tree, and the streams of the program.
    """

    job: str


class Call(TypedDict):
    """A call in a session; descriptors may come with it."""

    call: str
    args: Sequence[Any]


class CallResult(TypedDict):
    ok: Any


class CallFailed(TypedDict):
    """The OSError of a call."""

    errno: int
    error: str


class Pulled(TypedDict):
    """The reply to `pull`: one of `names` (a directory), `target` (a symlink), or `size` bytes in the buffer.

    `handle` is that of a file of which there is more.
    """

    entry: Entry
    names: list[str] | None
    target: str | None
    size: int
    handle: int | None


class Packed(TypedDict):
    """The reply to `pack`: the number of bytes in the buffer, and whether more follow."""

    size: int
    more: bool


class Unpacked(TypedDict):
    """The reply to `unpack`: the paths that are complete; errno, reason and path of the one that failed."""

    created: list[str]
    failure: tuple[int, str, str] | None
