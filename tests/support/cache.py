"""Files that take long to create, cached in /var/cache/utsuwa-test or `$UTSUWA_TEST_CACHE`."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.workers import lock


def cached(name: str, made_of: Sequence[bytes], make: Callable[[Path], object]) -> Path:
    """The folder of that name, filled by `make` where nothing made of the same lies in the cache.

    Only one process creates it, others wait. Directories made from other inputs are removed.
    """
    cache = Path(os.environ.get("UTSUWA_TEST_CACHE", "/var/cache/utsuwa-test"))
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{name}-{hashlib.sha256(b'|'.join(made_of)).hexdigest()[:16]}"
    with lock(cache / f"{name}.lock"):
        if not folder.is_dir():
            for old in cache.glob(f"{name}-{'[0-9a-f]' * 16}"):
                shutil.rmtree(old)
            fresh = Path(tempfile.mkdtemp(prefix="new-", dir=cache))
            try:
                make(fresh)
                fresh.chmod(0o755)
                fresh.rename(folder)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    return folder
