"""The CUDA backend on a GPU: `python -m pytest -m gpu`. Without one every test here says why it is skipped.

What can be shown without a GPU is in test_cuda.py and test_cuda_compile.py.
"""

import os
import shutil
import subprocess
import sys

import cuda_host
import numpy as np
import pytest
from cases import METHODS, elementwise, hostile, kernels_in_use, label, same_bits, variants
from test_bits import gradients_like, tree_of_offsets

# Collected here once more, with this module's cupy and its marks.
from test_cuda import differing, moved, test_axis_orders_change_nothing  # noqa: F401
from test_cuda_formats import (  # noqa: F401
    Both,
    test_8_bits_wherever_p_lies,
    test_a_gradient_that_stays_is_known_after_another_changed_its_format,
    test_a_gradient_with_gaps_in_another_format,
    test_averages_and_views_of_bfloat16_parameters,
    test_formats_move_are_copied_and_converted,
    test_leaves_of_many_formats_in_one_tree,
    test_micro_batches_of_other_formats,
)
from test_cuda_formats import names as name_of_formats

import fastadam as fa

STATUS = fa.backends()["cuda"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(STATUS != "ready", reason=STATUS)]

STEPS = 4


@pytest.fixture
def cupy():
    import cupy

    return cupy


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=label)
@pytest.mark.parametrize("case", kernels_in_use(), ids=label)
def test_bits_equal_numpys_at_every_size_and_offset(case, dtype, cupy):
    method, chosen = case
    rng = np.random.default_rng(7)
    tree = tree_of_offsets(rng, dtype)
    here, there = [p.copy() for p in tree], [moved(cupy, p) for p in tree]
    a, b = method(here, backend="numba", **chosen), method(there, **chosen)  # Numba's bits are NumPy's: test_bits.py
    for _ in range(STEPS):
        grads = gradients_like(rng, tree)
        a.step(grads)
        b.step([moved(cupy, g) for g in grads])
    assert differing(here, there, b, a) == []


@pytest.mark.parametrize("variant", variants(), ids=label)
def test_every_rule_has_numpys_bits(variant, cupy):
    method, chosen = variant
    rng = np.random.default_rng(8)
    here = [hostile(rng, n, dtype, bad=False) for n in (5, 4097) for dtype in (np.float32, np.float64)]
    there = [moved(cupy, p) for p in here]
    a, b = method(here, backend="numpy", **chosen), method(there, **chosen)
    for _ in range(STEPS):
        grads = [hostile(rng, p.size, p.dtype) for p in here]
        a.step(grads, grad_scale=0.5)
        b.step([moved(cupy, g) for g in grads], grad_scale=0.5)
    assert differing(here, there, b, a) == []


def test_tables_that_are_uploaded_reach_the_right_step(cupy):
    """Hundreds of steps ahead of the device, each with another table."""
    rng = np.random.default_rng(10)
    here = [hostile(rng, 3, np.float32, bad=False) for _ in range(700)]
    there = [moved(cupy, p) for p in here]
    a, b = fa.AdamW(here, backend="numba"), fa.AdamW(there)
    rounds = [[hostile(rng, 3, np.float32) if (j + k) % 5 else None for j in range(700)] for k in range(8)]
    on = [[None if g is None else moved(cupy, g) for g in grads] for grads in rounds]
    for _ in range(30):
        for grads, own in zip(rounds, on, strict=True):
            a.step(grads)
            b.step(own)
    assert differing(here, there, b, a) == []


