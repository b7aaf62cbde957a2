"""How memory is dealt with, once a process has started and will do the same for days: with less ado than is usual."""

import ctypes
import gc

GC_THRESHOLDS = (50_000, 20, 100)  # objects made and not freed; collections of the first, of the second generation

KEPT_BYTES = 64 * 1024 * 1024
MAPPED_BYTES_MIN = 32 * 1024 * 1024
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def settle() -> None:
    """Call it when all is there that stays.

    The collector leaves alone what start-up made, and seldom looks at the rest: what an event or a row makes is freed
    by its counts, and hundreds of connections keep thousands of objects that it would walk for nothing.

    glibc gives the system back what is freed of a buffer of more than 128 kB, and is given it again, page by page and
    filled with zeros, for the next one: a tenth of what an event in a batch costs. It keeps KEPT_BYTES instead; buffers
    of MAPPED_BYTES_MIN and more still go back at once. Other C libraries are left as they are.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES_MIN)
