"""Parses the options of `bench`, cheaply, so that no other command pays for them."""

import argparse
import difflib
from pathlib import Path

from . import cases
from .suites import SUITES

MOST = 2**34  # elements: 64 GiB in float32


def add(parser: argparse.ArgumentParser) -> None:
    """Give `bench` its options."""
    models = ", ".join(cases.MODELS)
    say = parser.add_argument
    say("--suite", choices=SUITES, default="core", help="chain: a whole step; narrow: fewer bytes; pytorch; jax")
    say("--rule", metavar="NAME", help="a method, or one with options such as Adam-amsgrad (Adam)")
    say("--format", "--dtype", metavar="NAME", help="the dtype, and how the state rests (float32)")
    say("--sizes", type=sizes, metavar="N,N", help="flat arrays: 2^10,2^16,100000 (2^10 to 2^26)")
    say("--workload", type=words, default=[], metavar="NAME,NAME", help=f"{models} (none)")
    say("--backend", type=words, metavar="NAME,NAME", help="(every one that is ready)")
    say("--peers", type=words, default=[], metavar="NAME,NAME", help="only these, such as 'torch fused,optax' (all)")
    say("--threads", type=count, metavar="N", help="for everyone (all that this process may use)")
    say("--rounds", type=count, metavar="N", help="turns of each contestant in each process (11 or what time allows)")
    say("--processes", type=count, metavar="N", help="runs of the table, each in a fresh process (1)")
    say("--seconds", type=count, metavar="N", help="about so long in all (60; with --rounds as long as it takes)")
    say("--json", type=target, metavar="FILE", help="write the result")
    say("--plot", type=picture, metavar="FILE.png", help="draw it (needs matplotlib)")
    say("--training", type=whole_number, metavar="N", help="steps of the examples of --suite pytorch, 0 for none (300)")
    say("--distributed", action="store_true", help="time steps over two processes instead (needs the extra mpi)")
    say("--first-use", action="store_true", help="time the first step instead, with empty and with warm caches")


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Check what needs more than a glance, then measure; 130 after Ctrl-C."""
    try:
        return _run(parser, args)
    except KeyboardInterrupt:  # before or after the measurement, which heeds it itself
        print("interrupted")
        return 130


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    import fastadam
    from fastadam.backend import BACKENDS

    if args.distributed:
        from . import ranks

        return ranks.main([] if args.json is None else ["--json", str(args.json)])
    most = fastadam.get_num_threads()
    args.threads = args.threads or most
    if args.threads > most:
        parser.error(f"argument --threads: {args.threads}, but this process may use {most}")
    suite = suited(parser, args)
    one_of(parser, "--rule", [args.rule], cases.settings())
    one_of(parser, "--format", [args.format], cases.formats())
    one_of(parser, "--workload", args.workload, cases.MODELS)
    one_of(parser, "--backend", args.backend or [], BACKENDS)
    status = {name: BACKENDS[name].status() for name in args.backend or BACKENDS}  # which imports what it needs
    args.backends = args.backend or [name for name, text in status.items() if text == "ready"]
    for name in args.backends:
        if status[name] != "ready":
            parser.error(f"argument --backend: {name}: {status[name]}")
    if args.peers:
        from .everyone import everyone

        one_of(parser, "--peers", args.peers, [one.name for one in everyone(args.backends) if one.peer])
    if args.plot:
        try:
            from .plot import draw  # noqa: F401
        except ImportError as error:
            parser.error(f"argument --plot: {error}, expected matplotlib; pip install matplotlib")
    if args.first_use:
        from . import first_use

        for name in ("plot", "processes", "seconds"):
            if getattr(args, name) is not None:
                parser.error(f"argument --{name}: not with --first-use, whose every time is from a process of its own")
        args.rounds = args.rounds or first_use.ROUNDS
        args.cases = [*(args.sizes or []), *args.workload] or [first_use.CASE]
        return int(first_use.run(args))
    from . import bench

    asked = [*(args.sizes or []), *args.workload]
    races = [race for workload in asked or suite.workloads for race in suite.races(workload, args.backends)]
    args.cases = list(dict.fromkeys(race.case for race in races))
    args.entrants = {race.case: race.entrants for race in races if race.entrants}
    for case in args.cases if suite.needs else ():
        need(parser, case, suite.needs)
    if args.training is None:
        args.training = TRAINING if args.suite == "pytorch" and not asked else 0
    args.rounds = args.rounds or suite.rounds
    args.seconds = args.seconds or (ENDLESS if args.rounds else SECONDS)
    args.rounds, args.processes = args.rounds or ROUNDS, args.processes or 1
    return int(bench.run(args))


def suited(parser, args):
    """Return the suite asked for; refuse options that it decides by itself, and fill in what it decides."""
    suite, decided = SUITES[args.suite], ("rule", "format", "first_use")
    for name in decided if args.suite != "core" else ("training",):
        if getattr(args, name):
            parser.error(f"argument --{name.replace('_', '-')}: not with --suite {args.suite}")
    args.rule, args.format = args.rule or suite.rule, args.format or "float32"
    if args.suite != "core" and args.backend is None:
        args.backend = ["numba"]
    return suite


SECONDS, ROUNDS, ENDLESS, TRAINING = 60, 11, 10**9, 300


def one_of(parser, option, asked, possible):
    """Refuse names that are not possible, and say which are; last, where it is seen, the one that is most alike."""
    for name in asked:
        if name not in possible:
            near = difflib.get_close_matches(name.lower(), [each.lower() for each in possible], 1)
            hint = [f"; did you mean {each}?" for each in possible if each.lower() in near]
            parser.error(f"argument {option}: {name!r}, expected one of {', '.join(possible)}{''.join(hint[:1])}")


def words(text):
    """Turn names with commas between into a list, each once."""
    names = [word.strip() for word in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names with commas between, got {text!r}")
    return list(dict.fromkeys(names))


def sizes(text):
    """Turn 2^10,2^16,100000 into names of cases, in this order."""
    return list(dict.fromkeys(cases.flat(size(word)) for word in words(text)))


def size(text):
    """Turn 2^20 or 100000 into the number."""
    base, power, exponent = text.partition("^")
    digits = base.isdecimal() and (exponent.isdecimal() or not power)
    n = int(base) ** int(exponent or 1) if digits and len(base) <= 12 and len(exponent) <= 2 else 0
    if not 1 <= n <= MOST:
        raise argparse.ArgumentTypeError(f"expected numbers from 1 to 2^34 such as 2^20,100000, got {text!r}")
    return n


def need(parser, case, needs):
    """Refuse a case of more parameters than there is memory for, at so many bytes each."""
    from .machine import available_memory

    size, free = cases.size(cases.shapes(case)), available_memory()
    if needs * size > free:
        room = f"{needs * size / 2**30:.1f} GiB of memory, {max(0, free) / 2**30:.1f} GiB are left"
        parser.error(f"argument --sizes: {case} needs about {room}")


def count(text):
    """Turn a text into an integer of at least 1."""
    if not text.isdecimal() or not 1 <= int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def whole_number(text):
    """Turn a text into an integer of at least 0."""
    return 0 if text == "0" else count(text)


def target(text):
    """Return the path of a file that can be written, tried out now: after the measurement would be late."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in a folder that is there, got {text!r}")
    existed = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"expected a file that can be written, got {text!r}: {error.strerror}"
        ) from None
    if not existed:
        path.unlink()
    return path


def picture(text):
    """Return the path of a picture that can be written."""
    path = target(text)
    if path.suffix not in PICTURES:
        raise argparse.ArgumentTypeError(f"expected a name that ends in {', '.join(PICTURES)}, got {text!r}")
    return path


PICTURES = (".png", ".svg", ".pdf")
