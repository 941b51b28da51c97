"""What a check is, and what all of them know of the machine that they run in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

STATE = Path("/var/lib/stock-host")
"""A folder of the checks, which they find again after the reboot."""
CHECKOUT = Path("/mnt/checkout")
LONG = "stock.long" in Path("/proc/cmdline").read_text()
"""Whether all checks run, as `scripts/test --long --stock-host` says on the kernel's command line."""
_Function = Callable[[], str | None]


@dataclass(frozen=True)
class Check:
    name: str
    run: _Function
    """Gives words about what was seen; raises whatever it likes when things are not as they should be."""
    long: bool = False
    """Whether it is left to long runs: the tests' marker `long`."""


class Checks(list[Check]):
    """The checks of an area, in their order; called with a name, it decorates a function that is one."""

    def __call__(self, name: str, *, long: bool = False) -> Callable[[_Function], _Function]:
        def add(function: _Function) -> _Function:
            self.append(Check(name, function, long))
            return function

        return add

    def chosen(self) -> list[Check]:
        return [one for one in self if LONG or not one.long]


def expect(holds: object, words: object) -> None:
    if not holds:
        raise AssertionError(words)
