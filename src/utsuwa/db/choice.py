"""Choice of the database engine: SQLite in the state directory, unless configured otherwise.

`database.yaml` in the state directory:

    url: postgresql://utsuwa:SECRET@db.example/utsuwa
    member: host1
"""

from __future__ import annotations

import logging
import stat

import msgspec
import yaml

from utsuwa.core.errors import HostError
from utsuwa.core.paths import StatePaths
from utsuwa.db.engine import Engine
from utsuwa.db.sqlite import Sqlite

log = logging.getLogger(__name__)


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """The contents of `database.yaml`; the default of `url` is SQLite, that of `member` the existing name."""

    url: str | None = None
    member: str | None = None


def database_settings(paths: StatePaths, given: Settings | None = None) -> Settings:
    """Merge the settings of the command line (`given`) with those of `database.yaml`.

    Raises HostError for an unreadable file, without quoting it because it may contain a password.
    """
    stored, given = _stored(paths), given or Settings()
    return Settings(given.url or stored.url or None, given.member or stored.member or None)


def _stored(paths: StatePaths) -> Settings:
    try:
        text = paths.database_settings.read_text()
        mode = paths.database_settings.stat().st_mode
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise HostError(f"Cannot read {paths.database_settings}: {error}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning(
            "%s is readable by other users and may contain a password: run chmod 600", paths.database_settings
        )
    try:
        return msgspec.convert(yaml.safe_load(text), Settings)
    except yaml.YAMLError:
        raise HostError(f"{paths.database_settings} is not valid YAML") from None
    except msgspec.ValidationError as error:
        raise HostError(f"{paths.database_settings}: {error}") from None


def engine_for(paths: StatePaths, url: str | None) -> Engine:
    """Return the engine for a URL; None means SQLite. Raises HostError if the URL is not PostgreSQL's."""
    if url is None:
        return Sqlite(paths.database)
    from utsuwa.db.postgres import Postgres

    return Postgres(url)
