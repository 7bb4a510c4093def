"""Is python -m fastadam: one subcommand, one function, one name in COMMANDS.

A command adds its options to the parser it is given and returns what to run. Whatever it needs beyond the
standard library it imports when it runs, so that no command pays for another's imports.
"""

import argparse
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

import fastadam

Run = Callable[[argparse.Namespace], int]  # parsed options in, exit status out


def demo(parser: argparse.ArgumentParser) -> Run:
    """train a small model, or compare the methods on it (needs scikit-learn, but for the model "text")"""
    parser.add_argument("--model", choices=MODELS, default="mlp", metavar="NAME", help=f"{', '.join(MODELS)} (mlp)")
    parser.add_argument("--epochs", type=_integer(1), metavar="N", help="passes over the data (what suits the model)")
    parser.add_argument("--batch-size", type=_integer(1), default=32, metavar="N", help="examples per step (32)")
    parser.add_argument(
        "--lr", type=_learning_rate, metavar="X", help="learning rate, with a schedule the largest (what suits both)"
    )
    parser.add_argument("--optimizer", choices=optimizers(), metavar="NAME", help=f"{', '.join(optimizers())} (Adam)")
    parser.add_argument(
        "--schedule", choices=SCHEDULES, metavar="NAME", help=f"{', '.join(_PLAIN)}, or warmup-NAME (constant)"
    )
    parser.add_argument("--seed", type=_integer(0), metavar="N", help="of split, weights and batches (0)")
    parser.add_argument(
        "--backend", choices=("auto", "numpy", "numba"), metavar="NAME", help="auto, numpy, numba (auto)"
    )
    parser.add_argument("--compare", action="store_true", help="all methods side by side: a table and a picture")
    parser.add_argument(
        "--distributed", action="store_true", help="the digits over the ranks of mpiexec, and by one process"
    )
    parser.add_argument("--seeds", type=_integer(1), metavar="N", help="with --compare: how many runs of each (5)")
    parser.add_argument("--out", metavar="FILE", help="the picture, a PNG (fastadam-MODEL.png)")

    def run(args: argparse.Namespace) -> int:
        if args.distributed:
            from fastadam.tools.demo import dealing

            return dealing.run(args.batch_size, args.seed or 0)
        one = {name: getattr(args, name) for name in ("lr", "optimizer", "schedule", "seed", "backend")}
        many = {"seeds": args.seeds}
        wrong, given = (one, many) if args.compare else (many, one)
        if unfit := [name for name, value in wrong.items() if value is not None]:
            parser.error(f"argument --{unfit[0]}: {'not ' if args.compare else 'only '}with --compare")
        chosen = {name: value for name, value in {**given, "out": args.out}.items() if value is not None}
        from fastadam.tools import demo

        if args.compare:
            from fastadam.tools.demo import sweep

            return sweep.run(args.model, args.epochs, args.batch_size, **chosen)
        return demo.run(args.model, args.epochs, args.batch_size, **chosen)

    return run


MODELS = ("logistic", "mlp", "cnn", "text")
_PLAIN = (
    "constant",
    "step",
    "multi-step",
    "exponential",
    "polynomial",
    "cosine",
    "restarts",
    "inverse-sqrt",
    "one-cycle",
)
SCHEDULES = (*_PLAIN, *(f"warmup-{name}" for name in _PLAIN))


def info(parser: argparse.ArgumentParser) -> Run:
    """say what fastadam finds on this machine, and what is missing"""
    parser.add_argument("--json", action="store_true", help="as JSON")

    def run(args: argparse.Namespace) -> int:
        import json

        from fastadam.tools.diagnosis import info, lines

        report = info()
        print(json.dumps(report, indent=1) if args.json else "\n".join(lines(report)))
        return 0

    return run


def advise(parser: argparse.ArgumentParser) -> Run:
    """say what each format takes in memory and time on this machine, and which one to take"""
    parser.add_argument("--params", required=True, type=_count, metavar="N", help="the number of parameters, as 1.3e9")
    parser.add_argument("--memory", metavar="SIZE", help="what they, gradients and state may take, as 24GB or 16GiB")
    parser.add_argument("--gpu", metavar="NAME", help="times of an A100, H100 or H200, by a model")
    parser.add_argument("--json", action="store_true", help="as JSON")

    def run(args: argparse.Namespace) -> int:
        import json

        from fastadam.tools.advise import advise, show

        try:
            advice = advise(args.params, args.memory, args.gpu)
        except ValueError as error:
            parser.error(str(error))
        if args.json:
            print(json.dumps(advice, indent=1))
        else:
            show(advice)
        return 0

    return run


def verify(parser: argparse.ArgumentParser) -> Run:
    """hold every kernel, rule, dtype and backend against the papers and against NumPy's bits"""
    parser.add_argument("--all", action="store_true", help="the full product, not only all pairs")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose line has this text, such as a method")

    def run(args: argparse.Namespace) -> int:
        from fastadam.tools.verify import run

        return run(args.all, args.only)

    return run


def warmup(parser: argparse.ArgumentParser) -> Run:
    """compile everything once, so that no first step waits"""

    def run(args: argparse.Namespace) -> int:
        from fastadam.tools.warmup import run

        return run()

    return run


def bench(parser: argparse.ArgumentParser) -> Run:
    """measure steps against the limit of the memory and against other libraries"""
    from fastadam.benchmarks import options

    options.add(parser)

    def run(args: argparse.Namespace) -> int:
        return options.run(parser, args)

    return run


def checkpoint(parser: argparse.ArgumentParser) -> Run:
    """say what is in a checkpoint, or in a folder of them, and whether every byte is as it was written"""
    parser.add_argument("path", metavar="PATH")

    def run(args: argparse.Namespace) -> int:
        from fastadam.checkpoint import listing

        return listing.run(args.path)

    return run


COMMANDS = (demo, info, advise, verify, warmup, bench, checkpoint)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 not possible here, 2 not understood, 141 nobody reads."""
    try:
        if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # a terminal without – and × gets ? there, not a traceback
        try:
            return _main(argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return 128 + 13  # as a shell shows one that SIGPIPE ended
    except OSError as error:  # such as a full device
        _discard_output()
        print(f"python -m fastadam: {error}", file=sys.stderr)
        return 1


def _main(argv: Sequence[str] | None) -> int:
    parser = _Parser(prog="python -m fastadam", description="The Adam family, at the speed of memory.")
    parser.add_argument("--version", action="version", version=f"fastadam {fastadam.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="command")
    for command in COMMANDS:
        about = inspect.getdoc(command)
        sub = commands.add_parser(command.__name__, help=about, description=about)
        sub.set_defaults(run=command(sub))
    args = parser.parse_args(argv)
    if "run" not in args:
        parser.print_help(sys.stderr)
        return 2
    run: Run = args.run
    return run(args)


def _discard_output() -> None:
    """Discard what waits to be written, which would fail once more when Python ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; argparse would put the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def optimizers() -> list[str]:
    """Return the names of the optimizer classes, so that a new one is an option here at once."""
    return [name for name, thing in vars(fastadam).items() if isinstance(thing, type) and "rule" in vars(thing)]


def _integer(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            n = int(text)
        except ValueError:
            n = least - 1
        if n < least:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {least}, got {text!r}")
        return n

    return parse


def _count(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number such as 1.3e9, got {text!r}") from None


def _learning_rate(text: str) -> float:
    try:
        x = float(text)
    except ValueError:
        x = math.nan
    if not 0 < x <= 100:  # far beyond any use, and far from overflowing float32
        raise argparse.ArgumentTypeError(f"expected a number above 0 and at most 100, got {text!r}")
    return x
