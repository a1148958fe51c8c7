"""The heap in one piece: what threads freed goes back to the system, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Arrays of 4 MB in eight threads that stay. Once one of 30 MB was freed, they come from the heap and not from mappings
# of their own.
PROGRAM = """
import sys, threading
import numpy as np, psutil
from engines import heap

if "one" in sys.argv:
    heap.keep_in_one_piece()
np.ones(30 << 20, np.uint8)
freed, end = threading.Barrier(9), threading.Event()

def work():
    pieces = [np.ones(4 << 20, np.uint8) for _ in range(6)]
    del pieces
    freed.wait()
    end.wait()

before = psutil.Process().memory_info().rss
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
freed.wait()
heap.trim()
print((psutil.Process().memory_info().rss - before) >> 20)
end.set()
"""


def left_mb(*arguments: str) -> int:
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_threads_freed_goes_back_to_the_system() -> None:
    assert left_mb("one") <= 10
    assert left_mb() >= 40, "otherwise this test proves nothing: the C library gives all back by itself"
