"""The heap of the C library: keeps it in one piece, and gives its free pages back to the system.

Knows glibc's allocator; elsewhere nothing here does anything. It gives each thread an arena of its own, and keeps free
pages at the end of each but the first, up to 64 MB, whatever `malloc_trim` is told: a server that decodes in many
threads then holds a hundred megabytes and more of nothing, up and down with the load. In one arena all of it goes back.
"""

import ctypes

_ARENA_MAX = -8  # M_ARENA_MAX of malloc.h


def keep_in_one_piece() -> None:
    """Let all threads take memory from one arena; call it before any thread is started."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)


def trim() -> None:
    """Give free pages back."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
