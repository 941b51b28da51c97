"""The trust store: client certificates, and the projects that a restricted one may use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from utsuwa.core.errors import InvalidRequest, NotFound
from utsuwa.core.names import check_fingerprint_prefix
from utsuwa.db import codes, rows
from utsuwa.db.schema import certificates, certificates_projects, projects
from utsuwa.db.transaction import Transaction


@dataclass(frozen=True)
class CertificateRow:
    """`certificate` is PEM; `type` one of `codes.CERTIFICATE_TYPES`; `id` is 0 until the row is stored."""

    id: int
    fingerprint: str
    type: str
    name: str
    certificate: str
    restricted: bool = False
    projects: list[str] = field(default_factory=list)


def get(tx: Transaction, prefix: str) -> CertificateRow:
    """Return the certificate whose fingerprint has this prefix.

    Raises NotFound, InvalidName, UnknownCode, or InvalidRequest if several match.
    """
    start = check_fingerprint_prefix(prefix)
    found = _load(tx, certificates.c.fingerprint.startswith(start))
    if not found:
        raise NotFound("Certificate not found")
    if len(found) > 1:
        raise InvalidRequest(
            f"More than one certificate has a fingerprint that begins with {start!r}: use a longer prefix"
        )
    if found[0].type == codes.UNKNOWN:
        raise codes.unreadable(f"Certificate {found[0].fingerprint[:12]}")
    return found[0]


def get_all(tx: Transaction) -> list[CertificateRow]:
    """Return all certificates, sorted by fingerprint, in two queries. Unknown types are not trusted."""
    return [row for row in _load(tx, sa.true()) if row.type != codes.UNKNOWN]


def insert(tx: Transaction, row: CertificateRow) -> int:
    """Insert a certificate, return its id. Raises AlreadyExists, NotFound (project), InvalidConfig (type)."""
    values = {"fingerprint": row.fingerprint, "certificate": row.certificate, **_editable(row)}
    with rows.unique("Certificate already in trust store"):
        certificate_id = tx.insert(certificates, values)
    _insert_projects(tx, certificate_id, row.projects)
    return certificate_id


def update(tx: Transaction, row: CertificateRow) -> None:
    """Update name, type, restriction and projects of the row with that id. Raises NotFound."""
    statement = certificates.update().where(certificates.c.id == row.id).values(**_editable(row))
    rows.one_changed(tx.execute(statement), "Certificate not found")
    tx.execute(certificates_projects.delete().where(certificates_projects.c.certificate_id == row.id))
    _insert_projects(tx, row.id, row.projects)


def delete(tx: Transaction, certificate_id: int) -> None:
    """Delete a certificate. Raises NotFound."""
    result = tx.execute(certificates.delete().where(certificates.c.id == certificate_id))
    rows.one_changed(result, "Certificate not found")


def _editable(row: CertificateRow) -> dict[str, object]:
    return {
        "type": codes.number(codes.CERTIFICATE_TYPES, row.type, "certificate type"),
        "name": row.name,
        "restricted": row.restricted,
    }


def check_projects(tx: Transaction, names: Sequence[str]) -> dict[str, int]:
    """Return the ids of these projects. Raises NotFound."""
    wanted = sorted(set(names))
    query = sa.select(projects.c.name, projects.c.id).where(projects.c.name.in_(wanted))
    known = {name: project_id for name, project_id in tx.execute(query)}
    for name in wanted:
        if name not in known:
            raise NotFound(f"Project {name!r} not found")
    return known


def _insert_projects(tx: Transaction, certificate_id: int, names: Sequence[str]) -> None:
    if not names:
        return
    known = check_projects(tx, names)
    tx.execute(
        certificates_projects.insert(),
        [{"certificate_id": certificate_id, "project_id": known[name]} for name in sorted(known)],
    )


def _load(tx: Transaction, where: sa.ColumnElement[bool]) -> list[CertificateRow]:
    query = sa.select(certificates).where(where).order_by(certificates.c.fingerprint)
    found = tx.execute(query).all()
    names = (
        sa.select(certificates_projects.c.certificate_id, projects.c.name)
        .join(projects, projects.c.id == certificates_projects.c.project_id)
        .where(certificates_projects.c.certificate_id.in_(sa.select(certificates.c.id).where(where)))
        .order_by(projects.c.name)
    )
    allowed: defaultdict[int, list[str]] = defaultdict(list)
    for certificate_id, name in tx.execute(names):
        allowed[certificate_id].append(name)
    return [
        CertificateRow(
            id=r.id,
            fingerprint=r.fingerprint,
            type=codes.Reader(f"Certificate {r.fingerprint[:12]}").word(codes.CERTIFICATE_TYPES, r.type),
            name=r.name,
            certificate=r.certificate,
            restricted=r.restricted,
            projects=allowed[r.id],
        )
        for r in found
    ]
