"""The process of the site: what it needs of root it takes first, and then it is an ordinary user."""

from __future__ import annotations

import asyncio
import grp
import logging
import os
import pwd
import signal
import socket
import ssl
from contextlib import AsyncExitStack
from pathlib import Path

from aiohttp import web

from utsuwa.core.errors import HostError, InvalidConfig, UtsuwaError
from utsuwa.httpd.protocol import HttpServer, WatchedServer
from utsuwa.tryit import settings as settings_file
from utsuwa.tryit.addresses import Addresses
from utsuwa.tryit.metrics import Metrics
from utsuwa.tryit.places import FILE
from utsuwa.tryit.records import Records
from utsuwa.tryit.rest import Rest, tls_context
from utsuwa.tryit.sessions import Sessions
from utsuwa.tryit.settings import Settings
from utsuwa.tryit.site import Site
from utsuwa.tryit.visitors import Visitors

log = logging.getLogger(__name__)

_BACKLOG = 1024
_IDLE = 60.0
"""Seconds for the head of a request."""
_RETRY = 5.0
_TEXT = "text/plain; version=0.0.4"


def run(folder: Path) -> None:
    """Serve the site until SIGTERM or SIGINT. Raises UtsuwaError."""
    settings = settings_file.load(folder)
    context = tls_context(folder)
    site = _bind("listen", settings.listen)
    metrics = _bind("metrics", settings.metrics) if settings.metrics else None
    become(settings)
    records = Records(Path(settings.data))
    try:
        asyncio.run(_serve(settings, context, records, site, metrics))
    finally:
        records.close()


def become(settings: Settings) -> None:
    """Become the user of the settings for good, and give it the directory of the data.

    Raises InvalidConfig.
    """
    if os.geteuid() != 0:
        return
    user = make_data(settings)
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    log.info("running as %s (%s)", user.pw_name, grp.getgrgid(user.pw_gid).gr_name)


def make_data(settings: Settings) -> pwd.struct_passwd:
    """Make the directory of the data as root, and return the user of the settings, who gets it.

    Raises InvalidConfig.
    """
    try:
        user = pwd.getpwnam(settings.user)
    except KeyError:
        raise InvalidConfig(
            f"There is no user {settings.user!r}: run `utsuwad try init`, or set `user` in {FILE}"
        ) from None
    if user.pw_uid == 0:
        raise InvalidConfig(f"The site does not run as root: set `user` in {FILE} to another user")
    data = Path(settings.data)
    try:
        data.mkdir(mode=0o750, parents=True, exist_ok=True)
        os.chown(data, user.pw_uid, user.pw_gid)
    except OSError as error:
        raise InvalidConfig(f"Cannot use {data} for the site's data: {error.strerror}") from error
    return user


async def _serve(
    settings: Settings,
    context: ssl.SSLContext,
    records: Records,
    bound: socket.socket,
    bound_metrics: socket.socket | None,
) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        rest = await stack.enter_async_context(Rest(settings, context))
        visitors = Visitors(rest, settings, metrics)
        if not await _started(visitors, stopped):
            return
        stack.push_async_callback(visitors.stop)
        sessions = Sessions(rest, settings, visitors, records, metrics)
        sessions.start()
        stack.push_async_callback(sessions.stop)
        addresses = Addresses(settings.proxies)
        site = Site(settings, sessions, addresses)
        server = WatchedServer(site.handle, addresses.begun, addresses.ended, idle=_IDLE)
        await _listen(stack, server, bound)

        async def show_metrics(raw: web.BaseRequest) -> web.StreamResponse:
            if raw.rel_url.raw_path != "/metrics":
                return web.Response(status=404, text="The metrics are at /metrics\n")
            text = metrics.text(
                sessions=sessions.now,
                most=settings.sessions,
                ready=visitors.ready,
                turns=sessions.turns.now,
                waiting=sessions.turns.waiting,
            )
            return web.Response(text=text, headers={"Content-Type": _TEXT})

        if bound_metrics is not None:
            await _listen(stack, HttpServer(show_metrics, idle=_IDLE), bound_metrics)
        log.info("serving the site on %s", settings.listen)
        await stopped.wait()
        log.info("ending all sessions")


async def _started(visitors: Visitors, stopped: asyncio.Event) -> bool:
    """Wait for the daemon; return whether it answers, and not False because this process is to end."""
    while not stopped.is_set():
        try:
            await visitors.start()
        except UtsuwaError as error:
            log.error("cannot begin: %s", error.message)
        else:
            return True
        try:
            async with asyncio.timeout(_RETRY):
                await stopped.wait()
        except TimeoutError:
            continue
    return False


async def _listen(stack: AsyncExitStack, server: HttpServer, bound: socket.socket) -> None:
    listening = await asyncio.get_running_loop().create_server(server, sock=bound, backlog=_BACKLOG)

    async def close() -> None:
        listening.close()
        server.pre_shutdown()
        await server.shutdown(1)

    stack.push_async_callback(close)


def _bind(key: str, text: str) -> socket.socket:
    """Return a bound socket. Raises HostError."""
    host, port = settings_file.address(text)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    new = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        new.setblocking(False)
        new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        new.bind((host, port))
    except OSError as error:
        new.close()
        raise HostError(f"Cannot listen on {text} ({key}): {error.strerror or error}") from error
    return new
