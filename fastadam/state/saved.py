"""state_dict and back: what an optimizer remembers, as plain numbers and arrays."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from fastadam.arrays.host import describe, writable
from fastadam.arrays.tree import rebuild
from fastadam.checks import SEEDS, integer, number
from fastadam.group import hyperparameters, is_grouped

if TYPE_CHECKING:
    from fastadam.optimizer import Optimizer

VERSION = 1  # of the layout


def state_dict(opt: Optimizer, copy: bool = True) -> dict[str, Any]:
    """See Optimizer.state_dict."""
    if opt._window is not None:
        opt._window.refill()
    leaves = {}
    for leaf, name in enumerate(opt._structure.names):
        carried = dict(zip(opt.rule.carried, opt._table.carried[leaf].tolist(), strict=True))
        count, stored = int(opt._table.counts[leaf]), str(opt._state.params[leaf].dtype)
        slots = opt._state.read(leaf, copied=copy)
        leaves[f"params{name}"] = {"count": count, "format": stored, **carried, **slots}
    groups = [{each.name: getattr(group, each.name) for each in fields(opt.rule)} for group in opt.groups]
    for group in groups:
        group["lr"] = None if callable(group["lr"]) else group["lr"]
        group |= {name: list(value) for name, value in group.items() if isinstance(value, tuple)}
    head = {
        "version": VERSION,
        "method": opt.rule.__name__,
        "t": opt.t,
        "seed": opt._table.seed,
        "skipped": opt.skipped,
    }
    return {**head, "groups": groups, "leaves": leaves}


def _same(where: str, came: Any, expected: Any) -> None:
    if type(came) is not type(expected) or came != expected:
        raise ValueError(f"{where} is {came!r}, expected {expected!r}")


def _keys(where: str, came: Any, expected: Any) -> None:
    """Both sides have the same keys, or an error that names the first which differs."""
    if not isinstance(came, dict):
        raise TypeError(f"{where} is {describe(came)}, expected a dict")
    for key in expected:
        if key not in came:
            raise ValueError(f"{where} has no {key!r}, this optimizer has")
    for key in came:
        if key not in expected:
            raise ValueError(f"{where} has {key!r}, this optimizer has not")


def check_even(opt: Optimizer, state: dict[str, Any]) -> None:
    """Refuse a state that no device can count: it has one count for all leaves of a group."""
    for group in opt.groups:
        names = [f"params{name}" for name in opt._structure.names[group._leaves.start : group._leaves.stop]]
        for name in names:
            for key in ("count", *opt.rule.carried):
                first, own = (state["leaves"][one][key] for one in (names[0], name))
                if own != first:
                    raise ValueError(
                        f"state['leaves'][{name!r}][{key!r}] is {own!r}, of {names[0]!r} it is {first!r}: expected one "
                        "for each group with capturable=True or skip_nonfinite=True on a GPU, where the device counts"
                    )


def _check_axes(where: str, axes: Any, ndim: int) -> None:
    """Refuse what is not an order of ndim axes."""
    if not isinstance(axes, list | tuple) or sorted(integer(f"{where}[{k}]", x) for k, x in enumerate(axes)) != list(
        range(ndim)
    ):
        raise ValueError(f"{where} is {axes!r}, expected the axes 0 to {ndim - 1} in an order")


def load_state_dict(opt: Optimizer, state: dict[str, Any]) -> None:
    """See Optimizer.load_state_dict. Checks first, work last."""
    _keys("state", state, ("version", "method", "t", "seed", "skipped", "groups", "leaves"))
    _same("state['version']", state["version"], VERSION)
    _same("state['method']", state["method"], opt.rule.__name__)
    t = integer("state['t']", state["t"], low=0, most=2**63 - 2)
    seed = integer("state['seed']", state["seed"], **SEEDS)
    skipped = integer("state['skipped']", state["skipped"], low=0)
    if not isinstance(state["groups"], list):
        raise TypeError(f"state['groups'] is {describe(state['groups'])}, expected a list")
    _same("len(state['groups'])", len(state["groups"]), len(opt.groups))
    rules = []
    for k, (group, own) in enumerate(zip(opt.groups, state["groups"], strict=True)):
        where = f"state['groups'][{k}]"
        _keys(where, own, [each.name for each in fields(opt.rule)])
        if (own["lr"] is None) != callable(group.lr):
            both = f"{where}['lr'] is {own['lr']!r}, this optimizer's is {group.lr!r}"
            raise ValueError(f"{both}: expected two numbers or two schedules")
        changed = {name: own[name] for name in hyperparameters(opt.rule) if name != "lr" or own["lr"] is not None}
        rules.append(group.with_rule(where + ": ", **changed))
        for name in {each.name for each in fields(opt.rule)} - set(hyperparameters(opt.rule)):
            _same(f"{where}[{name!r}]", own[name], getattr(group, name))
    names = [f"params{name}" for name in opt._structure.names]
    _keys("state['leaves']", state["leaves"], names)
    for leaf, name in enumerate(names):
        own, where, here = state["leaves"][name], f"state['leaves'][{name!r}]", opt._state.views(leaf)
        axes = opt._state.order(leaf)
        if isinstance(own, dict) and ("order" in own) != bool(axes):
            which = "no moments" if axes else "moments"
            moments = opt._state.storage.moments
            raise ValueError(
                f"{where} has {which} of 8 bits, this optimizer's moments are {moments!r}: load it into one with the "
                "state's moments, then opt.convert"
            )
        _keys(where, own, ["count", "format", *axes, *opt.rule.carried, *here])
        if axes:
            _check_axes(f"{where}['order']", own["order"], opt._state.params[leaf].ndim)
        integer(f"{where}['count']", own["count"], low=0, most=t)
        _same(f"{where}['format']", own["format"], str(opt._state.params[leaf].dtype))
        for carried in opt.rule.carried:
            number(f"{where}[{carried!r}]", own[carried], low=0, most=1)
        for slot, view in here.items():
            if describe(own[slot]) != (expected := f"{view.dtype}{view.shape}"):
                raise ValueError(f"{where}[{slot!r}] is {describe(own[slot])}, expected {expected}")
    if opt._window is not None:
        check_even(opt, state)

    opt.catch_up()
    if opt._window is not None:
        opt._window.pause()
    for group, rule in zip(opt.groups, rules, strict=True):
        group.__dict__["_rule"] = rule
    for leaf, name in enumerate(names):
        own = state["leaves"][name]
        opt._table.counts[leaf] = own["count"]
        opt._table.carried[leaf] = [own[carried] for carried in opt.rule.carried]
        opt._state.write(leaf, own)
    opt._table.counts[-1], opt._table.seed, opt._table.skipped = t, seed, skipped
    opt._table.notice()


def pickled(opt: Optimizer) -> dict[str, Any]:
    """What pickle and deepcopy keep: the user's own tree, so that copies made together stay together."""
    rules = [group._rule for group in opt.groups]  # with callables, which state_dict cannot hold
    own = {name: value for name, value in vars(opt).items() if name not in opt._built}  # a subclass's
    # Rows that are behind stay so: of a tree that is copied together with its optimizer, they are copied behind.
    opt._check_idle("a copy or a conversion inside averaged() would keep no parameters of its own")
    with opt._plan.on_stream():  # and before the state, which waits for that stream
        totals = deepcopy(opt._totals.arrays)
    kept = {"state": state_dict(opt), "behind": deepcopy(opt._behind), "chores": opt._chores, "copy_to": opt._copy_to}
    kept |= {"storage": opt._state.storage}
    kept |= {"limits": [group.max_norm for group in opt.groups]}
    kept |= {"totals": totals, "totalled": opt._totals.counts.copy()}
    kept |= {"backend": opt._asked, "capturable": opt._capturable}
    return {"params": opt._tree, "rules": rules, **kept, "own": own}


def unpickle(opt: Optimizer, kept: dict[str, Any]) -> None:
    """Build the optimizer anew over the kept tree, then load its state.

    Whatever arrived read-only, as from joblib's workers, is copied: it is this optimizer's now.
    """
    tree, copy_to, totals = (rebuild(kept[name], writable) for name in ("params", "copy_to", "totals"))
    rules = kept["rules"]
    if is_grouped(tree):
        names = hyperparameters(opt.rule)
        own = [{name: getattr(rule, name) for name in names} for rule in rules]
        own = [{**each, "max_norm": limit} for each, limit in zip(own, kept["limits"], strict=True)]
        tree = [{"params": item["params"], **group} for item, group in zip(tree, own, strict=True)]
    opt._build(
        tree, rules[0], kept["backend"], kept["state"]["seed"], kept["chores"], copy_to, kept["storage"],
        kept["capturable"],
    )  # fmt: skip
    opt.load_state_dict(kept["state"])
    opt._behind, opt._totals.arrays, opt._totals.counts = kept["behind"], totals, writable(kept["totalled"])
    vars(opt).update(kept["own"])
