"""The tree of errors. Each class fixes a stable key and an HTTP status; the API maps nothing else.

UtsuwaError                 500  internal
├── InvalidRequest          400  invalid-request
│   ├── InvalidName         400  invalid-name
│   ├── InvalidConfig       400  invalid-config
│   └── InvalidImage        400  invalid-image
├── Forbidden               403  forbidden
├── NotFound                404  not-found
├── MethodNotAllowed        405  method-not-allowed
├── Conflict                409  conflict
│   ├── AlreadyExists       409  already-exists
│   ├── Busy                409  busy
│   └── InUse               400  in-use            (400 is what LXD gives)
├── OtherMember             421  other-member
├── PreconditionFailed      412  precondition-failed
├── TooLarge                413  too-large
├── UnsupportedMedia        415  unsupported-media
├── NotSupportedYet         501  not-supported-yet
├── Unavailable             503  unavailable
├── OutOfSpace              507  out-of-space
├── Cancelled               400  cancelled          (of operations)
└── HostError               500  host
    ├── ProcessFailed       500  process-failed
    └── StartFailed         500  start-failed
"""

from __future__ import annotations

TYPE_CHECKING = False  # the client imports this module, and `typing` would be a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import ClassVar


class UtsuwaError(Exception):
    """Base of all errors that a caller may see; `str(error)` is the sentence that they read."""

    key: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(UtsuwaError):
    """The request itself is wrong; repeating it unchanged cannot help."""

    key = "invalid-request"
    status = 400


class InvalidName(InvalidRequest):
    key = "invalid-name"


class InvalidConfig(InvalidRequest):
    """A config key, a device or one of their values."""

    key = "invalid-config"


class InvalidImage(InvalidRequest):
    """An image archive or its metadata."""

    key = "invalid-image"


class Forbidden(UtsuwaError):
    key = "forbidden"
    status = 403


class NotFound(UtsuwaError):
    key = "not-found"
    status = 404


class MethodNotAllowed(UtsuwaError):
    key = "method-not-allowed"
    status = 405


class Conflict(UtsuwaError):
    key = "conflict"
    status = 409


class AlreadyExists(Conflict):
    key = "already-exists"


class Busy(Conflict):
    """Another operation holds what this one needs."""

    key = "busy"


class InUse(Conflict):
    """Something else still refers to the object."""

    key = "in-use"
    status = 400


class PreconditionFailed(UtsuwaError):
    key = "precondition-failed"
    status = 412


class OtherMember(UtsuwaError):
    """What the request is about lies on the host of another daemon, which has to be asked instead."""

    key = "other-member"
    status = 421


class TooLarge(UtsuwaError):
    key = "too-large"
    status = 413


class UnsupportedMedia(UtsuwaError):
    """A body of a type that the route does not read."""

    key = "unsupported-media"
    status = 415


class NotSupportedYet(UtsuwaError):
    """A documented part of the API that this version does not serve."""

    key = "not-supported-yet"
    status = 501


class Unavailable(UtsuwaError):
    key = "unavailable"
    status = 503


class OutOfSpace(UtsuwaError):
    key = "out-of-space"
    status = 507


class Cancelled(UtsuwaError):
    key = "cancelled"
    status = 400


class HostError(UtsuwaError):
    """The host refused something that should have worked."""

    key = "host"


class ProcessFailed(HostError):
    """A program ended with an exit code that was not accepted, or could not be started.

    `code` is the exit code, `-N` for signal N, `None` where the program never ran.
    """

    key = "process-failed"

    def __init__(self, argv: Sequence[str], code: int | None, stderr: str) -> None:
        self.argv = list(argv)
        self.code = code
        self.stderr = stderr
        why = stderr.strip() or ("could not be started" if code is None else f"exit status {code}")
        super().__init__(f"{argv[0]}: {why}")


class StartFailed(HostError):
    """A container did not start; the message carries the reason from liblxc's log."""

    key = "start-failed"
