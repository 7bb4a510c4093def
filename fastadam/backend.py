"""Says who serves the arrays of one processor, and whether it can run here."""

import importlib
import logging
import os
import warnings
from collections.abc import Sequence
from typing import Any

from fastadam.arrays.device import DEVICE, HOST, home_of, status
from fastadam.arrays.host import Host
from fastadam.cuda import judge as device
from fastadam.cuda.plan import CudaPlan
from fastadam.cuda.window import Window
from fastadam.host import judge as host
from fastadam.host.compiled import NumbaPlan
from fastadam.host.reference import NumpyPlan
from fastadam.plans.chores import Chores
from fastadam.plans.judge import Judge
from fastadam.plans.plan import Plan

log = logging.getLogger("fastadam")


class Backend:
    """Describes one processor: its name, the plan and the judge that serve it, what it must import, and where its
    arrays lie."""

    def __init__(self, name: str, plan: type[Plan], judge: type[Judge], needs: str, home: Host = HOST) -> None:
        self.name, self.plan, self.judge, self._needs, self.home = name, plan, judge, needs, home

    def window(self, plan: Any, judge: Any, chores: Chores, names: Sequence[str], capturable: bool) -> Any:
        """Return the coefficients of steps to come, if the device is to count: raises ValueError where none can."""
        if not capturable:
            return None
        raise ValueError(f"capturable is True, expected False with backend {self.name!r}: it is for CUDA graphs")

    def status(self) -> str:
        """Return "ready", or what is missing and the command that installs it."""
        try:
            module = importlib.import_module(self._needs)
        except ImportError as error:
            return f"{self._needs} cannot be imported ({error}); pip install {self._needs}"
        except Exception as error:  # such as a NUMBA_... variable that Numba refuses
            names = [name for name in sorted(os.environ) if name.startswith(f"{self._needs.upper()}_")]
            mend = f"unset {' '.join(names)}" if names else f"pip install --force-reinstall {self._needs}"
            return f"{self._needs} cannot be imported ({error}); {mend}"
        if getattr(getattr(module, "config", None), "DISABLE_JIT", False):
            return "NUMBA_DISABLE_JIT is set; unset it"
        return "ready"


class Cuda(Backend):
    """Is the backend of NVIDIA GPUs, through CuPy."""

    def window(self, plan: Any, judge: Any, chores: Chores, names: Sequence[str], capturable: bool) -> Any:
        if capturable and chores.skip_nonfinite == "raise":
            raise ValueError(
                "skip_nonfinite is 'raise', expected True or False with capturable=True: graphs raise nothing"
            )
        # Whether a step is skipped only the device knows, so it counts.
        return Window(plan, judge, names, capturable) if capturable or chores.skip_nonfinite is True else None

    def status(self) -> str:
        return status()


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("numba", NumbaPlan, host.Judge, "numba"), Backend("numpy", NumpyPlan, host.Judge, "numpy"),
        Cuda("cuda", CudaPlan, device.Judge, "cupy", DEVICE),
    )
}  # fmt: skip


def backends() -> dict[str, str]:
    """Return every backend this version knows: "ready", or why it is not and the command that mends it.

    >>> fa.backends()["numpy"]
    'ready'
    """
    return {name: backend.status() for name, backend in BACKENDS.items()}


def ready(name: str, source: str, more: str = "") -> None:
    """Raises RuntimeError that begins with what asked for this backend, and says why it cannot run here."""
    if (status := BACKENDS[name].status()) != "ready":
        raise RuntimeError(f"{source} is {name!r}, which cannot run here: {status}{more}")


def choose(name: str, leaves: Sequence[Any] = ()) -> Backend:
    """Return the backend for `name`.

    "auto" is $FASTADAM_BACKEND if set, else "cuda" for arrays on a device, else the first that is ready.

    Raises ValueError for an unknown name, RuntimeError for one that cannot run here.
    """
    asked, source = name, "backend"
    if name == "auto" and (wished := os.environ.get("FASTADAM_BACKEND")):
        asked, source = wished, "FASTADAM_BACKEND"
    if asked == "auto" and home_of(leaves) is DEVICE:
        asked, source = "cuda", "backend for arrays on a CUDA device"
    if asked == "auto":
        best, *others = (backend for backend in BACKENDS.values() if backend.home is HOST)
        if (status := best.status()) == "ready":
            log.debug("backend %s chosen: the fastest that is ready", best.name)
            return best
        log.debug("backend %s chosen: %s is not ready: %s", others[0].name, best.name, status)
        warnings.warn(f"{best.name} is not ready: {status}. Using {others[0].name}, which is slow", RuntimeWarning, 4)
        return others[0]
    if not isinstance(asked, str) or asked not in BACKENDS:
        raise ValueError(f"{source} is {asked!r}, expected one of {', '.join(['auto', *BACKENDS])}")
    home = BACKENDS[asked].home
    move = "; then cupy.asarray(...) moves an array there" if leaves and home is not home_of(leaves) is HOST else ""
    ready(asked, source, move)
    log.debug("backend %s chosen: %s asks for it", asked, source)
    return BACKENDS[asked]
