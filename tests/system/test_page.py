"""The web page in a real browser, on a real daemon: what people do with it, and what it must not do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from tests.conftest import SHARED
from tests.support import images, workers
from tests.support.chromium import (
    WEB,
    Complaints,
    build_page,
    chromium,
    load_rules,
    new_context,
    violations,
)
from tests.support.daemon import Daemon
from tests.support.image_server import ImageServer, held
from tests.support.images import Image
from tests.support.netbox import until
from tests.support.tls import make_identity
from tests.support.web import Token, local_token

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

BUDGET = 250_000
"""Bytes of the page on the wire, compressed."""
TEXT = 20
"""Pixels of a line of text, at most."""
MARKUP = "<img src=x onerror=alert(1)>'\"&<script>alert(2)</script>"


@pytest.fixture(scope="module", autouse=True)
def built(pytestconfig: pytest.Config) -> None:
    workers.once(pytestconfig.stash[SHARED], "page", lambda _: build_page("--check"))


@pytest.fixture(scope="module")
def browser(built: None) -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def token(module_daemon: Daemon) -> Token:
    return local_token(module_daemon)


@pytest.fixture(scope="module")
def context(browser: Browser, token: Token) -> Iterator[BrowserContext]:
    """A browser that is signed in."""
    context = new_context(browser, token.origin)
    page = context.new_page()
    page.goto(f"/ui/#token={token.secret}")
    page.get_by_role("heading", name="Instances").wait_for()
    assert "token" not in page.url
    page.close()
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page at `/ui/`, about which the browser must not complain."""
    page = context.new_page()
    complaints = Complaints()
    complaints.listen_to(page)
    page.goto("/ui/")
    page.get_by_role("heading", name="Instances").wait_for()
    yield page
    page.close()
    assert complaints == []


@pytest.fixture
def instances(module_daemon: Daemon, busybox: str) -> Iterator[Daemon]:
    yield module_daemon
    module_daemon.delete_instances()


def place(*parts: str) -> str:
    return "/ui/default/" + "/".join(quote(part, safe="") for part in parts)


def go(page: Page, *parts: str) -> None:
    page.goto(place(*parts))


def screen(page: Page) -> str:
    return page.locator(".xterm-rows").inner_text()


def wait_for_screen(page: Page, text: str) -> None:
    expect(page.locator(".xterm-rows")).to_contain_text(text)


def open_terminal(page: Page, name: str) -> None:
    go(page, "instances", name, "terminal")
    expect(page.get_by_role("status").filter(has_text="Shell of root")).to_be_visible()
    page.locator(".xterm-helper-textarea").focus()


KEEP_SOCKETS = """
window.sockets = []
window.WebSocket = class extends WebSocket {
    constructor(...given) { super(...given); sockets.push(this) }
}
"""
"""Has a page remember its websockets, so that a test can cut them off."""


def test_the_walk_from_launch_to_delete(page: Page, instances: Daemon) -> None:
    page.get_by_role("button", name="Launch").click()
    launch = page.get_by_role("dialog")
    launch.get_by_label("Name", exact=True).fill("walk")
    launch.get_by_label("Memory").fill("256MiB")
    expect(launch.locator("code")).to_have_text("utsuwa launch busybox walk -c limits.memory=256MiB")
    launch.get_by_role("button", name="Launch").click()
    row = page.get_by_role("row").filter(has_text="walk")
    expect(row).to_contain_text("Running")
    assert instances.get("/1.0/instances/walk")["config"]["limits.memory"] == "256MiB"

    row.get_by_role("link", name="walk", exact=True).click()
    page.get_by_role("link", name="Terminal").click()
    expect(page.get_by_role("status").filter(has_text="Shell of root")).to_be_visible()
    page.locator(".xterm-helper-textarea").focus()
    page.keyboard.type("echo $((6 * 7))-ünï-日本\n")
    wait_for_screen(page, "42-ünï-日本")
    # With an animation, such as of a cursor, the browser draws frames all the time, behind which echoes wait.
    until(lambda: page.evaluate("document.getAnimations().length") == 0)

    page.get_by_role("button", name="Snapshot").click()
    page.get_by_role("dialog").get_by_label("Name").fill("first")
    page.get_by_role("dialog").get_by_role("button", name="Snapshot").click()
    page.get_by_role("navigation", name="Views").get_by_role("link", name="Snapshots").click()
    expect(page.get_by_role("row").filter(has_text="first")).to_be_visible()
    assert instances.get("/1.0/instances/walk/snapshots") == ["/1.0/instances/walk/snapshots/first"]
    page.get_by_role("button", name="Restore").click()
    expect(page.get_by_role("dialog").locator("code")).to_have_text("utsuwa restore walk first")
    page.get_by_role("dialog").get_by_role("button", name="Restore").click()
    expect(page.locator(".task.done").filter(has_text="Restoring walk")).to_be_visible()
    page.get_by_role("button", name="Delete: first").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("No snapshots yet.")).to_be_visible()

    page.get_by_role("button", name="Freeze").click()
    expect(page.get_by_role("button", name="Resume")).to_be_enabled()
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("button", name="Freeze")).to_be_enabled()
    page.get_by_role("button", name="Stop").hover()
    expect(page.locator(".commandbar code")).to_have_text("utsuwa stop walk")
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Rename").click()
    page.get_by_role("dialog").get_by_label("New name").fill("walked")
    page.get_by_role("dialog").get_by_role("button", name="Rename").click()
    expect(page.get_by_role("heading", name="walked")).to_be_visible()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("No instances in this project yet.")).to_be_visible()
    assert instances.get("/1.0/instances") == []


