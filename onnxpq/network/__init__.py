"""The graph in torch, operator by operator, and which parts of it are trained together.

In: a normalised model. Out: a `Network`, an `nn.Module` whose parameters have the names of the file; and the plan which
layers a gradient reaches. It knows nothing of codebooks.
"""

from onnxpq.network.module import Network
from onnxpq.network.partition import dependents
from onnxpq.network.routing import CHECKED_SAMPLES, Part, Plan

__all__ = ["CHECKED_SAMPLES", "Network", "Part", "Plan", "dependents", "importing", "matrices", "partition", "routing"]
