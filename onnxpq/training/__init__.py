"""Fine-tuning: the cost, the regularization term, the steps, and what is kept of them.

In: a plan of parts, samples, and quantized layers to start from. Out: better quantized layers and biases. It does not
know which layouts were chosen, or why.
"""

from onnxpq.training.jobs import Trained
from onnxpq.training.schedule import Work
from onnxpq.training.trainer import Trainer

__all__ = ["Trained", "Trainer", "Work", "objectives"]
