"""The functional steps: each equals its Optimizer to the bit, on arrays that the caller keeps."""

import inspect
from functools import cache

import numpy as np
import pytest
from cases import METHODS, crossed, hostile, label, same_bits, variants

import fastadam as fa
from fastadam import kernels
from fastadam.kernels.contract import Weights

FUNCTIONS = {each: getattr(fa, f"{each.rule.kernel}_step") for each in METHODS if each is not fa.RAdam}
CASES = [(method, chosen) for method, chosen in variants() if method in FUNCTIONS]  # RAdam has no function of its own
STEPS = 7


@pytest.fixture(params=["numpy", "numba"])
def backend(request):
    return request.param


def translated(method, chosen):
    """An optimizer's hyperparameters in its function's words: slots say amsgrad and centered, decoupled is short."""
    chosen = {k: x for k, x in chosen.items() if k not in ("amsgrad", "centered", "initial_accumulator_value")}
    if method is fa.AdamW:
        chosen["decoupled"] = True
    if method is fa.Adam:
        chosen["decoupled"] = chosen.pop("decoupled_weight_decay")
    return chosen


def slots_for(method, chosen, p):
    """Zeros for each slot that these hyperparameters use, in p's memory order."""
    rule = method.rule(**chosen)
    slots = {s.name: np.zeros_like(p) for s in kernels.ALL[rule.kernel].slots if rule.uses(s)}
    for slot in kernels.ALL[rule.kernel].slots:
        if isinstance(slot, Weights):
            slots[slot.name][...] = p
    if method is fa.Adagrad:
        slots["sum"][...] = chosen["initial_accumulator_value"]
    return slots


def as_returned(carried):
    """What a function returns of what its rule carries."""
    return None if not carried else carried[0] if len(carried) == 1 else tuple(carried)


ARRANGED = {
    "flat": ((700,), lambda x: x),
    "0-d": ((), lambda x: x),
    "empty": ((3, 0), lambda x: x),
    "C": ((5, 1, 7), lambda x: x),
    "Fortran": ((5, 6, 7), np.asfortranarray),
    "channels last": ((2, 3, 4, 5), lambda x: x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)),
}


@cache
def numbers(arranged, dtype):
    """Parameters and STEPS gradients, the last of them with infinities and NaN; for every method the same."""
    shape, _ = ARRANGED[arranged]
    rng = np.random.default_rng(13)
    start = np.asarray(rng.standard_normal(shape), dtype)
    return start, [hostile(rng, start.size, dtype, bad=t == STEPS).reshape(shape) for t in range(1, STEPS + 1)]


@crossed(case=CASES, arranged=ARRANGED, backend=["numpy", "numba"])
def test_a_function_equals_its_optimizer(case, arranged, backend):
    method, chosen = case
    (_, arrange), function = ARRANGED[arranged], FUNCTIONS[method]
    for dtype in (np.float32, np.float64):
        start, grads = numbers(arranged, dtype)
        theirs, p = arrange(start.copy()), arrange(start.copy())
        slots, own = slots_for(method, chosen, p), translated(method, chosen)
        idle = method.rule(**chosen).idle  # which only the function keeps
        opt = method(theirs, backend=backend, **chosen)
        for t, g in enumerate((g.copy() for g in grads), start=1):
            before, scale = g.tobytes(), (1.0, 0.5, -3.0)[t % 3]
            opt.step(arrange(g), grad_scale=scale)
            returned = function(p, g, **slots, t=t, grad_scale=scale, backend=backend, **own)
            assert g.tobytes() == before
            state = opt.state_dict()["leaves"]["params"]
            assert same_bits(p, theirs)
            assert [name for name, x in slots.items() if name not in idle and not same_bits(x, state[name])] == []
            assert returned == as_returned([state[name] for name in method.rule.carried])
            own |= {name: state[name] for name in method.rule.carried}
        assert not same_bits(p, start) or not p.size


def test_every_kernel_has_a_function():
    """By the kernel's own name; its slots are its positional arguments, in the kernel's order."""
    for name, kernel in kernels.ALL.items():
        function = getattr(fa, f"{name}_step")
        assert f"{name}_step" in fa.__all__
        shown = inspect.signature(function).parameters.values()
        positional = [x.name for x in shown if x.kind is x.POSITIONAL_OR_KEYWORD]
        assert positional == ["p", "g", *(slot.name for slot in kernel.slots)]
        averaged = {slot for method in METHODS if method.rule.kernel == name for slot in method.rule.averages}
        optional = [slot.name for slot in kernel.slots if slot.optional and slot.name not in averaged]
        assert [x.name for x in shown if x.default is None and x.name in positional] == optional
        assert function.__doc__
    assert {function.__name__ for function in FUNCTIONS.values()} == {f"{name}_step" for name in kernels.ALL}
    assert {method.rule.kernel for method in METHODS} == set(kernels.ALL)


