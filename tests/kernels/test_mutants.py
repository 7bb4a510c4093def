"""The tests can fail: each small wrong change to a text is caught by the check that guards it."""

import importlib.util
import inspect
import re
import sys
from itertools import product

import numpy as np
import pytest
from cases import LATE, METHODS, defaults, same_bits, variants

import fastadam as fa
from fastadam import kernels, rules
from fastadam import rule as rule_module
from fastadam.host.threads import PARALLEL_FROM
from fastadam.kernels import contract
from fastadam.kernels.contract import Kernel
from fastadam.kernels.cpu import traversal
from fastadam.optimizer import Optimizer
from fastadam.tools.verify import SLACK, worst_error


def load(name, source, path, is_package=False):
    """A module from changed text, which imports relatively to its name, and is loaded under it no longer than that."""
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path), is_package=is_package)
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # where dataclasses look their module up
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
    return module


def changed(module, old, new):
    source = inspect.getsource(module)
    assert old in source, f"{module.__name__} has no {old!r} to change"
    return source.replace(old, new)


ELEMENTS = [
    ("adam", "+ c.l2 * p", ""),
    ("adam", "c.grad_scale * g", "g"),
    ("adam", "c.one_minus_beta1 * g", "c.beta1 * g"),
    ("adam", "c.one_minus_beta2 * (g * g)", "c.one_minus_beta2 * g"),
    ("adam", "m = c.beta1 * m", "m = c.beta2 * m"),
    ("adam", "np.sqrt(bound) * c.rsqrt_bias2 + c.eps", "np.sqrt(bound * c.rsqrt_bias2 * c.rsqrt_bias2 + c.eps)"),
    ("adam", "np.sqrt(bound) * c.rsqrt_bias2 + c.eps", "(np.sqrt(bound) + c.eps) * c.rsqrt_bias2"),
    ("adam", "np.sqrt(bound) * c.rsqrt_bias2 + c.eps", "np.sqrt(bound) + c.eps"),
    ("adam", "kept = c.decay * p", "kept = p"),
    ("adam", "p = kept - c.step_size * update", "p = c.decay * (p - c.step_size * update"),
    ("adam", "select(update * p, kept, p)", "select(g * p, kept, p)"),  # the gradient's sign, not the update's
    ("adam", "select(update * p, kept, p)", "select(update * p, p, kept)"),
    ("adam", "select(update * p, kept, p)", "kept"),
    ("adam", "c.step_size * update /", "c.step_size * g /"),
    ("adam", "bound = vmax", "bound = v"),
    ("adam", "vmax = maximum(vmax, bound)", "vmax = bound"),
    ("adam", "return p, m, v, vmax", "return p, v, m, vmax"),
    ("nadam", "c.grad_step * g + c.momentum_step * mean", "c.grad_step * mean + c.momentum_step * g"),
    ("nadam", "c.decay * p", "p"),
    ("adam", "agreement(mean, g)", "agreement(mean, mean)"),
    ("adam", "mean * (agree * c.factor)", "mean * c.factor"),  # the others move too
    ("adam", "mean * (agree * c.factor)", "mean * agree"),
    ("adam", "inverse_share(n, agree)", "inverse_share(agree, n)"),
    ("nadam", "agreement(update, g)", "agreement(mean, g)"),
    ("lion", "agreement(mixed, g)", "agreement(mixed, m)"),
    ("lamb", "norm_p / norm_u", "norm_u / norm_p"),
    ("lamb", "norm_p = p", "norm_p = g"),
    ("lamb", "+ c.weight_decay * p", ""),
    ("lamb", "c.lr * c.factor", "c.lr"),
    ("lars", "norm_g + c.weight_decay * norm_p", "norm_g"),
    ("lars", "c.lr * c.factor * (g", "c.lr * (g"),
    ("lars", "c.trust_coefficient * norm_p", "norm_p"),
    ("stableadamw", "surprise / np.sqrt(n)", "surprise"),
    ("stableadamw", "maximum(surprise / np.sqrt(n), 1)", "(surprise / np.sqrt(n))"),
    ("stableadamw", "(root + c.eps)", "maximum(root, c.eps)"),
    ("prodigy", "+ c.l2 * p", ""),
    ("prodigy", "c.rate * c.d * (mean", "c.rate * c.factor * (mean"),
    ("prodigy", "c.eps * c.factor", "c.eps * c.d"),
    ("prodigy", "+ c.weight_decay * p)", ")"),
    ("prodigy", "c.s_rate * c.d * g", "c.s_rate * g"),
    ("prodigy", "d / c.d0 * d * numerator", "d * numerator"),
    ("adamax", "np.abs(g) + c.eps", "np.abs(g)"),
    ("adamax", "np.abs(g) + c.eps", "g + c.eps"),
    ("adamax", "maximum(c.beta2 * u,", "maximum(u,"),
    ("adamax", "(bound + c.divisor_eps)", "bound"),
    ("adabelief", "surprise = g - mean", "surprise = g"),
    ("adabelief", "(surprise * surprise) + c.eps", "(surprise * surprise)"),
    ("adopt", "maximum(np.sqrt(v), c.eps)", "np.sqrt(v) + c.eps"),
    ("adopt", "-maximum(-u, -c.clip)", "u"),
    ("adopt", "c.step_size * mean", "c.step_size * u"),
    ("adopt", "c.one_minus_beta2 * (g * g)", "c.one_minus_beta2 * (u * u)"),
    ("ademamix", "c.slow_step * slow", "c.slow_step * fast"),
    ("ademamix", "m2 = c.beta3 * m2 + c.one_minus_beta3 * g", "m2 = c.beta3 * m2 + c.one_minus_beta3 * m1"),
    ("schedulefree", "c.average * (z - p)", "c.average * z"),
    ("schedulefree", "- c.y_step * u", "- c.z_step * u"),
    ("schedulefree", "c.weight_decay * p", "c.weight_decay * z"),
    ("lion", "select(u * p, kept, p)", "select(m * p, kept, p)"),
    ("lion", "select(u * p, kept, p)", "select(-u * p, kept, p)"),
    ("lion", "mixed = c.beta1 * m + c.one_minus_beta1 * g", "mixed = c.beta2 * m + c.one_minus_beta2 * g"),
    ("lion", "m = c.beta2 * m + c.one_minus_beta2 * g", "m = c.beta1 * m + c.one_minus_beta1 * g"),
    ("momentum", "update + c.momentum_step * m", "c.momentum_step * m"),
    ("momentum", "c.one_minus_dampening * g", "g"),
    ("rmsprop", "maximum(variance - mean * mean, 0)", "v"),
    ("rmsprop", "variance + c.root_eps) + c.eps", "variance + c.eps) + c.root_eps"),
    ("rmsprop", "c.momentum * m + update", "c.momentum * m + c.step_size * update"),
    ("rmsprop", "c.grad_step * g /", "g /"),
    ("adagrad", "sum = sum + g * g", "sum = g * g"),
    ("adagrad", "sum + c.root_eps) + c.eps", "sum + c.eps) + c.root_eps"),
]


