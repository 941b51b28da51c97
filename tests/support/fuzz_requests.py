"""Requests that nobody would send: by the served description, near to good ones, and plain nonsense.

Bodies come from schemathesis, which reads the description, or from good bodies of which something is
replaced, so that what lies behind the checks of shape is reached as well. Names in paths mostly exist.
To make a request takes longer than to answer it, so most are variants of others.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import schemathesis
from hypothesis import strategies as st
from schemathesis.core.result import Err, Result
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation

KEPT_OUT = {
    ("PUT", "/internal/shutdown"): "ends the daemon, as it should",
}
"""Routes that are not asked, and why."""

OPERATION = "latest-operation"
"""Stands in a URL for the id of the operation that was started last."""

Strategy = st.SearchStrategy[Any]
Draw = Callable[[Strategy], Any]
Operation = APIOperation[Any, Any, Any, Any]

STRANGE = (
    "", " ", ".", "..", "../..", "../../etc/passwd", "a/b", "a//b", "a\0b", "a\nb", "a\r\nX: y", "-",
    "--help", "_", "é", "\u202e", "\ufeff", "\U0001f600", "\x7f", "\x1b[2J", "\ud800", "x" * 64, "x" * 300,
    "x" * 9000, "%s%n%x", "%2e%2e%2f", "%00", "$(id)", "`id`", "{{ 7 * 7 }}", "{% for a in b %}",
    "'; DROP TABLE instances; --", '"', "\\", "*", "?", "#", "&", "=", "null", "None", "true", "false", "0",
    "1", "-1", "1.5", "1e999", "NaN", "0x10", "٣", "²", "9" * 19, "9" * 40, "9" * 5000, "-" + "9" * 19, "1,2",
    "0-", "1-0", "64MiB", "50%", "10EB", "1k", "10s", "b 1 2 3", "0.0.0.0", "10.9.9.1/24", "10.9.9.1/33",
    "fd00::1/64", "::", "[::1]:0", "127.0.0.1:0", "127.0.0.1:99999", ":0", "aa:bb:cc:dd:ee:ff", "auto",
    "none", "dhcp", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59+23:59", "[" * 200, "a: &a [*a]",
    "- !!python/object/apply:os.getpid []", "#cloud-config\n", "lxc.mount.entry = x", "both both 1 1 1",
)  # fmt: skip
PLAIN = ("a", "b1", "web", "run", "off", "extra", "net0", "spare", "default", "busybox")
"""Names that are good, some of them of what there is."""
WORTHY = (
    "", "a", "0-1", "1", "64MiB", "50%", "auto", "none", "10.9.9.1/24", "fd42::1/64", "5s", "a,b",
    "127.0.0.1:0",
)  # fmt: skip
QUERY = (
    "project", "all-projects", "filter", "target", "secret", "type", "public", "timeout", "alias", "force",
    "schema", "database", "name", "pool", "volume", "", "é", "x" * 200,
)  # fmt: skip
FILTERS = (
    "name eq run", "name eq", "eq", "not", "name eq run and", "(name eq run", "name ne '", 'name eq "',
    "config.a eq b", "expanded_config.user.x eq 1", "devices.root.pool eq default",
    "status eq Running or status eq Stopped", "a" * 5000, "and " * 300, "not " * 300 + "a eq b",
    "properties.os eq BusyBox", "name eq *", "name eq [", "name eq (",
)  # fmt: skip
HEADERS = (
    "If-Match", "If-None-Match", "Content-Type", "Content-Encoding", "Expect", "Accept", "Accept-Encoding",
    "Range", "X-HTTP-Method-Override", "X-Forwarded-For", "Cookie", "Authorization", "Upgrade",
    "Sec-WebSocket-Key", "Origin", "X-LXD-fingerprint", "X-LXD-filename", "X-LXD-properties",
    "X-LXD-profiles", "X-LXD-aliases", "X-LXD-public",
)  # fmt: skip
CONTENT_TYPES = (
    "", "application/json", "application/json; charset=utf-16", "text/plain", "multipart/form-data",
    "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "application/octet-stream", ";",
    "a/b;c",
)  # fmt: skip
NONSENSE = (
    b"", b"{", b"}", b"null", b"[]", b"0", b'""', b"{}{}", b"\xff\xfe", b"\xef\xbb\xbf{}", b"{" * 70,
    b"[" * 100_000, b'{"a":' * 65 + b"1" + b"}" * 65, b'{"config": {"user.a": "\\ud800"}}',
    b'{"name": "\\u0000"}', b'{"name": 1e999}', b'{"config": {"a": 123456789012345678901234567890}}',
    b'{"name": "a", "name": "b"}', b'{"name": NaN}', b"\0" * 100,
    b'{"description": "' + b"x" * 300_000 + b'"}',
    b'{"config": {' + b'"user.a": "b",' * 3000 + b'"user.c": ""}}',
    b'--x\r\nContent-Disposition: form-data; name="metadata"\r\n\r\nno\r\n--x--\r\n', b"--x\r\n\r\n--x--",
    b"--x",
)  # fmt: skip
JUNK: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    -(2**63),
    2**64,
    1.5,
    1e308,
    [],
    {},
    [[]],
    {"": ""},
)
ALPHABETS = (128, 128, 256, 0x3000, 0x110000)
"""How many of the first characters of Unicode strange texts are made of; of all, some are surrogates."""

strange = st.sampled_from(STRANGE) | st.text(max_size=30).filter(lambda text: not text.startswith("/"))
text = st.sampled_from(PLAIN) | strange
header_text = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60
)


@dataclass(frozen=True)
class Probe:
    """One request, ready to be sent."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None
    operation: Operation = field(repr=False)

    @property
    def area(self) -> str:
        """The part of the API that it meets."""
        first, *more = self.operation.path.strip("/").split("/")
        return more[0].replace("containers", "instances") if first == "1.0" and more else "server"

    def __str__(self) -> str:
        body = self.body if self.body is None or len(self.body) < 1500 else self.body[:1500] + b"..."
        return f"{self.method} {self.url[:500]} headers={dict(self.headers)!r:.500} body={body!r}"


