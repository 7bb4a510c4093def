"""A kernel with its rule, added to a copy of the tree: Yogi."""

from house.addition import Addition, Insertion

KERNEL = Addition(
    thing="a kernel",
    name="yogi",
    insertions=(
        Insertion(
            "kernels/yogi/__init__.py",
            None,
            '''"""The Yogi kernel.

    g  <- grad_scale·g + l2·p                         scale the gradient, add coupled decay
    m  <- β1·m + (1-β1)·g                             first moment
    v  <- v - (1-β2)·sign(v - g²)·g²                  second moment, which moves by g² however far it is from it
    p  <- decay·p - lr·m / (√v + eps)

Zaheer et al. 2018, Algorithm 2.
"""

from typing import NamedTuple

import numpy as np

from ..contract import NonNegative, Signed, sign

SLOTS = (Signed("m"), NonNegative("v"))


class Coefficients(NamedTuple):
    """What the kernel must know of one step; filled by a rule in float64, rounded once by the backend."""

    grad_scale: float  # multiplies g first: 1/loss scale; negative to maximize
    l2: float  # coupled weight decay, added to g
    beta1: float
    one_minus_beta1: float
    one_minus_beta2: float
    lr: float
    eps: float  # units of g
    decay: float  # 1 - lr·λ; 1 where decay is coupled or absent


def yogi(p, g, m, v, c):
    """One element, or whole arrays, of one step: (p, g, m, v) -> (p, m, v)."""
    g = c.grad_scale * g + c.l2 * p
    m = c.beta1 * m + c.one_minus_beta1 * g
    square = g * g
    v = v - c.one_minus_beta2 * sign(v - square) * square
    p = c.decay * p - c.lr * m / (np.sqrt(v) + c.eps)
    return p, m, v
''',
        ),
        Insertion(
            "kernels/yogi/yogi.cuh",
            None,
            """// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

struct yogi {
    template <class real>
    struct Coefficients {
        real grad_scale, l2, beta1, one_minus_beta1, one_minus_beta2, lr, eps, decay;
    };

    template <class real>
    static DEVICE void element(real& p, real g, real& m, real& v, const Coefficients<real>& c) {
        g = c.grad_scale * g + c.l2 * p;
        m = c.beta1 * m + c.one_minus_beta1 * g;
        real square = g * g;
        v = v - c.one_minus_beta2 * sign(v - square) * square;
        p = c.decay * p - c.lr * m / (sqrt(v) + c.eps);
    }
};
""",
        ),
        Insertion("kernels/__init__.py", "    nadam,\n", "    yogi,\n"),
        Insertion("kernels/__init__.py", "momentum, rmsprop, adagrad", ", yogi"),
        Insertion(
            "fastadam/rules.py",
            "from fastadam.kernels.nadam import Coefficients as NAdamCoefficients\n",
            "from fastadam.kernels.yogi import Coefficients as YogiCoefficients\n",
        ),
        Insertion(
            "fastadam/rules.py",
            "    weight_decay: float = 1e-2\n    decoupled_weight_decay: bool = field(default=True, init=False)\n",
            '''

@dataclass(frozen=True)
class Yogi(Rule):
    """Zaheer et al. 2018, Algorithm 2; decay, which is not in the paper, is coupled by default."""

    lr: LearningRate = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-3
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = field(default=False, kw_only=True)

    kernel: ClassVar[str] = "yogi"

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        (beta1, beta2), (l2, decay) = self.betas, self._decay(lr, self.decoupled_weight_decay)
        return YogiCoefficients(self._sign, l2, beta1, 1 - beta1, 1 - beta2, lr, self.eps, decay)
''',
        ),
        Insertion(
            "fastadam/methods.py", "    rule = rules.AdamW\n", "\n\nclass Yogi(_Method):\n    rule = rules.Yogi\n"
        ),
        Insertion("fastadam/__init__.py", "    RMSprop,\n", "    Yogi,\n"),
        Insertion("fastadam/__init__.py", '    "StepInfo",\n', '    "Yogi",\n'),
        Insertion("fastadam/__init__.py", "    rmsprop_step,\n", "    yogi_step,\n"),
        Insertion("fastadam/__init__.py", '    "set_num_threads",\n', '    "yogi_step",\n'),
        Insertion(
            "fastadam/functional.py",
            """    step_once(rules.Lion(**hyperparameters), p, g, {"m": m}, t, grad_scale, backend)\n""",
            '''

@hyperparameters_of(rules.Yogi)
def yogi_step(
    p: Array, g: Array, m: Array, v: Array, *,
    t: int = 1, grad_scale: float = 1.0, backend: str = "auto", **hyperparameters: Any,
) -> None:  # fmt: skip
    """Take one step of Yogi, which does not depend on t unless lr does.

    >>> p, g, m, v = np.ones(3), np.ones(3), np.zeros(3), np.zeros(3)
    >>> fa.yogi_step(p, g, m, v)
    """
    step_once(rules.Yogi(**hyperparameters), p, g, {"m": m, "v": v}, t, grad_scale, backend)
''',
        ),
        Insertion(
            "tests/papers.py",
            "# u has m's sign\n",
            '''

def yogi(t, p, g, state, *, lr, betas, eps, weight_decay=0.0, decoupled_weight_decay=False, maximize=False):
    """Zaheer et al. 2018, Algorithm 2; decay is coupled by default."""
    lr, beta1, beta2, eps, weight_decay = numbers(p, lr, *betas, eps, weight_decay)
    g = -g if maximize else g
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    m = beta1 * state["m"] + (1 - beta1) * g
    v = state["v"] - (1 - beta2) * np.sign(state["v"] - g**2) * g**2
    kept = p - lr * weight_decay * p if decoupled_weight_decay else p
    return kept - lr * m / (np.sqrt(v) + eps), {"m": m, "v": v}
''',
        ),
        Insertion("tests/papers.py", "for f in (adam, adamw", ", yogi"),
        Insertion("tests/papers.py", '        "adam": ["m", "v", *vmax],\n', '        "yogi": ["m", "v"],\n'),
        Insertion("tests/kernels/test_papers.py", "BASE = {\n", '    "yogi": ADAM,\n'),
        Insertion(
            "tests/kernels/test_papers.py",
            "on the exact values of the float64 inputs.\n",
            """    ("yogi", {},
     [0.4530725166526486, -1.265066260813419, 2.013937657817197, -0.015822991042245983, 0.7273639164824405]),
    ("yogi", {"decoupled_weight_decay": True, "maximize": True},
     [0.5166794801511736, -1.2243317703275745, 1.9719095760659981, -0.04023274671325708, 0.7344200683267645]),
""",
        ),
        Insertion(
            "fastadam/README.md",
            "|---|---:|---|\n| `AdamW` | 8 | for most networks; its weight decay does not pass through the moments |\n",
            "| `Yogi` | 8 | where a second moment that grows at once makes steps too short |\n",
        ),
        Insertion(
            "tests/test_convergence.py",
            '    "NAdam": fa.NAdam,\n',
            '    "Yogi": functools.partial(fa.Yogi, eps=1e-8),\n',
        ),
        Insertion(
            "tests/test_optimizer.py",
            "PAPERS = {  # not in torch.optim\n",
            """    "Yogi": (
        {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-3, "weight_decay": 0},
        {"maximize": False, "decoupled_weight_decay": False},
    ),
""",
        ),
    ),
    proof="""
import numpy as np
import fastadam as fa

p, m, v = np.full(3, 2.0), np.zeros(3), np.zeros(3)
fa.yogi_step(p, np.full(3, 4.0), m, v, lr=0.5, betas=(0.5, 0.75), eps=0)
assert (m == 2).all() and (v == 4).all() and (p == 1.5).all()  # 2 - 0.5 * 2 / sqrt(4)
fa.yogi_step(p, np.ones(3), m, v, lr=0.5, betas=(0.5, 0.75), eps=0)
assert (v == 3.75).all()
""",
    tests=("tests/kernels/test_papers.py", "tests/kernels/test_contract.py", "tests/test_typing.py"),
    generated=("tests/test_typing.py",),
)