@pytest.mark.parametrize(("name", "old", "new"), ELEMENTS)
def test_a_changed_equation_is_caught(name, old, new, monkeypatch):
    source = changed(sys.modules[f"fastadam.kernels.{name}"], old, new)
    if source.count("(") > source.count(")"):  # the decay around the whole update needs its closing bracket
        source = source.replace("* c.rsqrt_bias2 + c.eps)", "* c.rsqrt_bias2 + c.eps))")
    kernel = Kernel.of(load(f"fastadam.kernels.{name}", source, f"kernels/{name}", is_package=True))
    monkeypatch.setitem(kernels.ALL, name, kernel)
    affected = [case for case in variants() if case[0].rule.kernel == name]
    assert any(worst_error(*case, np.float32, "numpy", 3000)[0] > SLACK for case in affected)


RULES = [
    ("1 - lr * self.weight_decay", "1 - self.weight_decay"),  # lr dropped from the decay
    ("(0.0, 1 - lr * self.weight_decay) if decoupled", "(0.0, 1 - lr * self.weight_decay) if not decoupled"),
    ("return -1.0 if self.maximize else 1.0", "return 1.0"),
    ("root = math.sqrt(self._bias(1, t))", "root = math.sqrt(self._bias(1, t - 1 or 1))"),
    ("step_size = lr / self._bias(0, t)", "step_size = lr / self._bias(0, t + 1)"),
    ("(step_size * root, 1.0) if self.eps_hat", "(step_size, 1 / root) if self.eps_hat"),
    (
        "beta1, 1 - beta1, beta2, 1 - beta2, step_size, rsqrt",
        "beta1, 1 - beta1, beta2, _f(1 - _f(beta2)), step_size, rsqrt",
    ),
    ("if length > 5:", "if length > 4:"),
    ("math.sqrt(tractable * self._bias(1, t))", "math.sqrt(tractable)"),
    ("((t + 1) * self.momentum_decay)", "(t * self.momentum_decay)"),
    ("return before * momentum", "return momentum"),
    ("(0.0, 1.0) if t == 1 else", "(0.0, 1.0) if t == 0 else"),
    ("(lr, lr * self.momentum) if self.nesterov", "(0.0, lr) if self.nesterov"),
    ("1 - self.dampening", "1.0"),
    ("(t - 1) * self.lr_decay", "t * self.lr_decay"),
    ('return {"sum": self.initial_accumulator_value}', "return {}"),
    ("step_size, rsqrt_bias2, self.eps, decay", "step_size, rsqrt_bias2, max(self.eps, 1e-12), decay"),
    ("rsqrt_bias2, self.eps)", "rsqrt_bias2, max(self.eps, 1e-7))"),
    ("taken, momentum_step = -lr * taken", "taken, momentum_step = -lr"),
    ("-self.momentum if self.nesterov else -1.0", "-1.0"),
    ("(self.eps, 0.0), (lr, 1.0)", "(self.eps, 0.0), (1.0, lr)"),
    ("if self.eps_hat else", "if self.eps_hat and t < 100 else"),  # after a while the wrong one
    ("(t - 1) * self.lr_decay", "min(t - 1, 1000) * self.lr_decay"),
    ("1 / math.sqrt(self._bias(1, t))", "1 / math.sqrt(self._bias(1, min(t, 90)))"),
    ("limit = (t - 1) ** 0.25", "limit = t ** 0.25"),
    ("lr *= t / self.warmup_steps", "lr *= (t - 1) / self.warmup_steps"),
    ("t**self.r *", "1 *"),
    ("lr_max**self.weight_lr_power", "lr_max"),
    ("min(t / self.t_alpha, 1.0)", "min((t - 1) / self.t_alpha, 1.0)"),
    ("min(t / self.t_alpha, 1.0)", "t / self.t_alpha"),
    ("(1 - share) / first + share / last", "share / first + (1 - share) / last"),
    ("t >= self.t_beta3 or first", "t > self.t_beta3 + 9 or first"),
    ("0.0, 0.0, 1.0, 0.0, self.eps, 1.0)", "0.0, 0.0, 1.0, 0.0, self.eps, decay)"),  # ADOPT's first step
    ("math.sqrt(self._bias(1, t)) / self._bias(0, t)", "math.sqrt(self._bias(1, t))"),  # Prodigy's
    ("(1.0 if self.safeguard_warmup else rate)", "rate"),
    ("math.sqrt(self.betas[1]) if self.beta3 is None else self.beta3", "self.betas[1]"),
    ("d = carried[0] or self.d0", "d = self.d0"),
    ("if self.bias_correction:", "if not self.bias_correction:"),
    ("rbias1, rsqrt_bias2 = 1 / self._bias(0, t)", "rbias1, rsqrt_bias2 = 1 / self._bias(0, t + 1)"),
    ("return beta * (self._bias(k, t - 1) if t > 1 else 0.0) / bias", "return beta"),  # StableAdamW's are biased
    (
        "self.momentum, self.weight_decay, self.trust_coefficient, lr)",
        "self.momentum, 0.0, self.trust_coefficient, lr)",
    ),
]


