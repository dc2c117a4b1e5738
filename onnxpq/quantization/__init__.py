"""From the layers of a model to their codes: how each is cut, what its inputs are, what its errors cost.

In: a model in its forms, its layers, samples. Out: layouts and quantized weights by name. `allocation` and `inspection`
work without torch, so this face imports nothing by itself. It does not know how a network is trained, beyond the
partition of its graph.
"""

__all__ = [
    "allocation",
    "arranging",
    "bodies",
    "calibration",
    "clustering",
    "curves",
    "inspection",
    "sensitivity",
    "subject",
]
