"""Whatever a user does, in whatever order: every step is the papers' step, and the same bits on NumPy and Numba.

Random optimizers over random trees are stepped, given other hyperparameters and other numbers of threads, handed
gradients that are missing, oddly laid out or wrong, saved, loaded and copied. `pytest --examples 5000` tries more.
"""

import copy

import numpy as np
import pytest
from cases import METHODS, hostile, same_bits, variants
from hypothesis import given
from hypothesis import strategies as st

import fastadam as fa
from fastadam import kernels
from fastadam.host import threads
from fastadam.tools import bounds
from fastadam.tools.verify import SLACK, host_error, oracle_of

BACKENDS = ("numpy", "numba")

# Most leaves are small; some have more than one chunk, which here is enough for a second thread.
SHAPES = [(), (1,), (0,), (3, 5), (17,), (2, 1, 4), (64,), (130,), (0, 3), (8_193,), (83, 101)]


@pytest.fixture(autouse=True, scope="module")
def threads_for_few_elements():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "PARALLEL_FROM", 8_000)
        yield


def falling(t):
    return 0.1 / t


def warming(t):
    return 0.01 * min(t, 3)


VALUES = {
    "lr": [1e-2, 0.3, 0.0, falling, warming],
    "weight_decay": [0.1, 0.0, 1e-3],
    "betas": [(0.8, 0.95), (0.9, 0.999), (0.0, 0.5)],
    "eps": [1e-3, 1e-8],
}

LEAVES = st.lists(
    st.tuples(st.sampled_from(SHAPES), st.sampled_from([np.float32, np.float64]), st.sampled_from("CF")),
    min_size=2,
    max_size=5,
)
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def beginnings(draw):
    """What to construct: a method; the leaves; how they are arranged; the hyperparameters of each group."""
    method = METHODS[draw(SEEDS) % len(METHODS)]  # sampled_from would prefer the first
    leaves = draw(LEAVES)
    arrangement = draw(st.sampled_from(["tree", "groups", "groups", "buffer", "buffer and tree"]))
    options = [chosen for each, chosen in variants() if each is method]
    number = draw(st.integers(2, 3)) if arrangement == "groups" else 1
    one, switches = draw(st.sampled_from(options)), kernels.ALL[method.rule.kernel].switches
    alike = [each for each in options if all(each.get(name) == one.get(name) for name in switches)]
    # Groups that share a step have one choice of the kernel's switches.
    groups = [{**draw(st.sampled_from(alike)), **draw(others(method))} for _ in range(number)]
    return {"method": method, "leaves": leaves, "arrangement": arrangement, "groups": groups, "seed": draw(SEEDS)}


def others(method):
    """Some of a method's hyperparameters, with other values; lr among them at times."""
    names = [name for name in VALUES if hasattr(method.rule(), name)]
    takes = {name: [value for value in VALUES[name] if is_taken(method, name, value)] for name in names}
    return st.fixed_dictionaries({}, optional={name: st.sampled_from(x) for name, x in takes.items() if x})


def is_taken(method, name, value):
    """Whether a method takes this value at all: a schedule-free one has no β1 of 0."""
    try:
        method.rule(**{name: value})
    except (TypeError, ValueError):  # AdEMAMix has three betas
        return False
    return True


STEP = st.fixed_dictionaries(
    {
        "do": st.just("step"),
        "seed": SEEDS,
        "missing": st.sampled_from(["none", "some", "none", "some", "all"]),
        "scale": st.sampled_from([1.0, 1.0, 1 / 1024, 3.7, 0.0, -1.0]),
        "layout": st.sampled_from(["alike", "alike", "reversed axes", "gaps", "read-only"]),
        "times": st.sampled_from([1, 1, 2, 5]),
    }
)
CHANGE = st.fixed_dictionaries({"do": st.just("change"), "group": st.integers(0, 2), "values": st.data()})
THREADS = st.fixed_dictionaries({"do": st.just("threads"), "n": st.sampled_from([1, 2])})
OTHERS = st.sampled_from(["save and load", "deepcopy", "refuse a gradient", "refuse a scale", "refuse an lr"])


