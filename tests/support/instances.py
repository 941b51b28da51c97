"""Instances for tests without a daemon: their references, rows and running containers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from utsuwa.core.idmap import IdMap
from utsuwa.core.refs import InstanceRef
from utsuwa.db.codes import State
from utsuwa.db.instance_data import InstanceData
from utsuwa.db.instances import InstanceRow
from utsuwa.instances.model import Running

C1 = InstanceRef("default", "c1")
NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def ref(name: str, project: str = "default") -> InstanceRef:
    return InstanceRef(project, name)


def instance_row(
    name: str = "c1", project: str = "default", *, id: int = 0, state: State = "creating", **data: Any
) -> InstanceRow:
    """A row whose data is that of a new instance, except for the fields in `data`."""
    fields = {"architecture": "x86_64", **data}
    return InstanceRow(id, ref(name, project), InstanceData(**fields), created_at=NOON, state=state)


def running_container(name: str = "c1", pid: int = 10, **config: str) -> Running:
    return Running(1, ref(name), pid, None, {}, config, IdMap())
