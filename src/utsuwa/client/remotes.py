"""The client's folder: which remotes there are, in the format of the `lxc` client's `config.yml`.

config.yml                 remotes, the default one, aliases
client.crt, client.key     what this client shows to remote servers
servercerts/<remote>.crt   the certificate that was accepted for a remote
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
"""What stands in an alias for the words that follow it; without it they go to its end."""
_BUILT_IN_ALIASES = {"shell": f"exec {ARGUMENTS} -- su -l"}


class Remote:
    """One server. `addr` is `unix://` (the daemon's own socket), `unix:///path` or `https://host:port`.

    A static one is built in: not stored, not changed.
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
        """From `config.yml`; fields that are missing or unknown do not matter."""
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
    }


class ClientConfig:
    """`config.yml`: the remotes, the default one, and command aliases."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.default = LOCAL
        self.remotes = _built_in()
        self.aliases: dict[str, str] = {}
        # What the file held and this client does not use.
        self._rest: dict[str, Any] = {}

    def remote(self, name: str) -> Remote:
        """Raises NotFound."""
        try:
            return self.remotes[name]
        except KeyError:
            raise NotFound(f'The remote "{name}" doesn\'t exist: see `utsuwa remote list`') from None

    def split(self, text: str) -> tuple[str, str]:
        """`remote:name` as remote and name; without a remote it is the default one. Raises NotFound."""
        remote, found, name = text.partition(":")
        if not found or (remote not in self.remotes and "/" in remote):
            return self.default, text
        self.remote(remote)
        return remote, name

    def alias(self, words: list[str]) -> tuple[int, str]:
        """How many words in front are an alias (0 for none), and what it stands for.

        An alias may be several words long, the longest one counts. The user's own go before everything else.
        """
        for known in (self.aliases, _BUILT_IN_ALIASES):
            found = [name for name in known if name.split() == words[: len(name.split())]]
            if found:
                name = max(found, key=lambda name: len(name.split()))
                return len(name.split()), known[name]
        return 0, ""

    # Changes; `save` stores them.

    def add_alias(self, name: str, target: str) -> None:
        """Raises InvalidRequest or AlreadyExists."""
        words = name.split()
        if not words or words[0].startswith("-") or words[0] == "alias" or not name.isprintable():
            raise InvalidRequest(f"{name!r} cannot be an alias: it is words, not 'alias', no '-' in front")
        if not target.split():
            raise InvalidRequest(f"The alias {name!r} stands for nothing: say for which command")
        if name in self.aliases:
            raise AlreadyExists(f"Alias {name} already exists")
        self.aliases[name] = target

    def remove_alias(self, name: str) -> str:
        """What it stood for. Raises NotFound."""
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
                f"{name!r} cannot be a remote's name: no ':', no '/', no '.' or '-' in front"
            )
        if name in self.remotes:
            raise AlreadyExists(f"Remote {name} exists as <{self.remotes[name].addr}>")

    def changeable(self, name: str) -> Remote:
        """Raises NotFound, and InvalidRequest for a built-in remote."""
        remote = self.remote(name)
        if remote.static:
            raise InvalidRequest(f"Remote {name} is built in and cannot be modified")
        return remote

    def remove(self, name: str) -> None:
        """Raises NotFound or InvalidRequest; forgets the accepted certificate as well."""
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
        """Where the accepted certificate of a remote lies, if there is one."""
        return f"{self.folder}/servercerts/{name}.crt"

    @property
    def client_certificate(self) -> str:
        return f"{self.folder}/client.crt"

    @property
    def client_key(self) -> str:
        return f"{self.folder}/client.key"

    def save(self) -> None:
        """Write `config.yml`, whole or not at all. JSON is YAML, and quicker to read at each start."""
        import json

        stored = self._rest | {
            "default-remote": self.default,
            "remotes": {name: r.record() for name, r in self.remotes.items() if not r.static or r.project},
            "aliases": self.aliases,
        }
        self.write("config.yml", json.dumps(stored, indent=2) + "\n")

    def write(self, name: str, text: str) -> None:
        """A private file in the client's folder, whole or not at all."""
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
                "which it does not hold: correct its default-remote"
            )


def folder_from_environment() -> str:
    """`$UTSUWA_CONF`, else `~/.config/utsuwa`."""
    return os.environ.get("UTSUWA_CONF") or os.path.expanduser("~/.config/utsuwa")


def load(folder: str | None = None) -> ClientConfig:
    """The configuration of a folder, the built-in one where it has none. Raises InvalidRequest."""
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
    try:
        stored = lean.loads(text)
    except ValueError:
        import yaml

        try:
            stored = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InvalidRequest(f"{path} is not valid YAML: {error}") from error
    if stored is None:
        return {}
    if not isinstance(stored, dict) or not isinstance(stored.get("remotes") or {}, dict):
        raise InvalidRequest(f"{path} holds no client configuration")
    return stored
