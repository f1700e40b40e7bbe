"""What the C library does with memory that a step gives back: keep it at hand, or return it to the system.

Kept memory costs no time but leaves holes. A step that computes its layers again makes and drops large tensors all the
way, small objects settle in the holes, and glibc grew to 3.1–3.9 GB where 1.4 GB are alive (GPT v2, 8 clips of 370
columns). Whoever computes layers again does it for lack of memory, so then large blocks get pages of their own that
go back at once, which costs a tenth of the time. Only glibc can be told; elsewhere nothing happens here.
"""

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # of mallopt(3)
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 128 << 20}
_RETURNED = {_MMAP_MAX: 1 << 15, _MMAP_THRESHOLD: 1 << 20, _TRIM_THRESHOLD: 128 << 10, _TOP_PAD: 128 << 10}
"""As many blocks with pages of their own as are half of what Linux allows a process; glibc's own values else."""

_returned = False


def keep_large_blocks() -> None:
    """What is free stays with the process, as it does in workers."""
    global _returned
    _set(_KEPT)
    _returned = False


def return_large_blocks(wanted: bool) -> None:
    """Return large blocks to the system as soon as they are free, or do so no longer."""
    global _returned
    if wanted and not _returned:
        _set(_RETURNED)
        _returned = True
    elif _returned and not wanted:
        keep_large_blocks()


def _set(values: dict[int, int]) -> None:
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        for name, value in values.items():
            library.mallopt(name, value)
        if values is _RETURNED:
            library.malloc_trim(0)  # what was kept until now
