"""The client's configuration directory, in the format of the `lxc` client.

config.yml                 remotes, the default remote, aliases
client.crt, client.key     this client's certificate and key
client.ca                  optional: the authority of servers' certificates
servercerts/<remote>.crt   the accepted certificate of a remote
keyrings/<host>.gpg        optional: the keys with which an image server signs its documents
"""

from __future__ import annotations

import os

from utsuwa.client import lean
from utsuwa.core.errors import AlreadyExists, InvalidRequest, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LOCAL = "local"
ARGUMENTS = "@ARGS@"
"""Placeholder in an alias for the remaining arguments, which are appended if it is missing."""
_UBUNTU = "https://cloud-images.ubuntu.com"
_BUILT_IN_ALIASES = {"shell": f"exec {ARGUMENTS} -- su -l"}


class Remote:
    """One server. `addr` is `unix://` (the daemon's own socket), `unix:///path` or `https://host:port`.

    Static remotes are built in: they are neither stored nor changed.
    """

    def __init__(
        self,
        addr: str,
        protocol: str = "lxd",
        *,
        public: bool = False,
        auth_type: str = "",
        project: str = "",
        static: bool = False,
    ) -> None:
        self.addr = addr
        self.protocol = protocol
        self.public = public
        self.auth_type = auth_type
        self.project = project
        self.static = static

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Remote:
        """Create from a record of `config.yml`; missing and unknown fields are accepted."""
        return cls(
            str(record.get("addr") or ""),
            str(record.get("protocol") or "lxd"),
            public=bool(record.get("public")),
            auth_type=str(record.get("auth_type") or ""),
            project=str(record.get("project") or ""),
        )

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = {"addr": self.addr}
        if self.auth_type:
            found["auth_type"] = self.auth_type
        if self.project:
            found["project"] = self.project
        if self.protocol:
            found["protocol"] = self.protocol
        found["public"] = self.public
        return found

    @property
    def is_unix(self) -> bool:
        return self.addr.startswith("unix:")


def _built_in() -> dict[str, Remote]:
    return {
        LOCAL: Remote("unix://", static=True),
        "images": Remote("https://images.linuxcontainers.org", "simplestreams", public=True),
        "ubuntu": Remote(f"{_UBUNTU}/releases", "simplestreams", public=True, static=True),
        "ubuntu-daily": Remote(f"{_UBUNTU}/daily", "simplestreams", public=True, static=True),
    }


