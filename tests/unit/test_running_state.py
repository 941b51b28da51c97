"""Saved running states: the command lines of CRIU, its messages, mounts of the host, and stored records."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core.errors import HostError, InvalidRequest, Unavailable
from utsuwa.core.idmap import IdMap
from utsuwa.devices import BindMount
from utsuwa.host.checkpoint import commands, console, failures, finder, install, places, program
from utsuwa.host.checkpoint.failures import Remedy
from utsuwa.host.mounts.device_folder import DeviceFolder
from utsuwa.host.mounts.mounts import parse_mountinfo
from utsuwa.instances.confinement.lxcconf import ContainerSpec
from utsuwa.instances.running_state import guest, resume, saved
from utsuwa.security import seccomp

INNER = b"""\
220 159 0:48 / / rw - overlay utsuwa rw
221 220 0:54 / /dev rw - tmpfs none rw
222 220 0:55 / /proc rw - proc proc rw
225 220 0:22 /kernel/security /sys/kernel/security rw - sysfs sysfs rw
226 221 254:0 /x/devices/c1/dev-fuse /dev/fuse rw - ext4 /dev/vda rw
229 228 0:37 /utsuwa/lxc.payload.c1 /sys/fs/cgroup/systemd rw - cgroup none rw,name=systemd
238 228 0:38 /utsuwa/lxc.payload.c1 /sys/fs/cgroup/unified rw - cgroup2 none rw
239 221 0:6 /full /dev/full rw - devtmpfs devtmpfs rw
246 221 0:58 / /dev/pts rw - devpts devpts rw
248 221 0:58 /0 /dev/console rw - devpts devpts rw
250 220 7:9 / /mnt/loop rw - ext4 /dev/loop9 rw
251 250 0:91 / /mnt/loop/below rw - ext4 /dev/loop8 rw
"""
HOST = b"""\
1 0 254:0 / / rw - ext4 /dev/vda rw
2 1 0:22 / /sys rw - sysfs sysfs rw
3 1 0:6 / /dev rw - devtmpfs devtmpfs rw
4 1 0:37 / /sys/fs/cgroup/systemd rw - cgroup none rw
5 1 0:38 / /sys/fs/cgroup/unified rw - cgroup2 none rw
6 1 0:48 / /x/rootfs rw - overlay utsuwa rw
"""


def record(**changed: object) -> saved.Record:
    given = {"criu": "4.2", "kernel": "6.18", "idmap": "[]", "mounts": ["/dev/null"], "nics": ["eth0"]}
    return saved.Record(**{**given, "tty": "tty[8800:3a]", **changed})  # type: ignore[arg-type]


# ---- what belongs to the host


def test_mounts_of_the_host_are_external() -> None:
    """Also disks that only the container has; neither its root, nor cgroups, nor its own file systems."""
    found = places.externals(parse_mountinfo(INNER), parse_mountinfo(HOST), ["/mnt/loop"])
    own = ["/mnt/loop", "/mnt/loop/below"]
    assert found == ["/sys/kernel/security", "/dev/fuse", "/dev/full", "/dev/console", *own]
    assert own[0] not in places.externals(parse_mountinfo(INNER), parse_mountinfo(HOST))


def test_the_host_paths_of_mounts() -> None:
    given = {"/mnt/disk": "/var/x/disk", "/dev/fuse": "/var/x/fuse"}
    wanted = ["/dev/fuse", "/dev/null", "/mnt/disk/deep/er", "/mnt/disks", "/dev/sda"]
    found, missing = places.sources(wanted, given)
    assert found == {
        "/dev/fuse": "/var/x/fuse",
        "/dev/null": "/dev/null",
        "/mnt/disk/deep/er": "/var/x/disk/deep/er",
    }
    assert missing == ["/mnt/disks", "/dev/sda"]


# ---- command lines


def test_the_command_that_saves() -> None:
    job = commands.Dump(
        init=42,
        images=Path("/s/state.new"),
        cgroup="/u/lxc.payload.c1",
        freezer=Path("/sys/fs/cgroup/freezer/u/lxc.payload.c1"),
        externals=["/dev/null", "/dev/console"],
        tty=commands.tty_key(0x8800, 0x3A),
    )
    argv = commands.dump("/c/criu", job)
    assert argv[:6] == ["/c/criu", "dump", "-t", "42", "-D", "/s/state.new"]
    assert "--leave-running" in argv  # it is frozen, and the daemon decides what becomes of it
    pairs = list(zip(argv, argv[1:], strict=False))
    assert ("--freeze-cgroup", "/sys/fs/cgroup/freezer/u/lxc.payload.c1") in pairs
    externals = [value for option, value in pairs if option == "--external"]
    assert externals == ["mnt[/dev/null]:/dev/null", "mnt[/dev/console]:_dev_console", "tty[8800:3a]"]


def restore_job(*, keep: bool) -> commands.Restore:
    return commands.Restore(
        images=Path("/s/state"),
        log=Path("/l/restore.log"),
        mounts={"/mnt/a b": "/host/a'b", "/dev/console": "/dev/pts/3"},
        nics={"eth0": "veth12"},
        tty="tty[8800:3a]",
        terminal="/dev/pts/3",
        action_script=Path("/l/actions"),
        keep_connections=keep,
    )


@pytest.mark.parametrize(("keep", "option"), [(True, "--tcp-established"), (False, "--tcp-close")])
def test_the_command_that_restores(keep: bool, option: str) -> None:
    argv = commands.restore("/c/criu", restore_job(keep=keep))
    assert option in argv
    assert len({"--tcp-established", "--tcp-close"} & set(argv)) == 1
    externals = [value for name, value in zip(argv, argv[1:], strict=False) if name == "--external"]
    assert externals == ["mnt[/mnt/a b]:/host/a'b", "mnt[_dev_console]:/dev/pts/3", "netdev[eth0]:veth12"]
    assert argv[-2:] == ["--inherit-fd", "fd[9]:tty[8800:3a]"]
    assert "--lsm-profile" not in argv


@pytest.mark.parametrize(
    ("lines", "raw", "profile"),
    [
        ([("lxc.apparmor.profile", "x_c1//&:x_c1:")], "lxc.init.cmd = /x", "x_c1//&:x_c1:"),
        ([("lxc.apparmor.profile", "x_c1")], "lxc.apparmor.profile=unconfined", ""),
        ([("lxc.apparmor.profile", "unchanged")], "", ""),
        ([], "", ""),
    ],
)
def test_the_profile_of_apparmor_is_that_of_the_instance_now(
    lines: list[tuple[str, str]], raw: str, profile: str
) -> None:
    """But if the user chose another one, or none, that with which it was saved."""
    spec = dataclasses.replace(container_spec(), config={"raw.lxc": raw}, apparmor=lines)
    assert resume.profile(spec) == profile
    argv = commands.restore("/c/criu", dataclasses.replace(restore_job(keep=True), profile=profile))
    assert (f"apparmor:{profile}" in argv) is bool(profile)


def container_spec() -> ContainerSpec:
    place = Path("/x")
    return ContainerSpec(
        name="c1",
        architecture="x86_64",
        rootfs=place,
        idmap=IdMap(),
        config={},
        cgroup="u",
        console_log=place,
        post_stop=place,
        target=place,
    )


@pytest.mark.processes
def test_liblxc_runs_the_command_with_its_root_and_cgroup(tmp_path: Path) -> None:
    """Any characters in paths reach the program as they are."""
    shown = tmp_path / "show"
    shown.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    shown.chmod(0o755)
    terminal = tmp_path / "a terminal"
    terminal.touch()
    wrapper = tmp_path / "criu"
    pid = tmp_path / "its pid"
    wrapper.write_text(commands.wrapper([str(shown), "it's", "$HOME"], "4.2.1", str(terminal), pid))
    wrapper.chmod(0o755)

    def run(*arguments: str) -> list[str]:
        return subprocess.run([wrapper, *arguments], capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )

    assert run("--version") == ["Version: 4.2.1", ""]
    assert not pid.exists()
    given = (
        "restore",
        "--cgroup-root",
        "name=systemd:/u/lxc.payload.c1",
        "--root",
        "/r",
        "--tcp-established",
    )
    assert run(*given) == ["it's", "$HOME", "--root", "/r", "--cgroup-root", "/u/lxc.payload.c1", ""]
    assert pid.read_text().strip().isdecimal()


@pytest.mark.processes
def test_what_is_done_before_restored_processes_run(tmp_path: Path) -> None:
    actions = commands.Actions(
        init_file=tmp_path / "init file",
        used=tmp_path / "used",
        cgroups=str(tmp_path),
        parent="none",
        owner="0:0",
        ports={"veth1": "br0", "veth2": "it's"},
    )
    script, ip = tmp_path / "actions", tmp_path / "ip"
    script.write_text(commands.action_script(actions))
    ip.write_text('#!/bin/sh\nprintf "<%s>" "$@" >>"$0 was run"\n')
    ip.chmod(0o755)

    def run(action: str) -> None:
        env = {
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "CRTOOLS_SCRIPT_ACTION": action,
            "CRTOOLS_INIT_PID": str(os.getpid()),
        }
        subprocess.run(["sh", str(script)], env=env, check=True)

    run("pre-restore")
    assert not ip.with_name("ip was run").exists()
    run("post-restore")
    joined = "<link><set><dev><veth1><master><br0><link><set><dev><veth2><master><it's>"
    assert ip.with_name("ip was run").read_text() == joined
    assert actions.init_file.read_text() == f"{os.getpid()}\n"
    assert not actions.used.exists()
    run("pre-resume")
    assert actions.used.exists()


# ---- messages


@pytest.mark.parametrize(
    ("line", "words", "remedy"),
    [
        ("Error (criu/sk-queue.c:1): skqueue: Control messages in queue", "credentials", Remedy.WAIT),
        ("Error (criu/sk-netlink.c:1): netlink: The socket has data to read", "unread", Remedy.WAIT),
        (
            "Error (criu/proc_parse.c:1): parse_fdinfo_pid_s: error parsing [inotify wd:3 x]",
            "watched",
            Remedy.LOOK_UP,
        ),
        ("Error (criu/namespaces.c:1): Can't dump nested uts namespace for 77", "process 77", Remedy.NONE),
        ("Error (criu/util.c:1): Can't retrieve FDs from socket", "io_uring", Remedy.NONE),
        (
            "Error (criu/files.c:1): Can't dump file 3 of that type [600] (chr 10:229)",
            "chr 10:229",
            Remedy.NONE,
        ),
        ("Error (criu/image.c:1): write: No space left on device", "no space left", Remedy.NONE),
        ("Error (criu/x.c:1): something new", "something new", Remedy.NONE),
        ("", "no reason", Remedy.NONE),
    ],
)
def test_errors_are_explained(line: str, words: str, remedy: Remedy) -> None:
    noise = "Error (criu/util.c:1): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"
    text = f"{noise}{line}\nError (criu/cr-dump.c:1): Dumping FAILED.\n"
    found = failures.explain(text, program.first_error(text))
    assert words in found.reason
    assert found.remedy is remedy
    assert found.full_disk is ("No space" in line)


@given(st.text())
def test_any_text_as_a_log(text: str) -> None:
    assert "\n" not in program.first_error(text)
    failures.explain(text, program.first_error(text))


@pytest.mark.parametrize(
    ("text", "version", "enough"),
    [
        ("Version: 4.2.1\n", "4.2.1", True),
        ("Version: 4.2\nGitID: v4.2\n", "4.2", True),
        ("Version: 10.0", "10.0", True),
        ("Version: 4.1.1\n", "4.1.1", False),
        ("Version: 3.17.1\n", "3.17.1", False),
        ("nonsense", "", False),
    ],
)
def test_versions(text: str, version: str, enough: bool) -> None:
    assert program.parse_version(text) == version
    assert program.is_new_enough(version) is enough


# ---- finding the program


@pytest.mark.processes
async def test_a_program_is_proven_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its failure is remembered as well, until the program changes."""
    tried = []

    async def prove(criu: program.Criu) -> str:
        tried.append(criu.version)
        return "no such call" if len(tried) == 1 else ""

    monkeypatch.setattr(finder, "prove", prove)
    monkeypatch.setattr(program, "PATH", "/nonexistent")
    folder = tmp_path / "criu"
    find = finder.CriuFinder(folder, tmp_path / "proof.json")
    with pytest.raises(Unavailable, match="this host has none: .*utsuwad criu install"):
        await find.find()
    fake(folder, "4.1")
    with pytest.raises(Unavailable, match=r"has version 4\.1: "):
        await find.find()
    fake(folder, "4.2")
    for _ in range(2):
        with pytest.raises(Unavailable, match="no such call"):
            await find.find()
    assert tried == ["4.2"]
    fake(folder, "4.3.1")
    (tmp_path / "proof.json").write_text("damaged")
    assert (await find.find()).version == "4.3.1"
    assert await finder.CriuFinder(folder, tmp_path / "proof.json").works()
    assert tried == ["4.2", "4.3.1"]