class World:
    """One optimizer on each backend, over trees of the same values, and what the papers need to know of it."""

    def __init__(self, method, leaves, arrangement, groups, seed):
        self.method, self.groups = method, [dict(group) for group in groups]
        self.arrangement = arrangement
        rng = np.random.default_rng(seed)
        values = [
            np.asarray(rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3, shape), dtype, order=order)
            for shape, dtype, order in leaves
        ]
        if arrangement.startswith("buffer"):
            values = [values[0], *(x.astype(values[0].dtype) for x in values[1:])]
        self.trees = {name: self._arranged([x.copy(order="K") for x in values]) for name in BACKENDS}
        self.opts = {name: self._constructed(self.trees[name], name, groups) for name in BACKENDS}
        rules = [method.rule(**group) for group in groups]
        self.unkept = [[beta == 0 and bool(rule.idle) for beta in getattr(rule, "betas", ())] for rule in rules]
        self.t, self.counts, self.threads = 0, [0] * len(self.leaves("numpy")), 2

    def _arranged(self, x):
        """Arrays, or whatever stands for them, as a tree for the optimizer."""
        if self.arrangement == "tree":
            return {"first": x[0], "others": [{"more": (each,)} for each in x[1:]]}
        if self.arrangement == "groups":
            number = len(self.groups)
            return [x[k::number] for k in range(number)]
        names = [str(k) for k in range(len(x))]
        if self.arrangement == "buffer":
            return fa.FlatBuffer(dict(zip(names, x, strict=True)))
        return [x[-1], {"buffer": fa.FlatBuffer(dict(zip(names[:-1], x[:-1], strict=True)))}]

    def _constructed(self, tree, backend, groups):
        if self.arrangement == "groups":
            trees = [{"params": own, **group} for own, group in zip(tree, groups, strict=True)]
            return self.method(trees, backend=backend)
        return self.method(tree, backend=backend, **groups[0])

    def leaves(self, backend):
        """The array of each leaf as the optimizer counts them, in its order."""
        tree = self.trees[backend]
        if self.arrangement == "tree":
            return [tree["first"], *(each["more"][0] for each in tree["others"])]
        if self.arrangement == "groups":
            return [x for own in tree for x in own]
        return [tree.array] if self.arrangement == "buffer" else [tree[0], tree[1]["buffer"].array]

    def _group_of(self):
        """Which group each leaf belongs to."""
        if self.arrangement == "groups":
            return [k for k, own in enumerate(self.trees["numpy"]) for _ in own]
        return [0] * len(self.counts)

    def _gradient_tree(self, grads):
        """Gradients, one per leaf, as the tree that step takes."""
        if self.arrangement == "tree":
            return {"others": [{"more": [g]} for g in grads[1:]], "first": grads[0]}
        if self.arrangement == "groups":
            rest = iter(grads)
            return [[next(rest) for _ in own] for own in self.trees["numpy"]]
        return grads[0] if self.arrangement == "buffer" else (grads[0], {"buffer": grads[1]})

    def everything(self, backend):
        """All that a step may change, by name, of either kind: arrays and numbers."""
        kept = self.opts[backend].state_dict()
        found = {"t": kept["t"]}
        for (name, own), p in zip(kept["leaves"].items(), self.leaves(backend), strict=True):
            found |= {(name, key): value for key, value in own.items()} | {(name, "p"): p.copy()}
        return found

    def check_same_everywhere(self):
        """The backends agree to the bit, and with the counts that were kept here."""
        assert same(*(self.everything(name) for name in BACKENDS))
        for opt in self.opts.values():
            own = opt.state_dict()["leaves"].values()
            assert (opt.t, [leaf["count"] for leaf in own]) == (self.t, self.counts)

    # ---- what users do

    def step(self, seed, missing, scale, layout):
        rng = np.random.default_rng(seed)
        chance = {"none": 0, "some": 0.4, "all": 1}[missing]
        grads = [
            None if rng.random() < chance else hostile(rng, p.size, p.dtype, bad=False).reshape(p.shape)
            for p in self.leaves("numpy")
        ]
        kept = self.opts["numpy"].state_dict()["leaves"]
        self.t += 1
        expected = [
            self._by_the_paper(k, p.copy(), g, own, scale) if g is not None else None
            for k, (p, g, own) in enumerate(zip(self.leaves("numpy"), grads, kept.values(), strict=True))
        ]
        before = self.everything("numpy")
        for name in BACKENDS:
            with fa.num_threads(self.threads):
                self.opts[name].step(self._gradient_tree([laid(g, layout) for g in grads]), scale)
        self.counts = [n + (g is not None) for n, g in zip(self.counts, grads, strict=True)]
        self.check_same_everywhere()
        after = self.everything("numpy")
        for name, limits in zip(kept, expected, strict=True):
            if limits is None:
                shared = self.method.rule.carried if kernels.ALL[self.method.rule.kernel].Judging else ()
                untouched = [key for key in before if key[0] == name and key[1] not in shared]
                assert same({key: before[key] for key in untouched}, {key: after[key] for key in untouched}), name
            else:
                for key, (exact, limit) in limits.items():
                    assert within(after[name, key], exact, limit), (name, key)

    def _by_the_paper(self, leaf, p, g, own, scale):
        """(exact value, bound) of everything that this step changes in a leaf, from its state before the step."""
        wide = np.longdouble if p.dtype == np.float64 else np.float64
        if np.finfo(wide).eps >= np.finfo(p.dtype).eps:
            return {}  # longdouble is no wider than float64 here: there is nothing to hold float64 against
        if self.opts["numpy"].sums_first:
            return {}  # squares of hostile gradients leave the range of p's dtype, not of the wider: verify has tamer
        number = self._group_of()[leaf]
        taken, t = dict(self.groups[number]), self.counts[leaf] + 1
        lr = taken["lr"] = taken["lr"](self.t) if callable(taken["lr"]) else taken["lr"]
        rule = self.method.rule(**taken)
        kernel = kernels.ALL[rule.kernel].switched(rule.options)
        carried = [own[name] for name in rule.carried]
        row = self.opts["numpy"].groups[number].coefficients_at(t, lr, scale, *carried)
        width = len(kernel.Coefficients._fields)
        streams = [p, g, *(own.get(slot.name) for slot in kernel.slots)]
        with np.errstate(all="ignore"):
            host = host_error(rule, t)
            limits = bounds.one_step(kernel, p.dtype.type, streams, row[:width], host)
            oracle, taken = oracle_of(self.method, taken)
            state = {key: value.astype(wide) if isinstance(value, np.ndarray) else wide(value)
                     for key, value in own.items() if key not in ("count", "format")}  # fmt: skip
            unkept = {slot.name: np.zeros(p.shape, wide) for slot in kernel.slots}  # of decay rates that are 0
            exact, new = oracle(t, p.astype(wide), wide(scale) * g.astype(wide), unkept | state, **taken)
        names = ["p", *(slot.name for slot in kernel.slots)]
        found = {
            key: (new.get(key, exact), limit) for key, limit in zip(names, limits, strict=True) if limit is not None
        }
        return found | {key: (new[key], host * abs(new[key])) for key in rule.carried}

    def change(self, group, values):
        group %= len(self.groups)
        for name, value in values.items():
            unkept = self.unkept[group] if name == "betas" else []
            if any(value[k] > 0 for k, none in enumerate(unkept) if none):
                for opt in self.opts.values():
                    with pytest.raises(ValueError, match="betas"):
                        opt.groups[group].betas = value
                continue
            self.groups[group][name] = value
            for opt in self.opts.values():
                setattr(opt.groups[group], name, value)
                assert getattr(opt.groups[group], name) == value

    def save_and_load(self):
        """Into a fresh optimizer with other numbers, over a copy of the parameters."""
        for name in BACKENDS:
            before = self.everything(name)
            state, tree = copy.deepcopy((self.opts[name].state_dict(), self.trees[name]))
            groups = [{**group} for group in self.groups]
            for group, unkept in zip(groups, self.unkept, strict=True):
                group["weight_decay"] = 0.7
                if "betas" in group:  # those that decide whether moments are kept
                    group["betas"] = tuple(0.0 if none else 0.6 for none in unkept)
                if not callable(group["lr"]):
                    group["lr"] = 0.6
            fresh = self._constructed(tree, name, groups)
            fresh.load_state_dict(state)
            self.opts[name], self.trees[name] = fresh, tree
            assert same(self.everything(name), before)
            for group, ours in zip(fresh.groups, self.groups, strict=True):
                assert {key: getattr(group, key) for key in ours} == ours
        self.check_same_everywhere()

    def deepcopy(self):
        """The copy goes on, and the original stays as it was: a step of the copy must not reach it."""
        for name in BACKENDS:
            original, before = (self.opts[name], self.trees[name]), self.everything(name)
            going_on = copy.deepcopy(original)
            self.opts[name], self.trees[name] = going_on
            assert same(self.everything(name), before)
            self.opts[name].step(self._gradient_tree([np.ones_like(p) for p in self.leaves(name)]))
            self.opts[name], self.trees[name] = original
            assert same(self.everything(name), before)
            self.opts[name], self.trees[name] = going_on
        self.t, self.counts = self.t + 1, [n + 1 for n in self.counts]
        self.check_same_everywhere()

    def refuse(self, what):
        """A step or a setting that cannot be: it raises, and nothing has changed."""
        for name in BACKENDS:
            opt, before = self.opts[name], self.everything(name)
            grads = [np.ones_like(p) for p in self.leaves(name)]
            wrong = [*grads[:-1], np.ones((*grads[-1].shape, 2), grads[-1].dtype)]
            refused = {
                "refuse a gradient": lambda opt=opt, wrong=wrong: opt.step(self._gradient_tree(wrong)),
                "refuse a scale": lambda opt=opt, grads=grads: opt.step(self._gradient_tree(grads), np.nan),
                "refuse an lr": lambda opt=opt: setattr(opt.groups[0], "lr", -1.0),
            }
            with pytest.raises((TypeError, ValueError)):
                refused[what]()
            assert same(self.everything(name), before)


