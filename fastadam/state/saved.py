"""Turns what an optimizer remembers into plain numbers and arrays, its state_dict, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastadam.arrays.host import describe
from fastadam.checks import SEEDS, integer, number
from fastadam.group import Group, hyperparameters, is_grouped
from fastadam.plans.table import Table
from fastadam.rule import Rule, hyperfields
from fastadam.state.slots import State

VERSION = 1  # of the layout


def state_dict(state: State, table: Table, rule: type[Rule], copied: bool = True) -> dict[str, Any]:
    """Return what Optimizer.state_dict does; what the table counts must be all that was counted. copied=False: views of
    memory."""
    leaves = {}
    for leaf, (path, p) in enumerate(zip(state.paths, state.params, strict=True)):
        carried = dict(zip(rule.carried, table.carried[leaf].tolist(), strict=True))
        head = {"count": int(table.counts[leaf]), "format": str(p.dtype)}
        leaves[f"params{path}"] = {**head, **carried, **state.read(leaf, copied)}
    groups = [{name: getattr(group, name) for name in hyperfields(rule)} for group in table.groups]
    for group in groups:
        group["lr"] = None if callable(group["lr"]) else group["lr"]
        group |= {name: list(value) for name, value in group.items() if isinstance(value, tuple)}
    return {
        "version": VERSION, "method": rule.__name__, "t": table.counts.item(-1), "seed": table.seed,
        "skipped": table.skipped, "groups": groups, "leaves": leaves,
    }  # fmt: skip


def _same(where: str, came: Any, expected: Any) -> None:
    if type(came) is not type(expected) or came != expected:
        raise ValueError(f"{where} is {came!r}, expected {expected!r}")


def _keys(where: str, came: Any, expected: Any) -> None:
    """Refuse, naming the first key which differs, a dict that has not the expected keys."""
    if not isinstance(came, dict):
        raise TypeError(f"{where} is {describe(came)}, expected a dict")
    for key in expected:
        if key not in came:
            raise ValueError(f"{where} has no {key!r}, this optimizer has")
    for key in came:
        if key not in expected:
            raise ValueError(f"{where} has {key!r}, this optimizer has not")


def check_even(state: State, table: Table, rule: type[Rule], saved: dict[str, Any]) -> None:
    """Refuse a state that no captured graph can go on from: it has one count for all leaves of a group."""
    for group in table.groups:
        names = [f"params{path}" for path in state.paths[group.leaves.start : group.leaves.stop]]
        for name in names:
            for key in ("count", *rule.carried):
                first, value = (saved["leaves"][each][key] for each in (names[0], name))
                if value != first:
                    raise ValueError(
                        f"state['leaves'][{name!r}][{key!r}] is {value!r}, of {names[0]!r} it is {first!r}: expected "
                        "one for each group, as the captured graph has it"
                    )


def _check_axes(where: str, axes: Any, ndim: int) -> None:
    """Refuse what is not an order of ndim axes."""
    if not isinstance(axes, list | tuple) or sorted(integer(f"{where}[{k}]", x) for k, x in enumerate(axes)) != list(
        range(ndim)
    ):
        raise ValueError(f"{where} is {axes!r}, expected the axes 0 to {ndim - 1} in an order")


def check(state: State, table: Table, rule: type[Rule], saved: Any) -> list[Rule]:
    """Refuse, naming what differs, a state_dict that does not fit; returns the rule of each group that it says."""
    _keys("state", saved, ("version", "method", "t", "seed", "skipped", "groups", "leaves"))
    _same("state['version']", saved["version"], VERSION)
    _same("state['method']", saved["method"], rule.__name__)
    t = integer("state['t']", saved["t"], low=0, most=2**63 - 2)
    integer("state['seed']", saved["seed"], **SEEDS)
    integer("state['skipped']", saved["skipped"], low=0)
    if not isinstance(saved["groups"], list):
        raise TypeError(f"state['groups'] is {describe(saved['groups'])}, expected a list")
    _same("len(state['groups'])", len(saved["groups"]), len(table.groups))
    groups = enumerate(zip(table.groups, saved["groups"], strict=True))
    rules = [rule_of_group(f"state['groups'][{k}]", group, rule, of_group) for k, (group, of_group) in groups]
    names = [f"params{path}" for path in state.paths]
    _keys("state['leaves']", saved["leaves"], names)
    for group, changed in zip(table.groups, rules, strict=True):
        for leaf in group.leaves:
            name = names[leaf]
            _check_leaf(f"state['leaves'][{name!r}]", state, leaf, changed, saved["leaves"][name], t)
    for name in names if table.shared else ():
        for key in rule.carried:
            came, first = (saved["leaves"][each][key] for each in (name, names[0]))
            if came != first:
                difference = f"state['leaves'][{name!r}][{key!r}] is {came!r}, of {names[0]!r} it is {first!r}"
                raise ValueError(f"{difference}: expected one for all leaves")
    return rules


def rule_of_group(where: str, group: Group, rule: type[Rule], saved: Any) -> Rule:
    """Return the rule that a saved group's hyperparameters make; a schedule stays the group's own."""
    _keys(where, saved, hyperfields(rule))
    if (saved["lr"] is None) != callable(group.lr):
        difference = f"{where}['lr'] is {saved['lr']!r}, this optimizer's is {group.lr!r}"
        raise ValueError(f"{difference}: expected two numbers or two schedules")
    changed = {name: saved[name] for name in hyperparameters(rule) if name != "lr" or saved["lr"] is not None}
    changed_rule = group.with_rule(where + ": ", **changed)
    for name in hyperfields(rule).keys() - set(hyperparameters(rule)):
        _same(f"{where}[{name!r}]", saved[name], getattr(group, name))
    return changed_rule


def _check_leaf(where: str, state: State, leaf: int, rule: Rule, saved: Any, t: int) -> None:
    """Refuse the state of a leaf that does not fit; slots that are idle by its rule may be there or not."""
    views, axes, p = state.views(leaf), state.order(leaf), state.params[leaf]
    if isinstance(saved, dict) and ("order" in saved) != bool(axes):
        which = "no moments" if axes else "moments"
        raise ValueError(
            f"{where} has {which} of 8 bits, this optimizer's moments are {state.storage.moments!r}: load it into one "
            "with the state's moments, then opt.convert"
        )
    idle = {key for slot in rule.idle for key in (slot, f"{slot}_scales")}
    if isinstance(saved, dict):
        one_sided = idle & (views.keys() ^ saved.keys())
        views, saved = ({key: x for key, x in each.items() if key not in one_sided} for each in (views, saved))
    _keys(where, saved, ["count", "format", *axes, *rule.carried, *views])
    if axes:
        _check_axes(f"{where}['order']", saved["order"], p.ndim)
    integer(f"{where}['count']", saved["count"], low=0, most=t)
    _same(f"{where}['format']", saved["format"], str(p.dtype))
    for name in rule.carried:
        number(f"{where}[{name!r}]", saved[name], low=rule.carried_least, most=rule.carried_most)
    for name, view in views.items():
        if describe(saved[name]) != (expected := f"{view.dtype}{view.shape}"):
            raise ValueError(f"{where}[{name!r}] is {describe(saved[name])}, expected {expected}")


def load(state: State, table: Table, rule: type[Rule], saved: dict[str, Any], rules: Sequence[Rule]) -> None:
    """Take over a state_dict that `check` has found to fit, and the rules that it returned."""
    for group, changed in zip(table.groups, rules, strict=True):
        group.adopt(changed)
    for leaf, path in enumerate(state.paths):
        of_leaf = saved["leaves"][f"params{path}"]
        table.counts[leaf] = of_leaf["count"]
        table.carried[leaf] = [of_leaf[name] for name in rule.carried]
        state.write(leaf, of_leaf)
    if table.shared:
        table.carried[-1] = table.carried[0]
    table.counts[-1], table.seed, table.skipped = saved["t"], saved["seed"], saved["skipped"]
    table.notice()


def regrouped(
    tree: Any, rules: Sequence[Rule], limits: Sequence[float | None], free: Sequence[dict[str, Any]]
) -> Any:  # fmt: skip
    """Return what a constructor takes to make these groups anew over their trees; a plain tree as it is."""
    if not is_grouped(tree):
        return tree
    return [
        {
            "params": item["params"],
            "max_norm": limit,
            **free_keys,
            **{name: getattr(rule, name) for name in hyperparameters(rule)},
        }
        for item, rule, limit, free_keys in zip(tree, rules, limits, free, strict=True)
    ]