class ClientConfig:
    """`config.yml`: the remotes, the default one, and command aliases."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.default = LOCAL
        self.remotes = _built_in()
        self.aliases: dict[str, str] = {}
        # Fields of the file that this client does not use.
        self._rest: dict[str, Any] = {}

    def remote(self, name: str) -> Remote:
        """Return a remote. Raises NotFound."""
        try:
            return self.remotes[name]
        except KeyError:
            raise NotFound(f'The remote "{name}" doesn\'t exist: see `utsuwa remote list`') from None

    def split(self, text: str) -> tuple[str, str]:
        """Split `remote:name`; the remote defaults to the default remote. Raises NotFound."""
        remote, found, name = text.partition(":")
        if not found or (remote not in self.remotes and "/" in remote):
            return self.default, text
        self.remote(remote)
        return remote, name

    def alias(self, words: list[str]) -> tuple[int, str]:
        """Return the number of leading words that form an alias (0 for none), and its expansion.

        An alias may consist of several words; the longest match is used. The user's aliases take precedence.
        """
        for known in (self.aliases, _BUILT_IN_ALIASES):
            found = [name for name in known if name.split() == words[: len(name.split())]]
            if found:
                name = max(found, key=lambda name: len(name.split()))
                return len(name.split()), known[name]
        return 0, ""

    # Changes, which `save` stores.

    def add_alias(self, name: str, target: str) -> None:
        """Raises InvalidRequest or AlreadyExists."""
        words = name.split()
        if not words or words[0].startswith("-") or words[0] == "alias" or not name.isprintable():
            raise InvalidRequest(
                f"{name!r} cannot be an alias: use words other than 'alias', without a leading '-'"
            )
        if not target.split():
            raise InvalidRequest(f"The alias {name!r} has no command: give one")
        if name in self.aliases:
            raise AlreadyExists(f"Alias {name} already exists")
        self.aliases[name] = target

    def remove_alias(self, name: str) -> str:
        """Remove an alias and return its target. Raises NotFound."""
        if name not in self.aliases:
            raise NotFound(f"Alias {name} doesn't exist")
        return self.aliases.pop(name)

    def rename_alias(self, old: str, new: str) -> None:
        """Raises NotFound, InvalidRequest or AlreadyExists."""
        if old not in self.aliases:
            raise NotFound(f"Alias {old} doesn't exist")
        self.add_alias(new, self.aliases[old])
        self.remove_alias(old)

    def add(self, name: str, remote: Remote) -> None:
        """Raises InvalidRequest or AlreadyExists."""
        self.check_new_name(name)
        self.remotes[name] = remote

    def check_new_name(self, name: str) -> None:
        """Raises InvalidRequest or AlreadyExists."""
        if not name or ":" in name or "/" in name or name.startswith((".", "-")) or not name.isprintable():
            raise InvalidRequest(
                f"{name!r} cannot be a remote's name: use no ':', no '/', and no leading '.' or '-'"
            )
        if name in self.remotes:
            raise AlreadyExists(f"Remote {name} exists as <{self.remotes[name].addr}>")

    def changeable(self, name: str) -> Remote:
        """Return a remote that may be changed. Raises NotFound, or InvalidRequest if it is built in."""
        remote = self.remote(name)
        if remote.static:
            raise InvalidRequest(f"Remote {name} is built in and cannot be modified")
        return remote

    def remove(self, name: str) -> None:
        """Remove a remote and its accepted certificate. Raises NotFound or InvalidRequest."""
        self.changeable(name)
        if name == self.default:
            raise InvalidRequest(
                f"{name} is the default remote: make another one the default first (`utsuwa remote switch`)"
            )
        del self.remotes[name]
        try:
            os.unlink(self.server_certificate(name))
        except FileNotFoundError:
            pass

    def rename(self, old: str, new: str) -> None:
        """Raises NotFound, InvalidRequest or AlreadyExists."""
        remote = self.changeable(old)
        self.check_new_name(new)
        del self.remotes[old]
        self.remotes[new] = remote
        if self.default == old:
            self.default = new
        try:
            os.rename(self.server_certificate(old), self.server_certificate(new))
        except FileNotFoundError:
            pass

    # Files.

    def server_certificate(self, name: str) -> str:
        """Return the path of a remote's accepted certificate, which need not exist."""
        return f"{self.folder}/servercerts/{name}.crt"

    def keyring(self, host: str) -> str:
        """Return the path of the keys with which an image server signs, which need not exist."""
        from utsuwa.core.signatures import keyring_name

        return f"{self.folder}/keyrings/{keyring_name(host)}"

    @property
    def client_certificate(self) -> str:
        return f"{self.folder}/client.crt"

    @property
    def client_authority(self) -> str:
        """Return the path of the authority of servers' certificates, which need not exist."""
        return f"{self.folder}/client.ca"

    @property
    def client_key(self) -> str:
        return f"{self.folder}/client.key"

    def save(self) -> None:
        """Write `config.yml` atomically, as JSON, which is valid YAML but faster to read at each start."""
        import json

        stored = self._rest | {
            "default-remote": self.default,
            "remotes": {name: r.record() for name, r in self.remotes.items() if not r.static or r.project},
            "aliases": self.aliases,
        }
        self.write("config.yml", json.dumps(stored, indent=2) + "\n")

    def write(self, name: str, text: str) -> None:
        """Write a private file in the client's directory atomically."""
        path = f"{self.folder}/{name}"
        os.makedirs(os.path.dirname(path), mode=0o750, exist_ok=True)
        temporary = f"{path}.new"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)

    def _take(self, stored: dict[str, Any]) -> None:
        for name, record in (stored.pop("remotes", None) or {}).items():
            if name == LOCAL and isinstance(record, dict):
                self.remotes[LOCAL].project = str(record.get("project") or "")
            elif isinstance(record, dict):
                self.remotes[str(name)] = Remote.from_record(record)
        self.default = str(stored.pop("default-remote", None) or LOCAL)
        aliases = stored.pop("aliases", None) or {}
        self.aliases = {str(name): str(target) for name, target in aliases.items()}
        self._rest = stored
        if self.default not in self.remotes:
            raise InvalidRequest(
                f'{self.folder}/config.yml names "{self.default}" as its default remote, '
                "which does not exist: correct default-remote"
            )


def folder_from_environment() -> str:
    """Return `$UTSUWA_CONF`, or `~/.config/utsuwa`."""
    return os.environ.get("UTSUWA_CONF") or os.path.expanduser("~/.config/utsuwa")


def load(folder: str | None = None) -> ClientConfig:
    """Load the configuration from a directory, or the built-in one if it has none. Raises InvalidRequest."""
    config = ClientConfig(folder or folder_from_environment())
    path = f"{config.folder}/config.yml"
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return config
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"Cannot read {path}: {error}") from error
    config._take(_parse(text, path))
    return config


def _parse(text: str, path: str) -> dict[str, Any]:
    stored = _loads(text, path)
    if stored is None:
        return {}
    if not isinstance(stored, dict) or not isinstance(stored.get("remotes") or {}, dict):
        raise InvalidRequest(f"{path} is not a client configuration")
    return stored


def _loads(text: str, path: str) -> Any:
    try:
        return lean.loads(text)
    except ValueError:
        from utsuwa.client import plain_yaml
    try:
        return plain_yaml.loads(text)
    except plain_yaml.NotPlain:
        import yaml
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidRequest(f"{path} is not valid YAML: {error}") from error
