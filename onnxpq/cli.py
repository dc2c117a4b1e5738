"""The command line: flags -> Config -> a call -> printed report -> exit code.

Exit codes: 0 written and verified; 1 an error that the message explains, a missed target among them; 2 wrong usage;
130 interrupted; 141 whoever was to read what is printed went away, as after SIGPIPE.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from onnxpq.config import (
    BODIES,
    CODEBOOKS,
    GENTLE_SUB_VECTOR,
    LOSSES,
    METRICS,
    REGULARIZERS,
    RESTS,
    SUB_VECTOR,
    TARGET_CHOOSES,
    Config,
    TargetConfig,
)
from onnxpq.errors import ConfigError, MissedError, OnnxpqError, OutputError
from onnxpq.support.kinds import ALL, KINDS
from onnxpq.support.units import parse_share, parse_size

if TYPE_CHECKING:
    from onnxpq.pipeline import Result


def _count_or_name(text: str) -> str | int:
    return int(text) if text.isdigit() else text


def _as_usage(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A type of argument whose own sentence is what wrong usage is answered with."""

    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    parse.__name__ = kind.__name__
    return parse


_SETTINGS: Final[tuple[tuple[str, str, Callable[[str], Any], str], ...]] = (
    (
        "--sub-vector",
        "pq.sub_vector",
        int,
        f"weights that share one code (default: {SUB_VECTOR}, without data {GENTLE_SUB_VECTOR})",
    ),
    ("--codewords", "pq.codewords", int, "codewords of a codebook; up to 16 is fastest"),
    ("--codebooks", "pq.codebooks", _count_or_name, f"codebooks of a layer: {', '.join(CODEBOOKS)} or a number"),
    ("--body", "pq.body", str, f"how runtimes without the operator library multiply: {', '.join(BODIES)}"),
    ("--loss", "training.loss", str, f"{', '.join(LOSSES)}"),
    ("--epochs", "training.epochs", int, "passes over the training data; 0 for plain product quantization"),
    ("--steps", "training.steps", int, "training steps, instead of --epochs"),
    ("--minutes", "training.minutes", float, "work of the training, in minutes of two cores, where neither is given"),
    ("--regularizer", "training.regularizer", str, f"{', '.join(REGULARIZERS)}"),
    ("--alpha", "training.alpha", float, "final weight of the regularization term; by default the term decides"),
    ("--alpha-growth", "training.alpha_growth", float, "factor by which that weight grows while training"),
    ("--learning-rate", "training.learning_rate", float, "peak learning rate"),
    ("--batch-size", "training.batch_size", int, "samples per training step; by default chosen with the steps"),
    ("--rest", "rest", str, f"how constants that are not compressed are stored: {', '.join(RESTS)}"),
    ("--min-weights", "min_weights", int, "leave layers with fewer weights alone"),
    (
        "--batch-axis",
        "batch_axis",
        str,
        "where the samples lie in the inputs: an axis, NAME=AXIS,... for single ones, or none: data are whole calls",
    ),
    ("--output-name", "output", str, "the model's output that loss and accuracy look at"),
    (
        "--floor",
        "floor",
        parse_share,
        "largest loss that is written; default: 5% of accuracy, answers or decisions, 10% of cosine, 30% of numbers",
    ),
    ("--seed", "seed", int, "seed of every random choice"),
)
"""Flag, setting, type, help; the rest of the settings is reached through --config."""

_TARGETS: Final[tuple[tuple[str, str, Callable[[str], Any], str], ...]] = (
    ("--ratio", "target.ratio", float, "how many times smaller the file has to be"),
    ("--fc-ratio", "target.fc_ratio", float, "how many times smaller the compressed layers have to be"),
    ("--size", "target.size", parse_size, "largest file: 2MB, 500kB, 1.5MiB or bytes"),
    (
        "--max-drop",
        "target.max_drop",
        parse_share,
        "largest loss by the metric, 0.5% or 0.005; without a size the smallest file that keeps to it is sought",
    ),
    (
        "--metric",
        "target.metric",
        str,
        f"{', '.join(METRICS)}, or module:function; auto is accuracy (or mse) with --labels; without, agreement "
        "with the original for scores of classes, else mse",
    ),
    (
        "--attempts",
        "target.attempts",
        int,
        "with --max-drop: train so many models wholly at most in search of the smallest",
    ),
    ("--max-codewords", "target.max_codewords", int, "16 for codes that run fastest, 256 for the smallest file"),
)
"""The same for targets, which only `compress` has."""

