"""onnxpq itself, as a user calls it."""

from benchmarks.common import datasets
from benchmarks.paper.tasks import Task
from benchmarks.paper.tuning import Effort
from onnxpq import Config, TrainingConfig, compress
from onnxpq.config.target import TargetConfig
from onnxpq.errors import TargetError
from onnxpq.graph import files

VERIFIED = 256
"""onnxpq verifies on so many test images; the error in the tables is measured on all, as for every method."""


def onnxpq(
    task: Task, factor: float, seed: int, effort: Effort, *, regularizer: str | None = None
) -> tuple[bytes, str] | None:
    """`onnxpq compress --fc-ratio FACTOR` with labels, and all else at its default.

    Args:
        task: the network.
        factor: of the layers.
        seed: of the run.
        effort: `Effort.ours`.
        regularizer: the term; None is onnxpq's default.

    Returns:
        The file's content, and the layers' settings in words; None where onnxpq cannot be so small.
    """
    chosen = {} if regularizer is None else {"regularizer": regularizer}
    config = Config(
        target=TargetConfig(fc_ratio=factor), training=TrainingConfig(steps=effort.ours, **chosen), seed=seed
    )
    (images, labels), name = task.train, task.input
    try:
        result = compress(
            task.path,
            {name: images, "y": labels},
            test={name: task.test[0][:VERIFIED], "y": task.test[1][:VERIFIED]},
            labels="y",
            config=config,
            cache_dir=datasets.cache_folder() / "activations",
        )
    except TargetError as error:
        if error.result is not None:
            raise
        return None
    layers = "; ".join(f"d={r.sub_vector} K={r.codewords} G={r.groups}" for r in result.report.layers)
    return files.to_bytes(result.model), layers
