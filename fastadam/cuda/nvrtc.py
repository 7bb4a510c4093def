"""Has the kernels of the CUDA text, compiled through CuPy when one is first asked for."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from fastadam.kernels.cuda import OPTIONS, Instantiation, Pass, source

log = logging.getLogger("fastadam")


@cache
def function(device: int, step: Instantiation | Pass | None) -> Any:
    """Return the compiled step, or `advance` for None. CuPy keeps what it compiled on disk; a module belongs to one
    device."""
    import cupy

    log.debug("compiling or loading %s for cuda:%d", step.name if step else "advance", device)
    module = cupy.RawModule(code=source([step] if step else []), options=OPTIONS)
    return module.get_function(step.name if step else "advance")
