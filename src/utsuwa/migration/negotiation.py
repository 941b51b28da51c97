"""What both sides agree on in their headers."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from utsuwa.core.errors import InvalidRequest
from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.core.snapshot_names import check_snapshot_name
from utsuwa.host.rsync import Options
from utsuwa.migration.messages import (
    INDEX_VERSION,
    LIVE,
    NOT_LIVE,
    RSYNC,
    Header,
    IdRangeMessage,
    LiveTerms,
    OwnFeatures,
    RsyncFeatures,
    SavedStates,
)
from utsuwa.security.idmap import MAX_ID, MAX_RANGES

MAX_SNAPSHOTS = 10_000


def features(*, compress: bool) -> RsyncFeatures:
    return RsyncFeatures(xattrs=True, delete=True, compress=compress, bidirectional=True)


def common(one: OwnFeatures | None, other: OwnFeatures | None) -> OwnFeatures:
    """Return what two servers of this program have in common, of which layers are preferred."""
    if one is None or other is None or not (one.links and other.links):
        return OwnFeatures()
    layers = bool(one.layers and other.layers)
    return OwnFeatures(
        links=True,
        stream=bool(one.stream and other.stream) and not layers,
        layers=layers,
        handover=bool(one.handover and other.handover),
        zeros=bool(one.zeros and other.zeros),
    )


def answer_to(
    offer: Header,
    *,
    compress: bool,
    refresh: bool,
    names: list[str],
    able: OwnFeatures,
    live: LiveTerms | None = None,
) -> Header:
    """Return the target's header; `names` are those of the snapshots that it wants.

    `able` says what it can receive from another server of this program, and which saved running states. With
    `live`, it takes over the running instance.

    Raises InvalidRequest for an offer of which nothing is known.
    """
    theirs = offer.rsync
    if theirs is None or not theirs.bidirectional:
        ours = RsyncFeatures(xattrs=True, delete=True, compress=True)
    else:
        ours = RsyncFeatures(
            xattrs=bool(theirs.xattrs),
            delete=bool(theirs.delete),
            compress=bool(theirs.compress) and compress,
            bidirectional=True,
        )
    own = None
    if offer.own is not None and offer.own.links:
        own, ours.compress = common(offer.own, able), False
        own.states = able.states
        own.live = live
    return Header(
        fs=RSYNC,
        criu=LIVE if live is not None else NOT_LIVE if offer.criu == NOT_LIVE else None,
        snapshot_names=names,
        snapshots=[snapshot for snapshot in offer.snapshots if snapshot.name in set(names)],
        rsync=ours,
        refresh=refresh,
        index_version=min(max(offer.index_version or 0, 0), INDEX_VERSION),
        own=own,
    )


def options_of(offer: Header, answer: Header) -> Options:
    """Return the options of rsync on both sides. Raises InvalidRequest."""
    if answer.fs not in (None, RSYNC):
        raise InvalidRequest("The other server does not transfer files by rsync")
    chosen = answer.rsync
    if chosen is None or not chosen.bidirectional:
        return Options(xattrs=True, delete=True, compress=True)
    offered = offer.rsync or RsyncFeatures()
    return Options(
        xattrs=bool(chosen.xattrs and offered.xattrs),
        delete=bool(chosen.delete and offered.delete),
        compress=bool(chosen.compress and offered.compress),
        links=bool(common(offer.own, answer.own).links),
    )


def chosen_snapshots(offer: Header, answer: Header) -> list[str]:
    """Return the names of the snapshots that are sent, oldest first. Raises InvalidRequest."""
    if not answer.refresh:
        return list(offer.snapshot_names)
    wanted = set(answer.snapshot_names)
    if not wanted.issubset(offer.snapshot_names):
        raise InvalidRequest("The other server wants snapshots that were not offered")
    return [name for name in offer.snapshot_names if name in wanted]


def chosen_states(offer: Header, answer: Header) -> SavedStates | None:
    """Return which saved running states are sent.

    Raises InvalidRequest for states that were not offered, or if the instance's own could not be understood.
    """
    theirs = offer.own.states if offer.own is not None else None
    if theirs is None:
        return None
    chosen = answer.own.states if answer.own is not None else None
    if chosen is None:
        if theirs.own:
            raise InvalidRequest(
                "The other server cannot have the saved running state: copy a snapshot with --stateless, or "
                "start the instance and stop it without --stateful"
            )
        return None
    if not set(chosen.snapshots) <= set(theirs.snapshots) or (chosen.own and not theirs.own):
        raise InvalidRequest("The other server wants running states that were not offered")
    return chosen


def check_names(offer: Header) -> None:
    """Raise InvalidRequest or InvalidName if the offered snapshots cannot have these names."""
    names = offer.snapshot_names
    if len(names) > MAX_SNAPSHOTS:
        raise InvalidRequest(f"The other server offers more than {MAX_SNAPSHOTS} snapshots")
    for name in names:
        check_snapshot_name(name)
    _no_doubles(names)
    described = [snapshot.name or "" for snapshot in offer.snapshots]
    _no_doubles(described)
    if described and described != names:
        raise InvalidRequest("The other server describes other snapshots than it offers")


def _no_doubles(names: Collection[str]) -> None:
    if len(set(names)) != len(names):
        raise InvalidRequest("The other server offers two snapshots of the same name")


def owners_of(entries: Iterable[IdRangeMessage]) -> IdMap:
    """Return the id map with which the files of an offer are owned. Raises InvalidRequest."""
    uids, gids = [], []
    for entry in entries:
        values = (entry.nsid or 0, entry.hostid or 0, entry.maprange or 0)
        if any(value < 0 for value in values) or not values[2] or max(values[:2]) + values[2] - 1 > MAX_ID:
            raise InvalidRequest("The other server states an invalid id map")
        if entry.isuid:
            uids.append(IdRange(*values))
        if entry.isgid:
            gids.append(IdRange(*values))
    for ranges in (uids, gids):
        if len(ranges) > MAX_RANGES or _overlap(ranges):
            raise InvalidRequest("The other server states an invalid id map")
    found = IdMap(tuple(uids), tuple(gids))
    if not uids and not gids:
        return found
    try:
        found.host_uid(0), found.host_gid(0)
    except ValueError:
        raise InvalidRequest("The other server states an id map without root") from None
    if not uids or not gids:
        raise InvalidRequest("The other server states an id map of only users or groups")
    return found


def _overlap(ranges: Collection[IdRange]) -> bool:
    inside = sorted((r.container, r.container + r.count) for r in ranges)
    outside = sorted((r.host, r.host + r.count) for r in ranges)
    return any(
        end > start
        for spans in (inside, outside)
        for (_, end), (start, _) in zip(spans, spans[1:], strict=False)
    )


def owners_message(idmap: IdMap) -> list[IdRangeMessage]:
    """Return the id map of files that are sent as a running container owns them."""

    def entry(r: IdRange, *, user: bool) -> IdRangeMessage:
        return IdRangeMessage(user, not user, r.host, r.container, r.count)

    return [entry(r, user=True) for r in idmap.uids] + [entry(r, user=False) for r in idmap.gids]
