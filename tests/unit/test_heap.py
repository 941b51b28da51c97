from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, ctypes, sys
from utsuwa.host.system import heap

heap.keep_small()
heap.TRIM_SECONDS = 0.05
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 // 2**20

async def main():
    trimming = asyncio.create_task(heap.keep_trimmed())
    await asyncio.sleep(0)
    blocks = [libc.malloc(100_000) for _ in range(1000)]
    for block in blocks:
        ctypes.memset(block, 1, 100_000)
    pin = libc.malloc(100_000)  # behind them: as long as it is there, glibc keeps what is before it
    full = resident()
    for block in blocks:
        libc.free(block)
    kept = resident()
    sum(range(10_000_000))  # work enough to look
    for _ in range(200):
        await asyncio.sleep(0.05)
        if full - resident() > 80:
            break
    trimming.cancel()
    print(full - kept, full - resident())

asyncio.run(main())
"""


@pytest.mark.processes
def test_free_memory_is_returned_to_the_system() -> None:
    """Also what glibc keeps by itself, because something behind it is in use."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    by_itself, trimmed = map(int, done.stdout.split())
    assert by_itself < 10, done.stdout
    assert trimmed > 80, done.stdout


PIECES = """
import resource
from utsuwa.host.system import heap

heap.keep_small()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

bytes(bytearray(250_000))
before = faults()
for _ in range(200):
    bytes(bytearray(250_000))
print(faults() - before)
"""


@pytest.mark.processes
def test_pieces_of_bodies_use_the_same_memory_again() -> None:
    """With memory of its own for each, there were some 60 page faults for each copy."""
    done = subprocess.run([sys.executable, "-c", PIECES], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2000, done.stdout