def same(one, other):
    """Whether two findings of everything() are equal to the bit."""
    equal = (same_bits(x, other[key]) if isinstance(x, np.ndarray) else x == other[key] for key, x in one.items())
    return one.keys() == other.keys() and all(equal)


def laid(g, layout):
    """The same gradient, lying otherwise in memory."""
    if g is None or layout == "alike":
        return g
    if layout == "reversed axes":
        return g.T.copy().T
    if layout == "gaps":
        home = np.zeros((*g.shape, 3), g.dtype)
        home[..., 1] = g
        return home[..., 1]
    g = g.copy()
    g.flags.writeable = False
    return g


def within(got, exact, limit):
    off = np.abs(np.asarray(got, np.asarray(exact).dtype) - exact)
    return bool(np.isfinite(got).all() and (off <= SLACK * limit).all())


@given(beginnings(), st.lists(STEP | STEP | CHANGE | THREADS | OTHERS, min_size=3, max_size=12))
def test_every_step_of_every_history_is_the_papers(beginning, actions):
    world = World(**beginning)
    world.check_same_everywhere()
    for action in actions:
        if isinstance(action, str):
            if action.startswith("refuse"):
                world.refuse(action)
            else:
                getattr(world, action.replace(" ", "_"))()
            continue
        action = dict(action)
        do = action.pop("do")
        if do == "step":
            for _ in range(action.pop("times")):
                world.step(**action)
                action["seed"] += 1
        elif do == "threads":
            world.threads = action["n"]
        else:
            world.change(action["group"], action["values"].draw(others(beginning["method"])))
    world.save_and_load()
    world.step(seed=1, missing="none", scale=1.0, layout="alike")
