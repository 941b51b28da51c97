"""Started by `client` as `python -S -E -I <this file> <descriptor of the shared socket>`."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Isolated from site-packages and environment: only the standard library and this package are available.
    sys.path.insert(0, os.path.abspath(f"{__file__}/../../../.."))  # noqa: PTH100 - pathlib takes 10 ms to import
    from utsuwa.host.helper.server import main

    sys.exit(main(int(sys.argv[1])))
