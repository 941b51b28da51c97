"""The event hub: who hears what, and what becomes of listeners that do not keep up."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from utsuwa.core.scope import Scope
from utsuwa.operations.events import EventHub, Subscription, act_as
from utsuwa.wire.events import Requestor

ALICE = Requestor(username="alice", protocol="unix", address="@")


async def heard(subscription: Subscription) -> list[dict[str, Any]]:
    """What waits in the subscription, which ends after it."""
    found = []
    async with asyncio.timeout(30):
        while subscription._buffer:
            found.append(json.loads(await anext(subscription)))
    return found


async def test_an_event_has_the_shape_that_clients_know() -> None:
    hub = EventHub()
    with hub.subscribe() as listener:
        actor = act_as(ALICE)
        hub.publish_lifecycle("instance-started", "/1.0/instances/web", "default", {"x": 1})
        actor.active = False
        (event,) = await heard(listener)
    moment = event.pop("timestamp")
    assert moment.endswith("Z")
    assert event == {
        "type": "lifecycle",
        "location": "none",
        "project": "default",
        "metadata": {
            "action": "instance-started",
            "source": "/1.0/instances/web",
            "context": {"x": 1},
            "requestor": {"username": "alice", "protocol": "unix", "address": "@"},
        },
    }


async def test_listeners_hear_their_types_and_their_project_only() -> None:
    hub = EventHub()
    with (
        hub.subscribe(["lifecycle"], "a") as narrow,
        hub.subscribe() as all_of_it,
        hub.subscribe(["operation", "logging"]) as others,
    ):
        hub.publish_lifecycle("one", "/1", "a")
        hub.publish_lifecycle("two", "/2", "b")
        hub.publish_lifecycle("three", "/3")
        hub.publish_operation({"id": "x"}, "b")
        hub.publish_logging("info", "hello", {"k": "v"})
        assert [e["metadata"]["action"] for e in await heard(narrow)] == ["one", "three"]
        assert len(await heard(all_of_it)) == 5
        operation, line = await heard(others)
    assert (operation["type"], operation["project"]) == ("operation", "b")
    assert line["metadata"] == {"message": "hello", "level": "info", "context": {"k": "v"}}
    assert "project" not in line


async def test_listeners_receive_only_visible_events() -> None:
    hub = EventHub()
    with hub.subscribe(scope=Scope(frozenset({"mine"}))) as listener:
        hub.publish_lifecycle("a", "/1", "mine")
        hub.publish_lifecycle("b", "/2", "theirs")
        hub.publish_lifecycle("c", "/3")
        hub.publish_logging("info", "of the whole server")
        assert [e["metadata"]["action"] for e in await heard(listener)] == ["a"]


async def test_a_listener_that_does_not_read_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    hub = EventHub(buffer_events=3)
    slow = hub.subscribe(name="unix/bob")
    for n in range(4):
        hub.publish_lifecycle(str(n), "/x")
    assert slow.overflowed
    assert not hub.listened_to
    assert [text async for text in slow] == []
    assert [r.getMessage() for r in caplog.records] == ["an event listener is too slow and was cut off"]


async def test_few_but_large_events_are_bounded_too() -> None:
    hub = EventHub(buffer_bytes=1000)
    slow = hub.subscribe()
    hub.publish_logging("info", "x" * 600)
    assert not slow.overflowed
    hub.publish_logging("info", "x" * 600)
    assert slow.overflowed


async def test_reading_events_frees_the_buffer() -> None:
    hub = EventHub(buffer_bytes=1000)
    with hub.subscribe() as listener:
        for _ in range(5):
            hub.publish_logging("info", "x" * 600)
            await anext(listener)
        assert not listener.overflowed


async def test_closing_wakes_and_ends_a_waiting_listener() -> None:
    hub = EventHub()
    listener = hub.subscribe()
    waiting = asyncio.create_task(anext(listener, None))
    await asyncio.sleep(0)
    hub.close()
    assert await waiting is None
    listener.close()
    assert not hub.listened_to


async def test_an_event_names_who_acts_until_their_request_is_over() -> None:
    hub = EventHub()
    with hub.subscribe() as listener:
        hub.publish_lifecycle("before", "/x")
        actor = act_as(ALICE)
        hub.publish_lifecycle("during", "/x")
        actor.active = False
        hub.publish_lifecycle("after", "/x")
        names = [e["metadata"].get("requestor", {}).get("username") for e in await heard(listener)]
    assert names == [None, "alice", None]
