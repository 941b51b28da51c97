"""The managers for handlers, provided by the composition root."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from utsuwa.core.paths import StatePaths
from utsuwa.db.database import Database
from utsuwa.images.manager import ImageManager
from utsuwa.images.remote.manager import RemoteImages
from utsuwa.instances.commands.console_attach import ConsoleManager
from utsuwa.instances.commands.exec import ExecManager
from utsuwa.instances.files.transfer import FileManager
from utsuwa.instances.manager import InstanceManager
from utsuwa.instances.metadata import MetadataManager
from utsuwa.instances.snapshots.manager import SnapshotManager
from utsuwa.migration.manager import MigrationManager
from utsuwa.networks.manager import NetworkManager
from utsuwa.operations.events import EventHub
from utsuwa.operations.join_tokens import JoinTokens
from utsuwa.operations.operations import Operations
from utsuwa.operations.shared import SharedOperations
from utsuwa.operations.warnings import Warnings
from utsuwa.profiles.manager import ProfileManager
from utsuwa.projects.manager import ProjectManager
from utsuwa.security.certificates import CertificateManager
from utsuwa.security.server_config import ServerConfig
from utsuwa.security.trust_password import TrustPassword
from utsuwa.security.web_sessions import WebSessions
from utsuwa.storage.manager import StorageManager
from utsuwa.wire.resources import Resources
from utsuwa.wire.server import Environment


class DaemonControl(Protocol):
    """The part of the daemon that the API uses."""

    @property
    def ready(self) -> bool:
        """Return whether the API is available, and changes are not refused."""

    @property
    def autostarted(self) -> bool:
        """Return whether each instance to be started with the daemon was, or could not be started once."""

    @property
    def uptime(self) -> float:
        """Return the seconds since the daemon's start."""

    def request_shutdown(self, *, force: bool, timeout: float | None) -> None:
        """Stop all containers, then the daemon; returns immediately."""

    async def environment(self) -> Environment:
        """Return the facts of host and daemon that `GET /1.0` shows to trusted callers."""

    async def resources(self) -> Resources:
        """Return the host's hardware."""


class PageAddress(Protocol):
    """The loopback address of the web page."""

    async def open(self) -> str:
        """Serve the page there, and return the origin: `http://NAME.localhost:PORT`. Raises HostError."""


@dataclass(frozen=True)
class Services:
    """Every manager of the daemon, by the name that handlers use."""

    paths: StatePaths
    database: Database
    events: EventHub
    operations: Operations
    shared_operations: SharedOperations
    warnings: Warnings
    server: ServerConfig
    certificates: CertificateManager
    trust_password: TrustPassword
    join_tokens: JoinTokens
    projects: ProjectManager
    profiles: ProfileManager
    storage: StorageManager
    images: ImageManager
    remote_images: RemoteImages
    networks: NetworkManager
    instances: InstanceManager
    snapshots: SnapshotManager
    instance_metadata: MetadataManager
    exec: ExecManager
    console: ConsoleManager
    files: FileManager
    migration: MigrationManager
    web_sessions: WebSessions
    loopback: PageAddress
    daemon: DaemonControl