TEXTS_OF_RULES = [
    rule_module,
    *{module: None for method in METHODS if (module := inspect.getmodule(method.rule)) is not rules},
    rules,
]


@pytest.mark.parametrize(("old", "new"), RULES)
def test_a_changed_rule_is_caught(old, new):
    source = "\n".join(map(inspect.getsource, TEXTS_OF_RULES))  # as one module, which imports none of them
    names = "|".join(module.__name__.rpartition(".")[2] for module in TEXTS_OF_RULES)
    source = re.sub(rf"from fastadam\.(?:{names}) import .*\n", "", source)
    assert old in source, f"no rule has {old!r} to change"
    text = source.replace(old, new) + "\n\ndef _f(x):\n    import numpy\n    return float(numpy.float32(x))\n"
    mutant = load("mutants.rules", text, "fastadam/rules.py")
    found = 0.0
    both = [
        *variants(),
        *((m, {**h, "betas": (0.9, 0.999, *h["betas"][2:])}) for m, h in variants() if "betas" in h),
        *defaults(),
    ]
    both.append((fa.SGD, {"lr": 1e-2, "momentum": 0.7, "dampening": 0.3, "lr_in_momentum": True}))  # three at once
    for (method, chosen), before in product(both, (0, LATE)):
        kind = getattr(mutant, method.rule.__name__)
        rule, true = kind(**chosen), method.rule(**chosen)
        carried = [0.5] * len(true.carried)
        if rule.initial() != true.initial() or any(
            rule.coefficients(t, 1e-2, *carried) != true.coefficients(t, 1e-2, *carried)
            for t in range(before + 1, before + 9)
        ):  # only where the change can show
            wrong = type(method.__name__, (Optimizer,), {"rule": kind})
            found = max(found, worst_error(wrong, chosen, np.float32, "numpy", 3000, before)[0])
        if found > SLACK:
            break
    assert found > SLACK or _starts_wrong(mutant)


