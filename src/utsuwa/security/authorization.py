"""Who asks, and the one place that decides what they may do and see.

A route declares what it needs, and is reached only by callers who have it. What a list, its recursion, its
single objects, operations, events and websocket secrets show of the rest is decided by the caller's `Scope`,
which is made here: the same set everywhere.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from utsuwa.core.entitlements import OF_SERVER, Entitlement, Entity
from utsuwa.core.errors import Forbidden
from utsuwa.core.scope import NOTHING, Policy, Scope

NOT_AUTHORIZED = "not authorized"
"""What LXD answers to everybody whom it does not trust; clients know the words."""


class Access(enum.Enum):
    """What a route asks of its caller."""

    PUBLIC = "public"
    """Anybody: the handler shows untrusted callers the public part, or wants a secret."""
    TRUSTED = "trusted"
    """The unix socket, or a client certificate from the trust store."""
    ROOT = "root"
    """The host's root on the unix socket."""


@dataclass(frozen=True)
class Caller:
    """One peer, as its transport proved it: never by what the request says of itself."""

    trusted: bool
    root: bool = False
    """Whether the peer is user 0 on the unix socket."""
    protocol: str = ""
    """`unix` or `tls`; empty for TLS without a trusted certificate."""
    username: str = ""
    """The user's name on the unix socket, the fingerprint of a trusted certificate."""
    fingerprint: str = ""
    """Of the certificate that the peer showed, trusted or not."""
    address: str = ""
    """`host:port` of the peer, `@` for the unix socket."""
    projects: frozenset[str] | None = None
    """What a restricted certificate is held to; None is every project."""


def unix_caller(uid: int, username: str) -> Caller:
    """The peer of the unix socket; its file mode already said that this user may come in."""
    return Caller(trusted=True, root=uid == 0, protocol="unix", username=username, address="@")


def tls_caller(
    *, fingerprint: str, address: str, trusted: bool, projects: frozenset[str] | None = None
) -> Caller:
    """The peer of an HTTPS connection; `fingerprint` is empty where it showed no certificate."""
    if not trusted:
        return Caller(trusted=False, fingerprint=fingerprint, address=address, projects=frozenset())
    return Caller(
        trusted=True,
        protocol="tls",
        username=fingerprint,
        fingerprint=fingerprint,
        address=address,
        projects=projects,
    )


def authorize(caller: Caller, access: Access) -> None:
    """Raises Forbidden unless `caller` may use a route that asks for `access`."""
    if not _allowed(caller, access):
        raise Forbidden(NOT_AUTHORIZED)


def _allowed(caller: Caller, access: Access) -> bool:
    match access:
        case Access.PUBLIC:
            return True
        case Access.TRUSTED:
            return caller.trusted
        case Access.ROOT:
            return caller.trusted and caller.root


def scope_of(caller: Caller, unprivileged_only: bool = False) -> Scope:
    """How far a caller reaches on a server that may allow `unprivileged_only` instances."""
    if not caller.trusted:
        return NOTHING
    restricted = caller.projects is not None
    policy = Policy(restricted=restricted, unprivileged_only=unprivileged_only)
    return Scope(caller.projects, policy, caller.fingerprint if restricted else None)


def require(scope: Scope, entity: Entity, entitlement: Entitlement, project: str | None) -> None:
    """Raises Forbidden unless the caller with this scope has the entitlement.

    `project` is the one that the objects are in; None where the caller's own projects are meant, or where
    only the object itself tells. Whoever is held to some projects does there what they like, looks at what
    the server has for all, and changes neither that nor their projects.
    """
    if not scope.restricted:
        return
    viewing = entitlement is Entitlement.CAN_VIEW
    shared = entity in OF_SERVER or entity is Entity.PROJECT
    if (shared and not viewing) or (project is not None and not scope.sees(project)):
        raise Forbidden(NOT_AUTHORIZED)
