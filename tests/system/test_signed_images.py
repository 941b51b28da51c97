"""Image servers whose documents must be signed, as there is a keyring for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509

from tests.support import signing
from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.image_server import ImageServer, serving
from tests.support.signing import PAST, Keys
from tests.support.tls import TestAuthority

pytestmark = pytest.mark.root

GOOD, OTHER, OLD, EXPIRED = (f"{name}@example.net" for name in ("good", "other", "old", "expired"))
INDEX, PRODUCTS = "streams/v1/index.sjson", "streams/v1/images.sjson"


@pytest.fixture(scope="module")
def keys() -> Iterator[Keys]:
    with signing.keys() as made:
        made.add(GOOD)
        made.add(OTHER)
        made.add(OLD, PAST)
        made.add(EXPIRED, PAST, lifetime="1y")
        yield made


@pytest.fixture(scope="module")
def tree(
    module_daemon: Daemon, busybox: str, keys: Keys, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The files of a tree that is signed with the key GOOD."""
    folder = tmp_path_factory.mktemp("images")
    utsuwa_client(
        module_daemon, "image", "export-tree", str(folder), busybox, f"--sign={GOOD}", env=keys.environment
    )
    module_daemon.do("DELETE", module_daemon.get("/1.0/images")[0])
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def server(tree: dict[str, bytes], tmp_path: Path) -> Iterator[ImageServer]:
    authority = TestAuthority()
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    with serving(authority.issue(tmp_path, "server", (address, False))) as found:
        found.files.update(tree)
        yield found


@pytest.fixture
def keyrings(module_daemon: Daemon, keys: Keys) -> Iterator[tuple[Path, Path]]:
    """The keyrings of the daemon and of the client for the server, with all keys but OTHER."""
    folders = module_daemon.dir / "keyrings", module_daemon.home / "u" / "keyrings"
    folders[1].mkdir(parents=True, exist_ok=True)
    files = folders[0] / "127.0.0.1.gpg", folders[1] / "127.0.0.1.gpg"
    for file in files:
        file.write_bytes(keys.export(GOOD, OLD, EXPIRED))
    yield files
    for file in files:
        file.unlink(missing_ok=True)


def fetch(daemon: Daemon, server: ImageServer, alias: str) -> str:
    """Have the daemon fetch the image; return the error."""
    return str(daemon.wait(daemon.api("POST", "/1.0/images", {"source": server.source(alias)}))["err"])


def listed(daemon: Daemon, server: ImageServer, authority: Path) -> str:
    """List the images by the client; return what it says."""
    env = {"SSL_CERT_FILE": str(authority)}
    utsuwa_client(daemon, "remote", "add", "signed", server.url, "--protocol=simplestreams", env=env)
    try:
        ended = utsuwa_client(daemon, "image", "list", "signed:", "--format=csv", check=False, env=env)
    finally:
        utsuwa_client(daemon, "remote", "remove", "signed")
    return ended.stderr if ended.returncode else ended.stdout


def test_a_signed_tree(
    module_daemon: Daemon, busybox: str, server: ImageServer, keyrings: tuple[Path, Path], tmp_path: Path
) -> None:
    assert fetch(module_daemon, server, busybox) == ""
    (image,) = module_daemon.get("/1.0/images")
    assert image.rpartition("/")[2][:12] in listed(module_daemon, server, tmp_path / "ca.pem")
    assert {path for path in server.requests if path.startswith("streams/")} == {INDEX, PRODUCTS}
    module_daemon.do("DELETE", image)


Forge = Callable[[ImageServer, Keys], None]


def changed(path: str, old: bytes, new: bytes) -> Forge:
    def forge(server: ImageServer, keys: Keys) -> None:
        assert old in server.files[path]
        server.files[path] = server.files[path].replace(old, new)

    return forge


def signed_by(name: str, *options: str) -> Forge:
    """Sign the products by another key, or otherwise."""

    def forge(server: ImageServer, keys: Keys) -> None:
        server.files[PRODUCTS] = keys.sign(server.files["streams/v1/images.json"], name, *options)

    return forge


def unsigned(server: ImageServer, keys: Keys) -> None:
    server.files[INDEX] = server.files["streams/v1/index.json"]


def missing(server: ImageServer, keys: Keys) -> None:
    del server.files[INDEX]


def more_than_one(server: ImageServer, keys: Keys) -> None:
    server.files[INDEX] += keys.sign(b"{}", GOOD)


@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        (changed(INDEX, b"images.sjson", b"others.sjson"), "its signature is that of another content"),
        (changed(PRODUCTS, b"images/", b"imagex/"), "its signature is that of another content"),
        (signed_by(OTHER), "which the keyring does not contain"),
        (signed_by(OLD, PAST, "--default-sig-expire=1d"), "its signature has expired"),
        (signed_by(EXPIRED, PAST), "which has expired"),
        (unsigned, "it is not signed"),
        (missing, "404"),
        (more_than_one, "it is more than one signed text"),
    ],
)
def test_what_is_not_signed_as_it_must_be(
    module_daemon: Daemon,
    busybox: str,
    server: ImageServer,
    keys: Keys,
    keyrings: tuple[Path, Path],
    tmp_path: Path,
    forge: Forge,
    reason: str,
) -> None:
    forge(server, keys)
    said = fetch(module_daemon, server, busybox)
    assert reason in said
    assert str(keyrings[0]) in said
    assert module_daemon.get("/1.0/images") == []
    said = listed(module_daemon, server, tmp_path / "ca.pem")
    assert reason in said
    assert f"checked with {keyrings[1]}" in said


def test_a_keyring_that_cannot_be_read_is_not_ignored(
    module_daemon: Daemon, busybox: str, server: ImageServer, keyrings: tuple[Path, Path], tmp_path: Path
) -> None:
    """Such as a link to that of a package that has been removed."""
    for file in keyrings:
        file.unlink()
        file.symlink_to(tmp_path / "removed.gpg")
    said = fetch(module_daemon, server, busybox)
    assert f"The keyring {keyrings[0]} cannot be read: No such file or directory" in said
    assert "is not accepted" in listed(module_daemon, server, tmp_path / "ca.pem")


def test_without_a_keyring_nothing_need_be_signed(
    module_daemon: Daemon, busybox: str, server: ImageServer, keys: Keys
) -> None:
    missing(server, keys)
    assert fetch(module_daemon, server, busybox) == ""
    module_daemon.do("DELETE", module_daemon.get("/1.0/images")[0])


def test_documents_from_the_cache_are_checked_too(
    module_daemon: Daemon, busybox: str, server: ImageServer, keys: Keys, keyrings: tuple[Path, Path]
) -> None:
    """With the keys as they are now."""
    assert fetch(module_daemon, server, busybox) == ""
    module_daemon.do("DELETE", module_daemon.get("/1.0/images")[0])
    keyrings[0].write_bytes(keys.export(OTHER))
    assert "which the keyring does not contain" in fetch(module_daemon, server, busybox)
