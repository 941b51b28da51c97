"""Which image of a simplestreams server is meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from utsuwa.core import simplestreams
from utsuwa.core.errors import InvalidImage, InvalidRequest, NotFound
from utsuwa.core.simplestreams import StreamImage

_PREFIX = re.compile(r"[0-9a-f]{1,64}\Z")


def product_paths(index: bytes) -> list[str]:
    """Return the paths of the documents that list images. Raises InvalidImage."""
    return simplestreams.product_paths(_decode(index))


def images(data: bytes) -> Iterator[StreamImage]:
    """Return all images of containers that a document lists; blocking. Raises InvalidImage."""
    for product in simplestreams.products(_decode(data)):
        yield from product


def _decode(document: bytes) -> Any:
    try:
        return msgspec.json.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidImage(f"A document of the image server is not JSON: {str(error)[:200]}") from error


def choose(
    found: Iterable[StreamImage], server: str, wanted: str, architectures: Sequence[str]
) -> StreamImage:
    """Return the newest image with the alias `wanted`, or that with this fingerprint or prefix.

    An alias is `debian/12`, for the first of `architectures` that there is, or `debian/12/arm64`. Raises
    NotFound, InvalidRequest.
    """
    listed = list(found)
    omitted = simplestreams.omitted_prefix(server)
    named = [image for image in listed if _has_alias(image, wanted, omitted)]
    if named:
        return _best(named, wanted, architectures)
    exact = [image for image in listed if _PREFIX.match(wanted) and image.fingerprint.startswith(wanted)]
    if not exact:
        raise NotFound(f"The image server {server} has no image {wanted[:100]!r}")
    if len({image.fingerprint for image in exact}) > 1:
        raise InvalidRequest(
            f"Several images of {server} have fingerprints that begin with {wanted!r}: use a longer prefix"
        )
    return exact[0]


def _has_alias(image: StreamImage, wanted: str, omitted: str) -> bool:
    return any(wanted in (name, f"{name}/{image.named_architecture}") for name in image.aliases(omitted))


def _best(named: list[StreamImage], wanted: str, architectures: Sequence[str]) -> StreamImage:
    own = [image for image in named if wanted.endswith(f"/{image.named_architecture}")] or named
    for architecture in architectures:
        suitable = [image for image in own if image.architecture == architecture]
        if suitable:
            break
    else:
        if own is named:
            there = ", ".join(sorted({image.named_architecture for image in named}))
            raise NotFound(
                f"The image {wanted[:100]!r} does not exist for the architecture {architectures[0]}, "
                f"only for {there}"
            )
        suitable = own
    first = min(image.rank[:3] for image in suitable)
    of_product = [image for image in suitable if image.rank[:3] == first]
    newest = max(image.serial for image in of_product)
    return min((image for image in of_product if image.serial == newest), key=lambda image: image.rank)
