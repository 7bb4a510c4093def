"""Says what a method is, as torch's class of that name has it: its rule, its state, the gradients that it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch

from fastadam import kernels
from fastadam.checks import number
from fastadam.plans.chores import Chores
from fastadam.plans.storage import Storage
from fastadam.plans.table import Table
from fastadam.rule import Rule
from fastadam.torch.formats import FORMATS, local
from fastadam.torch.group import plain
from fastadam.torch.leaf import Leaf

OPTIONS = {  # of the constructors, beside torch's arguments: what each means
    "max_norm": "clip the gradients, after a GradScaler's unscaling, to this global L2 norm; a group's own max_norm "
    "limits that group's. By max_norm / norm: clip_grad_norm_ adds 1e-6 to the norm first.",
    "ema_decay": 'keep exponential moving averages in the state, as "ema": a number, or a function of the step count. '
    "`with opt.averaged():` swaps them in.",
    "copy_to": "bfloat16 or float16 tensors, one per parameter; hold them rounded to nearest even, from now on, of "
    "parameters without a master from the update itself, as it was before these were rounded. add_param_group takes "
    "more of them.",
    "skip_nonfinite": 'True leaves out a step whose gradients hold NaN or infinity, "raise" raises FloatingPointError.',
    "stats": '"group" or "tensor": report the norms of gradients, updates and parameters, and the largest update, of '
    "each, in `opt.info`, a fastadam.StepInfo.",
    "moments": 'what slots rest in, "float32", "bfloat16" or "8bit", "float64" for float64 parameters; see '
    "fastadam.Optimizer. In the state they are float32, bfloat16, or flat uint8 tensors: of each 1,024 elements in p's "
    'order in memory 1,024 codes, then 16 float32 scales; "strides" beside them says what that order is. '
    "load_state_dict takes torch's state, too; to_torch_state gives it.",
    "master": '"remainder" or "float32": the other 16 bits of bfloat16 parameters, or a float32 copy that 16-bit '
    'parameters are rounded from, in the state under that name or "master". A step takes over parameters that were '
    'set from outside with "float32", and opt.info.taken_over counts them; with "remainder" call opt.refresh_master() '
    "then. Without one bfloat16 is rounded stochastically.",
    "seed": "of stochastic rounding; not in state_dict.",
    "index_offset": "of the elements' index that stochastic rounding counts by; not in state_dict. Give each rank of "
    "FSDP2 another, such as rank * 2**40, or all round alike.",
}


class Options(NamedTuple):
    """Holds what an optimizer was asked for beside its groups' hyperparameters, as far as a walk must know it."""

    chores: Chores
    storage: Storage
    seed: int


class Method(torch.optim.Optimizer):
    """Is the part of an optimizer that a walk asks."""

    rule: ClassVar[type[Rule]]
    slots: ClassVar[dict[str, str]]  # torch's names in the state of the kernel's slots
    numbers: tuple[str, ...] = ("step",)  # and of what is one number: the count, then what the rule carries
    fixed: ClassVar[dict[str, Any]] = {}  # what the rule is told beside torch's hyperparameters
    extras: ClassVar[dict[str, Any]] = {}  # hyperparameters that torch's class has not, and their defaults
    of_group: ClassVar[dict[str, str]] = {}  # where another library keeps numbers in its groups
    of_each: ClassVar[frozenset[str]] = frozenset()  # those of them that it keeps beside each parameter, too
    for_none: ClassVar[dict[str, float]] = {}  # hyperparameters that are None there, and what they are
    packed: ClassVar[dict[str, tuple[str, ...]]] = {}  # bitsandbytes' states that hold several slots, and their keys
    flat: ClassVar[frozenset[str]] = frozenset()  # what it keeps in one dimension
    instead = ""  # what takes sparse gradients
    by_row = False  # whether gradients may be sparse
    plain_numbers = False  # whether the state's numbers are Python's
    _chores: Chores
    _storage: Storage

    def for_package(self, group: dict[str, Any]) -> dict[str, Any]:
        """Return what another library's group has that ours says otherwise."""
        return {}

    def rests(self, p: Any) -> dict[str, str | None]:
        """Return what a parameter's tensors were asked to rest in, by their keys in its state; None: as wide as the
        arithmetic.

        Slots are always named; an average, a remainder and a master where the optimizer was made with one.
        """
        moments, master = self._storage.moments, self._storage.master
        beside = [] if self._chores.ema_decay is None else ["ema"]
        rests = {**dict.fromkeys(self.slots.values(), moments), **dict.fromkeys(beside)}
        return rests if master is None else {**rests, "master" if master == "float32" else master: master}

    def check_layout(self, leaf: Leaf, g: Any) -> None:
        """Refuse a gradient of a layout that this method does not take: all but dense ones."""
        if g.layout is not torch.strided:
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients{self.instead}")


