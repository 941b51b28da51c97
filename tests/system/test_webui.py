"""The web page's files, addresses and sessions, as seen by a program that may do what no browser does."""

from __future__ import annotations

import gzip
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.tls import Identity, free_address, make_identity, request
from tests.support.web import KEY, Page, local_token, signed_in

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def page(module_daemon: Daemon) -> Page:
    return signed_in(module_daemon)


@pytest.fixture(scope="module")
def address(module_daemon: Daemon) -> Iterator[str]:
    """The daemon's HTTPS address."""
    found = free_address()
    module_daemon.do("PATCH", "/1.0", {"config": {"core.https_address": found}})
    yield found
    module_daemon.do("PATCH", "/1.0", {"config": {"core.https_address": ""}})


def trusted(daemon: Daemon, folder: Path, **more: object) -> Identity:
    identity = make_identity(folder)
    certificate = "".join(identity.pem.splitlines()[1:-1])
    daemon.do(
        "POST", "/1.0/certificates", {"type": "client", "name": "x", "certificate": certificate, **more}
    )
    return identity


def test_a_session_on_the_loopback_address_acts_for_the_user(module_daemon: Daemon, page: Page) -> None:
    assert re.fullmatch(r"http://[0-9a-f]{16}\.localhost:\d+", page.origin)
    assert page.ask("GET", "/1.0").metadata["auth"] == "trusted"
    assert page.ask("POST", "/1.0/profiles", {"name": "made"}).status == 201
    assert page.ask("DELETE", "/1.0/profiles/made").status == 200
    events = {**page.own, "Cookie": page.cookie, "Sec-WebSocket-Protocol": f"utsuwa, utsuwa.key.{page.key}"}
    assert page.handshake("/1.0/events", events) == 101
    assert page.ask("GET", "/internal/sql").status == 403, "what is for the host's root alone"


def test_what_is_missing_of_a_session_is_missed(page: Page) -> None:
    """Without each of its parts, the caller is anyone."""
    everything = {**page.own, **page.session}
    assert page.send("GET", "/1.0/instances", headers=everything).status == 200
    for kept in (
        {"Sec-Fetch-Site": "same-origin", **page.session},
        {"Origin": page.origin, **page.session},
    ):
        assert page.send("GET", "/1.0/instances", headers=kept).status == 200
    for broken in (
        page.session,
        {**page.own, "Cookie": page.cookie},
        {**page.own, KEY: page.key},
        {**everything, KEY: "other"},
        {**everything, "Cookie": "utsuwa=other"},
        {**page.session, "Sec-Fetch-Site": "none"},
        {**page.session, "Sec-Fetch-Site": "same-site"},
        {**everything, "Origin": "https://evil.example"},
        {**everything, "Origin": "null"},
        {**everything, "Sec-Fetch-Site": "cross-site"},
    ):
        assert page.send("GET", "/1.0/instances", headers=broken).status == 403, broken
        assert page.send("POST", "/1.0/profiles", {"name": "evil"}, broken).status == 403, broken
        protocols = {"Sec-WebSocket-Protocol": f"utsuwa, utsuwa.key.{broken.get(KEY, '')}"}
        assert page.handshake("/1.0/events", {**broken, **protocols}) == 403, broken
    assert page.ask("GET", "/1.0/profiles").metadata == ["/1.0/profiles/default"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "evil.example", "x.localhost", ""])
def test_only_its_own_name_is_answered(page: Page, host: str) -> None:
    """A page whose name leads to the loopback address (DNS rebinding) gets nothing, not even the page."""
    port = page.host.partition(":")[2]
    for named in (host, f"{host}:{port}", page.host.partition(":")[0]):
        headers = {**page.own, **page.session, "Host": named}
        for url in ("/", "/1.0", "/ui/", "/1.0/instances"):
            reply = page.send("GET", url, headers=headers)
            assert reply.status == 403, (named, url)
            assert "the name that `utsuwa webui` prints" in reply.error


