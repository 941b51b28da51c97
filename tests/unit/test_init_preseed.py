"""The preseed: reading it, merging it, applying it as a whole or not at all, and writing it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core.errors import Cancelled, InvalidRequest, UtsuwaError
from utsuwa.core.urls import object_url
from utsuwa.daemon.init import preseed
from utsuwa.daemon.init.apply import apply, merged
from utsuwa.daemon.init.dump import dump, to_yaml
from utsuwa.daemon.init.preseed import Preseed, parse
from utsuwa.daemon.local_api import Answer, LocalApi, Refused

# ---- reading


def test_every_section() -> None:
    found = parse(
        """
config: {images.auto_update_interval: 15, user.yes: yes, user.hex: 0x10, user.date: 2026-01-01, user.gone: ~}
storage_pools: [{name: p, driver: dir, config: {source: }}]
networks: [{name: n, type: bridge, config: {ipv4.nat: false}}]
projects: [{name: default, description: all}]
profiles:
- name: default
  devices: {root: {path: /, pool: p, type: disk}, none: }
cluster: null
"""
    )
    assert found.config == {
        "images.auto_update_interval": "15",
        "user.yes": "yes",
        "user.hex": "0x10",
        "user.date": "2026-01-01",
        "user.gone": "",
    }
    assert found.storage_pools[0].config == {"source": ""}
    assert found.networks[0].config == {"ipv4.nat": "false"}
    assert (found.networks[0].project, found.projects[0].description) == ("default", "all")
    assert found.profiles[0].devices == {"root": {"path": "/", "pool": "p", "type": "disk"}, "none": {}}


@pytest.mark.parametrize("text", ["", "# nothing\n", "null", "{}", "config:\nprofiles: ~\n"])
def test_empty_preseed_changes_nothing(text: str) -> None:
    assert parse(text) == Preseed()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "bad: 1\nworse: 2",
            "unknown field 'bad', 'worse' in the preseed; known fields are config",
        ),
        ("networks: [{name: n, bad: 1}]", r"unknown field 'bad' in entry 1 of networks \('n'\)"),
        ("profiles: [{name: a}, {nmae: b}]", "unknown field 'nmae' in entry 2 of profiles"),
        ("profiles: [{description: x}]", "entry 1 of profiles has no name"),
        ("storage_pools: [{name: ''}]", "entry 1 of storage_pools has no name"),
        ("profiles: {name: x}", "profiles: Expected `array`"),
        ("profiles: [x]", r"profiles\[0\]: Expected `object`"),
        ("profiles: [{name: x, config: [1]}]", r"profiles\[0\].config: Expected `object`"),
        ("profiles: [{name: x, devices: {root: disk}}]", "Expected `object`"),
        ("config: {a: {b: c}}", "Expected `str`"),
        ("[1]", "must be a YAML mapping"),
        ("text", "must be a YAML mapping"),
        ("a: [", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: !!python/object:os.system {}", "not valid YAML"),
        ("cluster: {enabled: true}", "does not support clustering"),
        ("config: {core.trust_password: true}", "placeholder of a dump"),
        ("[" * 1000, "nested too deep|not valid YAML"),
        ("x: &a 1\ny: [" + "*a, " * 101 + "]", "more than 100 aliases"),
        ("#" * (preseed.MAX_SIZE + 1), "longer than"),
    ],
)
def test_errors_in_a_preseed_are_named(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        parse(text)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidRequest):
        assert isinstance(parse(text), Preseed)


NAMES = st.text(min_size=1, max_size=20)
VALUES = st.dictionaries(NAMES, st.text(max_size=50), max_size=4)
PRESEEDS = st.builds(
    Preseed,
    config=VALUES.filter(lambda config: "core.trust_password" not in config),
    storage_pools=st.lists(st.builds(preseed.PoolSeed, name=NAMES, config=VALUES), max_size=3),
    profiles=st.lists(
        st.builds(preseed.ProfileSeed, name=NAMES, devices=st.dictionaries(NAMES, VALUES, max_size=3)),
        max_size=3,
    ),
)


@given(PRESEEDS)
def test_written_preseed_can_be_read(wanted: Preseed) -> None:
    assert parse(to_yaml(wanted)) == wanted


# ---- merging

CONFIG = st.dictionaries(st.sampled_from("abc"), st.sampled_from(["", "1", "2"]))
DEVICES = st.dictionaries(st.sampled_from(["root", "eth0"]), CONFIG)
EDITABLE = st.fixed_dictionaries(
    {"description": st.sampled_from(["", "x"]), "config": CONFIG, "devices": DEVICES}
)


@given(EDITABLE, EDITABLE)
def test_named_keys_win_and_the_others_stay(old: dict[str, Any], seed: dict[str, Any]) -> None:
    new = merged(old, seed)
    assert merged(new, seed) == new
    assert new["description"] == (seed["description"] or old["description"])
    for key in old["config"].keys() | seed["config"].keys():
        assert new["config"][key] == seed["config"].get(key, old["config"].get(key))
    for name in old["devices"].keys() | seed["devices"].keys():
        assert new["devices"][name] == old["devices"].get(name, {}) | seed["devices"].get(name, {})


# ---- applying


class FakeApi(LocalApi):
    """Objects in a dictionary by URL; `refuse` may raise before a change, as a daemon would."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"))
        default = {"name": "default", "description": "d", "config": {}, "devices": {}, "used_by": []}
        self.objects: dict[str, dict[str, Any]] = {
            "/1.0/profiles/default": default,
            "/1.0/projects/default": {"name": "default", "description": "", "config": {}, "used_by": []},
        }
        self.config: dict[str, Any] = {}
        self.changes: list[tuple[str, str]] = []
        self.refuse: Callable[[str, str], None] = lambda method, url: None

    def request(self, method: str, url: str, body: Any = None, *, etag: str = "") -> Answer:
        path = unquote(url.partition("?")[0])
        if method == "GET":
            return self._shown(path)
        self.refuse(method, path)
        self.changes.append((method, path))
        if path == "/1.0":
            self.config |= body["config"]
        elif method == "POST":
            self.objects[f"{path}/{body['name']}"] = {"managed": True, **body}
        elif method == "PUT":
            assert etag in ("", path), "the ETag of another object"
            self.objects[path] |= body
        else:
            del self.objects[path]
        return Answer(None, "")

    def _shown(self, path: str) -> Answer:
        if path == "/1.0":
            return Answer({"config": self.config}, "")
        if path.count("/") == 2:
            return Answer([o for url, o in self.objects.items() if url.startswith(f"{path}/")], "")
        if path not in self.objects:
            raise Refused(404, "not found")
        return Answer(dict(self.objects[path]), path)


