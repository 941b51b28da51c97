"""The client's folder."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from utsuwa.client import keypair, remotes
from utsuwa.client.connect import connect, socket_path
from utsuwa.client.https import fingerprint, normal_address, to_pem
from utsuwa.client.remotes import Remote
from utsuwa.core.errors import AlreadyExists, InvalidRequest, NotFound

LXC = """\
default-remote: far
remotes:
  far:
    addr: https://10.0.0.1:8443
    auth_type: tls
    project: lab
    protocol: lxd
    public: false
  images:
    addr: https://images.example
    protocol: simplestreams
    public: true
aliases:
  sh: exec web -- sh
"""


def folder(tmp_path: Path, text: str = "") -> str:
    if text:
        (tmp_path / "config.yml").write_text(text)
    return str(tmp_path)


def test_without_a_config_file_the_local_daemon_is_used(tmp_path: Path) -> None:
    config = remotes.load(folder(tmp_path / "none"))
    assert config.default == "local"
    assert config.remote("local").is_unix
    assert config.split("web") == ("local", "web")


def test_the_format_of_lxc(tmp_path: Path) -> None:
    config = remotes.load(folder(tmp_path, LXC))
    far = config.remote("far")
    assert far.addr == "https://10.0.0.1:8443"
    assert (far.auth_type, far.project, far.public) == ("tls", "lab", False)
    assert config.split("web") == ("far", "web")
    assert config.split("local:web") == ("local", "web")
    assert config.aliases == {"sh": "exec web -- sh"}


def test_saved_config_is_read_again(tmp_path: Path) -> None:
    config = remotes.load(folder(tmp_path, LXC + "other: kept\n"))
    config.add("near", Remote("unix:///run/near.socket"))
    config.remote("local").project = "lab"
    config.save()
    path = tmp_path / "config.yml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text())["other"] == "kept"
    again = remotes.load(str(tmp_path))
    assert again.default == "far"
    assert again.remote("near").addr == "unix:///run/near.socket"
    assert again.remote("local").project == "lab"
    assert again.remote("far").record() == config.remote("far").record()


def test_removing_and_renaming(tmp_path: Path) -> None:
    config = remotes.load(folder(tmp_path, LXC))
    config.write("servercerts/far.crt", "certificate")
    config.rename("far", "away")
    assert config.default == "away"
    assert Path(config.server_certificate("away")).read_text() == "certificate"
    with pytest.raises(InvalidRequest, match="default remote"):
        config.remove("away")
    config.default = "local"
    config.remove("away")
    assert not Path(config.server_certificate("away")).exists()
    with pytest.raises(NotFound, match="away"):
        config.remote("away")


@pytest.mark.parametrize("name", ["", "a:b", "a/b", "../x", "-x", "a\nb"])
def test_names_that_no_remote_may_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest):
        remotes.load(folder(tmp_path)).add(name, Remote("unix://"))


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    config = remotes.load(folder(tmp_path))
    with pytest.raises(AlreadyExists, match="images"):
        config.add("images", Remote("unix://"))
    with pytest.raises(InvalidRequest, match="built in"):
        config.remove("local")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: [", "not valid YAML"),
        ("[]", "is not a client configuration"),
        ("remotes: 3", "is not a client configuration"),
        ("default-remote: gone", "gone"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        remotes.load(folder(tmp_path, text))


def test_names_with_slashes_and_colons_are_no_remotes(tmp_path: Path) -> None:
    config = remotes.load(folder(tmp_path))
    assert config.split("a/b:c") == ("local", "a/b:c")
    with pytest.raises(NotFound, match="zz"):
        config.split("zz:web")


@pytest.mark.parametrize("name", ["images", "ubuntu", "ubuntu-daily"])
def test_image_servers_have_nothing_but_images(tmp_path: Path, name: str) -> None:
    server = connect(remotes.load(folder(tmp_path)), name)
    for request in (server.get, server.delete, server.get_with_etag):
        with pytest.raises(InvalidRequest, match="is an image server"):
            request("/1.0/instances")
    with pytest.raises(InvalidRequest, match="is an image server"):
        server.raw("POST", "/1.0/images")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("far.example", "https://far.example:8443"),
        ("far.example:443", "https://far.example:443"),
        ("https://[fd00::1]", "https://[fd00::1]:8443"),
        ("unix:///x", "unix:///x"),
    ],
)
def test_addresses(text: str, address: str) -> None:
    assert normal_address(text) == address


@pytest.mark.parametrize("text", ["http://far", "https://", "https://far:port"])
def test_invalid_addresses(text: str) -> None:
    with pytest.raises(InvalidRequest):
        normal_address(text)


def test_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UTSUWA_SOCKET", "UTSUWA_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert socket_path() == "/var/lib/utsuwa/unix.socket"
    monkeypatch.setenv("UTSUWA_DIR", "/x")
    assert socket_path() == "/x/unix.socket"
    monkeypatch.setenv("UTSUWA_SOCKET", "/y")
    assert socket_path() == "/y"


def test_the_client_makes_its_certificate_once(tmp_path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    config = remotes.load(folder(tmp_path / "conf"))
    assert keypair.ensure(config)
    assert not keypair.ensure(config)
    key_file = Path(config.client_key)
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    key = load_pem_private_key(key_file.read_bytes(), None)
    certificate = x509.load_pem_x509_certificate(Path(config.client_certificate).read_bytes())
    assert certificate.public_key() == key.public_key()
    der = certificate.public_bytes(Encoding.DER)
    assert x509.load_pem_x509_certificate(to_pem(der).encode()) == certificate
    assert len(fingerprint(der)) == 64