@dataclass
class Known:
    """What there is in the daemon, for requests to name."""

    config_keys: Mapping[str, Mapping[str, str]]
    """By kind of object the names of keys and their types, as `/1.0/metadata/configuration` has them."""
    folder: str
    """An absolute path that instances and pools may be given."""
    fingerprint: str
    certificate: str
    names: dict[str, list[str]] = field(default_factory=dict)
    """By what stands before them in paths."""


class Requests:
    """Strategies for the requests of a description."""

    def __init__(self, description: Mapping[str, Any], known: Known) -> None:
        self.known = known
        schema = schemathesis.openapi.from_dict(dict(description))
        self.operations = [
            operation
            for operation in map(_sound, schema.get_all_operations())
            if (operation.method.upper(), operation.path) not in KEPT_OUT
        ]
        self._from_description = {
            (operation.method, operation.path): [
                operation.as_strategy(generation_mode=mode)
                for mode in (GenerationMode.POSITIVE, GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
            ]
            for operation in self.operations
            if operation.body
        }
        self._good = good_bodies(known)

    def probe(self) -> st.SearchStrategy[Probe]:
        """Any request; those that change something come more often than those that only look."""
        weighted = [o for o in self.operations for _ in range(1 if o.method == "get" else 2)]
        return st.sampled_from(weighted).flatmap(self.for_operation)

    def for_operation(self, operation: Operation) -> st.SearchStrategy[Probe]:
        @st.composite
        def build(draw: Draw) -> Probe:
            method = operation.method.upper()
            path = self._path(draw, operation.path)
            body, headers = self._body(draw, operation), {}
            if body is not None:
                headers["Content-Type"] = "application/json"
            if (method, operation.path) == ("POST", "/1.0/images"):  # an upload, if it is no JSON
                headers["Content-Type"] = draw(st.sampled_from(CONTENT_TYPES))
            if _once_in(draw, 6):
                headers |= self._headers(draw)
            return Probe(method, path + self._query(draw, operation.path), headers, body, operation)

        return build()

    def _path(self, draw: Draw, path: str) -> str:
        before, segments = "", []
        for segment in path.split("/"):
            if segment.startswith("{"):
                there = self.known.names.get(before, [])
                name = draw(text) if not there or _once_in(draw, 6) else draw(st.sampled_from(there))
                # An empty name is another path, and a lone surrogate no text that could be encoded.
                name = name.encode("utf-8", "replace").decode() or "x"
                segments.append(name[:4000] if _once_in(draw, 40) else quote(name[:4000], safe=""))
            else:
                segments.append(segment)
            before = segment.replace("containers", "instances")
        return quote("/".join(segments), safe="/%!$&'()*+,;=:@-._~")

    def _query(self, draw: Draw, path: str) -> str:
        pairs = [] if not _once_in(draw, 5) else draw(st.lists(self._pair(), min_size=1, max_size=3))
        if path.endswith("/wait"):  # or it would be waited for as long as that takes
            pairs = [("timeout", "0"), *(pair for pair in pairs if pair[0] != "timeout")]
        encoded = [
            f"{quote(name.encode('utf-8', 'replace'))}={quote(value.encode('utf-8', 'replace')[:6000])}"
            for name, value in pairs
        ]
        return f"?{'&'.join(encoded)}" if encoded else ""

    def _pair(self) -> st.SearchStrategy[tuple[str, str]]:
        return st.one_of(
            st.tuples(st.sampled_from(QUERY), text),
            st.tuples(st.just("recursion"), st.sampled_from(["0", "1", "2", "1", "2", "3", "x"])),
            st.tuples(st.just("filter"), st.sampled_from(FILTERS)),
            st.tuples(st.just("project"), st.sampled_from(["default"] * 8 + ["none", "a_b"])),
        )

    def _headers(self, draw: Draw) -> dict[str, str]:
        name = draw(st.sampled_from(HEADERS))
        given = draw(st.sampled_from(CONTENT_TYPES) if name == "Content-Type" else header_text | strange)
        latin = given.encode("latin-1", "replace").decode("latin-1")[:8000]
        return {name: "".join(c for c in latin if c not in "\r\n\0")}

    def _body(self, draw: Draw, operation: Operation) -> bytes | None:
        described = self._from_description.get((operation.method, operation.path))
        good = self._good.get(_without_containers(operation))
        nothing_wanted = described is None and operation.method in ("get", "delete")
        if nothing_wanted and not _once_in(draw, 20):
            return None
        if _once_in(draw, 12) or (described is None and good is None):
            nonsense: bytes = draw(st.sampled_from(NONSENSE) | st.binary(max_size=100))
            return nonsense
        if good is not None and (described is None or not _once_in(draw, 3)):
            return _json(draw(spoiled(good)))
        body = draw(st.one_of(described or [])).body
        return body if isinstance(body, bytes) else _json(_plain(body))


def _sound(found: Result[Operation, Any]) -> Operation:
    assert not isinstance(found, Err), f"a route is not described well: {found.err()}"
    return found.ok()


def _without_containers(operation: Operation) -> tuple[str, str]:
    return operation.method.upper(), operation.path.replace("/1.0/containers", "/1.0/instances")


def _once_in(draw: Draw, times: int) -> bool:
    return bool(draw(st.sampled_from([True] + [False] * (times - 1))))


def _plain(value: object) -> object:
    return value if isinstance(value, (dict, list, str, int, float, type(None))) else {}


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def spoiled(good: Strategy) -> Strategy:
    """A good value, of which up to two parts are replaced, taken away or added."""

    def build(value: Any, seed: int) -> Any:
        chance = random.Random(seed)
        for _ in range(chance.choice([0, 0, 0, 1, 1, 2])):
            value = _spoil(chance, value)
        return value

    return st.builds(build, good, st.integers(0, 2**32))


def _spoil(chance: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and chance.randrange(8):
        key = chance.choice(sorted(value))
        rest = {name: inner for name, inner in value.items() if name != key}
        match chance.choice(["inside", "inside", "inside", "gone", "renamed"]):
            case "gone":
                return rest
            case "renamed":
                return {**rest, _strange(chance): value[key]}
            case _:
                return {**value, key: _spoil(chance, value[key])}
    if isinstance(value, list) and value and chance.randrange(4):
        place = chance.randrange(len(value))
        return [*value[:place], _spoil(chance, value[place]), *value[place + 1 :]]
    return _strange(chance) if isinstance(value, str) and chance.randrange(3) else _junk(chance)


def _strange(chance: random.Random) -> str:
    if chance.randrange(2):
        return chance.choice(STRANGE)
    return "".join(chr(chance.randrange(chance.choice(ALPHABETS))) for _ in range(chance.randrange(30)))


def _junk(chance: random.Random) -> Any:
    match chance.randrange(5):
        case 0:
            return chance.choice(JUNK)
        case 1:
            return [_strange(chance) for _ in range(chance.randrange(4))]
        case 2:
            return {_strange(chance): _strange(chance) for _ in range(chance.randrange(4))}
        case 3:
            return {_strange(chance): {_strange(chance): _strange(chance)}}
        case _:
            return _strange(chance)


def variant(probe: Probe, chance: random.Random) -> Probe:
    """The same request with another part of its body or query spoiled; much faster than a new one."""
    if probe.body is not None and chance.randrange(3):
        try:
            return replace(probe, body=_json(_spoil(chance, json.loads(probe.body))))
        except (ValueError, RecursionError):
            return replace(probe, body=chance.choice(NONSENSE))
    # Without `timeout`, which would be waited for.
    name = chance.choice(("recursion", "filter", *(name for name in QUERY if name != "timeout")))
    value = chance.choice(FILTERS) if name == "filter" else _strange(chance)
    encoded = f"{quote(name)}={quote(value.encode('utf-8', 'replace')[:6000])}"
    return replace(probe, url=probe.url + ("&" if "?" in probe.url else "?") + encoded)


# ---- bodies that are good


def good_bodies(known: Known) -> dict[tuple[str, str], Strategy]:
    """By method and path; what they name mostly exists."""
    name = st.sampled_from(PLAIN)
    words = st.sampled_from(["", "a description"])
    config = {kind: configs(keys) for kind, keys in known.config_keys.items()}
    own = config["instance"]
    devices = st.dictionaries(st.sampled_from(["root", "eth0", "data", "x"]), device(known), max_size=2)
    profiles = st.lists(st.sampled_from(["default", "extra"]), max_size=2, unique=True)
    actions = st.sampled_from(["start", "start", "stop", "restart", "freeze", "unfreeze"])
    state = record(
        {"action": actions},
        timeout=st.sampled_from([0, 1, 1, -1, 30]),
        force=st.sampled_from([True, True, True, False]),
    )
    source = st.sampled_from(
        [
            {"type": "image", "alias": "busybox"},
            {"type": "image", "fingerprint": known.fingerprint},
            {"type": "image", "fingerprint": known.fingerprint[:12]},
            {"type": "image", "properties": {"os": "BusyBox"}},
            {"type": "none"},
            {"type": "copy", "source": "run"},
        ]
    )
    editable = {"description": words, "config": own, "devices": devices}
    instance = record(
        **editable, profiles=profiles, ephemeral=st.booleans(), architecture=st.sampled_from(["", "x86_64"])
    )
    image = record(
        properties=st.dictionaries(name, words, max_size=2),
        public=st.booleans(),
        auto_update=st.booleans(),
        expires_at=st.sampled_from(["2030-01-01T00:00:00Z", "1970-01-01T00:00:00Z"]),
        profiles=profiles,
    )
    trusted = {"name": name, "restricted": st.booleans(), "projects": st.sampled_from([[], ["default"]])}
    certificate = record({"type": st.just("client")}, **trusted)
    alias_name = {"name": st.sampled_from(["busybox", "a/b", "c"])}
    alias = record({**alias_name, "target": st.just(known.fingerprint)}, description=words)
    network = record(config=config["network_bridge"], description=words)
    pool = record(config=config["storage"] | pool_config(known), description=words)
    command = st.sampled_from(
        [["true"], ["sh", "-c", "exit 3"], ["cat"], ["sleep", "0.02"], ["/no/such"], ["id"], []]
    )
    one = "/1.0/{}/{{name}}"
    return {
        ("POST", "/1.0/instances"): record(
            {"name": name, "source": source},
            **editable,
            profiles=st.just(["default"]) | profiles,
            start=st.booleans(),
            ephemeral=st.booleans(),
        ),
        ("PUT", "/1.0/instances"): record({"state": state}),
        ("PUT", one.format("instances")): instance,
        ("PATCH", one.format("instances")): record(**editable),
        ("POST", one.format("instances")): record({"name": name}),
        ("PUT", "/1.0/instances/{name}/state"): state,
        ("POST", "/1.0/instances/{name}/exec"): st.fixed_dictionaries(
            {
                "command": command,
                "environment": st.dictionaries(text, text, max_size=2),
                "wait-for-websocket": st.sampled_from([False, False, False, True]),
                "record-output": st.booleans(),
                "interactive": st.sampled_from([False, False, True]),
                "width": st.sampled_from([0, 80, -1, 70000]),
                "user": st.sampled_from([0, 1000, 65534, 2**31]),
                "group": st.sampled_from([0, 1000]),
                "cwd": st.sampled_from(["", "/", "/root", "/nowhere", "bin"]),
            }
        ),
        ("POST", "/1.0/instances/{name}/console"): record(
            width=st.just(80), type=st.sampled_from(["console", "vga"])
        ),
        ("POST", "/1.0/profiles"): record({"name": name}, **editable),
        ("PUT", one.format("profiles")): record(**editable),
        ("PATCH", one.format("profiles")): record(**editable),
        ("POST", one.format("profiles")): record({"name": name}),
        ("POST", "/1.0/networks"): record(
            {"name": name}, type=st.sampled_from(["", "bridge"]), config=config["network_bridge"]
        ),
        ("PUT", one.format("networks")): network,
        ("PATCH", one.format("networks")): network,
        ("POST", one.format("networks")): record({"name": name}),
        ("POST", "/1.0/storage-pools"): record(
            {"name": name},
            driver=st.sampled_from(["", "dir", "overlay", "btrfs"]),
            config=config["storage"] | pool_config(known),
        ),
        ("PUT", one.format("storage-pools")): pool,
        ("PATCH", one.format("storage-pools")): pool,
        ("POST", "/1.0/images/aliases"): alias,
        ("PUT", "/1.0/images/aliases/{name}"): alias,
        ("PATCH", "/1.0/images/aliases/{name}"): alias,
        ("POST", "/1.0/images/aliases/{name}"): record(alias_name),
        ("PUT", "/1.0/images/{fingerprint}"): image,
        ("PATCH", "/1.0/images/{fingerprint}"): image,
        ("POST", "/1.0/certificates"): record(
            {"type": st.just("client"), "certificate": st.just(known.certificate)}, **trusted
        ),
        ("PUT", "/1.0/certificates/{fingerprint}"): certificate,
        ("PATCH", "/1.0/certificates/{fingerprint}"): certificate,
        ("PUT", "/1.0"): record(config=config["server"]),
        ("PATCH", "/1.0"): record(config=config["server"]),
        ("POST", "/internal/sql"): record(
            {"query": st.sampled_from(["SELECT 1", "SELECT", "SELECT x'00'", ";", "PRAGMA user_version"])},
            database=st.sampled_from(["global", "local"]),
        ),
    }


def control_messages() -> st.SearchStrategy[bytes]:
    """What a command's control websocket is told."""
    good = st.one_of(
        record(
            {"command": st.just("window-resize"), "args": record(width=text, height=text)},
        ),
        st.sampled_from([{"command": "window-resize", "args": {"width": "80", "height": "24"}}]),
        record({"command": st.just("signal"), "signal": st.sampled_from([0, 1, 15, 28, -1, 64, 65, 2**40])}),
    )
    return spoiled(good).map(_json) | st.sampled_from(NONSENSE)


def record(needed: Mapping[str, Strategy] = MappingProxyType({}), /, **fields: Strategy) -> Strategy:
    """An object with what it needs, and some of the other fields."""
    return st.fixed_dictionaries(dict(needed), optional=fields)


def configs(keys: Mapping[str, str]) -> Strategy:
    """Known keys, mostly with values that they would take."""
    fields = {
        name: plausible(kind) for name, kind in {**keys, "user.a": "string", "user.b": "string"}.items()
    }
    one = st.sampled_from(sorted(fields)).flatmap(lambda name: st.tuples(st.just(name), fields[name]))
    return st.lists(one, max_size=3).map(dict)


def plausible(kind: str) -> Strategy:
    """Values of a key of this type; one in four is strange."""
    good = st.sampled_from({"bool": ("true", "false"), "integer": ("0", "1", "2", "10")}.get(kind, WORTHY))
    return st.one_of(good, good, good, st.sampled_from(STRANGE))


def pool_config(known: Known) -> Strategy:
    return st.fixed_dictionaries(
        {"source": st.sampled_from([f"{known.folder}/pool", f"{known.folder}/../x", known.folder])}
    )


def device(known: Known) -> Strategy:
    """Devices that could be, and some that could not."""
    text_of = st.sampled_from
    properties = {key: text_of(STRANGE) for key in known.config_keys["devices"] if key != "type"}
    places = text_of([known.folder, f"{known.folder}/none", f"{known.folder}/../d/database", "relative"])

    def with_more(kind: str, **fields: Strategy) -> Strategy:
        more = {key: value for key, value in properties.items() if key not in (*fields, "source")}
        few = st.dictionaries(text_of(sorted(more)), text_of(STRANGE), max_size=3)
        return st.builds(
            lambda some, fixed: {**some, **fixed, "type": kind}, few, st.fixed_dictionaries(fields)
        )

    paths = text_of(["/mnt", "/", "/mnt/../etc", "mnt", "/proc"])
    return st.one_of(
        st.just({"type": "disk", "path": "/", "pool": "default"}),
        with_more("disk", path=paths, pool=text_of(["default", "spare", "none"])),
        with_more("disk", path=paths, source=places),
        st.just({"type": "nic", "nictype": "p2p", "name": "eth0"}),
        with_more("nic", nictype=st.just("p2p")),
        with_more("nic", network=st.just("net0")),
        text_of(["none", "gpu", "unix-char", "proxy", "usb", ""]).flatmap(with_more),
    )
