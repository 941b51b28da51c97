"""The program file `utsuwa`, as an installation writes it: `python3 -m utsuwa.cli.launcher FILE`.

A launcher that pip makes starts Python with `site`, which reads every `.pth` file and the virtual
environment first: as long as the rest of a listing takes. This one names its paths itself and starts
with `-I -S`, so that neither the environment nor the user's own packages can change what it loads.
"""

from __future__ import annotations

import os
import sys
import sysconfig

from utsuwa.cli.errors import UsageError
from utsuwa.core.errors import UtsuwaError

# The first line of a program may hold no more, and one argument only.
_LIMIT = 127


def text(python: str, folder: str) -> str:
    """The launcher for an interpreter and the folder that `utsuwa` is installed in. Raises UsageError."""
    first = f"#!{python} -IS"
    if any(c.isspace() for c in python) or len(first) > _LIMIT:
        raise UsageError(f"A program cannot start with {python}: install under a shorter path without spaces")
    return (
        f"{first}\n"
        "import sys\n"
        f"sys.path.append({folder!r})\n"
        "from utsuwa.cli.main import main\n"
        "sys.exit(main())\n"
    )


def write(path: str) -> None:
    """Write the launcher for the running installation, whole and executable or not at all.

    The interpreter is the real one, not the link in a virtual environment, which would take a look at
    the environment's configuration at each start. Raises UsageError or OSError.
    """
    folder = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    third = sysconfig.get_path("purelib")
    content = text(os.path.realpath(sys.executable), folder)
    if third != folder:  # installed from a working copy: what is imported besides lies elsewhere
        content = content.replace("from utsuwa", f"sys.path.append({third!r})\nfrom utsuwa", 1)
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o755)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
    os.chmod(temporary, 0o755)
    os.replace(temporary, path)


def main() -> int:
    if len(sys.argv) != 2:
        sys.stderr.write("Error: Name the file to write: python3 -m utsuwa.cli.launcher FILE\n")
        return 1
    try:
        write(sys.argv[1])
    except (UtsuwaError, OSError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
