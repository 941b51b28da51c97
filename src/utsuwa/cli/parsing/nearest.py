"""What somebody may have meant who wrote a word that is none."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_ENOUGH = 3


def suggestion(word: str, known: Iterable[str], mark: str = "") -> str:
    """`: did you mean "list"?`, to stand behind an error; empty where nothing is near.

    `mark` is put before each name.
    """
    import difflib  # only once a word is wrong: it takes longer to import than most commands take to run

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
