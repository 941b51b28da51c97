"""What tests need and what takes long to make or to fetch: kept between runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cached(name: str, made_of: list[bytes], make: Callable[[Path], object]) -> Path:
    """The folder of that name, filled by `make` where nothing made of the same lies in the cache.

    The cache is /var/cache/utsuwa-test or $UTSUWA_TEST_CACHE.
    """
    cache = Path(os.environ.get("UTSUWA_TEST_CACHE", "/var/cache/utsuwa-test"))
    folder = cache / f"{name}-{hashlib.sha256(b'|'.join(made_of)).hexdigest()[:16]}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
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