@pytest.mark.parametrize("semantics", ["lazy", "exact"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=label)
@pytest.mark.parametrize("case", elementwise(), ids=label)
def test_rows_have_numpys_bits(case, dtype, semantics, cupy):
    """Steps ahead of the device, of sizes from nothing to thousands of rows, each row several times."""
    method, chosen = case
    rng = np.random.default_rng(14)
    shapes = [(5000, 64), (5000,), (7, 3, 1031), (33, 6), (9,)]
    here = [hostile(rng, 1 + int(np.prod(shape)), dtype, bad=False)[1:].reshape(shape) for shape in shapes]
    there = [moved(cupy, p) for p in here]
    chosen = chosen | {"lr": lambda t: 0.02 / t**0.5}
    a, b = method(here, backend="numba", **chosen), method(there, **chosen)
    for t in range(12):
        rows, on = [], []
        for leaf, p in enumerate(here):
            k = int(rng.integers(0, 10)) if (leaf + t) % 4 else 3 * len(p)
            indices, values = rng.integers(0, len(p), k), hostile(rng, k * p[0].size, dtype)
            rows.append((indices, values.reshape(k, *p.shape[1:])))
            on.append((cupy.asarray(indices) if t == 7 else indices, moved(cupy, rows[-1][1])))
        dense = None if t % 3 == 0 else hostile(rng, 9, dtype)
        rows[-1], on[-1] = dense, None if dense is None else moved(cupy, dense)
        a.step_rows(rows, semantics=semantics)
        b.step_rows(on, semantics=semantics)
    a.catch_up()
    b.catch_up()
    assert differing(here, there, b, a) == []


def test_beyond_2_to_the_31_elements(cupy):
    """A repeated block of 2^20 + 1 elements: everywhere the bits of the first, compared on the device."""
    n, block = 2**31 + 5, 2**20 + 1
    free, _ = cupy.cuda.runtime.memGetInfo()
    if free < 7 * 4 * n:
        pytest.skip(f"{7 * 4 * n / 2**30:.0f} GiB are needed, {free / 2**30:.0f} are free")
    rng = np.random.default_rng(11)
    p, g = (cupy.resize(cupy.asarray(hostile(rng, block, np.float32, bad=False)), n) for _ in range(2))
    here, own = p[:block].get(), g[:block].get()
    opt, reference = fa.Adam(p), fa.Adam(here, backend="numba")
    for _ in range(2):
        opt.step(g)
        reference.step(own)
    assert same_bits(p[:block].get(), here)
    for x in (p, *(x for x in opt._state.streams[0].kept if x is not None)):
        bits = x.view(np.uint32)
        for first in range(block, n, 512 * block):
            piece = bits[first : first + 512 * block]
            assert bool((piece == cupy.resize(bits[:block], piece.size)).all())


def test_a_step_runs_on_the_current_stream(cupy):
    """What is queued before on that stream has happened; another stream is not waited for."""
    p = cupy.zeros(2**20, np.float32)
    opt, stream = fa.SGD(p, lr=1.0), cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        g = cupy.zeros(2**20, np.float32)
        for _ in range(200):
            g += 1
            opt.step(g)
    stream.synchronize()
    assert bool((p == -200 * 201 / 2).all())


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_100_replays_with_a_schedule_equal_100_eager_steps(method, cupy):
    rng = np.random.default_rng(12)

    def wavy(t):
        return 0.01 * (1 + np.sin(t))

    here = [hostile(rng, n, np.float32, bad=False) for n in (5, 70_000)]
    there = [moved(cupy, p) for p in here]
    grads = [cupy.zeros(p.size, np.float32) for p in here]
    a, b = method(here, lr=wavy, backend="numba"), method(there, lr=wavy, capturable=True)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        b.step(grads)  # compiled and loaded before the capture
        stream.begin_capture()
        b.step(grads)
        graph = stream.end_capture()
    a.step([g.get() for g in grads])
    for _ in range(100):
        fresh = [hostile(rng, g.size, np.float32) for g in grads]
        with stream:
            for g, x in zip(grads, fresh, strict=True):
                g.set(x)
            graph.launch()
        a.step(fresh)
    stream.synchronize()
    assert b.t == a.t == 101
    assert differing(here, there, b, a) == []
    b.prepare(3)
    with stream:
        for _ in range(5):
            graph.launch()
    stream.synchronize()
    with pytest.raises(RuntimeError, match="2 steps were replayed beyond the 3"):
        b.prepare()


def test_two_devices(cupy):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU only")
    with cupy.cuda.Device(1):
        p, g = cupy.ones(5000, np.float32), cupy.ones(5000, np.float32)
    opt = fa.SGD(p, lr=0.5)
    opt.step(g)
    assert cupy.cuda.Device().id == 0
    assert (p.get() == 0.5).all()
    with pytest.raises(ValueError, match=r"on cuda:0, params is .* on cuda:1"):
        opt.step(cupy.ones(5000, np.float32))


def test_torch_tensors_are_stepped_where_they_lie(cupy):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    ours = torch.nn.Linear(300, 70).cuda()
    host = [p.detach().cpu().numpy().copy() for p in ours.parameters()]
    a, b = fa.AdamW(host, backend="numba"), fa.AdamW(list(ours.parameters()))
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(STEPS):
            ours.zero_grad()
            ours(torch.ones(4, 300, device="cuda")).square().sum().backward()
            a.step([p.grad.cpu().numpy() for p in ours.parameters()])
            b.step([p.grad for p in ours.parameters()])
    torch.cuda.synchronize()
    for p, x in zip(ours.parameters(), host, strict=True):
        assert same_bits(p.detach().cpu().numpy(), x)


def test_memory_stays_flat(cupy):
    pool = cupy.get_default_memory_pool()
    p, g = cupy.ones(2**20, np.float32), cupy.ones(2**20, np.float32)
    opt = fa.AdamW([p, *(cupy.ones(3, np.float32) for _ in range(700))])
    grads = [g, *(cupy.ones(3, np.float32) for _ in range(700))]
    for _ in range(50):
        opt.step(grads)
    cupy.cuda.Device().synchronize()
    held, free = pool.used_bytes(), cupy.cuda.runtime.memGetInfo()[0]
    for k in range(1_000):
        opt.step(grads)
        if k % 100 == 99:
            cupy.cuda.Device().synchronize()
    assert pool.used_bytes() == held
    assert cupy.cuda.runtime.memGetInfo()[0] >= free


def test_moving_keeps_every_bit(cupy):
    rng = np.random.default_rng(13)
    tree = {"a": rng.standard_normal((30, 50)).astype(np.float32), "b": rng.standard_normal(7).astype(np.float32)}
    here = fa.FlatBuffer(tree)
    a, b = fa.AdamW(here), fa.AdamW(fa.FlatBuffer(tree)).to("cuda")
    assert b.backend == "cuda"
    for k in range(6):
        g = rng.standard_normal(here.array.size).astype(np.float32)
        a.step(g)
        b.step(g if b.backend == "numba" else cupy.asarray(g))
        if k in (1, 3):
            b = b.to("cpu" if k == 1 else "cuda")
    assert same_bits(b.params.to("cpu").array, here.array)


ONE_STEP = """
import cupy
import cuda_host
import numpy as np
import fastadam as fa
fa.Adam(cupy.ones(10, np.float32), capturable=True).step(cupy.ones(10, np.float32))
cupy.cuda.Device().synchronize()
"""


def test_the_second_process_does_not_compile(cupy, tmp_path):
    """What is compiled is written to CuPy's cache: the second process writes nothing."""
    seen = []
    for _ in range(2):
        environment = {**os.environ, "CUPY_CACHE_DIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", ONE_STEP], env=environment, check=True)
        seen.append({path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()})
    assert len(seen[0]) >= 2  # the step and `advance`
    assert seen[0] == seen[1]


