"""`utsuwad try init`: what the site needs of the daemon, and its files. What is there already is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from utsuwa.client import keypair
from utsuwa.client.connect import connect
from utsuwa.client.errors import ApiError
from utsuwa.client.remotes import LOCAL, ClientConfig
from utsuwa.client.server import Server, path_to
from utsuwa.core.errors import InvalidConfig, InvalidRequest
from utsuwa.core.units import parse_bytes
from utsuwa.tryit import settings as settings_file
from utsuwa.tryit.places import CERTIFICATE, FILE, SERVER
from utsuwa.tryit.settings import Settings

_NOT_FOUND = 404
_ADDRESS = "127.0.0.1:8443"
_PORT = "8443"
_CERTIFICATE_NAME = "utsuwa-try"
_SPARE = 5
"""Containers that may exist beyond sessions and ready ones, as some are being deleted."""
_EVERYWHERE = ("", "0.0.0.0", "::")  # noqa: S104 - what a listener's address may be

_PROJECT = {
    "features.images": "false",
    "features.profiles": "true",
    "features.storage.volumes": "true",
    "restricted": "true",
    "restricted.containers.nesting": "allow",
    "restricted.containers.privilege": "isolated",
    "restricted.devices.disk": "managed",
    "restricted.devices.nic": "block",
    "restricted.snapshots": "block",
}
"""The project's containers are nested, unprivileged and isolated, and have no device but their root disk."""
_PROFILE = {
    "security.nesting": "true",
    "security.idmap.isolated": "true",
    "security.devlxd": "false",
    "limits.memory": "512MiB",
    "limits.memory.swap": "false",
    "limits.processes": "500",
    "limits.cpu.allowance": "100ms/100ms",
}


_SUMS = ("limits.memory", "limits.processes")
"""Limits of the profile that the project gets for all containers together."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to set up, and where."""

    folder: Path
    image: str
    project: str
    pool: str
    """Empty for that of the default profile."""
    user: str
    data: str


def set_up(wanted: Request) -> list[str]:
    """Prepare the daemon, write the files, and return what was done. Raises UtsuwaError."""
    config = ClientConfig(str(wanted.folder))
    server = connect(config, LOCAL)
    kept = settings_file.load(wanted.folder) if (wanted.folder / FILE).exists() else None
    _check_image(server, kept.image if kept else wanted.image)
    pool = _pool(server, wanted.pool)
    url = _address(server)
    settings = kept or Settings(
        server=url, image=wanted.image, project=wanted.project, user=wanted.user, data=wanted.data
    )
    done = [f"The daemon listens on {url}"]
    _ensure_project(server, settings)
    _set_limits(server, settings, _ensure_profile(server, settings, pool))
    done.append(f"The project {settings.project} is ready")
    wanted.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    keypair.ensure(config)
    (wanted.folder / SERVER).write_text(_server_certificate(server), encoding="ascii")
    _trust(server, settings, (wanted.folder / CERTIFICATE).read_text(encoding="ascii"))
    done.append(f"Its certificate in {wanted.folder} is restricted to that project")
    file = wanted.folder / FILE
    if kept is None:
        file.write_text(settings_file.dump(settings), encoding="utf-8")
    done.append(f"The settings are in {file}" + (", as they were" if kept else ""))
    return done


def _check_image(server: Server, image: str) -> None:
    if not any(_found(server, path_to("images", *place, image)) for place in (("aliases",), ())):
        raise InvalidRequest(
            f"There is no image {image!r} for the visitors' containers: build it with"
            f" scripts/build-try-image, or name another one with --image or, later, in {FILE}"
        )


def _address(server: Server) -> str:
    """Return the URL of the daemon's HTTPS address, after setting one if there is none."""
    found = str(server.get("/1.0")["config"].get("core.https_address") or "")
    if not found:
        server.patch("/1.0", {"config": {"core.https_address": _ADDRESS}})
        found = _ADDRESS
    parts = urlsplit(f"//{found}")
    host, port = parts.hostname or "", parts.port or _PORT
    if host in _EVERYWHERE:
        host = "127.0.0.1"
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _ensure_project(server: Server, settings: Settings) -> None:
    path = path_to("projects", settings.project)
    found = _found(server, path)
    if found is None:
        described = {"name": settings.project, "description": "Containers of the site's visitors"}
        server.post(path_to("projects"), {**described, "config": _PROJECT})
    else:
        server.patch(
            path, {"config": {key: text for key, text in _PROJECT.items() if key not in found["config"]}}
        )


def _set_limits(server: Server, settings: Settings, profile: Mapping[str, str]) -> None:
    """Limit the project to what its containers need together, by the config of their profile.

    Their profile, and what is in theirs, is the site's own to change: the project is not.
    """
    most = settings.sessions + settings.ready + _SPARE
    limits = {"limits.containers": str(most), "limits.instances": str(most)}
    for key in _SUMS:
        limits[key] = _times(most, key, profile.get(key, ""))
    server.patch(path_to("projects", settings.project), {"config": limits})


def _times(most: int, key: str, text: str) -> str:
    """Raises InvalidRequest if a limit of the profile cannot be added up."""
    try:
        amount = parse_bytes(text)
    except InvalidConfig:
        amount = 0
    if not amount:
        raise InvalidRequest(
            f"{key} must be an amount in the project's profile `default`, not {text!r}: the project's limit"
            " is its multiple"
        )
    return str(most * amount)


def _ensure_profile(server: Server, settings: Settings, pool: str) -> Mapping[str, str]:
    """Give the project's default profile what is missing there, and return its config."""
    path = path_to("profiles", "default")
    profile = server.get(path, project=settings.project)
    root = {"type": "disk", "path": "/", "pool": pool, "readonly": "true"}
    config: Mapping[str, str] = _PROFILE | profile["config"]
    body = {
        "config": config,
        "devices": profile["devices"] or {"root": root},
        "description": profile["description"],
    }
    server.put(path, body, project=settings.project)
    return config


def _found(server: Server, path: str) -> Any:
    """Return an object, or None if there is none."""
    try:
        return server.get(path)
    except ApiError as error:
        if error.code != _NOT_FOUND:
            raise
        return None


def _pool(server: Server, wanted: str) -> str:
    """Return the wanted pool, or else that of the default profile, or any other. Raises InvalidRequest."""
    if wanted:
        if _found(server, path_to("storage-pools", wanted)) is None:
            raise InvalidRequest(f"There is no storage pool {wanted!r}: name another one with --pool")
        return wanted
    devices: dict[str, Any] = server.get(path_to("profiles", "default"))["devices"]
    for device in devices.values():
        if device.get("type") == "disk" and device.get("path") == "/" and device.get("pool"):
            return str(device["pool"])
    pools = server.get(path_to("storage-pools"))
    if not pools:
        raise InvalidRequest("The daemon has no storage pool: run `utsuwad init --auto` first")
    return str(pools[0]).rpartition("/")[2]


def _server_certificate(server: Server) -> str:
    return str(server.get("/1.0")["environment"]["certificate"])


def _trust(server: Server, settings: Settings, certificate: str) -> None:
    """Add the site's certificate to the trust store, restricted to the project."""
    body = {"type": "client", "name": _CERTIFICATE_NAME, "restricted": True, "projects": [settings.project]}
    for known in server.get(path_to("certificates"), recursion="1"):
        if known["certificate"].split() == certificate.split():
            if not known["restricted"] or known["projects"] != [settings.project]:
                server.put(path_to("certificates", known["fingerprint"]), body)
            return
    encoded = "".join(certificate.strip().splitlines()[1:-1])
    server.post(path_to("certificates"), {**body, "certificate": encoded})
