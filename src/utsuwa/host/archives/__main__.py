"""Started by `sandbox` as `python -S -E -I <this file> <arguments of jail.main>`."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # As the helper: isolated from site-packages and environment, and without pathlib.
    sys.path.insert(0, os.path.abspath(f"{__file__}/../../../.."))  # noqa: PTH100
    from utsuwa.host.archives.jail import main

    main(sys.argv[1:])
