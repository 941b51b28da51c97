"""Started by `process` as `python -I <this file> <descriptor of the control socket>`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    from utsuwa.instances.templates.server import main

    try:
        main(int(sys.argv[1]))
    except OSError as error:
        sys.exit(str(error))