@pytest.mark.parametrize("method", [m for m in FUNCTIONS if m is not fa.AdamW], ids=label)
def test_defaults_are_the_methods(method, backend):
    """Nothing but t: what the optimizer does with nothing but params."""
    theirs, g = np.linspace(-1, 1, 9, dtype=np.float32), np.linspace(3, -2, 9, dtype=np.float32)
    p = theirs.copy()
    defaults = {"initial_accumulator_value": 0.0} if method is fa.Adagrad else {}
    slots = slots_for(method, defaults, p)
    opt = method(theirs, backend=backend)
    carried = {}
    for t in (1, 2):  # the first of ADOPT moves nothing
        opt.step(g)
        returned = FUNCTIONS[method](p, g, **slots, t=t, backend=backend, **carried)
        carried = {name: opt.state_dict()["leaves"]["params"][name] for name in method.rule.carried}
        assert returned == as_returned(list(carried.values()))
    assert same_bits(p, theirs)
    assert not same_bits(p, np.linspace(-1, 1, 9, dtype=np.float32))


def test_numbers_by_hand(backend):
    p, m = np.array([1.0, -1.0], np.float32), np.zeros(2, np.float32)
    assert fa.momentum_step(p, np.array([2.0, 4.0], np.float32), m, t=1, lr=0.5, momentum=0.5, backend=backend) is None
    assert (p.tolist(), m.tolist()) == ([0, -3], [2, 4])
    fa.momentum_step(p, np.array([1.0, 0.0], np.float32), m, t=2, lr=0.5, momentum=0.5, backend=backend)
    assert (p.tolist(), m.tolist()) == ([-1, -4], [2, 2])
    p, m, v = np.array([1.0]), np.zeros(1), np.zeros(1)
    fa.adam_step(p, np.array([4.0]), m, v, t=1, lr=0.25, betas=(0.5, 0.75), eps=0.0, backend=backend)
    assert (p.tolist(), m.tolist(), v.tolist()) == ([0.75], [2], [4])
    p, u, m = np.array([1.0]), np.zeros(1), np.zeros(1)
    fa.adamax_step(p, np.array([-3.0]), m, u, t=1, lr=0.25, betas=(0.5, 0.75), eps=1.0, backend=backend)
    assert (p.tolist(), m.tolist(), u.tolist()) == ([1 + 0.25 / 0.5 * 1.5 / 4], [-1.5], [4])
    p, total = np.array([1.0]), np.zeros(1)
    fa.adagrad_step(p, np.array([3.0]), total, t=3, lr=0.5, lr_decay=0.5, eps=0.0, backend=backend)
    assert (p.tolist(), total.tolist()) == ([0.75], [9])
    p, v, mean = np.array([1.0]), np.ones(1), np.full(1, 2.0)
    fa.rmsprop_step(p, np.ones(1), v, mean, lr=0.25, alpha=0.5, eps=0.5, backend=backend)  # v - mean² is clamped at 0
    assert (p.tolist(), v.tolist(), mean.tolist()) == ([0.5], [1], [1.5])


def test_there_is_no_hidden_state(backend):
    """The same arguments give the same results, whatever was stepped between."""
    rng = np.random.default_rng(14)
    start, g = rng.standard_normal((2, 50)).astype(np.float32)
    results = []
    for k in range(3):
        p, m, v = start.copy(), np.full(50, 0.5, np.float32), np.full(50, 0.25, np.float32)
        fa.adam_step(p, g, m, v, t=5, lr=0.1, backend=backend)
        results.append([p.tobytes(), m.tobytes(), v.tobytes()])
        other = rng.standard_normal((4, 60 + k)).astype(np.float32) ** 2
        fa.adam_step(*other, t=9, lr=0.3, betas=(0.1, 0.2), backend=backend)
    assert results == results[:1] * 3