def count_if_asked(opt: Method, chores: Chores, storage: Storage) -> None:
    """Let an optimizer for which torch keeps no count keep one if a function of t or random bits depend on it."""
    formats = (FORMATS.get(local(p).dtype) for group in opt.param_groups for p in group["params"])
    drawing = any(format is not None and format.draws for format in formats)
    if not opt.numbers and (callable(chores.ema_decay) or (storage.master is None and drawing)):
        opt.numbers = ("step",)


def begin(opt: Method, leaf: Leaf) -> None:
    """Put into the state what torch's own optimizer does before a parameter's first step, as far as it is lacking."""
    group, state = opt.param_groups[leaf.group], opt.state[leaf.p]
    with torch.no_grad():
        wide = torch.get_default_dtype() == torch.float64 and not group.get("fused")
        for name, x in zip(opt.numbers, (0.0, *opt.rule.carried.values()), strict=False):
            if name not in state:
                dtype = torch.float64 if wide or name != "step" else torch.float32
                number = torch.tensor(x, dtype=dtype, device="cpu")  # whatever torch's default device is
                state[name] = int(x) if opt.plain_numbers else number
        for key in leaf.slots:
            if state.get(key) is None:
                state[key] = leaf.zeros(key)
                if leaf.begins_as_p(key):
                    state[key].copy_(leaf.p)


def needing_one_device(opt: Method, chores: Chores) -> str:
    """Return what looks at all parameters before a step; empty where nothing does."""
    if kernels.ALL[opt.rule.kernel].Judging is not None:
        return f"the sums of {opt.rule.__name__}"
    return "max_norm, skip_nonfinite and stats" if chores.max_norm or chores.skip_nonfinite or chores.stats else ""


def carried_by(opt: Method, table: Table) -> list[float]:
    """Return what the first group says that all leaves carry. Raises ValueError where groups differ."""
    table.judging()
    given = {name: plain(opt.param_groups[0].get(name, start)) for name, start in opt.rule.carried.items()}
    return [number(f"param_groups[0][{name!r}]", x, low=opt.rule.carried_least) for name, x in given.items()]


@contextmanager
def group_on_trial(opt: torch.optim.Optimizer, restore: Callable[[], None] | None = None) -> Iterator[None]:
    """Within it a param group may be added: what is raised takes it back, and restore puts right what groups say."""
    count = len(opt.param_groups)
    try:
        yield
    except Exception:
        del opt.param_groups[count:]
        if restore is not None:
            restore()
        raise


def listed(tensors: Any, name: str = "copy_to", each: str = ", one per parameter") -> list[Any]:
    """Return tensors that may be read more than once. Raises TypeError where they are none, or a single one."""
    if isinstance(tensors, torch.Tensor) or not isinstance(tensors, Iterable):
        raise TypeError(f"{name} is {type(tensors).__name__}, expected an iterable of tensors{each}")
    return list(tensors)


def holds(opt: torch.optim.Optimizer, p: Any) -> bool:
    """Return whether a tensor is a parameter of an optimizer."""
    return any(p is x for group in opt.param_groups for x in group["params"])


def drop_state(opt: torch.optim.Optimizer, params: list[Any] | None) -> None:
    """Drop the state of some parameters of an optimizer, of all where None."""
    members = {id(p) for group in opt.param_groups for p in group["params"]}
    chosen = list(opt.state) if params is None else params
    if strangers := [k for k, p in enumerate(chosen) if id(p) not in members]:
        raise ValueError(f"params[{strangers[0]}] is no parameter of this optimizer")
    for p in chosen:
        opt.state.pop(p, None)


def check_whole(leaf: Leaf, measured: bool, summing: str) -> None:
    """Refuse a DTensor where its shard alone would be measured, or summed over by the method of this name."""
    if leaf.shared and measured:
        raise ValueError(f"{leaf.name} is a DTensor: max_norm, skip_nonfinite and stats would see one shard")
    if leaf.shared and summing:
        raise ValueError(f"{leaf.name} is a DTensor: {summing} would sum over one shard")
