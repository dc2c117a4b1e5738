"""From a wish (ratio, size, drop) to layouts: what is tried, in which order, and which trial is delivered.

In: curves of bytes against error for each weight, and a function that makes a model. Out: the model that was found, and
the record of all that was tried.
"""

from onnxpq.targeting.stage import check, delivered, seek

__all__ = ["check", "delivered", "seek"]