def test_both_backends_give_the_same_bits_from_any_state():
    """Slots that no run would produce: subnormal, infinite, NaN, negative."""
    for method, chosen in CASES:
        results = []
        for backend in ("numpy", "numba"):
            rng = np.random.default_rng(15)
            p = hostile(rng, 400, np.float32)
            slots = {name: hostile(rng, 400, np.float32) for name in slots_for(method, chosen, p)}
            g = hostile(rng, 400, np.float32)
            FUNCTIONS[method](p, g, **slots, t=4, backend=backend, **translated(method, chosen))
            results.append([p, *slots.values()])
        assert all(same_bits(a, b) for a, b in zip(*results, strict=True)), label((method, chosen))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_large_array_is_stepped_whole(threads):
    rng = np.random.default_rng(16)
    start, g = rng.standard_normal((2, 50_001)).astype(np.float32)
    results = []
    with fa.num_threads(threads):
        for backend in ("numpy", "numba"):
            p, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
            fa.adam_step(p, g, m, v, t=1, backend=backend)
            results.append((p, m, v))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))
    assert (results[0][0] != start).all()


def test_a_schedule_gets_t(backend):
    seen, p, m = [], np.ones(2, np.float32), np.zeros(2, np.float32)
    for t in (1, 2, 40):
        fa.lion_step(p, np.ones(2, np.float32), m, t=t, lr=lambda n: seen.append(n) or 2.0**-n, backend=backend)
    assert seen == [1, 2, 40]
    assert p.tolist() == [float(np.float32(0.25 - 2.0**-40))] * 2


def test_methods_that_do_not_depend_on_t_need_none(backend):
    for function in (fa.lion_step, fa.rmsprop_step):
        p, q, g = np.ones(3, np.float32), np.ones(3, np.float32), np.full(3, 2, np.float32)
        function(p, g, np.zeros(3, np.float32), backend=backend)
        function(q, g, np.zeros(3, np.float32), t=1000, backend=backend)
        assert same_bits(p, q)
        assert (p < 1).all()


@pytest.mark.parametrize(
    "function", sorted(set(FUNCTIONS.values()) - {fa.lars_step, fa.lion_step, fa.rmsprop_step}, key=label)
)
def test_methods_that_depend_on_t_ask_for_it(function):
    positional = [x for x in inspect.signature(function).parameters.values() if x.kind is x.POSITIONAL_OR_KEYWORD]
    arrays = [np.ones(2, np.float32) for _ in positional]
    with pytest.raises(TypeError, match="'t'"):
        function(*arrays)
    with pytest.raises(TypeError, match="positional"):
        function(*arrays, 1)  # t goes by name


def test_a_slot_that_is_missing_is_named(backend):
    p, g, x = np.ones(2, np.float32), np.ones(2, np.float32), np.ones(2, np.float32)
    for call, name in (
        (lambda: fa.momentum_step(p, g, t=1, momentum=0.9, backend=backend), "m"),
        (lambda: fa.momentum_step(p, g, None, t=1, momentum=0.9, backend=backend), "m"),
        (lambda: fa.rmsprop_step(p, g, x, momentum=0.9, backend=backend), "m"),
        (lambda: fa.rmsprop_step(p, g, None, backend=backend), "v"),
        (lambda: fa.adam_step(p, g, x, None, t=1, backend=backend), "v"),
    ):
        with pytest.raises(TypeError, match=rf"^{name} is None.*float32\(2,\)"):
            call()
        assert (p.tolist(), x.tolist()) == ([1, 1], [1, 1])
    with pytest.raises(TypeError, match="'v'"):
        fa.adam_step(p, g, x, t=1)


def test_a_resumed_product_of_momenta(backend):
    """mu_product out, mu_product in: NAdam's one number beside its arrays; it starts at 1."""
    g = np.linspace(-1, 1, 5, dtype=np.float32)
    p, m, v = np.ones(5, np.float32), np.zeros(5, np.float32), np.zeros(5, np.float32)
    product, expected = 1.0, 1.0
    for t in range(1, 5):
        product = fa.nadam_step(p, g, m, v, t=t, mu_product=product, betas=(0.5, 0.9), backend=backend)
        expected *= 0.5 * (1 - 0.5 * 0.96 ** (t * 4e-3))
        assert type(product) is float
        assert product == expected
    forgotten = fa.nadam_step(p, g, m, v, t=5, betas=(0.5, 0.9), backend=backend)
    assert forgotten == 0.5 * (1 - 0.5 * 0.96 ** (5 * 4e-3))


def test_the_environment_chooses_the_backend(monkeypatch):
    monkeypatch.setenv("FASTADAM_BACKEND", "nothing")
    x = np.ones(2, np.float32)
    with pytest.raises(ValueError, match="FASTADAM_BACKEND is 'nothing'"):
        fa.lion_step(x, x.copy(), x.copy())
    fa.lion_step(x, np.ones(2, np.float32), np.zeros(2, np.float32), lr=0.5, backend="numpy")
    assert x.tolist() == [0.5, 0.5]