def _starts_wrong(mutant):
    """A wrong start is no wrong step: the state itself shows it."""
    opt = type("Adagrad", (Optimizer,), {"rule": mutant.Adagrad})(np.ones(3), initial_accumulator_value=0.2)
    return not (opt.state_dict()["leaves"]["params"]["sum"] == 0.2).all()


WALKS = [
    ("in range(at, until)", "in range(at, until - until % u64(16))"),  # the tail skipped
    ("in range(at, until)", "in range(at + u64(1), until)"),
    ("while k < word(victim, END)", "while k + 1 < word(victim, END)"),  # the last chunk of every share
    ("word(spans, BEGIN), word(spans, END))", "word(spans, BEGIN), word(spans, END) - 1)"),  # of the only one
    ("if r >= 0:\n            for now", "if r != 0:\n            for now"),
    ("range(r - missed, r + 1)", "range(r, r + 1)"),  # missed steps forgotten
    ("range(r - missed, r + 1)", "range(r - missed, r)"),
    ("if now == r else zeros", "if now == r else leaf"),  # missed steps with this step's gradient
    ("at_row, row_end = rows + width * now,", "at_row, row_end = rows + width * r,"),  # and with its coefficients
    ("word(word(job, COUNTS), leaf) + 1", "word(word(job, COUNTS), leaf) + 2"),
]


PIECES = traversal._step, traversal._sum, traversal._measure, traversal._accumulate
DRIVERS = traversal._walk, traversal._share


