"""Has what the optimizers for PyTorch share: torch's class, with one compiled walk in place of its step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from operator import is_
from textwrap import fill
from typing import Any

import torch
from torch.optim import optimizer as base

from fastadam.checks import SEEDS, integer, positive
from fastadam.plans.chores import NOTHING, Chores, StepInfo
from fastadam.plans.storage import Storage
from fastadam.plans.streams import Streams
from fastadam.state.averages import Averaging
from fastadam.torch.cuda import CudaWalk
from fastadam.torch.formats import ORDER, SHORT, STORED, local
from fastadam.torch.idle import with_zeros
from fastadam.torch.method import OPTIONS, Options, drop_state, group_on_trial, listed, needing_one_device
from fastadam.torch.replacing import Replacing
from fastadam.torch.walk import Walk

WALKS: dict[str, type[Walk]] = {"cpu": Walk, "cuda": CudaWalk}  # by the type of the device


def _moved(x: Any, device: Any) -> Any:
    return x.to(device) if isinstance(x, torch.Tensor) else x


class Fast(Replacing):
    """Is a torch.optim optimizer whose step is one walk over memory; its options beside torch's: see OPTIONS."""

    def __init__(
        self, params: Any, *args: Any, max_norm: float | None = None,
        ema_decay: float | Callable[[int], float] | None = None, copy_to: Iterable[Any] | None = None,
        skip_nonfinite: bool | str = False, stats: str | None = None, moments: str | None = None,
        master: str | None = None, seed: int = 0, index_offset: int = 0, **named: Any,
    ) -> None:  # fmt: skip
        self._choose(
            max_norm=max_norm, ema_decay=ema_decay, copy_to=copy_to, skip_nonfinite=skip_nonfinite, stats=stats,
            moments=moments, master=master, seed=seed, index_offset=index_offset,
        )  # fmt: skip
        self._extra = {name: named.pop(name, default) for name, default in self.extras.items()}
        super().__init__(params, *args, **named)
        self.defaults |= self._extra
        self.check_options()

    def _choose(
        self, copy_to: Iterable[Any] | None = None, moments: str | None = None, master: str | None = None,
        seed: int = 0, index_offset: int = 0, **chores_asked: Any,
    ) -> None:  # fmt: skip
        """Take our own options."""
        self._storage = Storage(moments=moments, master=master, index_offset=index_offset)
        self._seed = integer("seed", seed, **SEEDS)
        self._chores, self._copy_to = Chores(**chores_asked), None
        if copy_to is not None:
            self._copy_to = listed(copy_to)
        self._walks: list[Walk] | None = None
        self._members: list[Any] = []  # the parameters that the walks are for, and how many each group has
        self._lengths: list[int] = []
        self._built = False
        self._averaging = False
        self.info: StepInfo = NOTHING

    def check_options(self) -> None:
        """Refuse now what does not fit of our options, and fill the copies."""
        self._built = True
        lazy = any(map(torch.nn.parameter.is_lazy, chain.from_iterable(g["params"] for g in self.param_groups)))
        if (self._copy_to is not None or self._storage != Storage()) and not lazy:
            self.walks()

    def __init_subclass__(cls) -> None:
        """Give a method its signature, torch's and then our options, and its docstring."""
        super().__init_subclass__()
        if "rule" in vars(cls):
            torchs = next(base for base in cls.__mro__ if "__init__" in vars(base) and base is not Fast)
            of_torch = [p for p in inspect.signature(torchs).parameters.values() if p.kind is not p.VAR_KEYWORD]
            of_rule = list(inspect.signature(cls.rule).parameters.values())  # what torch has not takes them as they are
            of_torch = [x for p in of_torch for x in (of_rule if p.kind is p.VAR_POSITIONAL else [p])]
            options = [p.replace(kind=p.KEYWORD_ONLY) for p in inspect.signature(Fast.__init__).parameters.values()]
            extras = [inspect.Parameter(x, inspect.Parameter.KEYWORD_ONLY, default=cls.extras[x]) for x in cls.extras]
            options = [*extras, *(p for p in options if p.name in OPTIONS)]
            cls.__signature__ = inspect.Signature([*of_torch, *options])  # type: ignore[attr-defined]
            about = (
                vars(cls).get("__doc__") or f"torch.optim.{cls.__name__} with one compiled pass in place of its step."
            )
            sparse = cls.__name__.startswith("Sparse")
            model = "torch.nn.Embedding(4, 2, sparse=True)" if sparse else "torch.nn.Linear(4, 2)"
            cls.__doc__ = (
                f"{about}\n\nOptions beside torch's arguments; fastadam/torch/README.md shows their use:\n\n"
                + "".join(
                    fill(f"{name}: {text}", 100, subsequent_indent="    ") + "\n" for name, text in OPTIONS.items()
                )
                + "\n"
                f">>> model = {model}\n"
                f">>> opt = fastadam.torch.{cls.__name__}(model.parameters(), lr=0.01)\n"
                f">>> model(torch.{'zeros(1, dtype=torch.int64)' if sparse else 'ones(1, 4)'}).sum().backward()\n"
                f">>> opt.step()"
            )

    def __getstate__(self) -> dict[str, Any]:
        Averaging.check_idle(self, "a copy inside averaged() would keep no parameters of its own")
        settings = {name: self.__dict__[name] for name in ("_chores", "_copy_to", "_storage", "_seed")}
        return {**super().__getstate__(), **settings}

    def state_dict(self) -> dict[str, Any]:
        """Return torch's, with zeros for slots that are not kept because their decay rate is 0."""
        Averaging.check_idle(self, "a state_dict inside averaged() would stand beside averages")
        return with_zeros(self, super().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state_dict as torch's do; state in a format of its own keeps that."""
        Averaging.check_idle(self, "a state loaded inside averaged() would lose its parameters at the end")
        handle = self.register_load_state_dict_pre_hook(lambda opt, loaded: setattr(self, "_loaded", loaded))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self.__dict__.pop("_loaded", None)

    def _uncast(self, state: dict[str, Any]) -> None:
        """Undo torch's cast to the parameters' dtype of what load_state_dict was given, where that changes formats."""
        loaded: Any = self.__dict__.get("_loaded")
        for group, given in zip(state["param_groups"], loaded["param_groups"], strict=True) if loaded else ():
            for p, at in zip(group["params"], given["params"], strict=True):
                for name, x in loaded["state"].get(at, {}).items():
                    if name in (*self.numbers, ORDER):
                        state["state"][p][name] = x
                    elif p.dtype in SHORT or getattr(x, "dtype", None) in STORED:
                        state["state"][p][name] = _moved(x, p.device)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_loaded" in self.__dict__:
            self._uncast(state)
        if "info" not in self.__dict__:
            self._averaging, self.info = False, NOTHING
        super().__setstate__(state)
        self._extra = {name: self.defaults.setdefault(name, default) for name, default in self.extras.items()}
        for group in self.param_groups:
            for name, value in self._extra.items():
                group.setdefault(name, value)
        self._walks, self._members, self._built = None, [], True
        if self.defaults.get("fused"):  # as torch's constructors set it: a GradScaler leaves unscaling to the step
            self._step_supports_amp_scaling = True

    @staticmethod
    def check_group(group: dict[str, Any]) -> None:
        """Refuse what a group of torch's may ask for and no step here can do."""
        if group.get("differentiable"):
            raise ValueError(
                "differentiable is True, expected False: a step changes memory in place, where autograd cannot follow"
            )
        positive("max_norm of a param group", group.get("max_norm"))
        if given := [name for name in OPTIONS if name in group and name not in ("max_norm", "copy_to")]:
            raise ValueError(f"a param group has {given[0]!r}, expected it as an argument of the optimizer")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group as torch's do; with copy_to the group's "copy_to" holds the copies of its parameters."""
        Averaging.check_idle(self, "a group added inside averaged() would not hold its average")
        if not isinstance(param_group, dict):
            super().add_param_group(param_group)  # which refuses it
        group = {**self._extra, **param_group}
        self.check_group({**self.defaults, **group})
        asked, copies = group.pop("copy_to", None), self._copy_to
        before = sum(len(group_before["params"]) for group_before in self.param_groups)
        with group_on_trial(self, partial(self._take_copies, copies)):
            super().add_param_group(group)
            added = len(self.param_groups[-1]["params"])
            if asked is not None and (copies is None or not self._built):
                raise ValueError(
                    "a param group has 'copy_to', expected it in add_param_group of an optimizer with copy_to"
                )
            if copies is not None and self._built:
                more = listed(asked if asked is not None else ())
                if len(more) != added or len(copies) != before:
                    raise ValueError(f"the group's 'copy_to' has {len(more)} tensors for {added} parameters")
                copies = [*copies, *more]
            self._take_copies(copies)
            if self._built:
                self.check_options()

    def _take_copies(self, copies: list[Any] | None) -> None:
        """Let the walks that come be over these copies."""
        self._copy_to, self._walks = copies, None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform a single optimization step.

        closure: reevaluates the model and returns the loss, which is returned.
        """
        if torch.compiler.is_compiling():  # what is compiled already is run as it is
            return self._step_apart(closure)
        return self._step_watched(closure) if self._watched() else self.step_unwatched(closure)

    step.hooked = True  # type: ignore[attr-defined]  # torch would wrap it in what _step_watched is, 7 µs a step

    def _watched(self) -> bool:
        """Return whether anyone wants to know of this step: a hook or the profiler."""
        return bool(
            self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
            or base._global_optimizer_pre_hooks or base._global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
        )  # fmt: skip

    def step_unwatched(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform a step of which no hook and no profiler is told."""
        self.check_idle()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf, scale = self.__dict__.get("found_inf"), self.__dict__.get("grad_scale")  # a GradScaler's
        if found_inf is not None and found_inf.item():
            self.info = StepInfo(skipped=True)
            return loss
        for walk in self.walks():
            self.info = walk.step(self, 1.0 if scale is None else 1.0 / scale.item())
        return loss

    _step_watched = torch.optim.Optimizer.profile_hook_step(step_unwatched)
    _step_apart = torch._disable_dynamo(_step_watched)  # type: ignore[attr-defined]

    def walks(self) -> Iterable[Walk]:
        """Return the walks over the parameters as the groups have them now, one for each device."""
        params_of_groups = [group["params"] for group in self.param_groups]
        lengths = list(map(len, params_of_groups))
        if (
            self._walks is None or lengths != self._lengths
            or not all(map(is_, chain.from_iterable(params_of_groups), self._members))
        ):  # fmt: skip
            copies, options = self._copies(), Options(self._chores, self._storage, self._seed)
            self._walks = [kind(self, members, copies, options) for kind, members in self._by_device()]
            self._members, self._lengths = list(chain.from_iterable(params_of_groups)), lengths
        return self._walks

    def _copies(self) -> dict[int, Any]:
        """Return by each parameter's id its tensor of copy_to, or None."""
        now = list(chain.from_iterable(group["params"] for group in self.param_groups))
        copies = [None] * len(now) if self._copy_to is None else self._copy_to
        if len(copies) != len(now):
            raise ValueError(f"copy_to has {len(copies)} tensors for {len(now)} parameters")
        return dict(zip(map(id, now), copies, strict=True))

    def _by_device(self) -> Iterator[tuple[type[Walk], list[list[tuple[str, Any]]]]]:
        """Yield for each device the walk that serves it and the parameters of each group that lie there."""
        groups_of: dict[Any, list[list[tuple[str, Any]]]] = {}
        for k, group in enumerate(self.param_groups):
            names = group.get("param_names") or range(len(group["params"]))
            for n, p in zip(names, group["params"], strict=True):
                members = groups_of.setdefault(local(p).device, [[] for _ in self.param_groups])
                members[k].append((f"params[{k}][{n!r}]", p))
        if len(groups_of) > 1 and (who := needing_one_device(self, self._chores)):
            raise ValueError(f"the parameters lie on {', '.join(map(str, groups_of))}: {who} need one device")
        for device, members in groups_of.items():
            if device.type not in WALKS:
                name = next(name for members_of_group in members for name, _ in members_of_group)
                raise ValueError(f"{name} lies on {device}, expected {' or '.join(WALKS)}")
            yield WALKS[device.type], members

    @property
    def seed(self) -> int:
        """Return the seed of stochastic rounding; it is not in state_dict, and may be set between steps."""
        return self._seed

    @seed.setter
    def seed(self, value: int) -> None:
        self._seed = integer("seed", value, **SEEDS)
        for walk in self._walks or ():
            walk.reseed(self._seed)

    def _kept(self) -> list[Streams]:
        kept = []
        for p, state in self.state.items():
            beside = (state.get(key) for key in ("ema", "remainder", "master"))
            ema, low, master = (None if x is None else local(x).detach() for x in beside)
            kept.append(Streams(local(p).detach(), ema=ema, low=low, master=master))
        return kept

    def reset(self, params: Iterable[Any] | None = None) -> None:
        """Let the state of some parameters be as new, of all where None: it is dropped, and the next step begins it.

        params: parameters of this optimizer. Raises ValueError where one is not; then nothing has changed.
        """
        self.check_idle("reset inside averaged() would lose what they were before")
        drop_state(self, None if params is None else listed(params, "params", ""))


def in_place_of(optimizer: torch.optim.Optimizer, method: type[Fast], options: dict[str, Any]) -> Fast:
    """Return an optimizer of a method, with options of ours, that shares another one's groups, state and hooks."""
    new = method.__new__(method)
    new._choose(**options)
    new.__setstate__(vars(optimizer))
    new.check_options()
    return new
