"""A directory of images that `utsuwa image export-tree` writes, read by `lxc` over HTTPS."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.tls import TestAuthority

pytestmark = pytest.mark.root


@dataclass
class Server:
    folder: Path
    url: str
    authority: Path


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A web server, with a certificate of an authority that clients can be told to trust."""
    authority = TestAuthority()
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    identity = authority.issue(tmp_path, "localhost", (names, False))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate_file, identity.key_file)
    folder = tmp_path / "tree"
    handler = functools.partial(_Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield Server(folder, f"https://localhost:{listening.server_port}", tmp_path / "ca.pem")
        listening.shutdown()
        thread.join()


def lxc(daemon: Daemon, server: Server, *arguments: str) -> str:
    """Run `lxc`, which trusts the web server's authority."""
    ended = subprocess.run(
        ["lxc", *arguments],
        env=daemon.lxc_environment() | {"SSL_CERT_FILE": str(server.authority)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_lxc_finds_the_images(module_daemon: Daemon, busybox: str, server: Server) -> None:
    daemon = module_daemon
    fingerprint = daemon.get(f"/1.0/images/aliases/{busybox}")["target"]
    for key, value in (("os", "Busybox"), ("release", "1.35"), ("serial", "20261129_0700")):
        utsuwa_client(daemon, "image", "set-property", busybox, key, value)
    said = utsuwa_client(daemon, "image", "export-tree", str(server.folder), busybox).stdout
    assert said == f"Image {fingerprint[:12]} is the newest version of busybox:1.35:amd64:default\n"
    lxc(daemon, server, "remote", "add", "tree", server.url, "--protocol=simplestreams")
    (found,) = json.loads(lxc(daemon, server, "image", "list", "tree:", "--format=json"))
    assert found["fingerprint"] == fingerprint
    assert busybox in [alias["name"] for alias in found["aliases"]]
    assert (found["properties"]["os"], found["properties"]["serial"]) == ("Busybox", "20261129_0700")
    files = [path for path in server.folder.rglob("*") if path.is_file()]
    assert [oct(path.stat().st_mode) for path in files] == ["0o100644"] * 4


@pytest.fixture
def tree(module_daemon: Daemon, busybox: str, server: Server) -> Iterator[Callable[..., str]]:
    """`utsuwa` with the remote `tree`, whose only image is that of busybox."""
    env = {"SSL_CERT_FILE": str(server.authority)}

    def utsuwa(*arguments: str, check: bool = True) -> str:
        ended = utsuwa_client(module_daemon, *arguments, check=check, env=env)
        return ended.stdout if check else ended.stderr

    utsuwa("image", "export-tree", str(server.folder), busybox)
    utsuwa("remote", "add", "tree", server.url, "--protocol=simplestreams")
    yield utsuwa
    utsuwa("remote", "remove", "tree")


def test_client_reads_the_images(
    module_daemon: Daemon, busybox: str, tree: Callable[..., str], tmp_path: Path
) -> None:
    fingerprint = module_daemon.get(f"/1.0/images/aliases/{busybox}")["target"]
    (found,) = json.loads(tree("image", "list", "tree:", "--format=json"))
    assert found["fingerprint"] == fingerprint
    aliases = tree("image", "alias", "list", "tree:", "--format=csv")
    assert aliases.startswith(f"{busybox},{fingerprint[:12]},")
    assert f"Fingerprint: {fingerprint}" in tree("image", "info", f"tree:{busybox}")
    assert "os: " in tree("image", "show", f"tree:{fingerprint[:8]}")
    tree("image", "export", f"tree:{busybox}", str(tmp_path))
    files = [(tmp_path / name).read_bytes() for name in ("lxd.tar.xz", "root.squashfs")]
    assert hashlib.sha256(b"".join(files)).hexdigest() == fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["image", "info", "tree:none"], "has no image 'none'"),
        (["list", "tree:"], "is an image server: its images can be listed, copied and launched"),
        (["image", "delete", "tree:{image}"], "is an image server"),
    ],
)
def test_what_image_servers_do_not_have(
    tree: Callable[..., str], busybox: str, arguments: list[str], message: str
) -> None:
    assert message in tree(*(word.format(image=busybox) for word in arguments), check=False)


def test_files_that_were_changed_are_refused(tree: Callable[..., str], busybox: str, server: Server) -> None:
    (root,) = server.folder.rglob("root.squashfs")
    root.write_bytes(root.read_bytes()[:-1] + b"x")
    said = tree("image", "export", f"tree:{busybox}", str(server.folder.parent), check=False)
    assert "is not the file that the index of the server names" in said


def test_servers_with_an_unknown_authority_are_refused(
    module_daemon: Daemon, tree: Callable[..., str]
) -> None:
    failed = utsuwa_client(module_daemon, "image", "list", "tree:", check=False)
    assert "install the certificate of its authority on this system" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "Image not found"),
        (["{image}", "--keep=0"], "--keep is 1 or more"),
        (["{image}", "--sign=nobody@example.net"], "gpg could not sign with the key 'nobody@example.net'"),
    ],
)
def test_mistakes_leave_no_index(
    module_daemon: Daemon, busybox: str, tmp_path: Path, arguments: list[str], message: str
) -> None:
    words = [word.format(image=busybox) for word in arguments]
    home = {"GNUPGHOME": str(tmp_path)}
    failed = utsuwa_client(
        module_daemon, "image", "export-tree", str(tmp_path / "tree"), *words, check=False, env=home
    )
    assert failed.returncode != 0
    assert message in failed.stderr
    assert not (tmp_path / "tree/streams/v1/index.json").exists()
