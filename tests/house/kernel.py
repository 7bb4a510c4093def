"""A kernel with its rule, added to a copy of the tree: ADOPT."""

from house.addition import Addition, Insertion

KERNEL = Addition(
    thing="a kernel",
    name="adopt",
    insertions=(
        Insertion(
            "kernels/adopt/__init__.py",
            None,
            '''"""The ADOPT kernel.

    g  <- grad_scale·g + l2·p                         scale the gradient, add coupled decay
    u  <- clip(g / max(√v, eps), ±clip)               v is the step before's, so g and v are independent
    m  <- β1·m + (1-β1)·u
    p  <- decay·p - step_size·m
    v  <- β2·v + (1-β2)·g²                            second moment, for the next step

Taniguchi et al. 2024, Algorithm 2. The first step only fills v: then clip, 1-β1, β2 and step_size are 0.
"""

from typing import NamedTuple

import numpy as np

from ..contract import NonNegative, Signed, maximum

SLOTS = (Signed("m"), NonNegative("v"))


class Coefficients(NamedTuple):
    """What the kernel must know of one step; filled by a rule in float64, rounded once by the backend."""

    grad_scale: float  # multiplies g first: 1/loss scale; negative to maximize
    l2: float  # coupled weight decay, added to g
    clip: float  # limit of the normalised gradient
    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    step_size: float
    eps: float  # smallest divisor; units of g
    decay: float  # 1 - lr·λ; 1 where decay is coupled or absent


def adopt(p, g, m, v, c):
    """One element, or whole arrays, of one step: (p, g, m, v) -> (p, m, v)."""
    g = c.grad_scale * g + c.l2 * p
    u = g / maximum(np.sqrt(v), c.eps)
    u = maximum(-maximum(-u, -c.clip), -c.clip)
    m = c.beta1 * m + c.one_minus_beta1 * u
    p = c.decay * p - c.step_size * m
    v = c.beta2 * v + c.one_minus_beta2 * (g * g)
    return p, m, v
''',
        ),
        Insertion(
            "kernels/adopt/adopt.cuh",
            None,
            """// The lines of __init__.py: `real` is IEEE arithmetic, never fused, never flushed (ieee.cuh).

struct adopt {
    template <class real>
    struct Coefficients {
        real grad_scale, l2, clip, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, eps, decay;
    };

    template <class real>
    static DEVICE void element(real& p, real g, real& m, real& v, const Coefficients<real>& c) {
        g = c.grad_scale * g + c.l2 * p;
        real u = g / maximum(sqrt(v), c.eps);
        u = maximum(-maximum(-u, -c.clip), -c.clip);
        m = c.beta1 * m + c.one_minus_beta1 * u;
        p = c.decay * p - c.step_size * m;
        v = c.beta2 * v + c.one_minus_beta2 * (g * g);
    }
};
""",
        ),
        Insertion("kernels/__init__.py", "from . import adabelief, adagrad, adam, adamax", ", adopt"),
        Insertion("kernels/__init__.py", "momentum, rmsprop, adagrad", ", adopt"),
        Insertion(
            "fastadam/rules.py",
            "from fastadam.kernels.adamax import Coefficients as AdamaxCoefficients\n",
            "from fastadam.kernels.adopt import Coefficients as AdoptCoefficients\n",
        ),
        Insertion(
            "fastadam/rules.py",
            "    weight_decay: float = 1e-2\n    decoupled_weight_decay: bool = field(default=True, init=False)\n",
            '''

@dataclass(frozen=True)
class ADOPT(Rule):
    """Taniguchi et al. 2024, Algorithm 2: each gradient is normalised by the second moment of the steps before.

    The first step only fills v. clip: limit the normalised gradient to ±(t-1)^¼, as the authors' later versions do.
    """

    lr: LearningRate = 1e-3
    betas: tuple[float, float] = (0.9, 0.9999)
    eps: float = 1e-6
    weight_decay: float = 0.0
    clip: bool = True
    decoupled_weight_decay: bool = field(default=False, kw_only=True)

    kernel: ClassVar[str] = "adopt"

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        (beta1, beta2), (l2, decay) = self.betas, self._decay(lr, self.decoupled_weight_decay)
        if t == 1:
            return AdoptCoefficients(self._sign, l2, 0.0, beta1, 0.0, 0.0, 1.0, 0.0, self.eps, 1.0)
        limit = (t - 1) ** 0.25 if self.clip else 3e38  # no float32 quotient that a step survives is larger
        return AdoptCoefficients(
            self._sign, l2, limit, beta1, 1 - beta1, beta2, 1 - beta2, lr, self.eps, decay
        )
''',
        ),
        Insertion(
            "fastadam/methods.py", "    rule = rules.AdamW\n", "\n\nclass ADOPT(_Method):\n    rule = rules.ADOPT\n"
        ),
        Insertion("fastadam/__init__.py", "from fastadam.methods import SGD", ", ADOPT"),
        Insertion("fastadam/__init__.py", '    "SGD",\n', '    "ADOPT",\n'),
        Insertion("fastadam/__init__.py", "    adamax_step,\n", "    adopt_step,\n"),
        Insertion("fastadam/__init__.py", '    "adamax_step",\n', '    "adopt_step",\n'),
        Insertion(
            "fastadam/functional.py",
            """    _step(rules.Lion(**hyperparameters), p, g, {"m": m}, t, grad_scale, backend)\n""",
            '''

@_hyperparameters_of(rules.ADOPT)
def adopt_step(
    p: Array, g: Array, m: Array, v: Array, *,
    t: int, grad_scale: float = 1.0, backend: str = "auto", **hyperparameters: Any,
) -> None:  # fmt: skip
    """One step of ADOPT, whose first only fills v."""
    _step(rules.ADOPT(**hyperparameters), p, g, {"m": m, "v": v}, t, grad_scale, backend)
''',
        ),
        Insertion(
            "tests/papers.py",
            "    return moved - lr * weight_decay * p, new\n",
            '''

def adopt(t, p, g, state, *, lr, betas, eps, weight_decay=0.0, clip=True, decoupled_weight_decay=False,
          maximize=False):  # fmt: skip
    """Taniguchi et al. 2024, Algorithm 2, whose step 0 is t = 1 here; decay is coupled by default."""
    lr, beta1, beta2, eps, weight_decay = numbers(p, lr, *betas, eps, weight_decay)
    g = -g if maximize else g
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    if t == 1:
        return p, {"m": state["m"], "v": g**2}
    normalised = g / np.maximum(np.sqrt(state["v"]), eps)
    if clip:
        bound = numbers(p, t - 1)[0] ** 0.25
        normalised = np.minimum(np.maximum(normalised, -bound), bound)
    m = beta1 * state["m"] + (1 - beta1) * normalised
    if decoupled_weight_decay:
        p = p - lr * weight_decay * p
    return p - lr * m, {"m": m, "v": beta2 * state["v"] + (1 - beta2) * g**2}
''',
        ),
        Insertion("tests/papers.py", "for f in (adam, adamw", ", adopt"),
        Insertion("tests/papers.py", '        "adam": ["m", "v", *vmax],\n', '        "adopt": ["m", "v"],\n'),
        Insertion("tests/kernels/test_papers.py", "BASE = {\n", '    "adopt": ADAM,\n'),
        Insertion(
            "tests/kernels/test_papers.py",
            "on the exact values of the float64 inputs.\n",
            """    ("adopt", {},
     [0.4778003826640143, -1.2503094105647825, 1.9950268723950053, -0.025614457889596855, 0.7374004653411357]),
    ("adopt", {"clip": False},
     [0.6614220881124404, -1.3366657500116068, 1.9950268723950053, -0.6356528811781883, 0.5666836220441315]),
    ("adopt", {"decoupled_weight_decay": True, "maximize": True},
     [0.5077676483303599, -1.2404417457433365, 1.9929183917956002, -0.036685779260026204, 0.7448008643623452]),
""",
        ),
    ),
    proof="""
import numpy as np
import fastadam as fa

p, m, v = np.full(3, 2.0), np.zeros(3), np.zeros(3)
fa.adopt_step(p, np.full(3, 4.0), m, v, t=1, lr=0.5)
assert (p == 2).all() and (v == 16).all()
fa.adopt_step(p, np.full(3, 2.0), m, v, t=2, lr=0.5, betas=(0.5, 0.5))
assert (m == 0.25).all() and (v == 10).all() and (p == 2 - 0.5 * 0.25).all()  # 2 / sqrt(16), of which half
""",
    tests=("tests/kernels/test_papers.py", "tests/kernels/test_contract.py", "tests/test_typing.py"),
    generated=("tests/test_typing.py",),
)
