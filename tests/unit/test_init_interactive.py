"""The questions of `init`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.unit.test_init_options import FRESH
from utsuwa.core.errors import Cancelled
from utsuwa.daemon.init.interactive import StandardTerminal, converse
from utsuwa.daemon.init.preseed import NetworkSeed, PoolSeed, Preseed, ProfileSeed, parse
from utsuwa.daemon.init.state import ServerState


class Script:
    """Answers in order; keeps the questions and what was said."""

    def __init__(self, answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.questions: list[str] = []
        self.said: list[str] = []

    def ask(self, prompt: str) -> str:
        self.questions.append(prompt)
        return self.answers.pop(0)

    def ask_secret(self, prompt: str) -> str:
        return self.ask(prompt)

    def say(self, text: str) -> None:
        self.said.append(text)


def talk(answers: Sequence[str], state: ServerState = FRESH) -> tuple[Preseed, Script]:
    script = Script(answers)
    preseed = converse(script, state)
    assert script.answers == [], "not every answer was asked for"
    return preseed, script


def test_enter_accepts_defaults() -> None:
    preseed, script = talk([""] * 10)
    assert preseed == Preseed(
        storage_pools=[PoolSeed(name="default", driver="overlay")],
        networks=[
            NetworkSeed(
                name="utsuwabr0", type="bridge", config={"ipv4.address": "auto", "ipv6.address": "auto"}
            )
        ],
        profiles=[
            ProfileSeed(
                name="default",
                devices={
                    "root": {"type": "disk", "path": "/", "pool": "default"},
                    "eth0": {"type": "nic", "network": "utsuwabr0", "name": "eth0"},
                },
            )
        ],
    )
    assert script.questions[0] == "Do you want to configure a new storage pool? (yes/no) [default=yes]: "
    assert script.questions[2] == "Name of the storage backend to use (dir, overlay) [default=overlay]: "


def test_no_to_all_changes_nothing() -> None:
    preseed, _ = talk(["no", "n", "NO", "no", "yes", "no"])
    assert preseed == Preseed()


def test_invalid_answers_are_asked_again() -> None:
    state = replace(FRESH, pools=frozenset(("taken",)))
    preseed, script = talk(
        [
            *("maybe", "yes"),
            *("bad name", "taken", "p"),
            *("btrfs", "dir"),
            "yes",
            *("eth0", "a", "sixteen-letters-", "has/slash", "br1"),
            *("hello", "10.0.0.1", "fd42::1/64", "10.0.0.1/24", "no"),
            *("10.0.0.1/24", "fd42::1/64", "yes"),
            "yes",
            *("300.0.0.1", "::1"),
            *("0", "65536", "x", "9443"),
            *("pw", "other", "pw", "pw"),
            "no",
            "yes",
        ],
        state,
    )
    assert preseed.storage_pools == [PoolSeed(name="p", driver="dir")]
    assert preseed.networks[0].name == "br1"
    assert preseed.networks[0].config == {
        "ipv4.address": "10.0.0.1/24",
        "ipv4.nat": "false",
        "ipv6.address": "fd42::1/64",
        "ipv6.nat": "true",
    }
    assert preseed.config == {
        "core.https_address": "[::1]:9443",
        "core.trust_password": "pw",
        "images.auto_update_interval": "0",
    }
    assert sum(text.startswith("Invalid answer: ") for text in script.said) == 15
    assert parse(script.said[-1]) == preseed


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("mybr", {"type": "nic", "nictype": "bridged", "parent": "mybr", "name": "eth0"}),
        ("eth0", {"type": "nic", "nictype": "macvlan", "parent": "eth0", "name": "eth0"}),
        ("ours", {"type": "nic", "network": "ours", "name": "eth0"}),
    ],
)
def test_existing_interface_is_used(name: str, device: dict[str, str]) -> None:
    state = replace(
        FRESH,
        interfaces=frozenset(("eth0", "mybr", "ours")),
        bridges=frozenset(("mybr",)),
        networks=frozenset(("ours",)),
    )
    preseed, _ = talk(["no", "no", "yes", "gone", name, "no", "yes", "no"], state)
    assert preseed.profiles == [ProfileSeed(name="default", devices={"eth0": device})]


def test_no_question_of_networks_where_there_are_none() -> None:
    _, script = talk(["no", "no", "no", "yes", "no"], replace(FRESH, makes_networks=False))
    assert not any("new local network" in question for question in script.questions)


def test_lines_instead_of_a_terminal() -> None:
    shown = io.StringIO()
    terminal = StandardTerminal(io.StringIO(" first \nsecret\n"), shown)
    assert (terminal.ask("One: "), terminal.ask_secret("Two: ")) == ("first", "secret")
    with pytest.raises(Cancelled, match="ended before the last question: nothing was changed"):
        terminal.ask("Three: ")
    assert shown.getvalue() == "One: Two: Three: \n"
