"""The paper's evaluation, reproduced and extended: methods that compress fully-connected layers, at equal bytes.

    python -m benchmarks paper run         # every row that is not stored yet
    python -m benchmarks paper tables      # docs/evaluation.md and its plots from the stored rows

Also latency, histograms, alphas and rates. What is compared, and how to read it: docs/evaluation.md.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.common import datasets, processes
from benchmarks.paper.store import Key, Store


def main(arguments: list[str] | None = None) -> int:
    """See the module's description."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("run", help="measure every row that is not stored yet; stop it whenever you like")
    command.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="rows NETWORK/METHOD/FACTOR/SEED")
    kind = command.add_mutually_exclusive_group()
    kind.add_argument("--quick", action="store_true", help="a smoke run on few images, stored in the cache folder")
    kind.add_argument(
        "--again", action="store_true", help="measure stored rows once more, into the cache folder, and compare"
    )
    command.add_argument("--threads", type=int, default=1, help="of torch; start the command twice for two cores")
    command.set_defaults(run=_run)
    command = commands.add_parser("latency", help="time a call of one image, of untrained files of the same form")
    command.add_argument("--only", nargs="+", default=["*"], metavar="NETWORK", help="networks")
    command.set_defaults(run=_latency)
    command = commands.add_parser("histograms", help="weights before, during and after each term")
    command.add_argument("--network", default="mnist_mlp")
    command.set_defaults(run=_histograms)
    command = commands.add_parser("alphas", help="how strong each term is to be, by held-out images")
    command.set_defaults(run=_alphas)
    command = commands.add_parser("rates", help="how fast each kind of form is to learn, by held-out images")
    command.set_defaults(run=_rates)
    command = commands.add_parser("tables", help="write tables and plots from what is stored")
    command.set_defaults(run=_tables)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    import torch  # noqa: PLC0415 -- torch and onnxruntime take seconds to load

    from benchmarks.paper import running, tables, tuning  # noqa: PLC0415

    torch.set_num_threads(options.threads)
    folder = "paper_quick" if options.quick else "paper_again" if options.again else None
    store = Store() if folder is None else Store(datasets.cache_folder() / folder)
    wanted = running.keys(options.only, quick=options.quick)
    if options.again:
        stored = {key for network in running.NETWORKS for key in Store().rows(network)}
        wanted = [key for key in wanted if key in stored]
    with _progress() as progress:
        effort = tuning.QUICK if options.quick else tuning.FULL
        running.run(store, wanted, effort, quick=options.quick, progress=progress)
    print(tables.compared(Store(), store) if options.again else tables.text(store))


def _latency(options: argparse.Namespace) -> None:
    from benchmarks.paper import latency  # noqa: PLC0415

    latency.run(options.only)


def _histograms(options: argparse.Namespace) -> None:
    from benchmarks.paper import histograms  # noqa: PLC0415

    histograms.run(options.network)


def _alphas(_options: argparse.Namespace) -> None:
    from benchmarks.paper import alphas  # noqa: PLC0415

    alphas.run()


def _rates(_options: argparse.Namespace) -> None:
    from benchmarks.paper import rates  # noqa: PLC0415

    rates.run()


def _tables(_options: argparse.Namespace) -> None:
    from benchmarks.paper import tables  # noqa: PLC0415

    tables.write(Store(), processes.ROOT / "docs")


@contextmanager
def _progress() -> Iterator[Callable[[int, int, Key | None], None]]:
    """A progress bar on a terminal, else a line a row."""
    if not sys.stderr.isatty():
        yield lambda done, total, key: print(f"{done}/{total} {key or 'done'}", file=sys.stderr, flush=True)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as bars:
        task = bars.add_task("")
        yield lambda done, total, key: bars.update(task, completed=done, total=total, description=str(key or "done"))
