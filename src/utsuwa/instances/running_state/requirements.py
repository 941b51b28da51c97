"""CRIU for instances that rely on it: found, or a warning that says what to do."""

from __future__ import annotations

from utsuwa.core.errors import Unavailable
from utsuwa.core.warning_types import NO_CRIU
from utsuwa.db.warnings import Subject
from utsuwa.host.checkpoint.program import Criu
from utsuwa.instances.context import Context
from utsuwa.instances.model import Running
from utsuwa.instances.running_state import guest


async def criu(ctx: Context, subject: Subject) -> Criu:
    """Return the program. Raises Unavailable without one that works here; a warning tells that, too."""
    try:
        found = await ctx.criu.find()
    except Unavailable as error:
        ctx.warnings.judge(NO_CRIU, error.message, subject)
        raise
    ctx.warnings.resolve(NO_CRIU, subject)
    return found


async def judge(ctx: Context, running: Running) -> None:
    """Warn of an instance with `migration.stateful` that could not be saved, when it has been started."""
    if guest.is_prepared(running.config):
        try:
            await criu(ctx, running.subject)
        except Unavailable:
            return
    else:
        ctx.warnings.resolve(NO_CRIU, running.subject)
