"""The settings of the site: `try.yaml`, beside the certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import yaml

from utsuwa.core.errors import InvalidConfig, NotFound
from utsuwa.core.origins import parse_origin
from utsuwa.tryit.addresses import parse_proxy
from utsuwa.tryit.places import FILE

_PORTS = 65536

_Count = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
_Minutes = Annotated[int, msgspec.Meta(ge=1, le=24 * 60)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=10_000)]


class Settings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """One site; `HELP` describes the fields."""

    listen: str = "127.0.0.1:8480"
    origin: str = ""
    proxies: tuple[str, ...] = ()
    metrics: str = "127.0.0.1:9481"
    server: str = "https://127.0.0.1:8443"
    project: str = "try"
    image: str = "try"
    sessions: _Count = 20
    sessions_per_address: _Count = 2
    starts_per_hour: _Count = 20
    minutes: _Minutes = 30
    minutes_unseen: _Minutes = 5
    ready: _Number = 3
    docker_at_once: _Count = 5
    docker_minutes: _Minutes = 10
    data: str = "/var/lib/utsuwa-try"
    user: str = "utsuwa-try"


HELP = {
    "listen": "Address and port of the site. Put a proxy with HTTPS in front of it.",
    "origin": "How browsers see the site, such as https://try.example.org. Requests of pages elsewhere are"
    " rejected. Empty: whatever the Host header says, without HTTPS.",
    "proxies": "Addresses or networks of proxies whose X-Forwarded-For header tells who a visitor is.",
    "metrics": "Address and port of the metrics for Prometheus (/metrics), empty for none. They have no"
    " access control.",
    "server": "The daemon whose containers visitors get. Its certificate is server.crt beside this file.",
    "project": "The project of these containers, to which the site's certificate is restricted.",
    "image": "The image of these containers, as an alias or a fingerprint.",
    "sessions": "Visitors at a time.",
    "sessions-per-address": "The same from one address (IPv6: from one /64; twice as many from one /56,"
    " four times as many from one /48).",
    "starts-per-hour": "Sessions that one address can begin in an hour (IPv6: as above).",
    "minutes": "How long a session lasts.",
    "minutes-unseen": "How long it lasts while no browser shows its terminal.",
    "ready": "Containers that stand ready for the next visitors, besides those in use.",
    "docker-at-once": "Visitors in the tour's step with Docker at a time; others wait there for their turn.",
    "docker-minutes": "How long such a turn lasts, if the visitor does not leave the step earlier.",
    "data": "Directory of feedback.jsonl and statistics.jsonl.",
    "user": "The user that the site runs as, if root starts it.",
}


def load(folder: Path) -> Settings:
    """Read the settings in a directory. Raises NotFound, InvalidConfig."""
    path = folder / FILE
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise NotFound(f"There is no {path}: run `utsuwad try init` first") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidConfig(f"Cannot read {path}: {error}") from error
    try:
        settings = msgspec.convert(found, Settings)
    except msgspec.ValidationError as error:
        raise InvalidConfig(f"{path}: {error}") from error
    _check(settings, path)
    return settings


def _check(settings: Settings, path: Path) -> None:
    for key in ("listen", "metrics"):
        text = getattr(settings, key)
        if text or key == "listen":
            try:
                address(text)
            except ValueError:
                raise InvalidConfig(f"{path}: {key} must be ADDRESS:PORT, not {text!r}") from None
    for text in settings.proxies:
        try:
            parse_proxy(text)
        except ValueError as error:
            raise InvalidConfig(f"{path}: proxies must be addresses or networks: {error}") from None
    if settings.origin and parse_origin(settings.origin) is None:
        raise InvalidConfig(f"{path}: origin must be https://NAME, not {settings.origin!r}")
    if not settings.server.startswith("https://"):
        raise InvalidConfig(f"{path}: server must be https://ADDRESS:PORT, not {settings.server!r}")


def address(text: str) -> tuple[str, int]:
    """Split `ADDRESS:PORT`, the address of IPv6 in brackets. Raises ValueError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not 0 <= int(port) < _PORTS:
        raise ValueError(text)
    return host.strip("[]"), int(port)


def dump(settings: Settings) -> str:
    """Return the text of the file, in which each key is described."""
    values = msgspec.to_builtins(settings)
    return "\n".join(
        f"# {HELP[key]}\n{yaml.safe_dump({key: value}, width=200)}" for key, value in values.items()
    )
