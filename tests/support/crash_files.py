"""The files of instances whose daemon is killed: what they are, random changes, and files that are pushed."""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.whole_trees import Entry, differences, tree

Tree = dict[str, Entry]

WATCHED = ("home", "root", "usr")
"""The directories that are compared; starting a container changes nothing in them."""
_FOLDERS = ("/root/a", "/root/b", "/home/user", "/home/moved", "/usr/sbin")
_NAMES = ("x", "y", "odd name")
_CHANGES = (
    "mkdir -p {one}; echo {text} >{one}/{name}",
    "echo {text} >>{one}/{name}",
    "truncate -s 300000 {one}/{name}",
    "ln {one}/{name} {other}/hard",
    "ln -s {text} {one}/link",
    "mkfifo {one}/fifo",
    "chmod 4750 {one}/{name}; chown 5:6 {one}/{name}",
    "rm -r {other}; mv {one} {other}",
    "rm -r {one}; mkdir {one}; echo {text} >{one}/{name}",
    "rm -r {one}",
)


def files_in(root: Path) -> Tree:
    """All files in the watched directories of a root file system, with the owners that the container sees."""
    owner = root.stat()
    found = {}
    for top in WATCHED:
        for name, entry in tree(root / top).items():
            uid, gid = entry.owner
            found[os.path.normpath(f"{top}/{name}")] = replace(
                entry,
                owner=(uid - owner.st_uid, gid - owner.st_gid),
                same_as=os.path.normpath(f"{top}/{entry.same_as}"),
            )
    return found


def random_changes(random_: random.Random) -> str:
    """A shell script that changes files of the image and others; what is not possible is left."""
    lines = []
    for _ in range(random_.randint(2, 6)):
        one, other = random_.choice(_FOLDERS), random_.choice(_FOLDERS)
        values = {"one": one, "other": other, "name": f"'{random_.choice(_NAMES)}'"}
        lines.append(random_.choice(_CHANGES).format(text=random_.randbytes(4).hex(), **values))
    return "\n".join(["exec 2>/dev/null", *lines, f"echo {random_.randbytes(4).hex()} >/root/mark"])


@dataclass(frozen=True)
class Push:
    """A file that is written, new or over another one; `done` says whether that was told."""

    path: str
    data: bytes
    done: bool

    def check(self, root: Path, before: Tree, found: Tree) -> None:
        """Raise AssertionError if another file has changed, or if this one is not old, new or partly new."""
        assert differences(self._others(before), self._others(found)) == []
        new = found.get(self.path)
        if self.done or (new is not None and new != before.get(self.path)):
            assert new is not None, f"{self.path} was pushed, and is lost"
            content = (root / self.path).read_bytes()
            assert self.data.startswith(content), f"{self.path} is neither old nor new"
            assert not self.done or new.content == hashlib.sha256(self.data).hexdigest(), "a part is lost"
        elif new is None:
            assert self.path not in before, f"{self.path} was to be written, and is gone"

    def _others(self, files: Tree) -> Tree:
        """All other files; the time of their directory may be another."""
        parent = str(Path(self.path).parent)
        others = {name: entry for name, entry in files.items() if name != self.path}
        return others | {parent: replace(files[parent], modified=0)}
