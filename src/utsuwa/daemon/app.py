"""The composition root: creates all parts, in the order of their dependencies."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
import ssl
import time
from contextlib import AsyncExitStack, suppress
from functools import partial

from utsuwa.api.guest.ports import GuestPorts
from utsuwa.api.services import Services
from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import HostError, Unavailable
from utsuwa.core.paths import StatePaths
from utsuwa.core.scope import EVERYTHING, Policy
from utsuwa.daemon import membership
from utsuwa.daemon.endpoints import Endpoints
from utsuwa.daemon.environment import environment
from utsuwa.daemon.following import Following
from utsuwa.daemon.host_warnings import HostWarnings, judge_server_config
from utsuwa.daemon.host_watch import HostWatch
from utsuwa.daemon.logging import EventHandler
from utsuwa.daemon.loopback import LoopbackListener
from utsuwa.daemon.prepare import prepare
from utsuwa.daemon.serving import bind_unix
from utsuwa.daemon.trust import load_authority, load_certificates
from utsuwa.db.choice import Settings, database_settings, engine_for
from utsuwa.db.database import Database
from utsuwa.db.engine import Engine
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.host.checkpoint.finder import CriuFinder
from utsuwa.host.hardware import inventory
from utsuwa.host.helper.client import Helper
from utsuwa.host.interception import support
from utsuwa.host.interception.listener import Listener
from utsuwa.host.network.link_events import LinkEvents
from utsuwa.host.system import facts
from utsuwa.images.manager import ImageManager
from utsuwa.images.remote.manager import RemoteImages
from utsuwa.images.remote.upkeep import ImageUpkeep
from utsuwa.instances.commands.console_attach import ConsoleManager
from utsuwa.instances.commands.exec import ExecManager
from utsuwa.instances.context import Context
from utsuwa.instances.guest.sockets import GuestSockets
from utsuwa.instances.lifecycle.freeze import held_all
from utsuwa.instances.lifecycle.lxcfs_follower import LxcfsFollower
from utsuwa.instances.lifecycle.profile_follower import judge_profile
from utsuwa.instances.manager import InstanceManager
from utsuwa.migration.context import MigrationContext
from utsuwa.migration.manager import MigrationManager
from utsuwa.networks.manager import NetworkManager
from utsuwa.operations.events import EventHub
from utsuwa.operations.join_tokens import JoinTokens
from utsuwa.operations.operations import Operations
from utsuwa.operations.retries import Retries
from utsuwa.operations.shared import SharedOperations
from utsuwa.operations.warnings import Warnings
from utsuwa.profiles.manager import ProfileManager
from utsuwa.projects.manager import ProjectManager
from utsuwa.security import apparmor, trusted_proxies
from utsuwa.security.keypair import ensure_key_pair
from utsuwa.security.server_config import ServerConfig
from utsuwa.security.trust_password import TrustPassword
from utsuwa.security.web_sessions import WebSessions
from utsuwa.storage.manager import StorageManager
from utsuwa.storage.server_volumes import ServerFiles, ServerVolumes
from utsuwa.wire.resources import Resources
from utsuwa.wire.server import Environment

log = logging.getLogger(__name__)

UNPRIVILEGED_ONLY = parse_bool(os.environ.get("UTSUWA_UNPRIVILEGED_ONLY", ""))
"""Whether this daemon only allows unprivileged instances."""

_DATABASE_SECONDS = 2.0
"""Seconds between attempts of a starting daemon to reach its database."""


def owner_name(paths: StatePaths) -> str:
    """Return a name for cgroup, profiles and tables that distinguishes daemons by state directory."""
    return f"utsuwa-{hashlib.sha256(os.fsencode(paths.root)).hexdigest()[:8]}"


class Daemon:
    """The daemon of a state directory, whose lock the caller holds.

    It listens on the socket `passed_socket`, or creates one for `group` if there is none. `database` contains
    the database settings of the command line.
    """

    def __init__(
        self,
        paths: StatePaths,
        group: str | None,
        passed_socket: socket.socket | None,
        database: Settings | None = None,
    ) -> None:
        self._paths = paths
        self._database_settings = database
        self._endpoints = Endpoints(paths, group, passed_socket)
        self._stack = AsyncExitStack()
        self._criu = CriuFinder(paths.criu, paths.criu_proof)
        self._told = asyncio.Event()
        self._hurry = asyncio.Event()
        """Set when running operations are not to be waited for any longer."""
        self._shutdown: tuple[bool, float | None] | None = None
        """Whether to kill the containers, and the time on the event loop's clock at which to give up."""
        self._begun = time.monotonic()
        self._ready = False
        self._all_stopped = False

    # ---- requests by signals and the API

    @property
    def ready(self) -> bool:
        return self._ready

    @property
    def autostarted(self) -> bool:
        return self._ready and self._instances.autostarted

    def request_stop(self) -> None:
        """Stop the daemon, but not its containers, once operations have ended; at once if asked again."""
        if self._told.is_set():
            self._hurry.set()
        self._told.set()

    def request_shutdown(self, *, force: bool, timeout: float | None) -> None:
        """Stop the containers, waiting at most `timeout` seconds, then stop the daemon.

        At least half of this time is left for the containers.
        """
        if self._shutdown is None:
            loop = asyncio.get_running_loop()
            self._shutdown = (force, None if timeout is None else loop.time() + timeout)
            if force:
                self._hurry.set()
            elif timeout is not None:
                loop.call_later(timeout / 2, self._hurry.set)
        self._told.set()

    @property
    def uptime(self) -> float:
        return time.monotonic() - self._begun

    async def environment(self) -> Environment:
        return environment(
            self._facts,
            self._certificate,
            self._endpoints.https_address,
            self._storage.pools.drivers_in_use,
            criu=await self._criu.works(),
        )

    async def resources(self) -> Resources:
        return await asyncio.to_thread(inventory.resources)

    # ---- life cycle

    async def start(self) -> None:
        """Create all parts, find running containers again, and listen. Raises UtsuwaError."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def serve_until_stopped(self) -> None:
        """Serve until a signal or a request stops it; then close everything created by `start`."""
        async with self._stack:
            await self._told.wait()
            self._ready = False
            patience = 60.0 * int(self._server_config.value("core.shutdown_timeout"))
            await self._operations.complete(patience, self._hurry)
            if self._shutdown is not None:
                await self._stop_containers(*self._shutdown)

    async def _start(self) -> None:
        paths, stack = self._paths, self._stack
        database, self._facts = await asyncio.gather(
            self._open_database(), asyncio.to_thread(facts.host_facts)
        )
        stack.push_async_callback(database.close)
        events = EventHub(database.member.name)
        self._publish_log(events)
        shared_operations = await self._start_operations(database, events)
        self._warnings = Warnings(database, events)
        await self._warnings.start()
        stack.push_async_callback(self._warnings.stop)

        server = self._server_config = ServerConfig(database)
        await server.load()
        self._authority = await load_authority(paths, stack)
        certificates = await load_certificates(database, events, server, self._authority)
        self._certificate = await asyncio.to_thread(ensure_key_pair, paths)

        helper = await self._start_helper()
        await self._start_interception(helper)
        images = await self._start_resources(database, events)
        remote_images = RemoteImages(
            images, database, paths, self._operations, server, self._certificate, self._storage.images
        )
        projects = ProjectManager(database, self._operations)
        projects.drop_cached_by(images.drop_cached)
        projects.on_names_changed(certificates.follow_others)
        join_tokens = JoinTokens(self._operations, partial(projects.names, EVERYTHING))
        projects.on_names_changed(join_tokens.follow_projects)
        profiles = ProfileManager(database, events)
        await self._start_instances(database, helper, images, remote_images, profiles)

        web_sessions = WebSessions(certificates.store, paths.web_sessions)
        await web_sessions.load()
        loopback = LoopbackListener(web_sessions)

        services = Services(
            paths=paths,
            database=database,
            events=events,
            operations=self._operations,
            shared_operations=shared_operations,
            warnings=self._warnings,
            server=server,
            certificates=certificates,
            trust_password=TrustPassword(server),
            join_tokens=join_tokens,
            projects=projects,
            profiles=profiles,
            storage=self._storage,
            images=images,
            remote_images=remote_images,
            networks=self._networks,
            instances=self._instances,
            snapshots=self._instances.snapshots,
            exec=ExecManager(self._operations, helper),
            console=ConsoleManager(self._operations, helper),
            instance_metadata=self._instances.metadata,
            files=self._instances.files,
            migration=self._migration,
            web_sessions=web_sessions,
            loopback=loopback,
            daemon=self,
        )
        guests = GuestPorts(self._instances.guest)
        stack.push_async_callback(guests.close)
        await self._listen(services, loopback)
        upkeep = ImageUpkeep(images, remote_images, database, server)
        upkeep.begin()
        stack.push_async_callback(upkeep.end)

    async def _start_operations(self, database: Database, events: EventHub) -> SharedOperations:
        self._operations = Operations(events)
        shared = SharedOperations(database)
        await shared.start()
        self._operations.on_start(shared.note)
        self._stack.push_async_callback(shared.stop)
        return shared

    async def _start_helper(self) -> Helper:
        helper = Helper(always_by_liblxc=parse_bool(os.environ.get("UTSUWA_ATTACH_BY_LIBLXC", "")))
        await helper.start()
        self._stack.push_async_callback(helper.close)
        return helper

    async def _start_interception(self, helper: Helper) -> None:
        if obstacle := await asyncio.to_thread(support.obstacle):
            log.info("system calls cannot be intercepted: %s", obstacle)
            return
        bound = bind_unix(self._paths.interception_socket, None, socket.SOCK_SEQPACKET)
        listener = Listener(bound, helper.intercept)
        listener.open()
        self._stack.push_async_callback(listener.close)

    async def _start_resources(self, database: Database, events: EventHub) -> ImageManager:
        """Create what instances use: pools, images and networks."""
        paths, stack, owner = self._paths, self._stack, owner_name(self._paths)
        links = LinkEvents()
        self._retries = Retries(links, self._warnings)
        self._host_warnings = HostWarnings(self._warnings, paths.root)
        await self._retries.begin("host", self._host_warnings.judge)
        self._storage = StorageManager(database, paths, self._operations, self._warnings, self._retries)
        await self._storage.start()
        stack.push_async_callback(self._close_storage)
        images = ImageManager(database, paths, self._operations, self._storage.images, self._server_config)
        await self._start_server_volumes(images)
        await images.start()

        stack.push_async_callback(asyncio.to_thread, cgroups.remove_unused, owner)
        self._networks = NetworkManager(database, paths, events, links, owner, self._warnings, self._retries)
        stack.push_async_callback(self._close_networks)
        await self._networks.start()
        return images

    async def _start_server_volumes(self, images: ImageManager) -> None:
        self._server_volumes = ServerVolumes(
            self._storage.custom.context,
            (
                ServerFiles("storage.images_volume", self._paths.images, images.paused),
                ServerFiles("storage.backups_volume", self._paths.backups),
            ),
            self._warnings,
            self._retries,
        )
        config = self._server_config.get()
        await self._server_volumes.start({key: str(value) for key, value in config.items()})

    async def _start_instances(
        self,
        database: Database,
        helper: Helper,
        images: ImageManager,
        remote_images: RemoteImages,
        profiles: ProfileManager,
    ) -> None:
        """Create the instance manager, and find running containers again."""
        paths, stack, owner = self._paths, self._stack, owner_name(self._paths)
        context = Context(
            database=database,
            paths=paths,
            operations=self._operations,
            warnings=self._warnings,
            helper=helper,
            storage=self._storage,
            images=images,
            remote_images=remote_images,
            networks=self._networks.ports,
            apparmor=apparmor.Profiles(paths.apparmor, owner, await asyncio.to_thread(apparmor.probe)),
            guest_sockets=GuestSockets(paths.devlxd),
            cgroup=owner,
            criu=self._criu,
            settings=self._server_config,
            boot_id=facts.boot_id(),
            policy=Policy(unprivileged_only=UNPRIVILEGED_ONLY),
        )
        stack.push_async_callback(asyncio.to_thread, context.templates.close)
        self._storage.custom.quiet_by(partial(held_all, context))
        self._instances = InstanceManager(context, self._retries)
        self._migration = MigrationManager(MigrationContext(context, paths.migration), self._instances)
        await self._migration.start()
        profiles.judge_by(judge_profile)
        profiles.on_change(self._instances.follow_profile)
        profiles.on_stored(self._networks.ports.refresh)
        stack.push_async_callback(self._instances.stop_watching)
        stack.push_async_callback(self._retries.stop)
        await self._instances.recover()
        stack.push_async_callback(self._migration.stop)
        await self._migration.settle()
        stack.callback(LxcfsFollower(context, self._host_warnings.judge).start().cancel)
        stack.callback(HostWatch(lambda: self._instances.any_running, self._warnings).start().cancel)

    async def _open_database(self) -> Database:
        settings = await asyncio.to_thread(database_settings, self._paths, self._database_settings)
        engine = engine_for(self._paths, settings.url)
        await prepare(self._paths, engine, settings.url)
        try:
            database = await self._joined(engine, settings)
        except Unavailable as error:
            database = await self._wait_for_database(engine, settings, error)
        log.info("member %r of its database", database.member.name)
        return database

    async def _joined(self, engine: Engine, settings: Settings) -> Database:
        database = await Database.open(engine)
        try:
            await membership.join(database, self._paths, settings)
        except BaseException:
            await database.close()
            raise
        return database

    async def _wait_for_database(self, engine: Engine, settings: Settings, reason: Unavailable) -> Database:
        """Retry until the database is available; meanwhile, requests fail with the reason."""
        log.warning("waiting for the database: %s", reason.message)
        self._stack.push_async_callback(self._endpoints.close)
        await self._endpoints.refuse(reason)
        while not self._told.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), _DATABASE_SECONDS)
            with suppress(Unavailable):
                return await self._joined(engine, settings)
        raise HostError("stopped before the database was available")

    async def _listen(self, services: Services, loopback: LoopbackListener) -> None:
        stack, server = self._stack, services.server
        stack.push_async_callback(self._endpoints.close)
        # Pushed after the endpoints, so run before them: requests that wait for events or for operations are
        # completed before connections are closed.
        stack.push_async_callback(self._operations.stop)
        stack.callback(services.events.close)
        stack.callback(services.files.disconnect)
        stack.callback(self._endpoints.stop_accepting)

        proxies = services.certificates.store.proxies
        judge_config = partial(judge_server_config, self._warnings)
        await judge_config((), server.get())
        server.on_change(judge_config)
        server.on_change(proxies.config_changed)
        proxies.use(server.value(trusted_proxies.KEY))
        self._endpoints.serve(
            services, loopback, self._retries, self._tls_context, unprivileged_only=UNPRIVILEGED_ONLY
        )
        server.on_change(self._server_volumes.config_changed)  # the last, as it takes longest
        if services.database.engine.shared:
            self._follow_others(services)
        await self._endpoints.open()
        self._ready = True
        self._warnings.settle()
        log.info("ready", extra={"socket": self._paths.socket})

    def _follow_others(self, services: Services) -> None:
        following = Following(
            [
                services.database.look_after_locks,
                services.certificates.follow_others,
                services.join_tokens.follow_projects,
                services.server.follow_others,
                services.networks.follow_others,
                services.storage.pools.follow_others,
                services.images.follow_others,
            ]
        )
        following.start()
        self._stack.push_async_callback(following.stop)

    def _tls_context(self) -> ssl.SSLContext:
        """Create the context for HTTPS, importing it on demand, as it is slow to load."""
        from utsuwa.security.tls import ServerContext

        issuers = self._authority.certificates if self._authority is not None else ()
        return ServerContext(self._certificate.certificate_file, self._certificate.key_file, issuers)

    def _publish_log(self, events: EventHub) -> None:
        handler = EventHandler(events, asyncio.get_running_loop())
        logger = logging.getLogger("utsuwa")
        logger.addHandler(handler)
        self._stack.callback(logger.removeHandler, handler)

    async def _close_networks(self) -> None:
        if self._all_stopped and not self._instances.any_running:
            await self._networks.shut_down()
        self._networks.stop()

    async def _close_storage(self) -> None:
        # A start that was in progress when all were stopped may have succeeded afterwards.
        await self._storage.stop(unmount=self._all_stopped and not self._instances.any_running)

    async def _stop_containers(self, force: bool, end: float | None) -> None:
        log.info("stopping all containers", extra={"force": force})
        try:
            async with asyncio.timeout_at(end):
                await self._instances.shutdown_all(force=force)
            self._all_stopped = True
        except TimeoutError:
            log.warning("some containers did not stop in time")
