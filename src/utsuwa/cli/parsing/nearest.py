"""Suggestions for mistyped words."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_ENOUGH = 3


def suggestion(word: str, known: Iterable[str], mark: str = "") -> str:
    """Return `: did you mean "list"?`, to append to an error; empty if nothing is similar.

    `mark` is put before each name.
    """
    import difflib  # only for a wrong word: importing it takes longer than most commands run

    names = list(known)
    lowered = word.lower()
    begun = [name for name in names if len(lowered) > 1 and name.startswith(lowered)]
    near = difflib.get_close_matches(lowered, names, n=_ENOUGH)
    found = list(dict.fromkeys([*begun, *near]))[:_ENOUGH]
    if not found:
        return ""
    quoted = [f'"{mark}{name}"' for name in found]
    last = quoted.pop()
    return f": did you mean {', '.join(quoted)} or {last}?" if quoted else f": did you mean {last}?"
