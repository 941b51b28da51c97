"""Volumes that are transferred layer by layer, between two pools of which both have layers.

After the index, the source says of which layers each snapshot and the volume consist, and sends what is
beside the trees, without waiting for answers; the target says which layers it lacks. Then comes of each of
these, the oldest first, a document with what an archive cannot contain, and an archive of its files. A layer
is transferred once, however many snapshots share it, and not at all if the target has it: that of an image,
and in a refresh those of the copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from utsuwa.core.errors import InvalidRequest
from utsuwa.storage.layer_transfer import Chain, is_chain

T = TypeVar("T")


def encode_chains(chains: Sequence[Chain]) -> bytes:
    return msgspec.json.encode(chains)


def decode_chains(document: bytes, count: int) -> list[Chain]:
    """Raises InvalidRequest if these are not as many chains."""
    chains = [tuple(chain) for chain in _decoded(document, list[list[str]])]
    if len(chains) != count or not all(map(is_chain, chains)):
        raise InvalidRequest("The other server lists other layers than there can be")
    return chains


def encode_wanted(layers: Sequence[str]) -> bytes:
    return msgspec.json.encode(layers)


def decode_wanted(document: bytes, chains: Iterable[Chain]) -> list[str]:
    """Raises InvalidRequest if these are other layers than there are."""
    wanted = _decoded(document, list[str])
    offered = set(in_order(chains))
    if len(set(wanted)) != len(wanted) or not offered.issuperset(wanted):
        raise InvalidRequest("The other server wants layers that were not offered")
    return wanted


def in_order(chains: Iterable[Chain]) -> list[str]:
    """Return all layers once, each after those below it."""
    return list(dict.fromkeys(layer for chain in chains for layer in reversed(chain)))


def _decoded(document: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(document, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"The other server lists its layers wrongly: {error}") from error
