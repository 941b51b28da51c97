"""Paths below the state directory, which has the same layout as LXD's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

DEFAULT_ROOT = Path("/var/lib/utsuwa")


@dataclass(frozen=True)
class StatePaths:
    """All paths below the state directory. `name` arguments are storage names (see `core.names`)."""

    root: Path

    @classmethod
    def from_environment(cls) -> StatePaths:
        """Return those of `$UTSUWA_DIR`, or `/var/lib/utsuwa`, as an absolute path without symlinks."""
        return cls(Path(os.environ.get("UTSUWA_DIR") or DEFAULT_ROOT).resolve())

    @property
    def socket(self) -> Path:
        return self.root / "unix.socket"

    @property
    def server_cert(self) -> Path:
        return self.root / "server.crt"

    @property
    def server_key(self) -> Path:
        return self.root / "server.key"

    @property
    def server_ca(self) -> Path:
        """The authority of the clients' certificates, in PKI mode only."""
        return self.root / "server.ca"

    @property
    def ca_crl(self) -> Path:
        """The certificates that this authority has revoked."""
        return self.root / "ca.crl"

    @property
    def lock(self) -> Path:
        return self.root / "utsuwa.lock"

    @property
    def database(self) -> Path:
        return self.root / "database" / "utsuwa.db"

    @property
    def web_sessions(self) -> Path:
        """The sessions of the web page."""
        return self.root / "database" / "web-sessions.json"

    @property
    def database_settings(self) -> Path:
        """Location of the database, if it is not the default SQLite file."""
        return self.root / "database.yaml"

    @property
    def member(self) -> Path:
        """The id of this state directory's daemon in a shared database."""
        return self.root / "database" / "member"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def cache(self) -> Path:
        """Documents of image servers, which can be fetched again."""
        return self.root / "cache"

    @property
    def criu(self) -> Path:
        """What `utsuwad criu install` has installed."""
        return self.root / "criu"

    @property
    def criu_proof(self) -> Path:
        """Whether CRIU was seen to work on this host."""
        return self.cache / "criu.json"

    @property
    def keyrings(self) -> Path:
        """`HOST.gpg`: the keys of image servers that sign their documents, put there by the administrator."""
        return self.root / "keyrings"

    @property
    def containers(self) -> Path:
        """Symlinks `<storage name>` to the instance's directory in its pool; liblxc's lxcpath."""
        return self.root / "containers"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def storage_pools(self) -> Path:
        return self.root / "storage-pools"

    def pool(self, pool: str) -> Path:
        return self.storage_pools / pool

    @property
    def networks(self) -> Path:
        return self.root / "networks"

    @cached_property
    def devices(self) -> Path:
        return self.root / "devices"

    @property
    def devlxd(self) -> Path:
        """`<storage name>/sock`: the sockets of the guest API."""
        return self.root / "devlxd"

    @property
    def shmounts(self) -> Path:
        return self.root / "shmounts"

    @property
    def backups(self) -> Path:
        return self.root / "backups"

    @property
    def migration(self) -> Path:
        """For files of instances that are being received, for a moment."""
        return self.root / "migration"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def instance_logs(self, name: str) -> Path:
        return self.logs / name

    @property
    def seccomp(self) -> Path:
        return self.root / "security" / "seccomp"

    @property
    def interception(self) -> Path:
        """What the processes that answer intercepted system calls read: one file an instance."""
        return self.root / "security" / "interception"

    @property
    def interception_socket(self) -> Path:
        """To which liblxc's monitors connect, to have intercepted system calls answered."""
        return self.root / "seccomp.socket"

    @property
    def apparmor(self) -> Path:
        return self.root / "security" / "apparmor"

    @property
    def post_stop(self) -> Path:
        """The hook script that liblxc runs when a container has stopped."""
        return self.root / "security" / "post-stop"

    def create_directories(self) -> None:
        """Create every directory with its final mode; other users may traverse, but not list them."""
        modes = {
            self.root: 0o711,
            self.root / "database": 0o700,
            self.images: 0o700,
            self.cache: 0o700,
            self.keyrings: 0o700,
            self.containers: 0o711,
            self.snapshots: 0o700,
            self.storage_pools: 0o711,
            self.networks: 0o711,
            self.devices: 0o711,
            self.devlxd: 0o711,
            self.shmounts: 0o711,
            self.backups: 0o700,
            self.logs: 0o700,
            self.root / "security": 0o700,
            self.seccomp: 0o700,
            self.interception: 0o700,
            self.apparmor: 0o700,
            self.apparmor / "cache": 0o700,
            self.apparmor / "profiles": 0o700,
        }
        for path, mode in modes.items():
            if path.is_symlink():  # to a volume, which may not be mounted yet
                continue
            path.mkdir(mode=mode, parents=True, exist_ok=True)
            path.chmod(mode)
