"""The commands of a page of docs/guides, run as a reader runs them."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support import client
from tests.support.daemon import Daemon

ROOT = Path(__file__).resolve().parents[2]
_SECTION = re.compile(r"^## ", re.MULTILINE)
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INSTALL = re.compile(r"utsuwa exec (\S+) -- apt-get (?:update|install --yes (.+))")

Install = Callable[[str, list[str]], None]
"""Installs packages in an instance."""


class Guide:
    """A page whose blocks of shell commands are run in order, in the network namespace of a daemon.

    Instances of tests have no network to fetch packages from, so `install` does what `apt-get` would.
    `replaced` is what stands for words of the page, such as images of the Internet.
    """

    def __init__(
        self,
        page: str,
        daemon: Daemon,
        bin: Path,
        install: Install,
        replaced: Mapping[str, str] | None = None,
    ) -> None:
        self._daemon = daemon
        self._install = install
        self.said: dict[str, str] = {}
        """What each block has printed, by its first line."""
        text = (ROOT / "docs/guides" / page).read_text()
        for word, other in (replaced or {}).items():
            text = text.replace(word, other)
        assert _BLOCK.search(text), f"{page} has no commands"
        self._sections = dict(part.split("\n", 1) for part in _SECTION.split(f"\n{text}"))
        launcher = bin / "utsuwa"
        launcher.write_text(f'#!/bin/sh\nexec {shlex.join(client.command())} "$@"\n')
        launcher.chmod(0o755)
        path = f"{bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self._environment: Mapping[str, str] = client.environment(daemon) | {"PATH": path}

    def run(self, *left_out: str) -> None:
        """Run all sections but those with these headings.

        Raises AssertionError with the block that has failed.
        """
        assert self._sections.keys() >= set(left_out), list(self._sections)
        texts = [text for heading, text in self._sections.items() if heading not in left_out]
        for block in _BLOCK.findall("\n".join(texts)):
            lines = block.splitlines(keepends=True)
            rest: list[str] = []
            for line in lines:
                if found := _INSTALL.fullmatch(line.strip()):
                    self._shell("".join(rest))
                    rest = []
                    if found[2]:
                        self._install(found[1], found[2].split())
                else:
                    rest.append(line)
            self.said[lines[0].strip()] = self._shell("".join(rest))

    def _shell(self, script: str) -> str:
        box = self._daemon.box
        ended = subprocess.run(
            [*(box.prefix if box else ()), "bash", "-euo", "pipefail", "-c", f"cd {ROOT}\n{script}"],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode == 0, f"{script}\n{ended.stdout}{ended.stderr}\n{self._daemon.log_tail()}"
        return ended.stdout
