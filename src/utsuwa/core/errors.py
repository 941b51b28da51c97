"""The exception hierarchy. Each class defines a stable key and its HTTP status.

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
│   └── InUse               400  in-use            (LXD returns 400)
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

TYPE_CHECKING = False  # the client imports this module, and `typing` would take a tenth of its run time
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import ClassVar, Self


class UtsuwaError(Exception):
    """Base class of all errors that are reported to callers; `str(error)` is the message they see."""

    key: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def concerning(self, what: str) -> Self:
        """Return the error with `what` before its message, such as the instance that it concerns."""
        self.message = f"{what}: {self.message}"
        self.args = (self.message,)
        return self


class InvalidRequest(UtsuwaError):
    """The request itself is invalid; repeating it unchanged cannot succeed."""

    key = "invalid-request"
    status = 400


class InvalidName(InvalidRequest):
    key = "invalid-name"


class InvalidConfig(InvalidRequest):
    """A config key, a device or one of their values is invalid."""

    key = "invalid-config"


class InvalidImage(InvalidRequest):
    """An image archive or its metadata is invalid."""

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
    """Another operation is using what this one needs."""

    key = "busy"


class InUse(Conflict):
    """Something else still refers to the object."""

    key = "in-use"
    status = 400


class PreconditionFailed(UtsuwaError):
    key = "precondition-failed"
    status = 412


class OtherMember(UtsuwaError):
    """The requested object is on the host of another member, whose daemon must be used instead."""

    key = "other-member"
    status = 421


class TooLarge(UtsuwaError):
    key = "too-large"
    status = 413


class UnsupportedMedia(UtsuwaError):
    """The route does not accept the body's content type."""

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
    """An operation on the host failed that should have succeeded."""

    key = "host"


class ProcessFailed(HostError):
    """A program exited with an unexpected status, or could not be started.

    `code` is the exit status, `-N` for signal N, `None` if the program never ran.
    """

    key = "process-failed"

    def __init__(self, argv: Sequence[str], code: int | None, stderr: str) -> None:
        self.argv = list(argv)
        self.code = code
        self.stderr = stderr
        why = stderr.strip() or ("could not be started" if code is None else f"exit status {code}")
        super().__init__(f"{argv[0]}: {why}")


class StartFailed(HostError):
    """A container failed to start; the message contains the reason from liblxc's log."""

    key = "start-failed"