@pytest.mark.long
def test_a_change_elsewhere_is_seen_at_once(page: Page, instances: Daemon, busybox: str) -> None:
    instances.lxc("launch", busybox, "live")
    row = page.get_by_role("row").filter(has_text="live")
    expect(row).to_contain_text("Running")
    instances.lxc("pause", "live")
    expect(row).to_contain_text("Frozen")
    instances.lxc("delete", "live", "--force")
    expect(row).to_have_count(0)


def test_errors_show_what_the_api_says(page: Page, instances: Daemon, busybox: str) -> None:
    instances.lxc("init", busybox, "taken")
    page.get_by_role("button", name="Launch").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name", exact=True).fill("-bad-")
    dialog.get_by_role("button", name="Launch").click()
    expect(dialog.get_by_role("alert")).to_contain_text("-bad-")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    go(page, "instances", "taken", "config")
    page.get_by_placeholder("New key").fill("limits.memory")
    page.get_by_role("button", name="Add key").click()
    page.get_by_label("limits.memory", exact=True).fill("much")
    page.get_by_role("button", name="Save").hover()
    expect(page.locator(".commandbar code")).to_have_text("utsuwa config set taken limits.memory=much")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".task.failed")).to_contain_text("limits.memory")
    page.get_by_label("limits.memory", exact=True).fill("64MiB")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".task.done")).to_be_visible()
    assert instances.get("/1.0/instances/taken")["config"]["limits.memory"] == "64MiB"


@pytest.mark.long
def test_markup_in_names_is_text(page: Page, instances: Daemon, busybox: str) -> None:
    """In descriptions, keys and values: names of instances cannot contain any."""
    instances.lxc("init", busybox, "marked")
    change = {"description": MARKUP, "config": {"user.x": MARKUP}}
    instances.do("PATCH", "/1.0/instances/marked", change)
    instances.do("POST", "/1.0/profiles", {"name": "marked", "description": MARKUP})
    expect(page.get_by_role("row").filter(has_text="marked")).to_contain_text(MARKUP)
    go(page, "instances", "marked")
    expect(page.get_by_text(MARKUP)).to_be_visible()
    go(page, "instances", "marked", "config")
    expect(page.get_by_label("user.x", exact=True)).to_have_value(MARKUP)
    go(page, "profiles")
    expect(page.get_by_role("row").filter(has_text="marked")).to_contain_text(MARKUP)
    go(page, "instances", MARKUP)
    expect(page.get_by_role("heading", name=MARKUP)).to_be_visible()
    assert page.locator("img[onerror]").count() == 0
    instances.do("DELETE", "/1.0/profiles/marked")


def submit(page: Page, button: str, command: str) -> None:
    """Send the form of the open dialog, which must show this command, and wait until it is closed."""
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("code")).to_have_text(command)
    send = dialog.locator("button[type=submit]")
    expect(send).to_contain_text(button)
    send.click()
    expect(dialog).to_have_count(0)


@pytest.mark.long
def test_copies_and_images_of_an_instance(page: Page, instances: Daemon, busybox: str) -> None:
    instances.lxc("init", busybox, "model", "-c", "user.kept=yes")
    instances.lxc("snapshot", "model", "first")
    instances.do("POST", "/1.0/projects", {"name": "other", "config": {"features.profiles": "false"}})
    go(page, "instances", "model")
    page.get_by_role("button", name="Copy", exact=True).click()
    page.get_by_role("dialog").get_by_label("Name").fill("twin")
    page.get_by_role("dialog").get_by_label("Project").select_option("other")
    page.get_by_role("dialog").get_by_label("With its snapshots").uncheck()
    submit(page, "Copy", "utsuwa copy model twin --target-project other --instance-only")
    expect(page.locator(".task.done").filter(has_text="Copying model")).to_be_visible()
    copied = instances.get("/1.0/instances/twin?project=other&recursion=1")
    assert (copied["config"]["user.kept"], copied["snapshots"]) == ("yes", None)
    instances.do("DELETE", "/1.0/instances/twin?project=other")
    instances.do("DELETE", "/1.0/projects/other")

    page.get_by_role("navigation", name="Views").get_by_role("link", name="Snapshots").click()
    page.get_by_role("button", name="New instance: model/first").click()
    page.get_by_role("dialog").get_by_label("Name").fill("from-first")
    page.get_by_role("dialog").get_by_label("Storage pool").select_option("default")
    submit(page, "Create", "utsuwa copy model/first from-first --storage default")
    expect(page.locator(".task.done").filter(has_text="Copying model/first")).to_be_visible()
    root = instances.get("/1.0/instances/from-first")["devices"]["root"]
    assert root["pool"] == "default"

    page.get_by_role("button", name="Publish: model/first").click()
    page.get_by_role("dialog").get_by_label("Alias").fill("made")
    page.get_by_role("dialog").get_by_label("Description").fill("Made here")
    submit(page, "Publish", "utsuwa publish model/first --alias made 'description=Made here'")
    expect(page.locator(".task.done").filter(has_text="Making an image")).to_be_visible()
    image = instances.get("/1.0/images/aliases/made")["target"]
    assert instances.get(f"/1.0/images/{image}")["properties"]["description"] == "Made here"
    instances.do("DELETE", f"/1.0/images/{image}")