SHORT = """
import cupy
import cuda_host
import numpy as np
import fastadam as fa
cupy.cuda.set_allocator(None)  # each array an allocation of its own, so that its ends are watched
for dtype in (np.float32, np.float64):
    for method in (fa.AdamW, fa.Lion, fa.RMSprop):
        memory = cupy.zeros(3000, dtype)
        leaves = [memory[1:600], memory[601:1600], memory[1602:1603], memory[1700:1700]]
        opt = method(leaves, capturable=method is fa.Lion)
        for _ in range(3):
            opt.step([cupy.ones(p.size, dtype) for p in leaves])
    table = fa.AdamW(memory[1:2962].reshape(63, 47))
    for k in range(3):
        table.step_rows((np.array([62, k, 0, 62]), cupy.ones((4, 47), dtype)), semantics="exact")
    table.catch_up()
cupy.cuda.Device().synchronize()
print("done")
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool, cupy):
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("no compute-sanitizer: it comes with the CUDA toolkit")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", SHORT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "done" in done.stdout


def test_verify_covers_the_device(cupy):
    from fastadam.tools import cover, verify

    for case in cover.cases(backends=("cuda",)):
        units, _, same = verify.check(case)
        assert same, case
        assert not units > verify.SLACK, case


@pytest.mark.parametrize("number", range(len(cuda_host.chored())))
def test_chores_have_numpys_bits(number, cupy):
    """As test_cuda_chores.py has it; of NaN any payload will do."""
    from test_chores import made, tree_of
    from test_cuda_chores import copies_of

    _, (method, chosen), dtype, asked = cuda_host.chored()[number]
    rng = np.random.default_rng(number)
    here = [*tree_of(rng, dtype), rng.standard_normal(1_300_001).astype(dtype)]
    there = [moved(cupy, p) for p in here]
    a, b = made(method, chosen, asked, here, "numpy"), made(method, chosen, asked, there, "cuda")
    for t in range(STEPS):
        grads = [hostile(rng, p.size, dtype, bad=t == 2) for p in here]
        on = [moved(cupy, g) for g in grads]
        ours, theirs = a.step(grads, grad_scale=0.5), b.step(on, grad_scale=0.5)
        assert repr(ours) == repr(theirs)
        assert all(same_bits(g, x.get()) for g, x in zip(grads, on, strict=True))
    assert (a.t, a.skipped) == (b.t, b.skipped)
    assert differing(here, there, b, a) == []
    for x, y in zip(copies_of(a), copies_of(b), strict=True):
        assert same_bits(x, y.get())


@pytest.mark.parametrize("case", cuda_host.stored_cases(), ids=name_of_formats)
def test_formats_have_numpys_bits(case, cupy):
    """As test_cuda_formats.py has it, and over a leaf of many blocks."""
    from test_formats import tree_of

    (method, chosen), stored, asked = case
    rng, (p_dtype, g_dtype) = np.random.default_rng(3), stored.dtypes()

    def tree(dtype, bad=False):
        with np.errstate(all="ignore"):
            return [*tree_of(rng, dtype, bad), hostile(rng, 1_300_001, np.float32, bad).astype(dtype)]

    both = Both(cupy, method, tree(p_dtype), asked, index_offset=2**32 - 20_000, **stored.chosen(), **chosen)
    for t in range(STEPS):
        assert both.step(tree(g_dtype, bad=t == 3), 0.5) == []
        assert t < 2 or both.differing() == []


def test_a_graph_draws_what_eager_steps_draw(cupy):
    rng = np.random.default_rng(7)
    p = rng.standard_normal(300_000).astype(np.float32)
    a = fa.Adam([p], backend="numpy", moments="8bit", seed=8)
    there = cupy.asarray(p.copy())
    b = fa.Adam([there], capturable=True, moments="8bit", seed=8)
    g = cupy.asarray(rng.standard_normal(300_000).astype(np.float32))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        b.step([g])
        stream.begin_capture()
        b.step([g])
        graph = stream.end_capture()
        for _ in range(5):
            graph.launch()
        stream.synchronize()
    for _ in range(6):
        a.step([g.get()])
    assert differing([p], [there], a, b) == []
