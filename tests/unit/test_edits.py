"""What the bodies of PUT and PATCH make of an object, whatever it is."""

from __future__ import annotations

import pytest

from utsuwa.core.errors import PreconditionFailed
from utsuwa.wire.codec import decode
from utsuwa.wire.edits import any_state, edited, merge, replace
from utsuwa.wire.images import ImagePatch, ImagePut
from utsuwa.wire.profiles import ProfilePatch, ProfilePut

NOW = ProfilePut(description="x", config={"user.a": "1", "user.b": "2"}, devices={"n": {"type": "nic"}})


def patch(text: bytes) -> ProfilePut:
    return edited(NOW, merge(decode(text, ProfilePatch)), any_state)


def test_put_replaces_all_fields() -> None:
    body = ProfilePut(config={"user.c": "3"})
    assert edited(NOW, replace(body), any_state) == body


def test_unset_fields_are_kept() -> None:
    now = ImagePut(public=True, profiles=["web"])
    assert edited(now, replace(ImagePut()), any_state) == ImagePut(profiles=["web"])
    assert edited(now, replace(ImagePut(profiles=[])), any_state) == ImagePut(profiles=[])


def test_patch_merges_maps_by_key_and_replaces_the_rest() -> None:
    found = patch(b'{"config": {"user.b": "", "user.c": "3"}, "devices": {"d": {"type": "disk"}}}')
    assert found == ProfilePut(
        description="x",
        config={"user.a": "1", "user.c": "3"},
        devices={"n": {"type": "nic"}, "d": {"type": "disk"}},
    )
    assert patch(b'{"description": ""}') == ProfilePut(config=NOW.config, devices=NOW.devices)
    now = ImagePut(profiles=["a", "b"])
    assert edited(now, merge(ImagePatch(profiles=["c"])), any_state).profiles == ["c"]


def test_a_key_that_is_not_there_is_not_unset_by_a_patch() -> None:
    """The table of its keys judges whether there may be one."""
    assert patch(b'{"config": {"user.x": ""}}').config == {**NOW.config, "user.x": ""}
    now = ImagePut(properties={"os": "x"})
    assert edited(now, merge(ImagePatch(properties={"no": ""})), any_state) == now


def test_a_patch_may_keep_empty_values() -> None:
    change = merge(ProfilePatch(config={"user.b": ""}), empty_removes=False)
    assert edited(NOW, change, any_state).config == {"user.a": "1", "user.b": ""}


@pytest.mark.parametrize("body", [b"{}", b'{"config": null, "description": null, "devices": null}'])
def test_null_counts_as_absent_in_a_patch(body: bytes) -> None:
    assert patch(body) == NOW


def test_a_null_in_a_map_removes_its_key() -> None:
    assert patch(b'{"config": {"user.a": null}}').config == {"user.b": "2"}


def test_edit_does_not_mutate_its_input() -> None:
    before = ProfilePut(config={"user.a": "1"})
    change = merge(ProfilePatch(config={"user.b": "2"}))
    assert edited(before, change, any_state) == edited(before, change, any_state)
    assert before == ProfilePut(config={"user.a": "1"})


def test_etag_is_checked_first() -> None:
    seen = []

    def refuse(current: ProfilePut) -> None:
        seen.append(current)
        raise PreconditionFailed("changed")

    def change(current: ProfilePut) -> ProfilePut:
        raise AssertionError("changed although the condition does not hold")

    with pytest.raises(PreconditionFailed):
        edited(NOW, change, refuse)
    assert seen == [NOW]
