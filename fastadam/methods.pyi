# Written by tests/test_typing.py from the rules.

from collections.abc import Callable
from typing import TypedDict, Unpack

from fastadam.arrays.tree import Tree
from fastadam.optimizer import Optimizer
from fastadam.rule import LearningRate

class Options(TypedDict, total=False):
    backend: str
    moments: str | None
    master: str | None
    seed: int
    index_offset: int | dict[str, int]
    max_norm: float | None
    max_value: float | None
    ema_decay: float | Callable[[int], float] | None
    copy_to: Tree | None
    zero_grads: bool
    skip_nonfinite: bool | str
    stats: str | None
    capturable: bool

class Adam(Optimizer):
    def __init__(
        self,
        params: Tree,
        lr: LearningRate = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        eps_hat: bool = False,
        cautious_decay: bool = False,
        cautious: bool = False,
        **options: Unpack[Options],
    ) -> None: ...

class AdamW(Optimizer):
    def __init__(
        self,
        params: Tree,
        lr: LearningRate = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        eps_hat: bool = False,
        cautious_decay: bool = False,
        cautious: bool = False,
        **options: Unpack[Options],
    ) -> None: ...

class NAdam(Optimizer):
    def __init__(
        self,
        params: Tree,
        lr: LearningRate = 0.002,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        momentum_decay: float = 0.004,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        cautious: bool = False,
        **options: Unpack[Options],
    ) -> None: ...

class RAdam(Optimizer):
    def __init__(
        self,
        params: Tree,
        lr: LearningRate = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None: ...

class Adamax(Optimizer):
    def __init__(
        self,
        params: Tree,
        lr: LearningRate = 0.002,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        eps_hat: bool = False,
        **options: Unpack[Options],
    ) -> None: ...

class AdaBelief(Optimizer):
    def __init__(
        self,
        params: Tree,
        lr: LearningRate = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None: ...

class ADOPT(Optimizer):
    def __init__(
        self,
        params: Tree,
        lr: LearningRate = 0.001,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-06,
        weight_decay: float = 0.0,
        clip: bool = True,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None: ...

class AdEMAMix(Optimizer):
    def __init__(
        self,
        params: Tree,
        lr: LearningRate = 0.001,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: float = 0.0,
        t_beta3: float = 0.0,
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None: ...

class Lion(Optimizer):
    def __init__(
        self,
        params: Tree,
        lr: LearningRate = 0.0001,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        cautious_decay: bool = False,
        cautious: bool = False,
        **options: Unpack[Options],
    ) -> None: ...

class LAMB(Optimizer):
    def __init__(
        self,
        params: Tree,
        lr: LearningRate = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-06,
        weight_decay: float = 0.01,
        *,
        maximize: bool = False,
        bias_correction: bool = True,
        **options: Unpack[Options],
    ) -> None: ...

class ScheduleFreeAdamW(Optimizer):
    def __init__(
        self,
        params: Tree,
        lr: LearningRate = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        warmup_steps: float = 0.0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None: ...

class ScheduleFreeSGD(Optimizer):
    def __init__(
        self,
        params: Tree,
        lr: LearningRate = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: float = 0.0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None: ...

class LARS(Optimizer):
    def __init__(
        self,
        params: Tree,
        lr: LearningRate = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None: ...

class StableAdamW(Optimizer):
    def __init__(
        self,
        params: Tree,
        lr: LearningRate = 0.001,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-06,
        weight_decay: float = 0.01,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None: ...

class Prodigy(Optimizer):
    def __init__(
        self,
        params: Tree,
        lr: LearningRate = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-06,
        d_coef: float = 1.0,
        growth_rate: float | None = None,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None: ...

class SGD(Optimizer):
    def __init__(
        self,
        params: Tree,
        lr: LearningRate = 0.001,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        lr_in_momentum: bool = False,
        **options: Unpack[Options],
    ) -> None: ...

class RMSprop(Optimizer):
    def __init__(
        self,
        params: Tree,
        lr: LearningRate = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        eps_hat: bool = False,
        **options: Unpack[Options],
    ) -> None: ...

class Adagrad(Optimizer):
    def __init__(
        self,
        params: Tree,
        lr: LearningRate = 0.01,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        eps_hat: bool = False,
        **options: Unpack[Options],
    ) -> None: ...
