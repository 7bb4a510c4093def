"""Says what every contestant is: fastadam (ours.py, ours_cuda.py), the limit (limits.py), the peers (peers.py).

Each steps the arrays that its users have: NumPy's for fastadam and the limit, torch's own tensors for torch, and so on.
`give(k)` hands over gradient set k % 2, so that each step meets gradients it did not just read: `.grad` is assigned for
torch, a list is chosen for fastadam. It is not timed, because in training the backward pass does that. `step()` is the
user's whole call, with the chores that its setting names, and is timed.
"""

from importlib.util import find_spec

import numpy as np

STEPS = 2  # that everyone takes before the clock starts, held against the oracle
POOL = 1 << 22  # random numbers that are drawn; larger leaves repeat them
ONE_SET = 1 << 28  # parameters from which one set of gradients is given again and again: no cache holds any of it


class Start:
    """Holds where everyone begins: parameters, which each copies, and two sets of gradients, which nobody writes."""

    def __init__(self, shapes, dtype=np.float32, seed=0):
        self.shapes, self.dtype = shapes, np.dtype(dtype)
        n = sum(int(np.prod(shape)) for shape in shapes)
        pool = np.random.default_rng(seed).standard_normal(min(n, POOL) + 64, np.float32).astype(dtype)
        sets = 1 + self.sets(n)
        self.params, *self.grads = [[np.resize(pool[13 * k :], shape) for shape in shapes] for k in range(sets)]
        self._copies = {}

    @staticmethod
    def sets(n):
        """Return how many sets of gradients there are for n parameters."""
        return 1 if n >= ONE_SET else 2

    def grads_as(self, convert):
        """Return the gradients as another library's arrays, made once for all contestants of that library."""
        if convert not in self._copies:
            self._copies[convert] = [[convert(g) for g in grads] for grads in self.grads]
        return self._copies[convert]


class Contestant:
    """Does the work in one way. A subclass sets `setting`, `p` and `sets` in __init__(start, setting, threads)."""

    name: str
    install: str  # the command that brings it here
    needs: tuple[str, ...] = ()  # modules without which it is absent
    on_request = ""  # why it runs only if asked for by name
    device = "cpu"
    trial: tuple[tuple[int, ...], ...] = ((3,),)  # the shapes over which it tries a step
    judged = STEPS  # steps whose error is held against the bound
    peer = True  # see truth.Papers
    spare = 2  # arrays of temporaries
    chose = ""  # what it chose for itself, for the result
    needs_wall = False  # a library with CUDA streams of its own, which no event sees
    chores: tuple[str, ...] = ("",)  # those of cases.CHORES that its step can do

    @classmethod
    def holds(cls, format):
        """Say whether its p, g and state rest in that cases.Precision."""
        return format.name in ("float32", "float64")

    @classmethod
    def missing(cls, setting):
        """Say why it cannot do this, or None, by trying."""
        if not cls.holds(setting.format):
            return f"has no {setting.format.name}"
        if setting.chores not in cls.chores:
            return f"has no {setting.chores}"
        for module in cls.needs:
            if find_spec(module) is None:
                return f"{module} is not installed"
        try:
            one = cls(Start(cls.trial, setting.dtype), setting, 1)
            one.give(0)
            one.step()
            one.params()
        except Exception as error:  # whatever another's library raises
            kind = "" if isinstance(error, NotImplementedError) else f"{type(error).__name__}: "
            return " ".join(f"{kind}{error}".split())[:160]
        return None

    @classmethod
    def bytes(cls, setting):
        """Return the bytes that it moves per parameter and step."""
        return setting.bytes

    def moved(self, n):
        """Return the bytes that it moves per parameter and step of n parameters."""
        return self.bytes(self.setting)

    @property
    def paper(self):
        """Return the setting whose paper its results are held against; None: the limit's arithmetic."""
        return self.setting

    def give(self, k):
        """Hand over the gradients of step k."""
        self.grads = self.sets[k % len(self.sets)]

    def finish(self):
        """Wait for what was started, where a library runs ahead and no event can tell."""

    def params(self):
        """Return the parameters as NumPy arrays."""
        return self.p

    def averages(self):
        """Return the averaged parameters as NumPy arrays, where the setting's chores keep them."""
        return None

    def copies(self):
        """Return the bfloat16 copies as float32 NumPy arrays, where the setting's chores write them."""
        return None


def only(setting, methods, options=()):
    """Raise unless it is one of these methods, with none but these options."""
    if setting.method.__name__ not in methods or not set(setting.options) <= set(options):
        raise NotImplementedError(f"has no {setting.name}")


def named(cls, name, **more):
    """Return a contestant like this one, under another name."""
    return type(cls.__name__, (cls,), {"name": name, "__doc__": cls.__doc__, **more})
