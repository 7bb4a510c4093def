"""Backends: who serves the arrays of one processor, and whether it can run here."""

import importlib
import logging
import os
import warnings

from fastadam.compiled import NumbaPlan
from fastadam.plan import NumpyPlan, Plan

log = logging.getLogger("fastadam")


class Backend:
    """One processor: its name, the plan that serves it, and what must be importable for it."""

    def __init__(self, name: str, plan: type[Plan], needs: str) -> None:
        self.name, self.plan, self._needs = name, plan, needs

    def status(self) -> str:
        """ "ready", or what is missing and the command that installs it."""
        try:
            module = importlib.import_module(self._needs)
        except ImportError as error:
            return f"{self._needs} cannot be imported ({error}); pip install {self._needs}"
        except Exception as error:  # such as a NUMBA_... variable that Numba refuses
            return f"{self._needs} cannot be imported ({error}); mend what it names"
        if getattr(getattr(module, "config", None), "DISABLE_JIT", False):
            return "NUMBA_DISABLE_JIT is set; unset it"
        return "ready"


BACKENDS = {
    backend.name: backend for backend in (Backend("numba", NumbaPlan, "numba"), Backend("numpy", NumpyPlan, "numpy"))
}


def backends() -> dict[str, str]:
    """Every backend this version knows: "ready", or why it is not and the command that mends it."""
    return {name: backend.status() for name, backend in BACKENDS.items()}


def choose(name: str) -> Backend:
    """The backend for `name`; "auto" is $FASTADAM_BACKEND if set, else the first that is ready.

    Raises ValueError for an unknown name, RuntimeError for one that cannot run here.
    """
    asked, source = name, "backend"
    if name == "auto" and (wished := os.environ.get("FASTADAM_BACKEND")):
        asked, source = wished, "FASTADAM_BACKEND"
    if asked == "auto":
        best, *others = BACKENDS.values()
        if (status := best.status()) == "ready":
            log.debug("backend %s chosen: the fastest that is ready", best.name)
            return best
        log.debug("backend %s chosen: %s is not ready: %s", others[0].name, best.name, status)
        warnings.warn(f"{best.name} is not ready: {status}. Using {others[0].name}, which is slow", RuntimeWarning, 4)
        return others[0]
    if not isinstance(asked, str) or asked not in BACKENDS:
        raise ValueError(f"{source} is {asked!r}, expected one of {', '.join(['auto', *BACKENDS])}")
    if (status := BACKENDS[asked].status()) != "ready":
        raise RuntimeError(f"{source} is {asked!r}, which cannot run here: {status}")
    log.debug("backend %s chosen: %s asks for it", asked, source)
    return BACKENDS[asked]
