"""Callers, and the only module that decides what they may do and see.

A route declares what it requires, and is available only to callers that have it. What lists, recursion,
single objects, operations, events and websocket secrets return is then decided by the caller's `Scope`, which
is created here, so that a caller sees the same objects everywhere.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from utsuwa.core.entitlements import OF_SERVER, Entitlement, Entity
from utsuwa.core.errors import Forbidden
from utsuwa.core.scope import EVERYTHING, NOTHING, Policy, Scope

NOT_AUTHORIZED = "not authorized"
"""LXD's error message for untrusted callers, which clients recognize."""


class Access(enum.Enum):
    """What a route requires of its caller."""

    PUBLIC = "public"
    """Anyone: the handler returns the public part to untrusted callers, or requires a secret."""
    SECRET = "secret"
    """As `TRUSTED`, or anyone else with a secret that the handler requires of callers who are not trusted."""
    TRUSTED = "trusted"
    """The unix socket, or a client certificate from the trust store."""
    METRICS = "metrics"
    """The same, or a certificate of the type for metrics."""
    ROOT = "root"
    """The host's root on the unix socket."""

    def is_judged(self, caller: Caller) -> bool:
        """Return whether a caller also needs the route's entitlement; otherwise that is up to the handler."""
        return caller.trusted if self is Access.SECRET else self not in (Access.PUBLIC, Access.METRICS)


@dataclass(frozen=True)
class Caller:
    """A caller as authenticated by the transport, never by the content of the request."""

    trusted: bool
    root: bool = False
    """Whether the peer is user 0 on the unix socket."""
    protocol: str = ""
    """`unix` or `tls`; empty for TLS without a trusted certificate."""
    username: str = ""
    """The user's name on the unix socket, the fingerprint of a trusted certificate."""
    fingerprint: str = ""
    """Of the certificate that the peer presented, trusted or not."""
    address: str = ""
    """`host:port` of the peer, `@` for the unix socket."""
    projects: frozenset[str] | None = None
    """The projects of a restricted certificate; None means every project."""
    metrics: bool = False
    """Whether its certificate grants access to metrics (of `projects`), and to nothing else."""
    web: bool = False
    """Whether it is in a session of the web page, and acts for whoever asked for that."""
    label: str = ""
    """The name of the certificate in the trust store, for the log."""


def unix_caller(uid: int, username: str) -> Caller:
    """Return the caller on the unix socket, whose file mode already restricts access."""
    return Caller(trusted=True, root=uid == 0, protocol="unix", username=username, address="@")


def tls_caller(
    *, fingerprint: str, address: str, trusted: bool, projects: frozenset[str] | None = None
) -> Caller:
    """Return the caller of an HTTPS connection; `fingerprint` is empty if it presented no certificate."""
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
    """Raise Forbidden unless `caller` may use a route that requires `access`."""
    if not _allowed(caller, access):
        raise Forbidden(NOT_AUTHORIZED)


def _allowed(caller: Caller, access: Access) -> bool:
    match access:
        case Access.PUBLIC | Access.SECRET:
            return True
        case Access.TRUSTED:
            return caller.trusted
        case Access.METRICS:
            return caller.trusted or caller.metrics
        case Access.ROOT:
            return caller.trusted and caller.root


def scope_of(caller: Caller, unprivileged_only: bool = False) -> Scope:
    """Return the scope of a caller on a server that may allow `unprivileged_only` instances."""
    if not caller.trusted:
        return NOTHING
    restricted = caller.projects is not None
    policy = Policy(restricted=restricted, unprivileged_only=unprivileged_only)
    return Scope(caller.projects, policy, caller.fingerprint if restricted else None, root=caller.root)


def metrics_scope(caller: Caller, scope: Scope) -> Scope:
    """Return the scope in which a caller of metrics sees instances, given that for everything else.

    A caller without a trusted certificate is here because metrics are open to everyone.
    """
    if caller.trusted:
        return scope
    return Scope(caller.projects) if caller.metrics else EVERYTHING


def require(scope: Scope, entity: Entity, entitlement: Entitlement, project: str | None) -> None:
    """Raise Forbidden unless a caller with this scope has the entitlement.

    `project` is the project of the objects; None for the caller's own projects, or if it is only known from
    the object itself. A caller restricted to projects may do everything in them and view server-wide objects,
    but change neither those nor the projects themselves. What it may edit of its own certificate is up to
    `security.certificates`.
    """
    if not scope.restricted:
        return
    harmless = entitlement is Entitlement.CAN_VIEW or (
        entity is Entity.CERTIFICATE and entitlement is Entitlement.CAN_EDIT
    )
    shared = entity in OF_SERVER or entity is Entity.PROJECT
    if (shared and not harmless) or (project is not None and not scope.sees(project)):
        raise Forbidden(NOT_AUTHORIZED)