WANTED = parse(
    """
config: {user.a: x}
storage_pools: [{name: p, driver: dir}]
networks: [{name: n}, {name: other, project: web}]
projects: [{name: web}]
profiles: [{name: default, devices: {root: {pool: p}}}, {name: new, project: default}]
"""
)
ORDER = [
    ("POST", "/1.0/storage-pools"),
    ("POST", "/1.0/networks"),
    ("POST", "/1.0/projects"),
    ("POST", "/1.0/networks"),
    ("PUT", "/1.0/profiles/default"),
    ("POST", "/1.0/profiles"),
    ("PATCH", "/1.0"),
]


def test_objects_are_created_before_their_users_and_the_server_last() -> None:
    api = FakeApi()
    apply(api, WANTED)
    assert api.changes == ORDER
    assert api.objects["/1.0/profiles/default"]["devices"] == {"root": {"pool": "p"}}
    assert api.objects["/1.0/profiles/default"]["description"] == "d"
    assert api.config == {"user.a": "x"}


def test_unchanged_objects_are_not_updated() -> None:
    api = FakeApi()
    apply(api, WANTED)
    api.changes.clear()
    apply(api, WANTED)
    assert api.changes == [("PATCH", "/1.0")]


@pytest.mark.parametrize("failing", range(len(ORDER)))
def test_wherever_it_fails_all_is_as_before(failing: int) -> None:
    api = FakeApi()
    before = {url: dict(found) for url, found in api.objects.items()}

    def refuse(method: str, path: str) -> None:
        if len(api.changes) == failing:
            api.refuse = lambda method, path: None
            raise Refused(400, "No")

    api.refuse = refuse
    with pytest.raises(UtsuwaError) as raised:
        apply(api, WANTED)
    assert raised.value.message.endswith(": No. All changes were reverted")
    assert (api.objects, api.config) == (before, {})
    undone = [path for method, path in api.changes[failing:]]
    assert len(undone) == failing
    assert undone[-1:] == (["/1.0/storage-pools/p"] if failing else [])


