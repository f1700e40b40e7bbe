"""What a process holds is asked of the system, in a process of its own: the setting is one for all of a process."""

import ctypes
import json
import subprocess
import sys

import pytest

HELD = """
import ctypes, json
from pathlib import Path
from gsv_core.training.pages import keep_large_blocks, return_large_blocks

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmRSS"))

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]

def after_use():
    # Every other block stays, so that the heap cannot shrink.
    blocks = [library.malloc(8 << 20) for _ in range(20)]
    for block in blocks:
        ctypes.memset(block, 1, 8 << 20)
    before = resident()
    for block in blocks[::2]:
        library.free(block)
    freed = before - resident()
    for block in blocks[1::2]:
        library.free(block)
    return freed

keep_large_blocks()
found = [after_use()]
for wanted in (True, False, False, True):
    return_large_blocks(wanted)
    found.append(after_use())
print(json.dumps(found))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc can be told"
)
def test_large_blocks_are_returned_or_kept_as_wanted():
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    freed = json.loads(done.stdout)
    assert [megabytes > 70 for megabytes in freed] == [False, True, False, False, True]
    assert all(megabytes < 10 or megabytes > 70 for megabytes in freed)