@pytest.mark.long
def test_devices_are_added_with_help_and_removed(
    page: Page, instances: Daemon, busybox: str, tmp_path: Path
) -> None:
    instances.lxc("init", busybox, "fitted")
    go(page, "instances", "fitted", "devices")
    page.get_by_role("button", name="Add device").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("data")
    dialog.get_by_text("Settings of the type disk").click()
    for kind, key in (("nic", "hwaddr"), ("unix-block", "major"), ("disk", "readonly")):
        dialog.get_by_label("Type").select_option(kind)
        expect(dialog.get_by_text(f"Settings of the type {kind}")).to_be_visible()
        expect(dialog.get_by_role("term").filter(has_text=re.compile(f"^{key}$"))).to_be_visible()
    dialog.get_by_label("Settings", exact=True).fill(f"source={tmp_path}\npath=/mnt")
    submit(page, "Add", f"utsuwa config device add fitted data disk source={tmp_path} path=/mnt")
    added = {"type": "disk", "source": str(tmp_path), "path": "/mnt"}
    assert instances.get("/1.0/instances/fitted")["devices"] == {"data": added}
    page.get_by_role("button", name="Remove device data").click()
    submit(page, "Remove device data", "utsuwa config device remove fitted data")
    expect(page.get_by_role("button", name="Remove device data")).to_have_count(0)
    assert instances.get("/1.0/instances/fitted")["devices"] == {}


@pytest.mark.long
def test_custom_volumes(page: Page, instances: Daemon, busybox: str) -> None:
    instances.lxc("launch", busybox, "user")
    go(page, "storage", "default")
    page.get_by_role("button", name="Create volume").click()
    page.get_by_role("dialog").get_by_label("Name").fill("data")
    submit(page, "Create", "utsuwa storage volume create default data")
    page.get_by_role("link", name="data", exact=True).click()
    page.get_by_placeholder("New key").fill("snapshots.pattern")
    page.get_by_role("button", name="Add key").click()
    expect(page.get_by_role("row").filter(has_text="snapshots.pattern")).to_contain_text("Name pattern")
    page.get_by_role("button", name="Snapshot", exact=True).click()
    page.get_by_role("dialog").get_by_label("Name").fill("before")
    submit(page, "Snapshot", "utsuwa storage volume snapshot default data before")
    page.get_by_role("button", name="Restore").click()
    submit(page, "Restore", "utsuwa storage volume restore default data before")
    expect(page.locator(".task.done").filter(has_text="Restoring data")).to_be_visible()
    page.get_by_role("button", name="Delete: before").click()
    submit(page, "Delete", "utsuwa storage volume delete default data/before")
    expect(page.get_by_text("No snapshots yet.")).to_be_visible()
    page.get_by_role("button", name="Attach").click()
    page.get_by_role("dialog").get_by_label("Path in the instance").fill("/srv")
    submit(page, "Attach", "utsuwa storage volume attach default data user /srv")
    expect(page.locator(".task.done").filter(has_text="Attaching data")).to_be_visible()
    assert " /srv " in instances.lxc("exec", "user", "--", "cat", "/proc/mounts").stdout
    instances.delete_instances()
    instances.do("DELETE", "/1.0/storage-pools/default/volumes/custom/data")


@pytest.mark.long
def test_images_are_named_described_and_downloaded(page: Page, instances: Daemon, busybox: str) -> None:
    go(page, "images")
    page.get_by_role("row").filter(has_text=busybox).get_by_role("link").click()
    page.get_by_role("button", name="Add alias").click()
    page.get_by_role("dialog").get_by_label("Alias").fill("second")
    short = instances.get(f"/1.0/images/aliases/{busybox}")["target"][:12]
    submit(page, "Add", f"utsuwa image alias create second {short}")
    page.get_by_placeholder("New key").fill("note")
    page.get_by_role("button", name="Add key").click()
    page.get_by_label("note", exact=True).fill("mine")
    expect(page.get_by_role("row").filter(has_text="os").first).to_contain_text("The distribution")
    page.get_by_role("button", name="Save").hover()
    expect(page.locator(".commandbar code")).to_have_text(f"utsuwa image set-property {short} note mine")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".task.done")).to_be_visible()
    assert instances.get("/1.0/images/aliases/second")["target"].startswith(short)
    assert instances.get(f"/1.0/images/{short}")["properties"]["note"] == "mine"
    page.get_by_role("button", name="Delete: second").click()
    expect(page.get_by_role("button", name="Delete: second")).to_have_count(0)
    go(page, "images")
    page.get_by_role("button", name="Download image").click()
    page.get_by_role("dialog").get_by_label("Image", exact=True).fill("debian/12")
    page.get_by_role("dialog").get_by_label("Alias").fill("deb")
    submit(page, "Download", "utsuwa image copy images:debian/12 local: --alias deb --auto-update")
    # The tests have no network beyond their own: what is seen is that the server has tried it.
    expect(page.locator(".task.failed")).to_contain_text("images.linuxcontainers.org")