@pytest.mark.processes
async def test_clients_are_told_what_was_found_a_moment_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every client asks; only what uses the program looks for it each time."""

    async def prove(_: program.Criu) -> str:
        return ""

    monkeypatch.setattr(finder, "prove", prove)
    monkeypatch.setattr(program, "PATH", "/nonexistent")
    find = finder.CriuFinder(tmp_path / "criu", tmp_path / "proof.json")
    assert not await find.works()
    fake(tmp_path / "criu", "4.2")
    assert not await find.works()
    assert (await find.find()).version == "4.2"
    assert await find.works()
    (tmp_path / "criu" / "criu").unlink()
    assert await find.works()
    monkeypatch.setattr(finder, "_VALID", 0.0)
    assert not await find.works()


def fake(folder: Path, version: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "criu").write_text(f"#!/bin/sh\necho Version: {version}\n")
    (folder / "criu").chmod(0o755)


@pytest.mark.parametrize("mirror", ["x y", "ftp://mirror/debian", "http://a/\n deb", "http://a b"])
def test_mirrors_that_are_no_urls(tmp_path: Path, mirror: str) -> None:
    with pytest.raises(InvalidRequest, match="not the URL of a mirror"):
        install.install(tmp_path / "criu", mirror)


def test_a_link_to_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "PATH", str(tmp_path / "bin"))
    fake(tmp_path / "criu", "4.2")
    (tmp_path / "bin").mkdir()
    target = tmp_path / "bin" / "criu"
    for _ in range(2):
        install.link(tmp_path / "criu", target)
    assert target.resolve() == tmp_path / "criu" / "criu"
    with pytest.raises(HostError, match="exists already"):
        install.link(tmp_path / "other", target)
    with pytest.raises(HostError, match="has .* already"):
        install.link(tmp_path / "other", tmp_path / "elsewhere")
    with pytest.raises(HostError, match="missing/criu: No such file or directory"):
        install.link(tmp_path / "criu", tmp_path / "missing" / "criu")


# ---- stored records


def test_a_record_is_stored_and_loaded(tmp_path: Path) -> None:
    fresh = saved.begin(tmp_path)
    (fresh / "core-1.img").write_bytes(b"x")
    (fresh / "core-1.img").chmod(0o600)
    saved.store(fresh, record())
    saved.sync(fresh)
    saved.publish(fresh, tmp_path)
    loaded = saved.load(tmp_path, "it", own=True)
    assert loaded == saved.Saved(tmp_path / "state", record(), own=True)
    assert (tmp_path / "state" / "core-1.img").stat().st_mode & 0o777 == 0o644
    assert not saved.is_obsolete(tmp_path)
    (tmp_path / "state" / "used").touch()
    assert saved.is_obsolete(tmp_path)
    with pytest.raises(InvalidRequest, match="older than its disk"):
        saved.load(tmp_path, "it", own=True)
    assert saved.load(tmp_path, "it", own=False).record == record()
    saved.begin(tmp_path)
    saved.tidy(tmp_path, keep=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
    saved.tidy(tmp_path, keep=False)
    assert not saved.exists(tmp_path)
    with pytest.raises(InvalidRequest, match="it has no saved running state"):
        saved.load(tmp_path, "it", own=True)


def test_the_connections_of_a_copied_snapshot_are_not_kept(tmp_path: Path) -> None:
    """Unlike those of an instance that was stopped with its state."""
    (tmp_path / "state").mkdir()
    saved.store(tmp_path / "state", record(hwaddrs={"eth0": "00:16:3e:00:00:01"}))
    assert saved.load(tmp_path, "it", own=True).keeps_connections
    assert not saved.load(tmp_path, "it", own=False).keeps_connections
    (tmp_path / "copy").mkdir()
    saved.copy_snapshot(tmp_path, tmp_path / "copy")
    copied = saved.load(tmp_path / "copy", "it", own=True)
    assert not copied.keeps_connections
    assert copied.record.hwaddrs == {"eth0": "00:16:3e:00:00:01"}
    (tmp_path / "state" / "utsuwa.json").unlink()
    with pytest.raises(InvalidRequest, match="no saved running state"):
        saved.copy_snapshot(tmp_path, tmp_path / "copy")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"criu":"4.2","kernel":"","idmap":"","mounts":[],"nics":[],"tty":"tty[8800:3a]","version":2}',
        b'{"criu":"4.2","kernel":"","idmap":"","mounts":["x"],"nics":[],"tty":"tty[8800:3a]"}',
        b'{"criu":"4.2","kernel":"","idmap":"","mounts":["/a]:/b"],"nics":[],"tty":"tty[8800:3a]"}',
        b'{"criu":"4.2","kernel":"","idmap":"","mounts":[],"nics":["a b"],"tty":"tty[8800:3a]"}',
        b'{"criu":"4.2","kernel":"","idmap":"","mounts":[],"nics":[],"tty":"tty[8800:3a] --x"}',
        b'{"criu":"4.2","kernel":"","idmap":"","mounts":[],"nics":[],"tty":"tty[8800:3a]","hwaddrs":{"e":"1"}}',
        b'{"criu":"4.2","kernel":"","idmap":"","mounts":[],"nics":[],"tty":"tty[8800:3a]","more":1}',
        b"x" * (2 << 20),
    ],
)
def test_damaged_records(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "utsuwa.json").write_bytes(text)
    with pytest.raises(InvalidRequest, match="damaged"):
        saved.load(tmp_path, "it", own=True)


@pytest.mark.parametrize("length", [None, 9, 11])
def test_memory_of_another_size_is_noticed(tmp_path: Path, length: int | None) -> None:
    """CRIU would wait for what is missing."""
    fresh = saved.begin(tmp_path)
    pages = fresh / "pages-1.img"
    pages.write_bytes(bytes(10))
    saved.store(fresh, record())
    saved.publish(fresh, tmp_path)
    assert saved.load(tmp_path, "it", own=True).record.pages == {"pages-1.img": 10}
    pages = tmp_path / "state/pages-1.img"
    if length is None:
        pages.unlink()
    else:
        os.truncate(pages, length)
    with pytest.raises(InvalidRequest, match="its memory is not complete"):
        saved.load(tmp_path, "it", own=True)


def test_a_symlink_in_place_of_a_state_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    saved.store(tmp_path / "other", record())
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "utsuwa.json").symlink_to(tmp_path / "other" / "utsuwa.json")
    with pytest.raises(InvalidRequest, match="damaged"):
        saved.load(tmp_path, "it", own=True)


# ---- prepared guests


def test_only_prepared_guests_get_the_drop_in(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path)
    assert guest.mounts({}, folder) == []
    assert guest.mounts({"migration.stateful": "false"}, folder) == []
    assert list(tmp_path.iterdir()) == []
    (mount,) = guest.mounts({"migration.stateful": "true"}, folder)
    assert mount == BindMount(mount.source, guest.PLACE, read_only=True, create="file")
    text = mount.source.read_text()
    assert mount.source.stat().st_mode & 0o777 == 0o644
    lines = {
        "PrivateMounts=no",
        "ProtectHostname=no",
        "LoadCredential=",
        "ImportCredential=",
        "ProcSubset=all",
    }
    assert {*lines, "MemoryPressureWatch=off"} <= {*text.split("\n")}


def test_prepared_guests_have_no_io_uring() -> None:
    assert "io_uring_setup errno 38" in (seccomp.policy({"migration.stateful": "true"}, "x86_64") or "")
    assert "io_uring" not in (seccomp.policy({}, "x86_64") or "")
    only = seccomp.policy({"migration.stateful": "true", "security.syscalls.deny_default": "false"}, "x86_64")
    assert only is not None
    assert "kexec_load" not in only


# ---- consoles


@pytest.mark.processes
def test_a_kept_console(tmp_path: Path) -> None:
    """It logs, takes one client at a time, and ends with what holds its pipe."""
    log = tmp_path / "console.log"
    assert console.connect(tmp_path) is None
    with console.kept(tmp_path, log, (os.getuid(), os.getgid())) as terminal:
        inside = os.open(terminal.name, os.O_RDWR | os.O_NOCTTY)
        first = connected(tmp_path)
        os.write(inside, b"hello\n")
        assert received(first, b"hello\r\n") == b"hello\r\n"
        second = connected(tmp_path)
        os.write(second, b"typed\n")
        assert os.read(inside, 100) == b"typed\n"
        assert received(second, b"typed\r\n") == b"typed\r\n"
        os.set_blocking(first, True)
        assert os.read(first, 100) == b""
        life = os.dup(terminal.life)
    assert log.read_bytes() == b"hello\r\ntyped\r\n"
    os.close(life)
    os.set_blocking(second, True)
    assert os.read(second, 100) == b""
    assert console.connect(tmp_path) is None
    console.forget(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["console.log"]
    for descriptor in (first, second, inside):
        os.close(descriptor)


def connected(folder: Path) -> int:
    found = console.connect(folder)
    assert found is not None
    os.set_blocking(found.master, True)
    return found.master


def received(descriptor: int, wanted: bytes) -> bytes:
    """Read at least as much as is wanted."""
    data = b""
    while len(data) < len(wanted):
        data += os.read(descriptor, 100)
    return data


def test_long_paths_of_sockets(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    assert console.connect(folder) is None
    with console._listener(folder):
        found = console.connect(folder)
    assert found is not None
    found.close()