def test_failed_undo_is_reported_and_others_run() -> None:
    api = FakeApi()

    def refuse(method: str, path: str) -> None:
        if path == "/1.0":
            raise Refused(400, "bad key")
        if (method, path) == ("DELETE", "/1.0/networks/n"):
            raise Refused(400, "in use")

    api.refuse = refuse
    with pytest.raises(UtsuwaError) as raised:
        apply(api, WANTED)
    assert raised.value.message == (
        "Cannot change the server config: bad key. These could not be restored: network 'n' (in use)"
    )
    assert set(api.objects) == {"/1.0/profiles/default", "/1.0/projects/default", "/1.0/networks/n"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_completes_the_step_and_reverts_all(number: int) -> None:
    api = FakeApi()
    before = signal.getsignal(number)
    api.refuse = lambda method, path: os.kill(os.getpid(), number) if path == "/1.0/profiles" else None
    with pytest.raises(Cancelled, match="Interrupted") as raised:
        apply(api, WANTED)
    assert raised.value.message == "Interrupted. All changes were reverted"
    assert set(api.objects) == {"/1.0/profiles/default", "/1.0/projects/default"}
    assert ("POST", "/1.0/profiles") in api.changes
    assert signal.getsignal(number) is before


def test_unexpected_errors_revert_all_changes() -> None:
    api = FakeApi()

    def refuse(method: str, path: str) -> None:
        if (method, path) == ("POST", "/1.0/profiles"):
            raise KeyError("bug")

    api.refuse = refuse
    with pytest.raises(KeyError):
        apply(api, WANTED)
    assert set(api.objects) == {"/1.0/profiles/default", "/1.0/projects/default"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "storage_pools: [{name: p, driver: overlay}]",
            "The storage pool 'p' has driver 'dir', which cannot be changed to 'overlay'",
        ),
        (
            "networks: [{name: n, type: macvlan}]",
            "The network 'n' has type 'bridge', which cannot be changed to 'macvlan'",
        ),
    ],
)
def test_changes_of_fixed_fields_are_rejected(text: str, reason: str) -> None:
    api = FakeApi()
    apply(api, parse("storage_pools: [{name: p, driver: dir}]\nnetworks: [{name: n, type: bridge}]"))
    with pytest.raises(InvalidRequest) as raised:
        apply(api, parse(text))
    assert raised.value.message == f"{reason}. All changes were reverted"


@pytest.mark.parametrize(
    "source",
    [
        "/var/lib/lxd/storage-pools/p",
        "/var/snap/lxd/common/lxd/storage-pools/p",
        "/var/lib/incus/storage-pools/p",
    ],
)
def test_the_places_of_another_server_are_its_own(source: str) -> None:
    (pool,) = parse(f"storage_pools: [{{name: p, config: {{source: {source}}}}}]").storage_pools
    assert pool.config == {}
    (other,) = parse(f"storage_pools: [{{name: q, config: {{source: {source}}}}}]").storage_pools
    assert other.config == {"source": source}


def test_volatile_keys_of_a_dump_are_passed_over() -> None:
    """A server sets them for itself (lxd#9006)."""
    text = """
storage_pools: [{name: p, config: {volatile.initial_source: /dev/sdb, rsync.bwlimit: 1MiB}}]
networks: [{name: n, config: {volatile.network.ipv4.address: 10.0.0.1, ipv4.nat: "true"}}]
"""
    found = parse(text)
    assert found.storage_pools[0].config == {"rsync.bwlimit": "1MiB"}
    assert found.networks[0].config == {"ipv4.nat": "true"}


def test_a_wrong_value_is_named_by_its_key() -> None:
    with pytest.raises(InvalidRequest, match=r"profiles\[0\]\.devices\[root\]\[size\]: Expected `str`"):
        parse("profiles: [{name: x, devices: {root: {path: /, size: [1]}}}]")


def test_names_are_quoted_in_urls() -> None:
    assert object_url("profiles", "a/b?c") == "/1.0/profiles/a%2Fb%3Fc"
    assert object_url("networks", "n", project="a&b") == "/1.0/networks/n?project=a%26b"


# ---- writing


def test_dump_omits_secrets_and_generated_values() -> None:
    api = FakeApi()
    api.config = {"core.trust_password": True, "user.a": "yes"}
    api.objects["/1.0/storage-pools/p"] = {
        "name": "p",
        "driver": "dir",
        "description": "",
        "config": {"source": "/var/lib/utsuwa/storage-pools/p", "volatile.initial_source": "x"},
    }
    api.objects["/1.0/storage-pools/q"] = {
        "name": "q",
        "driver": "dir",
        "description": "",
        "config": {"source": "/srv/q"},
    }
    network = {"type": "bridge", "description": "", "config": {"volatile.x": "1", "ipv4.nat": "true"}}
    api.objects["/1.0/networks/n"] = {"name": "n", "managed": True, **network}
    api.objects["/1.0/networks/eth0"] = {"name": "eth0", "managed": False, **network}
    text = dump(api, Path("/var/lib/utsuwa/storage-pools"))
    assert text.startswith("# core.trust_password is set, but not shown")
    assert "project:" not in text  # LXD takes none for a profile
    found = parse(text)
    assert found.config == {"user.a": "yes"}
    assert [(pool.name, pool.config) for pool in found.storage_pools] == [
        ("p", {}),
        ("q", {"source": "/srv/q"}),
    ]
    assert [(n.name, n.config) for n in found.networks] == [("n", {"ipv4.nat": "true"})]
    assert [profile.name for profile in found.profiles] == ["default"]
    assert yaml.safe_load(text)["config"] == {"user.a": "yes"}  # quoted, so that LXD reads it so too


def test_another_project_is_named() -> None:
    seed = Preseed(networks=[preseed.NetworkSeed(name="n", project="web")])
    assert msgspec.to_builtins(parse(to_yaml(seed)))["networks"][0]["project"] == "web"
