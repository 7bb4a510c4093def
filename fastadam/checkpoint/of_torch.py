"""Says what a checkpoint takes of a PyTorch optimizer, one of fastadam.torch's or of torch.optim's, and gives back.

A tensor is called by its key in the state and its parameter: exp_avg[0]['weight'], or exp_avg[0][3] where the groups
have no names; params[0][3] is the parameter. Complex ones are saved as pairs of real numbers.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from fastadam.checkpoint.contents import Shards, Snapshot, check_not_averaging
from fastadam.checkpoint.disk import log
from fastadam.checkpoint.reading import Opened
from fastadam.checkpoint.tensors import NAMES, Piece
from fastadam.kernels.formats import CODES

STRIDES = "strides"  # the key in the state of fastadam.torch's that says how its blocks of 8 bits follow each other
BESIDE = {"ema", "master", "remainder"}  # keys in its state that go stale where an optimizer steps without them
VERSION = 1  # of what stands in head and leaves


def named(opt: Any) -> Iterator[tuple[str, int, Any]]:
    """Yield (path, index in state_dict, parameter) of every parameter, in order."""
    at = 0
    for k, group in enumerate(opt.param_groups):
        names = group.get("param_names") or range(len(group["params"]))
        for name, p in zip(names, group["params"], strict=True):
            if hasattr(p, "to_local"):
                raise TypeError(f"params[{k}][{name!r}] is a DTensor, expected a plain one: use DCP for those")
            yield f"[{k}][{name!r}]", at, p
            at += 1


def encoded(where: str, x: Any) -> Any:
    """Return a number, text or tuple of them as JSON."""
    if isinstance(x, torch.Tensor) and x.dim() == 0:
        return {"scalar": x.item(), "dtype": _name(x)}
    if isinstance(x, (tuple, list)):
        return {"tuple" if isinstance(x, tuple) else "list": [encoded(where, each) for each in x]}
    if x is not None and type(x) not in (str, int, float, bool):
        raise TypeError(f"{where} is {type(x).__name__}, expected a number, text, or a tuple of them")
    return x


def decoded(x: Any) -> Any:
    """Return the inverse of `encoded`."""
    if not isinstance(x, dict):
        return x
    if "scalar" in x:
        return torch.tensor(x["scalar"], dtype=_dtype(x["dtype"]))
    return tuple(map(decoded, x["tuple"])) if "tuple" in x else list(map(decoded, x["list"]))


def _name(x: Any) -> str:
    return str(x.dtype).removeprefix("torch.")


def _dtype(name: str) -> Any:
    if name not in NAMES:
        raise ValueError(f"a tensor is of {name[:40]!r}, expected one of {', '.join(NAMES)}")
    return getattr(torch, name)


def _real(x: Any) -> Any:
    x = x.detach().resolve_conj().resolve_neg()
    return torch.view_as_real(x) if x.is_complex() else x


def _piece(key: str, path: str, x: Any) -> Piece:
    real = _real(x)
    if (dtype := _name(real)) not in NAMES:
        raise TypeError(f"{key}{path} is {dtype}, expected one of {', '.join(NAMES)}")
    values = (real.view(torch.int16) if real.dtype is torch.bfloat16 else real).cpu().numpy()
    return Piece(key, path, dtype, tuple(real.shape), 0, real.numel(), values)


def _check(opt: Any, shards: Shards) -> None:
    if shards:
        raise ValueError("shards is given, expected None for a PyTorch optimizer")
    check_not_averaging(opt)


def snapshot(opt: Any, shards: Shards) -> Snapshot:
    """Return what to save of an optimizer, as it is now; tensors of the CPU are not copied."""
    _check(opt, shards)
    state, leaves, pieces, taken = opt.state_dict(), dict[str, Any](), list[Piece](), 0.0
    for path, at, p in named(opt):
        of_p = state["state"].get(at, {})
        numbers = {key: encoded(f"{key}{path}", x) for key, x in of_p.items() if not isinstance(x, torch.Tensor)}
        tensors = {key: x for key, x in of_p.items() if isinstance(x, torch.Tensor)}
        complex_keys = [key for key, x in tensors.items() if x.is_complex()]
        leaves[path] = {"numbers": numbers, "tensors": list(tensors), "complex": complex_keys}
        pieces += [_piece(key, path, x) for key, x in {"params": p, **tensors}.items()]
        taken = max(taken, float(of_p.get("step", 0)))
    groups = [{key: encoded(key, x) for key, x in group.items() if key != "params"} for group in state["param_groups"]]
    head = {"kind": "torch", "version": VERSION, "method": type(opt).__name__, "t": int(taken)}
    return Snapshot({**head, "seed": getattr(opt, "seed", None), "groups": groups}, leaves, pieces, int(taken))


class TorchMatch:
    """Says how a checkpoint fits a PyTorch optimizer; see matching.Match."""

    def __init__(self, opt: Any, saved: Opened, shards: Shards) -> None:
        _check(opt, shards)
        self._opt, self._saved, self._content = opt, saved, saved.content
        self.differences: list[str] = []
        self._conversions: set[str] = set()
        head = self._content["optimizer"]
        for key, of_optimizer in (("kind", "torch"), ("version", VERSION), ("method", type(opt).__name__)):
            if head.get(key) != of_optimizer:
                self.differences.append(
                    f"the checkpoint's {key} is {head.get(key)!r}, this optimizer's is {of_optimizer!r}"
                )
        if len(head.get("groups", ())) != len(opt.param_groups):
            self.differences.append(
                f"the checkpoint has {len(head.get('groups', ()))} groups, this optimizer {len(opt.param_groups)}"
            )
        self._same_method = not self.differences
        self._params = list(named(opt))
        saved_leaves = self._content["leaves"]
        self._fitting = [(path, at, p) for path, at, p in self._params if self._fits(path, p)]
        paths = {path for path, *_ in self._params}
        self.differences += [
            f"the checkpoint has {path}, this optimizer has not" for path in saved_leaves if path not in paths
        ]

    def _fits(self, path: str, p: Any) -> bool:
        tensor, real = self._content["tensors"].get(f"params{path}"), _real(p)
        if tensor is None or path not in self._content["leaves"]:
            self.differences.append(f"the checkpoint has no {path}, this optimizer has")
        elif (tensor["dtype"], tuple(tensor["shape"])) != (_name(real), tuple(real.shape)):
            self.differences.append(
                f"the checkpoint's params{path} is {tensor['dtype']}{tuple(tensor['shape'])}, this optimizer's is "
                f"{_name(real)}{tuple(real.shape)}"
            )
        else:
            return not self._same_method or self._rest_alike(path, p)
        return False

    def _rest_alike(self, path: str, p: Any) -> bool:
        """Return whether the next step can take a parameter's slots; says what is not so, and what that step will
        round."""
        tensors, asked = self._content["tensors"], {}
        if rests_of := getattr(self._opt, "rests", None):  # else it is one of torch.optim's
            asked = rests_of(p)
        keys = self._content["leaves"][path]["tensors"]
        if left := [key for key in keys if key in BESIDE and key not in asked]:
            self.differences.append(f"the checkpoint has {left[0]}{path}, this optimizer has not")
            return False
        for key in keys:
            rests = tensors[f"{key}{path}"]["dtype"]
            rests = CODES.name if STRIDES in keys and rests == CODES.rests else rests
            moments = None if key in BESIDE else asked.get(key)
            if rests == CODES.name != moments:
                self.differences.append(
                    f"the checkpoint's {key}{path} is {rests}, this optimizer's moments are {moments!r}: load it into "
                    "one with moments='8bit', whose state fastadam.torch.to_torch_state makes wide"
                )
                return False
            if moments is not None and rests != moments:
                self._conversions.add(f"{key} from {rests} to {moments}")
        return True

    def read(self) -> Callable[[], None]:
        """Read what fits; return what takes it over, as nothing may change before everything is read and checked."""
        head, values, states = self._content["optimizer"], dict[str, Any](), dict[str, Any]()
        for path, *_ in self._fitting:
            leaf = self._content["leaves"][path]
            values[path] = self._tensor("params", path, [])
            if self._same_method:
                tensors = {key: self._tensor(key, path, leaf["complex"]) for key in leaf["tensors"]}
                states[path] = {**tensors, **{key: decoded(x) for key, x in leaf["numbers"].items()}}

        def take() -> None:
            params = self._as_now(values)
            if self._same_method:
                state = self._opt.state_dict()
                for path, at, _ in params:
                    if path in states:
                        state["state"].pop(at, None)
                        state["state"] |= {at: states[path]} if states[path] else {}
                groups = zip(head["groups"], state["param_groups"], strict=True)
                state["param_groups"] = [
                    {**{key: decoded(x) for key, x in group.items()}, "params": group_now["params"]}
                    for group, group_now in groups
                ]
                self._opt.load_state_dict(state)
                for conversion in sorted(self._conversions):
                    log.warning("%s: the next step rounds %s, to nearest", self._saved.path, conversion)
                if head["seed"] is not None and hasattr(self._opt, "seed"):
                    self._opt.seed = head["seed"]
            with torch.no_grad():
                for path, _, p in params:
                    if path in values:
                        _real(p).copy_(values[path])

        return take

    def _as_now(self, values: dict[str, Any]) -> list[tuple[str, int, Any]]:
        """Return the parameters as steps may have left them since the checkpoint was read. values: for them."""
        _check(self._opt, None)
        params = list(named(self._opt))
        if [path for path, *_ in params] != [path for path, *_ in self._params]:
            raise ValueError("opt has other parameters than when the checkpoint was read, expected the same in take()")
        for path, _, p in params:
            if path in values and (values[path].dtype, values[path].shape) != (_real(p).dtype, _real(p).shape):
                difference = f"params{path} is {_name(p)}{tuple(p.shape)}, the checkpoint was read for"
                raise ValueError(f"{difference} {_name(values[path])}{tuple(values[path].shape)}")
        return params

    def _tensor(self, key: str, path: str, complex_keys: list[str]) -> Any:
        """Return one tensor, in memory that nothing else has."""
        tensor = self._content["tensors"][f"{key}{path}"]
        flat = self._saved.elements(f"{key}{path}", raw=True)
        dtype = _dtype(tensor["dtype"])
        bits = torch.from_numpy(np.array(flat).view(f"i{dtype.itemsize}"))  # NumPy lacks some of torch's dtypes
        x = bits.view(dtype).reshape(tensor["shape"])
        return torch.view_as_complex(x) if key in complex_keys else x