def test_tokens_work_once_and_only_where_they_are_for(module_daemon: Daemon, address: str) -> None:
    token = local_token(module_daemon)
    waiting = f"/1.0/web/tokens/{token.id}"
    page, other = Page(token.origin), Page(f"https://{address}", address)
    assert module_daemon.api("GET", waiting).status == 200
    for wrong in ("", "x", token.id, token.secret + "x", "'; --", "é" * 1000):
        assert page.sign_in(wrong).status == 403
    assert other.sign_in(token.secret).status == 403, "it is for the loopback address"
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert page.send("POST", "/1.0/web/session", {"token": token.secret}, foreign).status == 403
    assert page.sign_in(token.secret).status == 200
    again = page.sign_in(token.secret)
    assert (again.status, again.error) == (
        403,
        "The token is not valid: it has been used or has expired; get a new one with `utsuwa webui`",
    )
    assert module_daemon.api("GET", waiting).status == 404


def test_sessions_beget_no_tokens(page: Page) -> None:
    assert page.ask("POST", "/1.0/web/tokens", {"local": True}).status == 403


def test_the_cookie_is_for_this_host_and_no_script(module_daemon: Daemon, address: str) -> None:
    token = local_token(module_daemon)
    said = Page(token.origin).sign_in(token.secret).headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(said)
    assert not any(part.startswith("Domain") for part in said)
    secret = module_daemon.api("POST", "/1.0/web/tokens", {}).metadata["secret"]
    over_https = Page(f"https://{address}", address).sign_in(secret).headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/", "Secure"} <= set(over_https)
    assert over_https[0].startswith(f"__Host-utsuwa-{address.rpartition(':')[2]}=")


def test_signing_out_ends_the_session(module_daemon: Daemon) -> None:
    page = signed_in(module_daemon)
    reply = page.ask("DELETE", "/1.0/web/session")
    assert (reply.status, "Max-Age=0" in reply.headers["set-cookie"]) == (200, True)
    assert page.ask("GET", "/1.0/instances").status == 403
    assert page.ask("DELETE", "/1.0/web/session").status == 200, "there is nothing to end"


def test_a_certificates_session_has_its_rights(module_daemon: Daemon, address: str, tmp_path: Path) -> None:
    """Those that it has at the moment: of its projects only, and of none once it is removed."""
    module_daemon.do("POST", "/1.0/projects", {"name": "own", "config": {"features.images": "false"}})
    identity = trusted(module_daemon, tmp_path, restricted=True, projects=["own"])
    refused = request(address, "POST", "/1.0/web/tokens", {"local": True}, identity=identity)
    assert (refused.status, refused.error) == (400, "The loopback address is for local users: omit local")
    token = request(address, "POST", "/1.0/web/tokens", {}, identity=identity)
    page = Page(f"https://{address}", address)
    assert page.sign_in(token.metadata["secret"]).status == 200
    assert page.ask("GET", "/1.0/instances?project=own").metadata == []
    assert page.ask("GET", "/1.0/instances?project=default").status == 403
    assert page.ask("PATCH", "/1.0", {"config": {"user.x": "1"}}).status == 403
    module_daemon.do("DELETE", f"/1.0/certificates/{identity.fingerprint}")
    assert page.ask("GET", "/1.0/instances?project=own").status == 403
    module_daemon.do("DELETE", "/1.0/projects/own")


def test_a_client_certificate_needs_no_session(module_daemon: Daemon, address: str, tmp_path: Path) -> None:
    identity = trusted(module_daemon, tmp_path)
    own = {"Origin": f"https://{address}", "Sec-Fetch-Site": "same-origin"}
    reply = request(address, "GET", "/1.0", identity=identity, headers=own)
    assert reply.metadata["auth"] == "trusted"
    module_daemon.do("DELETE", f"/1.0/certificates/{identity.fingerprint}")


