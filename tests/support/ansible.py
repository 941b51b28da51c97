"""Ansible with its modules and connection plugin for LXD, fetched once into an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import isolation
from tests.support.cache import cached
from tests.support.daemon import Daemon

CORE, COLLECTIONS = "ansible-core>=2.19,<2.20", "ansible>=12,<13"
"""The last ones for Python 3.11. The second one contains all collections, of which two are needed."""
NEEDED = ("ansible_collections/community/general/", "ansible_collections/ansible/posix/")


def installed() -> Path:
    """The folder with `venv` and `ansible_collections`; fails with pip's words where they cannot be got."""

    def fetch(folder: Path) -> None:
        venv, wheels = folder / "venv", folder / "wheels"
        python = str(venv / "bin" / "python")
        pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check")
        for command in (
            (sys.executable, "-m", "venv", str(venv)),
            (*pip, "install", CORE),
            (*pip, "download", "--no-deps", "--only-binary", ":all:", "--dest", str(wheels), COLLECTIONS),
        ):
            ended = subprocess.run(
                [*isolation.host_prefix(), *command], stdin=subprocess.DEVNULL, capture_output=True, text=True
            )
            assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stderr[-4000:]}"
        (wheel,) = wheels.iterdir()
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith(NEEDED)])
        wheel.unlink()
        wheels.rmdir()

    made_of = (CORE, COLLECTIONS, *NEEDED, sys.version)
    return cached("ansible", [text.encode() for text in made_of], fetch)


@dataclass(frozen=True)
class Play:
    """What `ansible-playbook` reported: the results by host and name of the task."""

    results: Mapping[tuple[str, str], Mapping[str, Any]]

    @property
    def changed(self) -> list[str]:
        """The names of the tasks that changed something, in order."""
        return [task for (_, task), result in self.results.items() if result["changed"]]

    @property
    def actions(self) -> dict[str, list[str]]:
        """What the modules for LXD did, by the name of the task."""
        return {task: result["actions"] for (_, task), result in self.results.items() if "actions" in result}


def play(daemon: Daemon, home: Path, book: str) -> Play:
    """Run the playbook, a YAML text, in the folder `home` on the daemon; every task must succeed.

    In it, `lxd_url` is the daemon's socket, for the modules. The connection plugin runs Debian's `lxc`.
    """
    (home / "play.yaml").write_text(book)
    variables = {"lxd_url": f"unix:{daemon.socket}", "ansible_python_interpreter": "/usr/bin/python3"}
    arguments = ("--inventory", "localhost,", "--extra-vars", json.dumps(variables), str(home / "play.yaml"))
    return Play(dict(_results(_run(daemon, home, "playbook", *arguments))))


def inventory(daemon: Daemon, home: Path, **config: object) -> Mapping[str, Any]:
    """What `ansible-inventory` lists by the plugin for LXD: hosts by group, and variables in `_meta`."""
    (home / "lxd.yaml").write_text(
        json.dumps({"plugin": "community.general.lxd", "url": f"unix:{daemon.socket}", **config})
    )
    return _run(daemon, home, "inventory", "--inventory", str(home / "lxd.yaml"), "--list")


def _run(daemon: Daemon, home: Path, tool: str, *arguments: str) -> Mapping[str, Any]:
    """Run a program of Ansible, and return the JSON that it prints."""
    folder = installed()
    ended = subprocess.run(
        [str(folder / "venv" / "bin" / "python"), "-m", "ansible", tool, *arguments],
        env=daemon.lxc_environment()
        | {
            "ANSIBLE_HOME": str(home / "own"),
            "ANSIBLE_COLLECTIONS_PATH": str(folder),
            "ANSIBLE_INVENTORY_ENABLED": "community.general.lxd,host_list",
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            "ANSIBLE_PIPELINING": "true",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        cwd=os.sep,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, (
        f"ansible-{tool} ended with {ended.returncode}\n"
        f"{ended.stdout[-6000:]}\n{ended.stderr[-4000:]}\n--- daemon log\n{daemon.log_tail()}"
    )
    report: Mapping[str, Any] = json.loads(ended.stdout, object_hook=_without_marks)
    return report


def _without_marks(value: dict[str, Any]) -> Any:
    """Text that Ansible got from outside is marked as `{"__ansible_unsafe": TEXT}`."""
    return value.get("__ansible_unsafe", value)


def _results(report: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Mapping[str, Any]]]:
    for part in report["plays"]:
        for task in part["tasks"]:
            for host, result in task["hosts"].items():
                yield (host, task["task"]["name"]), result
