"""Builds without a daemon, as root: `python3 -m utsuwa.cli.building DEFINITION OUT_DIR`.

This is how `scripts/offline-bundle` and the tests get the Debian image. Scripts of packages run on the host,
in a chroot.
"""

from __future__ import annotations

import sys

from utsuwa.cli.building import build
from utsuwa.core.errors import UtsuwaError


def main() -> int:
    if len(sys.argv) != 3:
        sys.stderr.write("usage: python3 -m utsuwa.cli.building DEFINITION OUT_DIR\n")
        return 1
    try:
        with build.interruptible(), build.built_here(build.prepare(sys.argv[1], {})) as files:
            build.save(files, sys.argv[2])
    except UtsuwaError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
