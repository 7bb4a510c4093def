"""Constructs an optimizer and takes its steps. methods.py names the methods, rules.py holds their arithmetic."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from fastadam import kernels
from fastadam.arrays.flat import FlatBuffer
from fastadam.arrays.host import Array
from fastadam.arrays.tree import Structure, Tree, rebuild
from fastadam.backend import choose
from fastadam.checks import SEEDS, flag, integer, number
from fastadam.group import hyperparameters as hyperparameter_names
from fastadam.group import is_grouped, make_groups, sums_first
from fastadam.measuring import ACCUMULATED, Measuring
from fastadam.plans.chores import Chores, StepInfo, check_copies
from fastadam.plans.measured import Measured
from fastadam.plans.storage import Storage
from fastadam.plans.streams import labels
from fastadam.plans.table import EVERY, Table
from fastadam.rule import Rule
from fastadam.state import sparse
from fastadam.state.slots import Leaves, State
from fastadam.state.totals import Totals, share
from fastadam.stateful import Settings

ONE = 1.0  # the default scale, known by identity: nothing to check


class Optimizer(Measuring):
    """Holds one method's state over a tree of parameters, which its steps change in place.

    params: numpy.ndarrays of float64, float32, bfloat16 (ml_dtypes) or float16, dense in any axis order, writable, in
        dicts, lists, tuples, dataclasses and attrs classes (others: see register_container) to any depth; or one
        array; or a FlatBuffer for any array. A list whose items are all dicts with the key "params" is a list of param
        groups: each has a tree of its own under that key, and hyperparameters that it does not share; other keys, such
        as a name, are kept and shown.

    backend: "auto", "numpy", "numba" or "cuda"; "auto" follows $FASTADAM_BACKEND, and takes "cuda" for arrays on a
        device, else the fastest that is ready.
    capturable: whether steps may be captured in a CUDA graph: the device then counts them; see prepare. Step once
        before the capture, as every library asks that loads its kernels when they are first launched.
    moments: what the state rests in: None, as the arithmetic is; "float32", "bfloat16" or "8bit" for parameters of 32
        bits and fewer, "float64" for others. See opt.state_bytes, opt.moments, opt.convert. In 8 bits 64 elements share
        a scale: one that is not finite makes all NaN, and so does v where a gradient beyond 1.8e19 overflows it. Each
        leaf has whole blocks of 1,024: many small ones take less room in a FlatBuffer.
    master: for parameters of 16 bits: None, they are all there is: bfloat16 is rounded stochastically, float16 to
        nearest; "remainder", for bfloat16: the 16 bits that a float32 has more rest beside it, so steps are those of
        float32 parameters to the bit; "float32": so does a whole float32 copy, and params are rounded from it to
        nearest. There a step takes over each parameter that was set from outside, which is one that is not its master
        rounded, and counts them in StepInfo.taken_over; "remainder" needs refresh_master.
    seed: below 2^64, of the stochastic rounding: of bfloat16 parameters without a master, and in short formats of slots
        that never fall below zero; part of the state. The bits depend on the seed, the leaf's count and the element's
        index in the tree, each leaf's elements counted in their order in memory (of which pickle keeps C's and
        Fortran's alone).
    index_offset: added to that index, for the shards of a larger tree; or {path: the index of a leaf's first element}.
        In 8 bits cut shards at multiples of 64. Not part of the state.

    Chores, all in the same pass over memory as the step, in this order:
    max_norm: clip the gradients, after grad_scale, to this global L2 norm; a group's own max_norm limits that group's.
    max_value: then clip each of their elements to ±max_value.
    ema_decay: keep exponential moving averages of the parameters, in `ema`: a number, or a function of t. A leaf
        without a gradient leaves its average alone, too.
    copy_to: a tree of float16 or bfloat16 arrays like params, or FlatBuffers where these are; holds them rounded to
        nearest even, from now on; beside 16-bit params without a master, from the update before these are rounded.
    zero_grads: zero the gradients once they are read.
    skip_nonfinite: True leaves everything as it is, counts included, if any gradient is NaN or infinite, and `skipped`
        counts it; "raise" raises FloatingPointError naming the leaf, instead. On a GPU the device decides and counts
        with True, where every leaf must have a gradient, and schedules are asked for up to 1,024 steps ahead: if what
        they say may change from outside, call prepare(1). "raise" waits for the device.
    stats: "group" or "tensor": report the norms of gradients, updates and parameters, and the largest update, of each.

    Raises TypeError, ValueError that name the argument, what came and what was expected.

    >>> params = {"w": np.ones(3, np.float32)}
    >>> opt = fa.AdamW(params, lr=0.25, weight_decay=0.0, max_norm=1.0)
    >>> opt.step({"w": np.array([2, 0, 0], np.float32)})
    StepInfo(grad_norm=2.0, clip_factor=0.5, skipped=False, stats=None, taken_over=None)
    >>> params["w"].round(6).tolist()
    [0.75, 1.0, 1.0]
    """

    rule: ClassVar[type[Rule]]

    def __init__(
        self, params: Tree, *hyperparameters: Any, backend: str = "auto", moments: str | None = None,
        master: str | None = None, seed: int = 0, index_offset: int | dict[str, int] = 0,
        max_norm: float | None = None, max_value: float | None = None,
        ema_decay: float | Callable[[int], float] | None = None, copy_to: Tree | None = None,
        zero_grads: bool = False, skip_nonfinite: bool | str = False, stats: str | None = None,
        capturable: bool = False, **named: Any,
    ) -> None:  # fmt: skip
        if not hasattr(self, "rule"):
            raise TypeError("Optimizer is what the methods share: construct one of them, such as fastadam.Adam")
        asked: dict[str, Any] = {
            "max_norm": max_norm, "max_value": max_value, "ema_decay": ema_decay, "zero_grads": zero_grads,
            "skip_nonfinite": skip_nonfinite, "stats": stats,
        }  # fmt: skip
        if unknown := named.keys() - set(names := hyperparameter_names(self.rule)):
            raise TypeError(f"{self.rule.__name__} takes no {min(unknown)!r}, expected any of {', '.join(names)}")
        default = self.rule(*hyperparameters, **named)
        flag("capturable", capturable)
        storage = Storage(moments=moments, master=master, index_offset=index_offset)
        seed = integer("seed", seed, **SEEDS)
        self._build(params, default, Settings(backend, seed, Chores(**asked), copy_to, storage, capturable))

    def _build(self, params: Tree, default: Rule, settings: Settings) -> None:
        """Do what construction and copies have in common."""
        backend, seed, asked, copy_to, storage, capturable, lacking = settings
        before = set(vars(self))
        self._averaging = False
        trees = [item["params"] for item in params] if is_grouped(params) else params
        trees = rebuild(trees, lambda leaf: leaf)  # the arrays are the user's; the containers may change later
        self._tree = [{"params": tree} for tree in trees] if is_grouped(params) else trees
        self._structure = Structure(trees)
        self._asked, self._backend = backend, choose(backend, self._structure.leaves)
        arrays = []
        for name, leaf in zip(self._structure.names, self._structure.leaves, strict=True):
            array = leaf.array if isinstance(leaf, FlatBuffer) else leaf
            arrays.append(self._backend.home.owned(f"params{name}", array))
        self.groups = tuple(make_groups(params, default, arrays, lacking))
        self._chores, self._copy_to = asked, copy_to
        copies = None
        if copy_to is not None:
            short = self._structure.flatten(copy_to, "copy_to")
            copies = check_copies(self._backend.home, self._structure.names, self._structure.leaves, arrays, short)
            self._copies = [copy.array if isinstance(copy, FlatBuffer) else copy for copy in short]
        self._capturable = capturable
        self._kernel = kernels.ALL[self.rule.kernel]
        self._totals = Totals(len(arrays))
        leaves = Leaves(self._structure.names, self._structure.leaves, arrays, copies)
        state = State(self._kernel, self.groups, leaves, self._backend.home, storage, asked.ema_decay is not None)
        state.fill_copies(range(len(arrays)))
        apart = self._backend.judge.apart and self.sums_first
        self._table = Table(self.rule, self.groups, asked, seed, apart=apart)
        self._behind = sparse.Behind(*self._table.rows.shape)
        self._introduce(state, self._copies)
        self._built = frozenset(vars(self)) - before | {"_built"}

    def _introduce(self, state: State, copies: Sequence[Array]) -> None:
        """Let steps change this state from here on: work out what they have to do, then take it over.

        copies: per leaf, the user's array of copy_to, if any.
        """
        if state.draws:
            self._table.draw()
        firsts = state.storage.firsts(state.paths, [p.size for p in state.params])
        names = [labels(self._kernel, path) for path in state.paths]
        plan = self._backend.plan(self._kernel, names, state.owners, state.streams, self._table, self._chores, firsts)
        plan.copies = copies
        judge = self._backend.judge(plan, self._chores, state.paths)
        window = self._backend.window(plan, judge, self._chores, state.paths, self._capturable)
        if window is not None:
            for group in self.groups:
                group.watch(window.rewrite)
        self._state, self._plan, self._judge, self._window = state, plan, judge, window
        self._copies = copies

    @property
    def t(self) -> int:
        """Return the steps taken so far; a learning-rate callable gets the count of the step to take, from 1.

        With capturable=True the device counts, and this waits for it.
        """
        taken: int = self._table.counts.item(-1)
        return taken if self._window is None else taken + self._window.taken()

    @property
    def skipped(self) -> int:
        """Return the steps left out by skip_nonfinite; waits for the device where that counts them."""
        return self._table.skipped + (0 if self._window is None else self._window.skipped())

    @property
    def backend(self) -> str:
        """Return the name of the backend that steps these parameters."""
        return self._backend.name

    def step(
        self, grads: Tree = ACCUMULATED, grad_scale: float = ONE, reduction: str = "mean", *,
        streams: Sequence[Tree] | None = None, measured: Mapping[str, Measured] | None = None,
    ) -> StepInfo:  # fmt: skip
        """Update params in place. Returns what the chores have found out.

        grads: like params (same tree and shapes), floats of any width, read only; with param groups, a list with one
            tree per group.
            A leaf that is None is left alone, its own count included. Other strides than the parameter's cost a copy.
            For a parameter of no dimension it may be a number, Python's or NumPy's.
        grad_scale: multiplies grads first, so unscaling costs no pass of its own.
        reduction: without grads, the step takes the "mean" or the "sum" of what has been accumulated, or of streams.
        streams: several trees of gradients in place of grads, such as those of several processes, added in their order
            in the compute type, to the bits of `accumulate` with each of them.
        measured: what to clip and to skip by, {path: Measured} in the order of the tree, where the leaves or parts of
            other processes count, too; see `measure`.
        Raises TypeError, ValueError before anything has changed.
        """
        if self._averaging:
            self.check_idle()
        if measured is not None:
            self._check_measured(measured)
        scale = grad_scale if grad_scale is ONE else number("grad_scale", grad_scale)
        after: Any = ()
        if streams is not None:
            leaves = self._together(streams, grads)
            scale *= share(len(streams), reduction)
        elif grads is ACCUMULATED:
            leaves, of_each, after = self._totals.take(self._state, reduction)
            scale *= of_each
        else:
            if reduction != "mean":
                raise ValueError(f"reduction is {reduction!r}, expected it where step() takes what was accumulated")
            if self._totals.arrays:
                self._totals.check_empty()
            leaves = self._structure.flatten(grads, "grads")
        missing = self._plan.accept(leaves)
        if self._window is not None:
            return self._window.step(leaves, scale, after, measured)  # type: ignore[no-any-return]
        self._table.fill(scale, [leaf is not None for leaf in leaves] if missing else EVERY)
        if self._behind.at:
            self.catch_up()
        return self._judge.step(scale, leaves, after, after, None, measured)

    @property
    def sums_first(self) -> bool:
        """Tell whether steps begin with sums over whole leaves, which may not be cut into several then.

        >>> fa.LAMB(np.ones(3)).sums_first, fa.AdamW(np.ones(3)).sums_first
        (True, False)
        """
        return any(map(sums_first, self.groups))

    def prepare(self, steps: int | None = None) -> None:
        """Make the coefficients of the next steps ready, 1,024 unless asked for others, where the device counts: with
        capturable=True, and with skip_nonfinite=True on a GPU.

        Call it before a captured graph has been replayed that often; waits for the device. Eager steps need no call.
        Fewer are ready where a schedule raises before. A change of lr works out all of them anew, 3 to 5 µs each: a
        program that sets one before every replay calls prepare(1) first. So does one whose schedules (lr, ema_decay)
        look at what changes from outside, such as a loss: they are then asked right before each eager step but the
        first, which with skip_nonfinite=True waits for the step before.
        Raises RuntimeError if more steps were replayed than were ready: the rest was not taken. Raises what a schedule
        raises within as many steps as were asked for.
        """
        if self._window is None:
            raise ValueError(
                "capturable is False, expected an optimizer made with capturable=True, or with skip_nonfinite=True on "
                "a GPU: no other has steps prepared"
            )
        self._window.refill(steps)

    def step_rows(self, rows: Tree, grad_scale: float = ONE, semantics: str = "lazy") -> StepInfo:
        """Update only some rows of some leaves in place; memory moves in proportion to the rows.

        rows: like params, where a leaf is (indices, values), or a dense gradient, or None; a dict may lack keys, which
            counts as None. indices: (k,) integers; values: (k, *shape of a row) in the parameter's dtype. Values of the
            same row are summed first, in the order given. The count of every leaf that is not None advances.
        semantics: "lazy": all other rows of such a leaf stay as they are, as in torch's SparseAdam,
            whose eps stands where eps_hat=True puts it.
            "exact": other rows fall behind, and take the steps they missed, with zeros as the gradient, when they are
            next touched: to the bit what `step` gives with zeros there, but for the last bits of max_norm's factor,
            whose norm is summed over the rows alone. Read other rows after `catch_up`, not before.
        Chores: the norm, the test for non-finite values and the statistics are those of the gradients given; averages
            and copies of other rows stay as they are, with "exact" until these are touched; zero_grads clears the
            values. On a device max_norm, skip_nonfinite and stats, which need all rows summed up first, are refused.
        On a device the values stay there. Indices may lie on the host; from a device they are fetched, which waits for
        it once per leaf. Not with capturable=True.
        Raises IndexError that names the first bad index, TypeError, ValueError before anything has changed.
        """
        if self.sums_first:
            raise ValueError(f"step_rows: {self.rule.__name__} as made here sums over whole leaves, expected step()")
        if semantics not in ("lazy", "exact"):
            raise ValueError(f"semantics is {semantics!r}, expected 'lazy' or 'exact'")
        if self._window is not None:
            which = "capturable" if self._capturable else "skip_nonfinite"
            raise ValueError(f"{which} is True, expected False for step_rows: the host must know what each step does")
        self.check_idle()
        self._totals.check_empty()
        scale, exact, zeroed = number("grad_scale", grad_scale), semantics == "exact", self._chores.zero_grads
        leaves = self._structure.flatten(rows, "rows", partial=True)
        given = sparse.accept(self._plan, self._state.paths, leaves, zeroed)
        self._table.fill(scale, [g is not None for g in leaves])
        if self._behind.must_catch_up(leaves, given, exact):
            self.catch_up()
        part = after = None
        if leaves:
            params = self._state.params
            part, after = self._behind.part(self._plan, self._table, params, leaves, given, exact, zeroed)
        return self._judge.step(scale, leaves, after or (), part=part)

    def __repr__(self) -> str:
        leaves = len(self._state.params)
        return f"{type(self).__name__}({leaves} leaves, t={self.t}, backend={self.backend!r}, {self.groups})"
