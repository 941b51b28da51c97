"""Creation of the program file `utsuwa` by an installation: `python3 -m utsuwa.cli.launcher FILE`.

pip's launchers start Python with `site`, which reads every `.pth` file and the virtual environment's
configuration, taking as long as the rest of a listing. This one contains its paths and starts with
`-I -S`, so that neither the environment nor the user's packages can affect what it loads.
"""

from __future__ import annotations

import os
import sys
import sysconfig

from utsuwa.cli.errors import UsageError
from utsuwa.core.errors import UtsuwaError

# The maximum length of a program's first line, which may have only one argument.
_LIMIT = 127


def text(python: str, folder: str) -> str:
    """Return a launcher, given the interpreter and the directory of the package. Raises UsageError."""
    first = f"#!{python} -IS"
    if any(c.isspace() for c in python) or len(first) > _LIMIT:
        raise UsageError(f"A program cannot start with {python}: install under a shorter path without spaces")
    return (
        f"{first}\nimport sys\nsys.path.append({folder!r})\nfrom utsuwa.cli.main import program\nprogram()\n"
    )


def write(path: str) -> None:
    """Write an executable launcher for the running installation atomically.

    It uses the real interpreter instead of the link in a virtual environment, which would read the
    environment's configuration at each start. Raises UsageError or OSError.
    """
    folder = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    third = sysconfig.get_path("purelib")
    content = text(os.path.realpath(sys.executable), folder)
    if third != folder:  # installed from a working copy: dependencies are elsewhere
        content = content.replace("from utsuwa", f"sys.path.append({third!r})\nfrom utsuwa", 1)
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o755)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
    os.chmod(temporary, 0o755)
    os.replace(temporary, path)


def main() -> int:
    if len(sys.argv) != 2:
        sys.stderr.write("Error: Specify the file to write: python3 -m utsuwa.cli.launcher FILE\n")
        return 1
    try:
        write(sys.argv[1])
    except (UtsuwaError, OSError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