@pytest.mark.long
def test_a_long_task_shows_its_progress_and_can_be_cancelled(
    page: Page, instances: Daemon, image_server: ImageServer, newer_image: Image
) -> None:
    """A download from the tests' server, which stops sending in the middle of it."""
    image_server.publish(newer_image, "20270101_0700")
    (rootfs,) = (path for path in image_server.files if path.endswith("20270101_0700/rootfs.squashfs"))
    content, release = image_server.files[rootfs], Event()
    image_server.odd[rootfs] = held(release, content, after=len(content) // 2)
    before = instances.get("/1.0/images")

    def from_here(route: Route) -> None:
        body = json.loads(route.request.post_data or "")
        route.continue_(post_data=json.dumps(body | {"source": image_server.source("busybox")}))

    page.route(re.compile(r"/1\.0/images\?project="), from_here)
    try:
        for cancel in (page.locator(".task"), page.get_by_role("row").filter(has_text="Downloading image")):
            go(page, "images")
            page.get_by_role("button", name="Download image").click()
            page.get_by_role("dialog").get_by_label("Image", exact=True).fill("busybox")
            submit(page, "Download", "utsuwa image copy images:busybox local: --auto-update")
            expect(page.locator(".task")).to_contain_text("rootfs")
            page.get_by_role("link", name="Operations").click()
            cancel.get_by_role("button", name="Cancel").click()
            expect(page.locator(".task.failed").filter(has_text="images:busybox")).to_be_visible()
            expect(page.get_by_text("Nothing is running in the background.")).to_be_visible()
    finally:
        release.set()
    assert instances.get("/1.0/images") == before


@pytest.mark.long
def test_objects_are_deleted_in_their_lists(page: Page, instances: Daemon, tmp_path: Path) -> None:
    """After a question, and as the command shown says; the row is gone at once."""
    no_addresses = {"ipv4.address": "none", "ipv6.address": "none"}
    instances.do("POST", "/1.0/profiles", {"name": "shelf"})
    instances.do("POST", "/1.0/projects", {"name": "shelf"})
    instances.do("POST", "/1.0/networks", {"name": "shelf0", "config": no_addresses})
    instances.do("POST", "/1.0/storage-pools", {"name": "shelf", "driver": "dir"})
    built = images.build_busybox(tmp_path, {"name": "shelf"})
    image = instances.import_image(built.metadata, built.rootfs, alias="shelf")
    identity = make_identity(tmp_path, "shelf")
    certificate = "".join(identity.pem.splitlines()[1:-1])
    instances.do("POST", "/1.0/certificates", {"type": "client", "name": "shelf", "certificate": certificate})
    for view, name, command in (
        ("profiles", "shelf", "profile delete shelf"),
        ("projects", "shelf", "project delete shelf"),
        ("networks", "shelf0", "network delete shelf0"),
        ("storage", "shelf", "storage delete shelf"),
        ("images", "shelf", f"image delete {image[:12]}"),
        ("certificates", "shelf", f"config trust remove {identity.fingerprint[:12]}"),
    ):
        go(page, view)
        row = page.get_by_role("row").filter(has_text=name)
        row.get_by_role("button", name=f"Delete: {name}").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        expect(row).to_be_visible()
        row.get_by_role("button", name=f"Delete: {name}").click()
        submit(page, f"Delete: {name}", f"utsuwa {command}")
        expect(page.locator(".task.done").filter(has_text=name)).to_be_visible()
        expect(row).to_have_count(0)


def test_files_of_an_instance(page: Page, instances: Daemon, busybox: str, tmp_path: Path) -> None:
    """Also a name that is not UTF-8, and one with markup."""
    instances.lxc("launch", busybox, "filed")
    script = (
        "mkdir -p /srv/top/below; cd /srv/top; ln -s below link; ln -s ../top/link to-link;"
        " touch \"$(printf 'odd\\377')\" '<b>bold'"
    )
    instances.lxc("exec", "filed", "--", "sh", "-c", script)
    go(page, "instances", "filed", "files")
    page.get_by_label("Folder", exact=True).fill("/srv/top")
    page.keyboard.press("Enter")
    row = page.get_by_role("row")
    expect(row.filter(has_text="<b>bold")).to_contain_text("file 0644 0:0")
    expect(row.filter(has_text="below")).to_contain_text("Folder 0755 0:0")
    odd = page.get_by_role("button", name="Delete: odd\\xff")
    odd.hover()
    expect(page.locator(".commandbar code")).to_have_text(r"utsuwa file delete $'filed/srv/top/odd\xff'")
    odd.click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(row.filter(has_text="odd")).to_have_count(0)

    page.get_by_role("button", name="to-link", exact=True).click()
    expect(page.get_by_text("This folder is empty.")).to_be_visible()
    expect(page.get_by_label("Folder", exact=True)).to_have_value("/srv/top/below")
    pushed = tmp_path / "note ü.txt"
    pushed.write_text("one\n")
    chooser = page.locator("input[type=file]")
    chooser.set_input_files(pushed)
    page.get_by_role("button", name="note ü.txt", exact=True).click()
    expect(chooser).to_have_value("")  # otherwise the same file could not be chosen again
    page.get_by_role("dialog").get_by_role("textbox").fill("one\ntwo\n")
    submit(page, "Save", "utsuwa file edit 'filed/srv/top/below/note ü.txt'")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download: note ü.txt").click()
    assert download.value.path().read_text() == "one\ntwo\n"
    page.get_by_role("button", name="New folder").click()
    page.get_by_role("dialog").get_by_label("Name").fill("made")
    submit(page, "Create", "utsuwa file create --type directory filed/srv/top/below/made")
    expect(row.filter(has_text="made")).to_contain_text("Folder 0750")
    page.get_by_role("button", name="Folder above").click()
    page.get_by_role("button", name="Delete: below").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(".task.failed")).to_contain_text("not empty")


