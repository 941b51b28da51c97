"""The process that renders templates: what it answers, and that whatever runs in it can reach nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.netbox import until
from utsuwa.core.errors import HostError, InvalidImage
from utsuwa.instances.templates import process as processes
from utsuwa.instances.templates.process import TemplateProcess
from utsuwa.instances.templates.variables import Facts, Rendering

pytestmark = pytest.mark.root

PROGRAM = """
import os, signal, socket, sys, time
sys.path.insert(0, {source!r})
from utsuwa.instances.templates import server

def run_python(source, values):
    try:
        return repr(eval(source))
    except Exception as error:
        return type(error).__name__

{settings}
server.main(int(sys.argv[1]))
"""
ESCAPED = "server.render = run_python"
"""Renders Python, as if a template had got out of the sandbox of Jinja2."""
SHORT = "server._SECONDS = 1"
"""Gives a template a second of processor time, and two seconds of time."""
ENDLESS = "signal.setitimer(signal.ITIMER_REAL, 0) and "
"""Before Python that must not be cut off, however slow the machine is."""
SLOW = "{% for a in path %}" * 20 + "{% endfor %}" * 20


class Program:
    """The program of a process, which is that of the daemon but for some settings."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.process = TemplateProcess()

    def set(self, settings: str) -> None:
        source = str(Path(processes.__file__).parents[3])
        self._file.write_text(PROGRAM.format(source=source, settings=settings))

    def pids(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:  # it has ended
                    continue
                if os.fsencode(self._file) in words:
                    found.append(int(entry.name))
        return found

    def render(self, source: str, **config: Any) -> str:
        """Raises InvalidImage."""
        facts = Facts("c1", "x86_64", False, True, config, {"eth0": {"type": "nic"}})
        wish = Rendering(source, "start", "/etc/x", {"default": "from the image"}, facts)
        (result,) = self.process.render([wish])
        if isinstance(result, InvalidImage):
            raise result
        return result

    def ended(self) -> bool:
        return self.pids() == []


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    found = Program(tmp_path / "program.py")
    found.set("")
    monkeypatch.setattr(processes, "_MAIN", tmp_path / "program.py")
    yield found
    found.process.close()
    until(found.ended)


def test_it_renders_and_refuses_as_the_sandbox_of_jinja(program: Program) -> None:
    render = program.render
    privileged = "{% if container.privileged %}{{ config_get('a', '')|upper }}{% endif %}"
    assert render(privileged, a="ü") == "Ü"
    assert render("{% for k, v in devices %}{{ k }}{{ v.type }}{% endfor %}") == "eth0nic"
    assert render("{{ properties.default|capfirst }}") == "From the image"
    large = "x" * (3 << 20)
    assert render("{{ config_get('a', '')|lower }}", a=large) == large
    for source, reason in (
        ("{% if %}", "line 1: Expected an expression"),
        ("{{ path|nope }}", "the filter 'nope' is not supported"),
        ("{{ 'a' - 'b' }}", "only numbers can be subtracted"),
        ("{{ config_get() }}", "TypeError: "),
        ("{% include '/etc/passwd' %}", "Include is not supported"),
        ("{{ " + "(" * 500 + "1" + ")" * 500 + " }}", "too deep"),
        (SLOW, "it takes too long"),
    ):
        with pytest.raises(InvalidImage, match=reason):
            render(source)
    assert len(program.pids()) == 1


def test_several_templates_are_rendered_at_once(program: Program) -> None:
    facts = Facts("c1", "x86_64", False, True, {}, {})
    sources = ("{{ path|upper }}", "{% bad %}", "{{ trigger|upper }}{{ properties.a }}")
    wishes = [Rendering(source, "start", "/etc/x", {"a": "b"}, facts) for source in sources]
    upper, bad, other = program.process.render(wishes)
    assert (upper, other) == ("/ETC/X", "STARTb")
    assert isinstance(bad, InvalidImage)
    assert "unknown tag 'bad'" in bad.message


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("os.listdir('/')", "[]"),
        ("open('/etc/passwd')", "FileNotFoundError"),
        ("open('/new', 'w')", "OSError"),
        ("os.getresuid() + os.getresgid() + tuple(os.getgroups())", repr((65534,) * 6)),
        ("os.setuid(0)", "PermissionError"),
        ("os.chroot('/')", "PermissionError"),
        ("os.fork()", "BlockingIOError"),
        ("os.kill(1, 9)", "None"),  # the first process of its namespace, which the kernel protects
        ("os.getppid()", "1"),
        ("socket.socket().connect((b'127.0.0.1', 9))", "OSError"),
        ("bytearray(1 << 30)", "MemoryError"),
    ],
)
def test_what_gets_out_of_jinja_reaches_nothing(program: Program, code: str, result: str) -> None:
    program.set(ESCAPED)
    assert program.render(code) == result
    assert program.render("1 + 1") == "2"


def test_time_is_limited_and_others_do_not_wait(program: Program) -> None:
    program.set(f"{ESCAPED}; {SHORT}")
    assert program.render(f"{ENDLESS}1") == "1"
    with ThreadPoolExecutor() as threads:
        burning = [
            threads.submit(program.render, code)
            for code in ("sum(iter(int, 1))", "time.sleep(1000)", "os.abort()")
        ]
        assert program.render(f"{ENDLESS}2") == "2"
        for future in burning:
            with pytest.raises(InvalidImage, match="too much time or memory"):
                future.result()
    until(lambda: len(program.pids()) == 1)


def test_it_is_started_again_when_it_was_idle_or_killed(program: Program) -> None:
    program.set("server.IDLE = 0.01")
    assert program.render("{{ path|upper }}") == "/ETC/X"
    until(program.ended)
    program.set("")
    assert program.render("{{ path|upper }}") == "/ETC/X"
    until(lambda: len(program.pids()) == 1)  # a child that has answered may not have ended yet
    (pid,) = program.pids()
    os.kill(pid, signal.SIGKILL)
    until(program.ended)
    assert program.render("{{ path|upper }}") == "/ETC/X"


def test_it_ends_with_the_daemon(program: Program) -> None:
    program.render("{{ path|upper }}")
    assert program.process._control is not None
    program.process._control.close()  # as the kernel does when the daemon is killed
    until(program.ended)


def test_it_cannot_be_started(program: Program) -> None:
    program.set("sys.exit('no namespaces')")
    with pytest.raises(HostError, match="The process for templates cannot be started: .*no namespaces"):
        program.render("{{ path|upper }}")


def test_an_instance_whose_template_never_ends_does_not_start(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    d.lxc("init", busybox, "c1")
    d.lxc("init", busybox, "c2")
    template = {"/etc/x": {"when": ["start"], "template": "x.tpl"}}
    for name, source in (("c1", SLOW), ("c2", "{{ container.name|upper }}")):
        d.do("POST", f"/1.0/instances/{name}/metadata/templates?path=x.tpl", source.encode())
        d.do("PATCH", f"/1.0/instances/{name}/metadata", {"templates": template})
    failed = d.wait(d.api("PUT", "/1.0/instances/c1/state", {"action": "start"}))
    assert failed["err"].endswith("The template 'x.tpl' for /etc/x failed: it takes too long"), failed["err"]
    d.lxc("start", "c2")
    assert d.lxc("exec", "c2", "--", "cat", "/etc/x").stdout == "C2"
    d.kill()
    d.start()
    d.lxc("restart", "--force", "c2")
    assert d.lxc("exec", "c2", "--", "cat", "/etc/x").stdout == "C2"
