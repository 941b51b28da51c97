"""`metadata.tar.xz` of an image, which is the same whenever it is made of the same."""

from __future__ import annotations

import io
import json
import platform
import tarfile
import time

from utsuwa.cli.building.distributions import DISTRIBUTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.building.definition import Definition


def write(path: str, definition: Definition, architecture: str, epoch: int) -> None:
    """Write the archive; `architecture` is Debian's name, `epoch` the time of all that is in it."""
    files = {f"templates/{number}.tpl": t.content for number, t in enumerate(definition.templates)}
    record = json.dumps(_record(definition, architecture, epoch), indent=2).encode() + b"\n"
    with tarfile.open(path, "w:xz", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, "metadata.yaml", record, epoch)
        _add(tar, "templates", None, epoch)
        for name, content in files.items():
            _add(tar, name, content, epoch)


def _add(tar: tarfile.TarFile, name: str, content: bytes | None, epoch: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.mtime = epoch
    if content is None:
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    else:
        entry.mode, entry.size = 0o644, len(content)
    tar.addfile(entry, io.BytesIO(content or b""))


def _record(definition: Definition, architecture: str, epoch: int) -> dict[str, Any]:
    """Return metadata.yaml; JSON is YAML."""
    serial = time.strftime("%Y%m%d_%H%M", time.gmtime(epoch))
    title = DISTRIBUTIONS[definition.distribution].title
    name = f"{definition.distribution}-{definition.release}-{architecture}-{serial}"
    properties = {
        "architecture": architecture,
        "description": f"{title} {definition.release} {architecture} ({serial})",
        "name": definition.name or name,
        "os": title,
        "release": definition.release,
        "serial": serial,
        "variant": definition.variant,
    }
    return {
        "architecture": platform.machine(),
        "creation_date": epoch,
        "properties": dict(sorted((properties | definition.properties).items())),
        "templates": {
            template.path: {
                "when": list(template.when),
                "create_only": template.create_only,
                "template": f"{number}.tpl",
                "properties": template.properties,
            }
            for number, template in enumerate(definition.templates)
        },
    }
