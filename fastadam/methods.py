"""Names the optimizers: each is Optimizer over one rule, whose hyperparameters, defaults and docstring it takes."""

import inspect

from fastadam import rules
from fastadam.optimizer import Optimizer


class _Method(Optimizer):
    """Is an optimizer whose signature and documentation are its rule's."""

    def __init_subclass__(cls) -> None:
        if "rule" not in vars(cls):  # a user's own subclass documents itself
            return
        parameters = list(inspect.signature(cls.rule).parameters.values())
        base = inspect.signature(Optimizer.__init__).parameters
        kinds = (
            [p for p in parameters if p.kind is not p.KEYWORD_ONLY],
            [p for p in parameters if p.kind is p.KEYWORD_ONLY],
        )
        cls.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [base["params"].replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD), *kinds[0], *kinds[1]]
            + [p for p in base.values() if p.kind is p.KEYWORD_ONLY]
        )
        cls.__doc__ = (
            f"{inspect.cleandoc(cls.rule.__doc__ or '')}\n\n"
            f"params, backend, seed, capturable, errors: see Optimizer.\n\n"
            f">>> weights = np.ones(3, np.float32)\n"
            f">>> opt = fastadam.{cls.__name__}(weights)\n"
            f">>> _ = opt.step(np.ones(3, np.float32))\n"
            f">>> _ = opt.step(np.ones(3, np.float32))\n"
            f">>> opt.t, bool((weights < 1).all())\n"
            f"(2, True)"
        )


class Adam(_Method):
    rule = rules.Adam


class AdamW(_Method):
    rule = rules.AdamW


class NAdam(_Method):
    rule = rules.NAdam


class RAdam(_Method):
    rule = rules.RAdam


class Adamax(_Method):
    rule = rules.Adamax


class AdaBelief(_Method):
    rule = rules.AdaBelief


class ADOPT(_Method):
    rule = rules.ADOPT


class AdEMAMix(_Method):
    rule = rules.AdEMAMix


class Lion(_Method):
    rule = rules.Lion


class LAMB(_Method):
    rule = rules.LAMB


class ScheduleFreeAdamW(_Method):
    rule = rules.ScheduleFreeAdamW


class ScheduleFreeSGD(_Method):
    rule = rules.ScheduleFreeSGD


class LARS(_Method):
    rule = rules.LARS


class StableAdamW(_Method):
    rule = rules.StableAdamW


class Prodigy(_Method):
    rule = rules.Prodigy


class SGD(_Method):
    rule = rules.SGD


class RMSprop(_Method):
    rule = rules.RMSprop


class Adagrad(_Method):
    rule = rules.Adagrad
