"""The version of this build, which is written when the package is built."""

from __future__ import annotations

try:
    from utsuwa._version import __version__
except ImportError:  # a source tree that nothing was built from: the quick start checks the host with it
    __version__ = "0+unbuilt"

__all__ = ["__version__"]
