"""onnxpq itself, as a user calls it."""

from benchmarks import datasets
from benchmarks.paper.tasks import Task
from benchmarks.paper.tuning import Effort
from onnxpq import Config, PQConfig, TrainingConfig, allocation, compress, modelio

VERIFIED = 256
"""onnxpq verifies on so many test images; the error in the tables is measured on all, as for every method."""

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22, 24, 28, 32, 40, 48, 64)


def layout(task: Task, factor: float) -> PQConfig | None:
    """The shortest sub-vectors at which all layers together are smaller by the factor; None if none are."""
    for width in WIDTHS:
        config = PQConfig(sub_vector=width)
        total = sum(allocation.layout_of(layer, config).nbytes for layer in task.layers)
        if total * factor <= task.weight_bytes:
            return config
    return None


def onnxpq(
    task: Task, factor: float, seed: int, effort: Effort, *, regularizer: str | None = None
) -> tuple[bytes, str] | None:
    """`onnxpq.compress` with labels at its default settings but for the size.

    Args:
        task: the network.
        factor: of the layers.
        seed: of the run.
        effort: `Effort.epochs`; None is onnxpq's default.
        regularizer: the term; None is onnxpq's default.

    Returns:
        The file's content, and the settings in words; None where onnxpq cannot be so small.
    """
    pq = layout(task, factor)
    if pq is None:
        return None
    chosen = {} if regularizer is None else {"regularizer": regularizer}
    config = Config(pq=pq, training=TrainingConfig(epochs=effort.epochs, **chosen), seed=seed)
    (images, labels), name = task.train, task.input
    test = {name: task.test[0][:VERIFIED], "y": task.test[1][:VERIFIED]}
    result = compress(
        task.path,
        {name: images, "y": labels},
        test=test,
        labels="y",
        config=config,
        cache_dir=datasets.cache_folder() / "activations",
    )
    return modelio.to_bytes(result.model), f"d={pq.sub_vector} K={pq.codewords}"