@pytest.mark.long
def test_links_and_typed_paths_are_opened_by_what_they_lead_to(
    page: Page, instances: Daemon, busybox: str
) -> None:
    instances.lxc("launch", busybox, "linked")
    script = (
        "mkdir -p /srv/data; cd /srv; echo '{\"metadata\": 1}' >data/file.json; ln -s data/file.json one;"
        " ln -s one two; ln -s b a; ln -s a b; ln -s nothing broken; head -c 300000 /dev/zero >zeros"
    )
    instances.lxc("exec", "linked", "--", "sh", "-c", script)
    go(page, "instances", "linked", "files")
    way = page.get_by_label("Folder", exact=True)
    editor = page.get_by_role("dialog").get_by_role("textbox")

    def enter(path: str) -> None:
        way.fill(path)
        page.keyboard.press("Enter")

    enter("/srv")
    page.get_by_role("button", name="two", exact=True).click()
    expect(editor).to_have_value('{"metadata": 1}\n')
    expect(page.get_by_role("dialog")).to_contain_text("/srv/data/file.json")
    page.keyboard.press("Escape")
    enter("/srv/one")
    expect(editor).to_have_value('{"metadata": 1}\n')
    page.keyboard.press("Escape")
    with page.expect_download() as download:
        page.get_by_role("button", name="zeros", exact=True).click()
    assert download.value.path().stat().st_size == 300_000
    page.get_by_role("button", name="a", exact=True).click()
    expect(page.get_by_role("alert")).to_have_text("/srv/a leads through too many links, or in circles.")
    page.get_by_role("button", name="broken", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("/srv/nothing")
    expect(page.get_by_role("button", name="zeros", exact=True)).to_be_visible()
    enter("/srv/data")
    expect(page.get_by_role("button", name="file.json", exact=True)).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    page.get_by_role("button", name="Folder above").click()
    expect(way).to_have_value("/srv")


@pytest.fixture
def profiles(module_daemon: Daemon) -> Iterator[None]:
    """Two hundred of them."""
    names = [f"p{number}" for number in range(100, 300)]
    for name in names:
        module_daemon.do("POST", "/1.0/profiles", {"name": name})
    yield
    for name in names:
        module_daemon.do("DELETE", f"/1.0/profiles/{name}")


@pytest.mark.long
def test_a_long_table_is_filled_at_any_size(page: Page, profiles: None) -> None:
    """Also if its rows are lower than usual."""
    page.set_viewport_size({"width": 1200, "height": 400})
    go(page, "profiles")
    expect(page.get_by_role("link", name="p100", exact=True)).to_be_visible()
    style = "td:not(.spacer) { height: 18px !important; padding: 0 !important }"
    page.evaluate("style => document.styleSheets[0].insertRule(style)", style)
    for height in (1700, 500, 1700):
        page.set_viewport_size({"width": 1200, "height": height})
        for part in (0, 0.5, 1):
            until(lambda part=part: page.evaluate(FILLED, part))


FILLED = """part => {
    const box = document.querySelector(".table-box")
    box.scrollTop = part * (box.scrollHeight - box.clientHeight)
    const {top, bottom, left} = box.getBoundingClientRect()
    const row = (y) => document.elementFromPoint(left + 20, y)?.closest("tr[aria-rowindex]")
    const [middle, last] = [row((top + bottom) / 2), row(bottom - 8)]
    const rows = box.querySelector("table").getAttribute("aria-rowcount")
    return Boolean(middle && last && (part < 1 || last.getAttribute("aria-rowindex") === rows))
}"""
"""Whether the box of a table, scrolled to a part of its height, has rows in the middle and at its end."""


@pytest.mark.long
def test_the_terminal_resizes_ends_and_begins_again(page: Page, instances: Daemon, busybox: str) -> None:
    instances.lxc("launch", busybox, "term")
    open_terminal(page, "term")
    page.keyboard.type("stty size; echo size-was\n")
    wait_for_screen(page, "size-was")
    before = re.findall(r"^(\d+ \d+)\s*$", screen(page), re.MULTILINE)[-1]
    page.set_viewport_size({"width": 900, "height": 640})
    page.keyboard.type(
        'while [ "$(stty size)" = \'' + before + "' ]; do sleep 0.1; done; echo sized-$((6 * 7))\n"
    )
    wait_for_screen(page, "sized-42")
    page.keyboard.type("printf '\\033[38;2;200;100;50mcolour\\033[0m\\n'\n")
    expect(page.locator(".xterm-rows span").filter(has_text=re.compile("^colour$")).last).to_have_css(
        "color", "rgb(200, 100, 50)"
    )
    page.keyboard.type("exit 3\n")
    expect(page.get_by_text("The shell has ended with status 3.")).to_be_visible()
    page.get_by_role("button", name="New shell").click()
    expect(page.get_by_role("status").filter(has_text="Shell of root")).to_be_visible()
    instances.lxc("stop", "term", "--force")
    expect(page.get_by_text("The terminal is available while the instance runs.")).to_be_visible()


@pytest.mark.long
def test_what_is_selected_in_the_terminal_is_copied_and_pasted(
    page: Page, instances: Daemon, busybox: str
) -> None:
    instances.lxc("launch", busybox, "copied")
    open_terminal(page, "copied")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.keyboard.type("clear; echo $((6 * 7))-ünï-日本\n")
    said = page.locator(".xterm-rows > div").filter(has_text=re.compile("^42-"))
    said.dblclick(position={"x": 9, "y": 7}, force=True)  # the screen takes the events of its rows
    page.keyboard.press("Control+Shift+KeyC")
    until(lambda: page.evaluate("navigator.clipboard.readText()") == "42-ünï-日本")
    page.keyboard.type("clear; echo $((1 + 1))-")
    page.keyboard.press("Control+Shift+KeyV")
    page.keyboard.press("Enter")
    wait_for_screen(page, "2-42-ünï-日本")


@pytest.mark.long
def test_a_shell_lives_on(page: Page, instances: Daemon, busybox: str) -> None:
    """Over another view, a page that is loaded anew, a lost connection; not over a restart of the daemon."""
    instances.lxc("launch", busybox, "lasting")
    page.add_init_script(KEEP_SOCKETS)
    open_terminal(page, "lasting")
    page.keyboard.type("kept=4; echo once-$((40 + kept))\n")
    wait_for_screen(page, "once-44")

    def type_again(number: int) -> None:
        expect(page.get_by_role("status").filter(has_text="Shell of root")).to_be_visible()
        wait_for_screen(page, "once-44")
        page.locator(".xterm-helper-textarea").focus()
        page.keyboard.type(f"echo again-$(({number} + kept))\n")
        wait_for_screen(page, f"again-{number + 4}")

    views = page.get_by_role("navigation", name="Views")
    views.get_by_role("link", name="Overview").click()
    views.get_by_role("link", name="Terminal").click()
    type_again(10)
    page.reload()
    type_again(20)
    page.evaluate("for (const socket of sockets) socket.close()")
    type_again(30)
    instances.restart()
    expect(page.get_by_text("The shell has ended meanwhile. This is a new one.")).to_be_visible()
    page.get_by_role("button", name="End shell").click()
    expect(page.get_by_text("It has ended.")).to_be_visible()
    go(page, "operations")
    expect(page.get_by_text("Executing command")).to_have_count(0)


@pytest.mark.long
def test_the_console(page: Page, instances: Daemon, busybox: str) -> None:
    instances.lxc("launch", busybox, "box")
    go(page, "instances", "box", "console")
    expect(page.get_by_role("status").filter(has_text="Console: press Enter")).to_be_visible()
    instances.lxc("exec", "box", "--", "sh", "-c", "echo said-on-console >/dev/console")
    wait_for_screen(page, "said-on-console")
    page.locator(".xterm-helper-textarea").focus()
    page.keyboard.type("typed-here\n")
    wait_for_screen(page, "typed-here")
    page.context.new_page()
    other = page.context.pages[-1]
    go(other, "instances", "box", "console")
    expect(other.get_by_role("status").filter(has_text="in use by another session")).to_be_visible()
    other.close()
    instances.lxc("stop", "box", "--force")
    expect(page.get_by_text("The terminal is available while the instance runs.")).to_be_visible()


@pytest.mark.long
@pytest.mark.parametrize("size", [1_000_000, 10_000_000])
def test_much_output_does_not_stop_the_page(page: Page, instances: Daemon, busybox: str, size: int) -> None:
    instances.lxc("launch", busybox, "loud")
    open_terminal(page, "loud")
    page.keyboard.type(f"yes 0123456789 | head -c {size}; echo all-$((1 + 1))\n")
    wait_for_screen(page, "all-2")


@pytest.mark.long
def test_the_page_reconnects_to_a_restarted_daemon(page: Page, instances: Daemon, busybox: str) -> None:
    expect(page.get_by_role("status").filter(has_text="Connected")).to_be_visible()
    instances.stop()
    expect(page.get_by_role("status").filter(has_text="Reconnecting")).to_be_visible()
    instances.start()
    instances.lxc("init", busybox, "later")
    expect(page.get_by_role("row").filter(has_text="later")).to_be_visible()
    expect(page.get_by_role("status").filter(has_text="Connected")).to_be_visible()


def test_whoever_has_no_session_is_asked_for_a_token(browser: Browser, module_daemon: Daemon) -> None:
    unused = local_token(module_daemon)
    context = new_context(browser, unused.origin)
    page = context.new_page()
    page.goto("/ui/")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("has been used or has expired")
    page.get_by_label("Token").fill(f"{unused.origin}/ui/#token={unused.secret}")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Instances")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.goto(f"/ui/?again#token={unused.secret}")
    expect(page.get_by_role("alert")).to_contain_text("has been used or has expired")
    assert unused.secret not in page.url
    context.close()


def test_a_link_with_a_token_leads_into_the_page_or_to_the_form(
    browser: Browser, module_daemon: Daemon
) -> None:
    """In a browser that does not know the server: the frame that is shown meanwhile is replaced."""
    token = local_token(module_daemon)
    for heading in ("Instances", "Sign in"):  # it works once
        context = new_context(browser, token.origin)
        page = context.new_page()
        page.goto(f"/ui/#token={token.secret}")
        expect(page.get_by_role("heading", name=heading, exact=True)).to_be_in_viewport()
        assert page.locator(".frame").count() == 0
        assert page.locator("#app > *").count() == 1
        context.close()


NEVER_CONNECT = "() => { window.WebSocket = class extends EventTarget { close() {} } }"


def test_whoever_signs_in_again_connects_anew(browser: Browser, module_daemon: Daemon) -> None:
    first, second = local_token(module_daemon), local_token(module_daemon)
    context = new_context(browser, first.origin)
    page = context.new_page()
    page.goto(f"/ui/#token={first.secret}")
    expect(page.get_by_role("status").filter(has_text="Connected")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    page.evaluate(NEVER_CONNECT)
    page.get_by_label("Token").fill(second.secret)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("status").filter(has_text="Connecting")).to_be_visible()
    context.close()


LIST = re.compile(r"/1\.0/instances\?")


class Held:
    """Answers to a page's requests for the list of instances, which come when they are let go."""

    def __init__(self, page: Page, daemon: Daemon) -> None:
        self._page = page
        self._answers: list[tuple[Route, object]] = []
        url = "/1.0/instances?recursion=2"
        page.route(LIST, lambda route: self._answers.append((route, daemon.get(url))))

    def wait(self) -> None:
        """Wait until the list has been made."""

        def made() -> bool:
            self._page.wait_for_timeout(50)
            return bool(self._answers)

        until(made)

    def let_go(self) -> None:
        for route, answer in self._answers:
            route.fulfill(json={"type": "sync", "status_code": 200, "metadata": answer})
        self._page.unroute(LIST)


def test_changes_while_the_list_is_under_way_are_seen(page: Page, instances: Daemon, busybox: str) -> None:
    for name in ("gone", "kept"):
        instances.lxc("init", busybox, name)
    held = Held(page, instances)
    with page.expect_websocket() as events:
        page.reload()
    held.wait()
    expect(page.get_by_role("status").filter(has_text="Connected")).to_be_visible()
    with events.value.expect_event("framereceived", lambda frame: "instance-deleted" in str(frame)):
        instances.do("DELETE", "/1.0/instances/gone")
    page.wait_for_timeout(1000)  # longer than events are collected
    expect(page.get_by_text("No instances in this project yet.")).to_have_count(0)
    held.let_go()
    expect(page.get_by_role("link", name="kept", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name="gone", exact=True)).to_have_count(0)


def test_a_list_that_could_not_be_read_is_read_after_a_change(
    page: Page, instances: Daemon, busybox: str
) -> None:
    instances.lxc("init", busybox, "old")
    failed = {"type": "error", "error": "It is busy", "error_code": 500}
    page.route(LIST, lambda route: route.fulfill(status=500, json=failed))
    page.reload()
    expect(page.get_by_text("It is busy")).to_be_visible()
    page.unroute(LIST)
    instances.lxc("init", busybox, "new")
    for name in ("new", "old"):
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()


def test_a_session_that_has_ended_is_noticed(browser: Browser, module_daemon: Daemon) -> None:
    """The page begins with the views for whoever was trusted the last time."""
    token = local_token(module_daemon)
    context = new_context(browser, token.origin)
    page = context.new_page()
    page.add_init_script(KEEP_SOCKETS)
    page.goto(f"/ui/#token={token.secret}")
    expect(page.get_by_role("heading", name="Instances")).to_be_visible()
    context.clear_cookies()
    page.reload()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.wait_for_timeout(1000)  # longer than the pause before events would be asked for again
    assert page.evaluate("sockets.length") <= 1
    page.reload()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert page.evaluate("sockets.length") == 0, "it is not presumed any more"
    context.close()


def test_the_frame_is_seen_before_the_page_has_its_scripts(
    browser: Browser, context: BrowserContext, token: Token
) -> None:
    known = new_context(browser, token.origin, locale="ja-JP", storage_state=context.storage_state())
    for other in (known, new_context(browser, token.origin)):
        page = other.new_page()
        page.route("**/assets/app-*.js", lambda route: route.abort())
        page.goto("/ui/")
        expect(page.get_by_text("Utsuwa")).to_be_visible(visible=other is known)
        page.evaluate("localStorage.setItem('utsuwa.theme', 'dark')")
        page.reload()
        assert page.locator("html").get_attribute("data-theme") == "dark"
        assert page.locator("html").get_attribute("lang") == ("ja" if other is known else "en")
        other.close()


def test_pages_of_other_origins_reach_nothing(
    context: BrowserContext, token: Token, module_daemon: Daemon
) -> None:
    """A page of another name on the same address, in a browser that is signed in."""
    page = context.new_page()
    page.route(
        "http://other.localhost/**", lambda route: route.fulfill(body="<p>evil", content_type="text/html")
    )
    page.goto("http://other.localhost/")
    tried = page.evaluate(
        """async (origin) => {
            const said = async (url, options) => {
                const asked = fetch(url, {credentials: "include", ...options})
                return asked.then((reply) => reply.status, () => "refused")
            }
            const socket = () => new Promise((done) => {
                const made = new WebSocket(origin.replace("http", "ws") + "/1.0/events")
                made.onopen = () => done("open")
                made.onerror = () => done("refused")
            })
            const frame = () => new Promise((done) => {
                const made = document.createElement("iframe")
                made.src = origin + "/ui/"
                made.onload = () => done(made.contentDocument ? "read" : "refused")
                document.body.append(made)
            })
            return [
                await said(origin + "/1.0/instances"),
                await said(origin + "/1.0/profiles", {method: "POST", body: '{"name": "evil"}'}),
                await socket(), await frame(),
            ]
        }""",
        token.origin,
    )
    assert tried == ["refused"] * 4
    page.close()
    assert module_daemon.get("/1.0/profiles") == ["/1.0/profiles/default"]


VIEWS = (
    ("instances",),
    *(
        ("instances", "seen", tab)
        for tab in ("overview", "terminal", "console", "config", "devices", "files", "snapshots", "logs")
    ),
    *(
        (name,)
        for name in ("images", "profiles", "networks", "storage", "projects", "operations", "warnings")
    ),
    ("certificates",),
    ("settings",),
    ("profiles", "default"),
    ("storage", "default"),
    ("projects", "default"),
)


@pytest.mark.long
def test_every_view_is_accessible(page: Page, instances: Daemon, busybox: str) -> None:
    """By the rules of axe-core, in both themes, and with an open dialog."""
    instances.lxc("launch", busybox, "seen")
    instances.lxc("snapshot", "seen")
    problems = []
    load_rules(page)
    for view in VIEWS:
        # Without loading the page anew, for which the rules would have to be loaded anew, too.
        page.evaluate(
            "path => { history.pushState(null, '', path); dispatchEvent(new PopStateEvent('popstate')) }",
            place(*view),
        )
        page.get_by_role("heading", level=1).wait_for()
        expect(page.get_by_text("Loading…")).to_have_count(0)
        if "terminal" in view:
            expect(page.get_by_text("Shell of root")).to_be_visible()
        problems += violations(page)
    page.get_by_role("link", name="Instances").click()
    for theme in ("dark", "light"):
        page.emulate_media(color_scheme=theme)
        page.get_by_role("button", name="Launch").click()
        problems += violations(page)
        page.keyboard.press("Escape")
    assert problems == []


@pytest.mark.long
def test_the_page_speaks_japanese(browser: Browser, context: BrowserContext, token: Token) -> None:
    """By the language of the browser; that each text has a counterpart is what the type check demands."""
    other = new_context(browser, token.origin, locale="ja-JP", storage_state=context.storage_state())
    page = other.new_page()
    page.goto("/ui/default/settings")
    expect(page.get_by_role("heading", name="設定", exact=True)).to_be_visible()
    assert page.locator("html").get_attribute("lang") == "ja"
    page.get_by_label("言語").select_option("en")
    expect(page.get_by_role("heading", name="Settings", exact=True)).to_be_visible()
    other.close()


@pytest.mark.long
def test_a_small_screen_has_a_menu(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 780})
    expect(page.get_by_role("navigation", name="Pages")).to_be_hidden()
    page.get_by_role("button", name="Menu").click()
    page.get_by_role("link", name="Storage").click()
    expect(page.get_by_role("heading", name="Storage")).to_be_visible()
    expect(page.get_by_role("navigation", name="Pages")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.long
def test_a_small_screen_has_room_for_the_words_above_a_terminal(
    page: Page, instances: Daemon, busybox: str
) -> None:
    instances.lxc("launch", busybox, "narrow")
    page.set_viewport_size({"width": 390, "height": 780})
    open_terminal(page, "narrow")
    for words in (page.get_by_text("Shell of root"), page.locator(".status code")):
        box = words.bounding_box()
        assert box is not None
        assert box["height"] < 2 * TEXT, "they are broken into lines"


def test_the_size_on_the_wire(built: None) -> None:
    folder = Path(WEB.parent / "src/utsuwa/page")
    sizes = {
        path.name: path.stat().st_size for path in folder.rglob("*.gz") if path.name != "licences.txt.gz"
    }
    assert sum(sizes.values()) < BUDGET, sizes