@pytest.mark.parametrize(("old", "new"), WALKS)
def test_a_changed_walk_is_caught(old, new, monkeypatch, tmp_path):
    text = tmp_path / "traversal_mutant.py"  # native code is made from a module's file
    text.write_text(changed(traversal, old, new), encoding="utf-8")
    mutant = load(f"{traversal.__name__}_mutant", text.read_text(encoding="utf-8"), text)
    mutant.__file__ = str(text)
    monkeypatch.setitem(sys.modules, mutant.__name__, mutant)
    if not any(old in inspect.getsource(f) for f in PIECES):  # what the change is not in, is compiled already
        mutant.piece = traversal.piece
    if not any(old in inspect.getsource(f) for f in DRIVERS):
        mutant.walk, mutant.layer = traversal.walk, traversal.layer
    rng = np.random.default_rng(1)
    p, g = rng.standard_normal((2, PARALLEL_FROM + 11)).astype(np.float32)
    results = []
    for backend in ("numpy", "numba"):
        moved = p.copy()
        opt = rules_sgd(moved, backend)
        if backend == "numba":
            monkeypatch.setenv("FASTADAM_CACHE", "0")
            opt._plan._traversal, opt._plan._calls, opt._plan._pieces = mutant, {}, {}
        opt.step(g)
        for row in (5, 7, 5):
            opt.step_rows((np.array([row]), g[:1]), semantics="exact")
        opt.catch_up()
        results.append((moved, opt.t))
    assert not (same_bits(results[0][0], results[1][0]) and results[0][1] == results[1][1])


def rules_sgd(p, backend):
    return type("SGD", (Optimizer,), {"rule": rules.SGD})(p, lr=lambda t: 0.1 / t, weight_decay=0.1, backend=backend)


CONTRACT = [
    ("np.where((a > b) | (a != a), a, b)", "np.where(a > b, a, b)"),  # a NaN is dropped
    ("np.where((a > b) | (a != a), a, b)", "np.fmax(a, b)"),
    ("np.where((a > b) | (a != a), a, b)", "np.where((a >= b) | (a != a), a, b)"),  # -0.0 beats 0.0
    ("np.sign(x) + np.zeros_like(x)", "np.copysign(np.ones_like(x), x)"),
    ("np.where(x < 0, b, a)", "np.where(x <= 0, b, a)"),
    ("np.where(x < 0, b, a)", "np.where(x >= 0, a, b)"),  # of NaN the other one
    ("maximum(sign(u) * sign(g), 0)", "maximum(sign(u), 0)"),
    ("maximum(sign(u) * sign(g), 0)", "sign(u) * sign(g)"),  # below 0 where they differ
    ("maximum(agree / n, 0.001)", "maximum(agree, 0.001)"),
    ("maximum(agree / n, 0.001)", "(agree / n)"),
]


def right(of):
    """Whether maximum and sign mean what contract.py says, on the values where others differ."""
    one, zero, nan = np.ones(1, np.float32), np.zeros(1, np.float32), np.full(1, np.nan, np.float32)
    return (
        all(np.isnan(of.maximum(a, b)).all() for a, b in ((nan, one), (one, nan), (nan, nan)))
        and not np.signbit(of.maximum(-zero, zero)).any()
        and same_bits(of.sign(-zero), zero)
        and same_bits(of.sign(-3 * one), -one)
        and np.isnan(of.sign(nan)).all()
        and all(of.select(x, one, -one) == one for x in (one, zero, -zero, nan))
        and of.select(-one, one, -one) == -one
        and [of.agreement(u, g) for u, g in ((3 * one, one), (-one, -one), (one, -one), (one, zero))] == [1, 1, 0, 0]
        and np.isnan(of.agreement(one, nan))
        and of.inverse_share(8.0, 2.0) == 4
        and of.inverse_share(8e4, 1.0) == 1000
    )


def test_the_contract_itself_is_right():
    assert right(contract)


@pytest.mark.parametrize(("old", "new"), CONTRACT)
def test_a_changed_meaning_is_caught(old, new):
    assert not right(load(f"{contract.__name__}_mutant", changed(contract, old, new), contract.__file__))
