"""A rule over a kernel that exists, added to a copy of the tree: Adam with other coefficients."""

from house.addition import Addition, Insertion

# Adam with other coefficients: St John 2021, "AdamD", corrects the bias of the second moment alone.
RULE = Addition(
    thing="a rule over a kernel that exists",
    name="AdamD",
    insertions=(
        Insertion(
            "fastadam/rules.py",
            "    weight_decay: float = 1e-2\n    decoupled_weight_decay: bool = field(default=True, init=False)\n",
            '''

@dataclass(frozen=True)
class AdamD(Adam):
    """Adam whose first moment is not corrected, so that early steps are short. St John 2021."""

    amsgrad: bool = field(default=False, init=False)
    eps_hat: bool = field(default=False, init=False)
    cautious_decay: bool = field(default=False, init=False)
    cautious: bool = field(default=False, init=False)

    def coefficients(self, t: int, lr: float, *carried: float) -> tuple[float, ...]:
        return self._adam(lr, lr, 1 / math.sqrt(self._bias(1, t)), self.eps)
''',
        ),
        Insertion(
            "fastadam/methods.py", "    rule = rules.AdamW\n", "\n\nclass AdamD(_Method):\n    rule = rules.AdamD\n"
        ),
        Insertion("fastadam/__init__.py", "    Adam,\n", "    AdamD,\n"),
        Insertion("fastadam/__init__.py", '    "Adam",\n', '    "AdamD",\n'),
        Insertion(
            "tests/papers.py",
            "# u has m's sign\n",
            '''

def adamd(t, p, g, state, *, lr, betas, eps, weight_decay=0.0, decoupled_weight_decay=False, maximize=False):
    """St John 2021: Adam's update with m in place of its corrected mean; decay is coupled by default."""
    lr, beta1, beta2, eps, weight_decay = numbers(p, lr, *betas, eps, weight_decay)
    g = -g if maximize else g
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    m = beta1 * state["m"] + (1 - beta1) * g
    v = beta2 * state["v"] + (1 - beta2) * g**2
    kept = p - lr * weight_decay * p if decoupled_weight_decay else p
    return kept - lr * m / (np.sqrt(v / (1 - beta2**t)) + eps), {"m": m, "v": v}
''',
        ),
        Insertion("tests/papers.py", "for f in (adam, adamw", ", adamd"),
        Insertion("tests/papers.py", '        "adam": ["m", "v", *vmax],\n', '        "adamd": ["m", "v"],\n'),
        Insertion("tests/kernels/test_papers.py", "BASE = {\n", '    "adamd": ADAM,\n'),
        Insertion(
            "tests/kernels/test_papers.py",
            "on the exact values of the float64 inputs.\n",
            """    ("adamd", {},
     [0.4826478456366042, -1.25188575137391, 2.0031670894682145, -0.023316146786286216, 0.741073689044677]),
    ("adamd", {"decoupled_weight_decay": True, "maximize": True},
     [0.5049370241618837, -1.2386592200101558, 1.9827559703821922, -0.03663605704929876, 0.7414570393093685]),
""",
        ),
        Insertion(
            "fastadam/README.md",
            "|---|---:|---|\n| `AdamW` | 8 | for most networks; its weight decay does not pass through the moments |\n",
            "| `AdamD` | 8 | where Adam's first steps are too long |\n",
        ),
        Insertion("tests/test_convergence.py", '    "NAdam": fa.NAdam,\n', '    "AdamD": fa.AdamD,\n'),
        Insertion(
            "tests/test_optimizer.py",
            "PAPERS = {  # not in torch.optim\n",
            """    "AdamD": (
        {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0},
        {"maximize": False, "decoupled_weight_decay": False},
    ),
""",
        ),
    ),
    proof="""
import numpy as np
import fastadam as fa

p = np.zeros(3, "f4")
fa.AdamD(p, lr=0.5, eps=0.0).step(np.ones(3, "f4"))
assert np.allclose(p, -0.5 * 0.1, rtol=1e-6, atol=0), p  # m is 0.1, its corrected mean would be 1
""",
    tests=("tests/kernels/test_papers.py", "tests/test_typing.py"),
    generated=("tests/test_typing.py",),
)
