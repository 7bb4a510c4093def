"""Lists who can take part: fastadam, the limits, the peers, in the order in which memory is given to them."""

from . import ours_cuda, peers
from .limits import Limit, LimitCuda
from .ours import by_backend
from .ours_jax import FastadamJax


def everyone(backends):
    """Return all contestants for these backends; fastadam and the limits first, variants of fastadam last."""
    cpu = [by_backend(backend) for backend in backends if backend != "cuda"]
    cuda = "cuda" in backends
    main = [ours_cuda.MAIN] * cuda + sorted(cpu, key=lambda one: one.backend == "numpy")
    limits = [Limit] * bool(cpu) + [LimitCuda] * cuda
    others = [*((FastadamJax, *peers.CPU) if cpu else ()), *(peers.CUDA if cuda else ())]
    return [*main[:1], *limits, *main[1:], *others, *(ours_cuda.VARIANTS if cuda else ())]
