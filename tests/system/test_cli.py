"""The client `utsuwa` at a real daemon: what `lxc` cannot show, and what it changes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.client import command, environment, utsuwa_client
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.monitor import heard
from tests.support.terminal import run_in_terminal
from tests.support.tls import free_address

pytestmark = pytest.mark.root

# What no local command may load: each costs more than a listing takes in all.
SLOW = {"msgspec", "aiohttp", "ssl", "asyncio", "yaml", "argparse", "re", "enum", "typing", "dataclasses"}
SLOW |= {"pathlib", "json", "socket", "selectors", "urllib.parse", "datetime", "subprocess", "http.client"}


@pytest.fixture
def c1(shared_daemon: Daemon, busybox: str) -> str:
    """A running container `c1`."""
    shared_daemon.lxc("launch", busybox, "c1")
    return "c1"


def imported(daemon: Daemon, *arguments: str) -> set[str]:
    """The modules that a command loads."""
    words = command(*arguments)
    done = subprocess.run(
        [words[0], "-X", "importtime", *words[1:]],
        env=environment(daemon),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE)) - {"package"}


# ---- speed


def test_what_a_listing_loads(shared_daemon: Daemon, c1: str) -> None:
    loaded = imported(shared_daemon, "list")
    assert not loaded & SLOW
    ours = {name for name in loaded if name.startswith("utsuwa.")}
    assert ours == {f"utsuwa.{name}" for name in ["cli", "client", "core", "core.errors"]} | {
        f"utsuwa.cli.{name}"
        for name in ["commands", "commands.instances", "errors", "index", "main", "output", "output.render"]
        + ["output.table", "parsing", "parsing.command", "parsing.flags", "session"]
    } | {f"utsuwa.client.{name}" for name in ["connect", "errors", "http", "lean", "remotes", "server"]}


def test_what_exec_loads(shared_daemon: Daemon, c1: str) -> None:
    assert not imported(shared_daemon, "exec", "c1", "--", "true") & SLOW


# ---- the life of an instance


def test_from_launch_to_delete(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    assert utsuwa_client(d, "launch", busybox, "c1").stdout == "Creating c1\nStarting c1\n"
    assert utsuwa_client(d, "stop", "c1", "--force", "-q").stdout == ""
    utsuwa_client(d, "rename", "c1", "c2")
    utsuwa_client(d, "start", "c2")
    utsuwa_client(d, "pause", "c2")
    assert utsuwa_client(d, "list", "-f", "csv", "-c", "ns").stdout == "c2,FROZEN\n"
    utsuwa_client(d, "start", "c2")
    utsuwa_client(d, "restart", "c2", "--force")
    refused = utsuwa_client(d, "delete", "c2", check=False)
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    utsuwa_client(d, "delete", "c2", "--force")
    assert d.get("/1.0/instances") == []


def test_init_with_yaml_flags_and_a_name_of_the_servers(shared_daemon: Daemon, busybox: str) -> None:
    text = b"config:\n  limits.cpu: 2\n  user.a: from-yaml\ndescription: made by hand\nephemeral: yes\n"
    flags = ("-c", "user.a=b", "-d", "root,size=1GiB", "-p", "default", "-s", "default")
    said = utsuwa_client(shared_daemon, "init", busybox, *flags, input=text).stdout
    name = re.fullmatch(r"Creating the instance\nInstance name is: (\S+)\n", said)
    assert name
    made = shared_daemon.get(f"/1.0/instances/{name[1]}")
    assert made["config"]["limits.cpu"] == "2"
    assert made["config"]["user.a"] == "b"
    assert made["description"] == "made by hand"
    assert made["ephemeral"]
    assert made["devices"] == {"root": {"type": "disk", "path": "/", "pool": "default", "size": "1GiB"}}


def test_several_at_once_and_all(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    for name in ("a", "b"):
        utsuwa_client(d, "init", busybox, name)
    failed = utsuwa_client(d, "start", "a", "none", check=False)
    assert failed.returncode == 1
    assert failed.stderr == "none: error: Instance not found\n\nError: Some instances failed to start\n"
    utsuwa_client(d, "start", "--all")
    assert utsuwa_client(d, "list", "-f", "csv", "-c", "ns").stdout == "a,RUNNING\nb,RUNNING\n"
    utsuwa_client(d, "stop", "--all", "--force")
    mixed = utsuwa_client(d, "stop", "--all", "a", check=False)
    assert mixed.stderr == "Error: Both --all and instance name given\n"


def test_progress_only_on_a_terminal(shared_daemon: Daemon, busybox: str) -> None:
    env = environment(shared_daemon)
    status, screen = run_in_terminal(command("launch", busybox, "c1"), env=env)
    assert status == 0
    lines = screen.split("\r\n")
    assert [line.split("\r")[-1] for line in lines] == ["Creating c1", "Starting c1", ""]
    status, screen = run_in_terminal(command("stop", "-q", "--force", "c1"), env=env)
    assert (status, screen) == (0, "")


# ---- exec


def test_streams_and_status(shared_daemon: Daemon, c1: str) -> None:
    done = utsuwa_client(
        shared_daemon, "exec", c1, "--", "sh", "-c", "cat; echo e >&2; exit 7", input=b"in", check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "in", "e\n")


def test_options(shared_daemon: Daemon, c1: str) -> None:
    script = "echo $A; id -u; id -g; pwd; cat"
    flags = ("--env", "A=b c", "--user", "7", "--group", "8", "--cwd", "/tmp", "-n")
    done = utsuwa_client(shared_daemon, "exec", c1, *flags, "--", "sh", "-c", script, input=b"unread")
    assert done.stdout == "b c\n7\n8\n/tmp\n"


def test_a_hundred_megabytes_through_a_command(shared_daemon: Daemon, c1: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    piece = os.urandom(1 << 20)
    with source.open("wb") as file:
        for _ in range(100):
            file.write(piece)
    for use_pipe in (False, True):
        argv = command("exec", c1, "--", "cat")
        with target.open("wb") as out:
            if use_pipe:
                with subprocess.Popen(["cat", source], stdout=subprocess.PIPE) as feeder:
                    env = environment(shared_daemon)
                    done = subprocess.run(argv, stdin=feeder.stdout, stdout=out, env=env, timeout=60)
            else:
                with source.open("rb") as file:
                    env = environment(shared_daemon)
                    done = subprocess.run(argv, stdin=file, stdout=out, env=env, timeout=60)
        assert done.returncode == 0
        assert _digest(target) == _digest(source)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_a_reader_that_leaves(shared_daemon: Daemon, c1: str) -> None:
    argv = command("exec", c1, "--", "yes")
    with subprocess.Popen(argv, env=environment(shared_daemon), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(20) == 141
    deadline = time.monotonic() + 30
    while "yes" in utsuwa_client(shared_daemon, "exec", c1, "--", "ps").stdout:
        assert time.monotonic() < deadline, "the command lives on"
        time.sleep(0.1)


def test_signals_are_passed_on(shared_daemon: Daemon, c1: str) -> None:
    script = "trap 'echo got it; exit 9' TERM; echo ready; while true; do sleep 0.1; done"
    argv = command("exec", c1, "--", "sh", "-c", script)
    with subprocess.Popen(argv, env=environment(shared_daemon), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"got it\n"
        assert process.wait(20) == 9


def test_a_terminal(shared_daemon: Daemon, c1: str) -> None:
    env = environment(shared_daemon) | {"TERM": "vt100"}
    # The inner shell says it: an interactive one may swallow ^C between its fork and its exec of sleep.
    typed = [("# ", "stty size; echo [$TERM]\n"), ("[vt100]", "sh -c 'echo g\"o\"; exec sleep 60'\n")]
    typed += [("go\r", "\x03"), ("# ", "exit 4\n")]
    status, screen = run_in_terminal(command("exec", c1, "sh"), env=env, typed=typed, rows=33, columns=99)
    assert status == 4
    assert "33 99" in screen
    status, screen = run_in_terminal(command("exec", c1, "-T", "--", "tty"), env=env)
    assert (status, screen) == (1, "not a tty\r\n")
    forced = utsuwa_client(shared_daemon, "exec", c1, "-t", "--", "tty", check=False)
    assert "/dev/pts/" in forced.stdout


def test_closed_standard_streams(shared_daemon: Daemon, c1: str) -> None:
    words = shlex.join(command("exec", c1, "--", "cat"))
    for closed in ("<&-", ">&-", "<&- >&- 2>&-"):
        done = subprocess.run(["sh", "-c", f"{words} {closed}"], env=environment(shared_daemon), timeout=30)
        assert done.returncode == 0
    listing = shlex.join(command("list"))
    done = subprocess.run(["sh", "-c", f"{listing} >&-"], env=environment(shared_daemon), timeout=30)
    assert done.returncode == 0


# ---- configuration


def test_configuration_of_an_instance(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    utsuwa_client(d, "init", busybox, "c1")
    utsuwa_client(d, "config", "set", "c1", "user.a=1", "user.b=x=y")
    utsuwa_client(d, "config", "set", "c1", "user.c", "old form")
    utsuwa_client(d, "config", "set", "c1", "user.d=-", input=b"two\nlines\n")
    utsuwa_client(d, "config", "set", "c1", "user.e=-", input=b"two\r\nlines\r")
    no_text = utsuwa_client(d, "config", "set", "c1", "user.d=-", input=b"\xff", check=False)
    assert (no_text.returncode, "Standard input is not text in UTF-8" in no_text.stderr) == (1, True)
    config = d.get("/1.0/instances/c1")["config"]
    assert [config[f"user.{key}"] for key in "abcd"] == ["1", "x=y", "old form", "two\nlines\n"]
    assert config["user.e"] == "two\r\nlines\r"
    utsuwa_client(d, "config", "unset", "c1", "user.a")
    text = utsuwa_client(d, "config", "show", "c1").stdout
    assert "user.d: |\n    two\n    lines\n" in text
    utsuwa_client(d, "config", "edit", "c1", input=text.replace("old form", "new form").encode())
    config = d.get("/1.0/instances/c1")["config"]
    assert "user.a" not in config
    assert config["user.c"] == "new form"
    wrong = utsuwa_client(d, "config", "edit", "c1", input=b"config: [", check=False)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)


def test_an_editor(shared_daemon: Daemon, busybox: str) -> None:
    utsuwa_client(shared_daemon, "init", busybox, "c1")
    env = environment(shared_daemon) | {"EDITOR": "sed -i 's/^description:.*/description: edited/'"}
    assert run_in_terminal(command("config", "edit", "c1"), env=env) == (0, "")
    assert shared_daemon.get("/1.0/instances/c1")["description"] == "edited"


def test_devices(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    utsuwa_client(d, "init", busybox, "c1")
    device = ("config", "device")
    assert "added" in utsuwa_client(d, *device, "add", "c1", "eth5", "nic", "nictype=p2p").stdout
    utsuwa_client(d, *device, "set", "c1", "eth5", "name=net5", "mtu=1400")
    utsuwa_client(d, *device, "unset", "c1", "eth5", "mtu")
    assert "overridden" in utsuwa_client(d, *device, "override", "c1", "eth0", "name=other").stdout
    assert utsuwa_client(d, *device, "list", "c1").stdout == "eth0\neth5\n"
    assert d.get("/1.0/instances/c1")["devices"]["eth5"] == {"type": "nic", "nictype": "p2p", "name": "net5"}
    utsuwa_client(d, *device, "remove", "c1", "eth0", "eth5")
    assert d.get("/1.0/instances/c1")["devices"] == {}


def test_profiles(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    utsuwa_client(d, "init", busybox, "c1")
    assert utsuwa_client(d, "profile", "create", "p1").stdout == "Profile p1 created\n"
    utsuwa_client(d, "profile", "set", "p1", "user.a=b")
    utsuwa_client(d, "profile", "device", "add", "p1", "no", "none")
    utsuwa_client(d, "profile", "copy", "p1", "p2")
    utsuwa_client(d, "profile", "rename", "p2", "p3")
    utsuwa_client(d, "profile", "edit", "p3", input=b"description: third\nconfig: {user.n: 1}\ndevices: {}\n")
    assert d.get("/1.0/profiles/p3")["config"] == {"user.n": "1"}
    utsuwa_client(d, "profile", "add", "c1", "p1")
    utsuwa_client(d, "profile", "assign", "c1", "default,p3")
    assert d.get("/1.0/instances/c1")["profiles"] == ["default", "p3"]
    utsuwa_client(d, "profile", "remove", "c1", "p3")
    given = b"name: other\ndescription: given\nconfig: {user.n: 2}\n"
    utsuwa_client(d, "profile", "create", "p4", input=given)
    created = d.get("/1.0/profiles/p4")
    assert (created["description"], created["config"], created["devices"]) == ("given", {"user.n": "2"}, {})
    refused = utsuwa_client(d, "profile", "create", "p5", input=b"config: {limits.cpu: x}\n", check=False)
    assert refused.returncode == 1
    assert "p5" not in "".join(d.get("/1.0/profiles"))
    for name in ("p1", "p3", "p4"):
        assert utsuwa_client(d, "profile", "delete", name).stdout == f"Profile {name} deleted\n"


def test_images(shared_daemon: Daemon, busybox_image: Image, tmp_path: Path) -> None:
    d = shared_daemon
    assert busybox_image.unified is not None
    said = utsuwa_client(d, "image", "import", str(busybox_image.unified), "os=Other", "--alias", "one")
    fingerprint = re.fullmatch(r"Image imported with fingerprint: ([0-9a-f]{64})\n", said.stdout)
    assert fingerprint
    utsuwa_client(d, "image", "set-property", "one", "release", "9")
    utsuwa_client(d, "image", "alias", "create", "one/more", "one", "--description", "One more")
    listed = utsuwa_client(d, "image", "alias", "list", "one/more", "-f", "csv").stdout
    assert listed.endswith(",CONTAINER,One more\n")
    utsuwa_client(d, "image", "alias", "delete", "one/more")
    utsuwa_client(d, "image", "alias", "rename", "one", "two")
    assert (
        utsuwa_client(d, "image", "list", "release=9", "-c", "lF", "-f", "csv").stdout
        == f"two,{fingerprint[1]}\n"
    )
    assert _exported(d, "two", tmp_path) == [busybox_image.unified.read_bytes()]
    utsuwa_client(d, "image", "delete", "two")


def test_an_image_of_two_files(bare_daemon: Daemon, busybox_image: Image, tmp_path: Path) -> None:
    d = bare_daemon
    files = (busybox_image.metadata, busybox_image.rootfs)
    utsuwa_client(d, "image", "import", *map(str, files), "--alias", "b", "--public")
    assert d.get("/1.0/images?recursion=1")[0]["public"]
    contents = [file.read_bytes() for file in files]
    assert sorted(_exported(d, "b", tmp_path)) == sorted(contents)
    utsuwa_client(d, "image", "export", "b", str(tmp_path / "named"))
    assert [(tmp_path / name).read_bytes() for name in ("named", "named.root")] == contents


def _exported(d: Daemon, image: str, folder: Path) -> list[bytes]:
    """The files that are written into a folder, which have the names that `lxc` gives them."""
    ours, theirs = folder / "ours", folder / "theirs"
    ours.mkdir()
    theirs.mkdir()
    utsuwa_client(d, "image", "export", image, str(ours))
    d.lxc("image", "export", image, str(theirs))
    assert sorted(file.name for file in ours.iterdir()) == sorted(file.name for file in theirs.iterdir())
    return [file.read_bytes() for file in ours.iterdir()]


def test_images_are_copied_between_servers(
    bare_daemon: Daemon, make_daemon: type[Daemon], busybox_image: Image
) -> None:
    """Of one file and of two, with their properties; what is there already is named only."""
    assert busybox_image.unified is not None
    d, other = bare_daemon, make_daemon()
    remotes = {"other": {"addr": f"unix://{other.socket}", "protocol": "lxd"}}
    (d.home / "u").mkdir()
    (d.home / "u" / "config.yml").write_text(json.dumps({"remotes": remotes}))
    try:
        other.start()
        for words in (
            ("import", str(busybox_image.unified), "os=Other \u00e9", "--alias", "one", "--alias", "uno"),
            ("import", str(busybox_image.metadata), str(busybox_image.rootfs), "--alias", "two"),
            ("copy", "one", "other:", "--mode", "relay", "--copy-aliases", "--alias", "more", "--public"),
            ("copy", "other:one", "other:", "--mode", "relay", "--alias", "even-more"),
            ("copy", "two", "other:", "--mode", "relay"),
        ):
            said = utsuwa_client(d, "image", *words).stdout
            assert "successfully" in said or "imported" in said
        here, there = (
            {i["fingerprint"]: i for i in daemon.get("/1.0/images?recursion=1")} for daemon in (d, other)
        )
        assert here.keys() == there.keys()
        one, two = sorted(there.values(), key=lambda i: not i["aliases"])
        assert sorted(a["name"] for a in one["aliases"]) == ["even-more", "more", "one", "uno"]
        assert (one["public"], two["public"], two["aliases"]) == (True, False, [])
        for image in (one, two):
            assert image["properties"] == here[image["fingerprint"]]["properties"]
        assert one["filename"] == busybox_image.unified.name
        wrong = utsuwa_client(d, "image", "copy", "one", "other:name", check=False)
        assert wrong.stderr.startswith("Error: The image keeps its fingerprint")
        unreachable = utsuwa_client(d, "image", "copy", "one", "other:", check=False)
        assert "isn't listening on the network" in unreachable.stderr
    finally:
        assert other.close() == []


def test_pools_operations_and_queries(shared_daemon: Daemon) -> None:
    d = shared_daemon
    assert utsuwa_client(d, "storage", "create", "p2", "dir").stdout == "Storage pool p2 created\n"
    utsuwa_client(d, "storage", "set", "p2", "user.a=b")
    assert utsuwa_client(d, "storage", "get", "p2", "user.a").stdout == "b\n"
    assert utsuwa_client(d, "storage", "delete", "p2").stdout == "Storage pool p2 deleted\n"
    utsuwa_client(d, "query", "-X", "POST", "-d", '{"name": "q"}', "/1.0/profiles")
    assert utsuwa_client(d, "query", "/1.0/profiles/q").stdout.startswith('{\n\t"')
    utsuwa_client(d, "query", "-X", "DELETE", "/1.0/profiles/q")
    assert utsuwa_client(d, "operation", "list", "-f", "yaml").stdout


def test_debug_shows_the_wire(shared_daemon: Daemon) -> None:
    done = utsuwa_client(shared_daemon, "--debug", "profile", "list")
    assert "> GET /1.0/profiles?recursion=1" in done.stderr
    assert "< 200" in done.stderr


def test_monitor(shared_daemon: Daemon) -> None:
    argv = command("monitor", "--type=lifecycle", "--pretty")
    env = environment(shared_daemon)
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = heard(shared_daemon, process)
            utsuwa_client(shared_daemon, "profile", "create", "seen")
            line = next(lines)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        finally:
            process.kill()
    utsuwa_client(shared_daemon, "profile", "delete", "seen")
    assert "Action: profile-created, Source: /1.0/profiles/seen" in line


def test_completion_knows_names(shared_daemon: Daemon, c1: str) -> None:
    assert utsuwa_client(shared_daemon, "__complete", "stop", "c").stdout == "c1\n"
    assert utsuwa_client(shared_daemon, "__complete", "start", "").stdout == ""
    assert utsuwa_client(shared_daemon, "__complete", "exec", "local:").stdout == "local:c1\n"
    drivers = utsuwa_client(shared_daemon, "__complete", "storage", "create", "p", "").stdout
    assert drivers == "dir\noverlay\n"
    device = ("config", "device")
    utsuwa_client(shared_daemon, *device, "add", "c1", "data", "disk", "source=/mnt", "path=/mnt")
    for words, expected in (
        (("add", "c1", "x", "unix-c"), "unix-char\n"),
        (("add", "c1", "x", "unix-char", "m"), "major=\nminor=\nmode=\n"),
        (("add", "c1", "x", "nic", "netw"), "network=\n"),
        (("remove", "c1", "d"), "data\n"),
        (("set", "local:c1", "data", "prop"), "propagation=\n"),
        (("set", "c1", "data", "propagation=s"), "propagation=shared\npropagation=slave\n"),
        (("set", "c1", "data", "propagation", "s"), "shared\nslave\n"),
        (("add", "c1", "x", "disk", "readonly="), "readonly=false\nreadonly=true\n"),
        (("unset", "c1", "data", "shi"), "shift\n"),
        (("get", "c1", "missing", ""), ""),
    ):
        assert utsuwa_client(shared_daemon, "__complete", *device, *words).stdout == expected, words
    script = utsuwa_client(shared_daemon, "completion", "bash").stdout
    check = f"{script}\nutsuwa() {{ printf 'c1\\nc2\\n'; }}; COMP_LINE='utsuwa stop ' COMP_POINT=12\n"
    done = subprocess.run(
        ["bash", "-c", check + '_utsuwa 2>/dev/null; echo "${COMPREPLY[*]}"'], capture_output=True, text=True
    )
    assert done.stdout == "c1 c2\n"


# ---- remotes


def test_a_remote_by_https(daemon: Daemon) -> None:
    d = daemon
    address = free_address()
    utsuwa_client(d, "config", "set", f"core.https_address={address}", "core.trust_password=sesame")
    add = ("remote", "add", "far", f"https://{address}")
    refused = utsuwa_client(d, *add, input=b"n\n", check=False)
    assert "NACKed" in refused.stderr
    wrong = utsuwa_client(d, *add, "--accept-certificate", "--password", "no", check=False)
    assert wrong.returncode == 1
    assert "far" not in utsuwa_client(d, "remote", "list", "-f", "csv").stdout
    utsuwa_client(d, *add, "--accept-certificate", "--password", "sesame")
    assert utsuwa_client(d, "list", "far:", "-f", "json").stdout == "[]\n"
    listed = utsuwa_client(d, "config", "trust", "list", "far:", "-f", "csv").stdout
    theirs = subprocess.run(
        ["lxc", "config", "trust", "list", "-f", "csv"],
        env=environment(d),
        capture_output=True,
        text=True,
        check=True,
    )
    assert listed == theirs.stdout
    utsuwa_client(d, "remote", "switch", "far")
    assert utsuwa_client(d, "profile", "list", "-f", "csv").stdout.startswith("default,")
    assert utsuwa_client(d, "--force-local", "version").stdout.count("\n") == 2
    _another_server(d)


def _another_server(d: Daemon) -> None:
    """A server that shows another certificate than the accepted one is not spoken to."""
    pinned = d.home / "u/servercerts/far.crt"
    pinned.write_text((d.home / "u/client.crt").read_text())
    other = utsuwa_client(d, "list", "far:", check=False)
    assert other.returncode == 1
    assert "another certificate" in other.stderr


def test_exec_over_https(daemon: Daemon, busybox_image: Image) -> None:
    d = daemon
    address = free_address()
    utsuwa_client(d, "config", "set", f"core.https_address={address}", "core.trust_password=sesame")
    utsuwa_client(
        d, "remote", "add", "far", f"https://{address}", "--accept-certificate", "--password=sesame"
    )
    files = map(str, (busybox_image.metadata, busybox_image.rootfs))
    utsuwa_client(d, "image", "import", *files, "far:", "--alias", "b")
    utsuwa_client(d, "launch", "far:b", "far:c1")
    data = os.urandom(3 << 20)
    argv = command("exec", "far:c1", "--", "cat")
    done = subprocess.run(argv, input=data, env=environment(d), capture_output=True, timeout=60)
    assert done.stdout == data


def test_remotes_of_lxc_are_imported(daemon: Daemon) -> None:
    d = daemon
    address = free_address()
    d.lxc("config", "set", "core.https_address", address)
    d.lxc("config", "set", "core.trust_password", "sesame")
    d.lxc("remote", "add", "far", f"https://{address}", "--accept-certificate", "--password", "sesame")
    said = utsuwa_client(d, "remote", "import-lxc", str(d.conf)).stdout
    assert f"Remote far added: https://{address}\n" in said
    assert utsuwa_client(d, "list", "far:", "-f", "csv").stdout == ""
    straight = utsuwa_client(d, "list", "far:", "-f", "csv", env={"UTSUWA_CONF": str(d.conf)})
    assert straight.stdout == ""


def test_info_and_config_show_the_id_maps(shared_daemon: Daemon, c1: str) -> None:
    """A change of the map takes effect with the next start, and both can be seen until then."""
    config = shared_daemon.get(f"/1.0/instances/{c1}")["config"]
    assert config["volatile.idmap.current"] == config["volatile.idmap.next"] != "[]"
    assert "  In use and at the next start:\n" in utsuwa_client(shared_daemon, "info", c1).stdout
    utsuwa_client(shared_daemon, "config", "set", c1, "security.privileged=true")
    shown = utsuwa_client(shared_daemon, "info", c1).stdout
    assert "  In use:\n    uids and gids 0-" in shown
    assert "  At the next start: none, root in the instance is root on the host\n" in shown
    settings = utsuwa_client(shared_daemon, "config", "show", c1).stdout
    assert "volatile.idmap.next: '[]'\n" in settings
    assert "volatile.idmap.current: '[{" in settings
    utsuwa_client(shared_daemon, "restart", "--force", c1)
    assert "  In use and at the next start: none" in utsuwa_client(shared_daemon, "info", c1).stdout