_METAVARS: Final[dict[Callable[[str], Any], str]] = {
    int: "N",
    float: "X",
    str: "NAME",
    _count_or_name: "N",
    parse_size: "SIZE",
    parse_share: "SHARE",
}
"""What the help calls an argument of a type."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(arguments)
    try:
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except OnnxpqError as error:
        print(f"onnxpq: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        folder = getattr(options, "work_dir", None)
        continues = "" if folder is None else f" The same command continues with what is in '{folder}'."
        print(f"onnxpq: interrupted; nothing was written.{continues}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever reads the output has seen enough, as `head` has. What Python still holds of it would fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "rich"):
            raise
        print(f'onnxpq: error: compressing needs {error.name}: pip install "onnxpq[compress]".', file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="onnxpq", description="Make a trained ONNX model small and fast.")
    parser.add_argument("--version", action="version", version=f"onnxpq {metadata.version('onnxpq')}")
    commands = parser.add_subparsers(required=True, metavar="command")

    compress = commands.add_parser("compress", help="compress a model and verify the result")
    compress.add_argument("model", help="the ONNX model")
    compress.add_argument("-o", "--output", dest="target", required=True, metavar="FILE", help="file to write")
    compress.add_argument(
        "--data",
        help=".npz file of training samples: an array per input of the model, samples first; or a folder of .npz "
        "files, a whole call of the model in each",
    )
    compress.add_argument("--test", help="samples or calls to verify on; by default a part of --data is set aside")
    compress.add_argument("--labels", help="key of the labels in the data; without it the original is the teacher")
    compress.add_argument("--report", help="also write the report as JSON to this file")
    compress.add_argument(
        "--work-dir", metavar="DIR", help="keep what is done here: the same command continues after an interruption"
    )
    compress.add_argument("--restart", action="store_true", help="delete what is in --work-dir, and begin anew")
    compress.add_argument(
        "--cache-dir", metavar="DIR", help="keep what was computed from the data here, for runs with other settings"
    )
    compress.add_argument(
        "--custom-ops-library",
        action="append",
        default=[],
        metavar="PATH",
        help="library of operators that the model uses, for onnxruntime; may be given several times",
    )
    _add_settings(compress)
    group = compress.add_argument_group("target", "sizes of the layers' codes are then chosen by measurement")
    _add_flags(group, _TARGETS)
    group.add_argument("--force", action="store_true", help="write the model even if it misses target or floor")
    compress.set_defaults(run=_compress)

    export = commands.add_parser("export", help="write a compressed model in another form, for other tools")
    export.add_argument("model", help="a compressed ONNX model")
    export.add_argument("-o", "--output", dest="target", required=True, metavar="FILE", help="file to write")
    export.add_argument(
        "--as",
        dest="way",
        required=True,
        choices=("dense", "inline", "ort-library"),
        help="dense weights; standard operators without functions, still small; or onnxruntime's own format, for "
        "runtimes with the operator library",
    )
    export.set_defaults(run=_export)

    inspect = commands.add_parser("inspect", help="list what can be compressed, and what cannot and why")
    inspect.add_argument("model", help="the ONNX model")
    _add_settings(inspect)
    inspect.set_defaults(run=_inspect)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("settings")
    group.add_argument("--config", help="TOML file of settings; flags win over it")
    _add_flags(group, _SETTINGS)
    group.add_argument(
        "--fast", dest="pq.fast", action="store_const", const=True, help="tables of 8 bits: faster, about 1 %% error"
    )
    help_order = (
        "put inputs of layers in another order where weights then quantize better, by a Gather before the layer"
    )
    group.add_argument("--reorder", dest="pq.reorder", action="store_const", const=True, help=help_order)
    help_conv1x1 = "compress convolutions with a kernel of one point, too"
    group.add_argument("--conv1x1", action="store_const", const=True, help=help_conv1x1)
    help_tables = "compress matrices that are looked up (Gather), as embeddings are, too; a target for the file does"
    group.add_argument("--tables", action=argparse.BooleanOptionalAction, help=help_tables)
    help_only = f"kinds of weights to compress: {', '.join(KINDS)} or {ALL}; may be given several times (default: fc)"
    help_metadata = "keep what exporters noted of nodes and values"
    group.add_argument("--keep-metadata", action="store_const", const=True, help=help_metadata)
    group.add_argument("--only", action="append", choices=(*KINDS, ALL), help=help_only)
    group.add_argument("--include", action="append", metavar="GLOB", help="compress only the nodes that match")
    group.add_argument("--exclude", action="append", metavar="GLOB", help="leave the nodes that match alone")


def _add_flags(group: argparse._ArgumentGroup, flags: Sequence[tuple[str, str, Callable[[str], Any], str]]) -> None:
    defaults = Config().to_dict()
    for flag, setting, kind, text in flags:
        table, _, name = setting.rpartition(".")
        default = (defaults[table] if table else defaults)[name]
        # argparse formats the text with %.
        shown = (text if default is None else f"{text} (default: {default})").replace("%", "%%")
        group.add_argument(flag, dest=setting, type=_as_usage(kind), metavar=_METAVARS[kind], help=shown)


def _config(options: argparse.Namespace) -> Config:
    settings: dict[str, Any] = (Config.from_toml(options.config) if options.config else Config()).to_dict()
    given = {setting: getattr(options, setting, None) for _, setting, _, _ in (*_SETTINGS, *_TARGETS)}
    given |= {name: getattr(options, name) for name in ("pq.fast", "pq.reorder", "conv1x1", "tables", "keep_metadata")}
    given |= {name: getattr(options, name) for name in ("include", "exclude", "only")}
    for setting, value in given.items():
        if value is not None:
            table, _, name = setting.rpartition(".")
            (settings[table] if table else settings)[name] = value
    _check_contradictions(given, Config.from_dict({"target": settings["target"]}).target)
    return Config.from_dict(settings)


def _check_contradictions(given: Mapping[str, Any], target: TargetConfig) -> None:
    """Refuse flags that a target leaves nothing to decide, even if their values are the default ones."""
    for flag, setting, _, _ in _SETTINGS:
        if target.is_set and setting.removeprefix("pq.") in TARGET_CHOOSES and given[setting] is not None:
            raise ConfigError(
                f"{flag} fixes for all layers what a target chooses for each. Leave out one of them, or give settings "
                "of single layers in [[layer]] tables of --config."
            )


def _compress(options: argparse.Namespace) -> int:
    config = _config(options)
    if options.labels is not None and options.data is None and options.test is None:
        raise ConfigError("--labels names a key of the data, and no --data was given.")
    from onnxpq import pipeline  # noqa: PLC0415 -- torch and onnxruntime take seconds to load
    from onnxpq.graph import files  # noqa: PLC0415 -- torch and onnxruntime take seconds to load

    _check_paths(options)
    files.check_output_path(options.target, options.model)
    if options.report is not None:
        files.check_output_path(options.report, options.model)
    missed: MissedError | None = None
    try:
        with _progress() as progress:
            result = pipeline.compress(
                options.model,
                options.data,
                test=options.test,
                labels=options.labels,
                config=config,
                cache_dir=options.cache_dir,
                work_dir=options.work_dir,
                restart=options.restart,
                custom_ops_libraries=options.custom_ops_library,
                progress=progress,
            )
    except MissedError as error:
        if not isinstance(error.result, pipeline.Result):
            raise
        missed, result = error, error.result
    return _deliver(options, result, missed)


def _deliver(options: argparse.Namespace, result: "Result", missed: MissedError | None) -> int:
    """Write what there is to be written, print the report, and pass on that it is not what it has to be."""
    from onnxpq.graph import files  # noqa: PLC0415 -- as above

    is_written = missed is None or options.force
    if is_written:
        result.save(options.target)
    if options.report is not None:
        files.write_text(options.report, result.report.to_json())
    print(result.report.to_text())
    print(f"\nWrote {options.target}." if is_written else "\nNothing was written; --force writes it all the same.")
    if missed is not None:
        raise missed
    return 0


def _check_paths(options: argparse.Namespace) -> None:
    """No file that is read may be written, nor one file twice; `graph.files` looks after the model's own files."""
    written = {os.path.realpath(path): "--output" for path in (options.target, f"{options.target}.data")}
    if options.report is not None:
        if os.path.realpath(options.report) in written:
            raise OutputError(f"--report '{options.report}' would overwrite the model. Choose another path.")
        written[os.path.realpath(options.report)] = "--report"
    for flag in ("data", "test", "config"):
        path = getattr(options, flag)
        if path is not None and os.path.realpath(path) in written:
            taken = written[os.path.realpath(path)]
            raise OutputError(f"{taken} would overwrite '{path}', the file of --{flag}. Choose another path.")


def _export(options: argparse.Namespace) -> int:
    from onnxpq import exporting  # noqa: PLC0415 -- onnx takes a while to load
    from onnxpq.graph import files  # noqa: PLC0415 -- as above

    exporting.export(options.model, options.target, options.way)
    before, after = files.file_bytes(options.model), Path(options.target).stat().st_size
    if options.way != exporting.ORT_LIBRARY:
        after = files.file_bytes(options.target)
    print(f"Wrote {options.target}: {after:,} bytes; '{options.model}' has {before:,}.")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from onnxpq.quantization import inspection  # noqa: PLC0415 -- onnx takes a while to load

    print(inspection.describe(options.model, _config(options)))
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None] | None]:
    """Progress bars on standard error; none where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415 -- only where bars are shown
    from rich.progress import Progress, TaskID  # noqa: PLC0415

    with Progress(console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield advance