def test_the_page_can_be_linked_to_but_not_framed_or_read(address: str) -> None:
    """A link of any site leads to the page, which is the same for everyone; nothing else is reached so."""

    def ask(url: str, **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return request(address, "GET", url, headers={"Sec-Fetch-Site": "cross-site", **named}).status

    navigation = {"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert ask("/ui/", **navigation) == 200
    assert ask("/ui/default/instances/x", **navigation) == 200
    assert ask("/ui/", Sec_Fetch_Mode="navigate", Sec_Fetch_Dest="iframe") == 403
    assert ask("/ui/", Sec_Fetch_Mode="no-cors", Sec_Fetch_Dest="script") == 403
    assert ask("/1.0", **navigation) == 403
    assert ask("/uix", **navigation) == 403


def test_files_have_a_strict_policy_and_are_compressed(page: Page) -> None:
    index = page.send("GET", "/ui/")
    policy = index.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "<script>" not in index.body.decode()
    assert "style=" not in index.body.decode()
    for file in re.findall(r'"(/ui/assets/[^"]+)"', index.body.decode()):
        packed = page.send("GET", file, headers={"Accept-Encoding": "gzip"})
        assert packed.headers["cache-control"].endswith("immutable")
        assert gzip.decompress(packed.body) == page.send("GET", file).body
        fresh = page.send("GET", file, headers={"If-None-Match": packed.headers["etag"]})
        assert (fresh.status, fresh.body) == (304, b"")
    assert page.send("GET", "/ui").headers["location"] == "/ui/"
    assert page.send("GET", "/ui/assets/nothing.js").status == 404
    assert page.send("GET", "/ui/try.html").body == index.body, "the public site is not part of the page"
    for path in ("/ui/../../etc/passwd", "/ui/%2e%2e/%2e%2e/etc/passwd", "/ui//etc/passwd"):
        assert b"root:" not in page.send("GET", path).body


def test_sessions_survive_a_restart_and_a_crash(module_daemon: Daemon, page: Page) -> None:
    module_daemon.restart()
    assert page.ask("GET", "/1.0/instances").status == 200
    module_daemon.kill()
    module_daemon.start()
    assert page.ask("GET", "/1.0/instances").status == 200


def test_another_program_has_the_port_after_a_restart(daemon: Daemon) -> None:
    """The sessions are over, as their address is; a new one has another."""
    page = signed_in(daemon)
    port = int(page.host.partition(":")[2])
    daemon.stop()
    with socket.create_server(("127.0.0.1", port)):
        daemon.start()
        after = signed_in(daemon)
    assert after.host != page.host
    assert after.ask("GET", "/1.0/instances").status == 200


def test_the_command_prints_an_address(module_daemon: Daemon, address: str) -> None:
    display = {"DISPLAY": "", "WAYLAND_DISPLAY": "", "BROWSER": ""}
    local = utsuwa_client(module_daemon, "webui", env=display).stdout.splitlines()
    assert re.fullmatch(r"http://[0-9a-f]{16}\.localhost:\d+/ui/#token=[\w-]+", local[0])
    assert local[1] == "This address signs in once, within five minutes."
    url = utsuwa_client(module_daemon, "webui", "--https", "--url").stdout.split()[0]
    assert url.startswith(f"https://{address}/ui/#token=")
    assert Page(f"https://{address}", address).sign_in(url.partition("=")[2]).status == 200
    wrong = utsuwa_client(module_daemon, "webui", "local:x", check=False)
    assert "Give a remote with its colon" in wrong.stderr


def test_the_command_needs_an_https_address_for_https(daemon: Daemon) -> None:
    ended = utsuwa_client(daemon, "webui", "--https", check=False)
    assert (ended.returncode, "set core.https_address first" in ended.stderr) == (1, True)


def test_the_command_opens_a_browser_without_showing_the_token(module_daemon: Daemon, tmp_path: Path) -> None:
    """Arguments of processes are visible to all users. The browser here is a program that reads the file."""
    browser = tmp_path / "browser"
    browser.write_text(
        "#!/usr/bin/python3\n"
        "import re, sys, json, stat, os, http.client\n"
        "path = sys.argv[1].removeprefix('file://')\n"
        "assert stat.S_IMODE(os.stat(path).st_mode) == 0o600\n"
        "url = re.search(r'url=(http://([^/]+))/ui/#token=([^\"]+)', open(path).read())\n"
        "origin, host, token = url.groups()\n"
        "assert token not in ' '.join(sys.argv)\n"
        "connection = http.client.HTTPConnection('127.0.0.1', int(host.split(':')[1]))\n"
        "body = json.dumps({'token': token})\n"
        "headers = {'Host': host, 'Origin': origin, 'Content-Type': 'application/json'}\n"
        "connection.request('POST', '/1.0/web/session', body, headers)\n"
        f"open({str(tmp_path / 'said')!r}, 'w').write(str(connection.getresponse().status))\n"
    )
    browser.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    ran = utsuwa_client(module_daemon, "webui", env={"BROWSER": str(browser), "HOME": str(home)})
    assert "Opening the page in a browser" in ran.stdout
    assert (tmp_path / "said").read_text() == "200"
    assert list(home.glob("utsuwa-webui-*")) == []
