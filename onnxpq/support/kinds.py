"""Kinds of weights: what a constant is to the node that takes it.

Only a fully-connected layer has rows of inputs that the weight is multiplied with, and only a table has rows that are
looked up. The others are decoded once, when a session is made.
"""

from typing import Final

FULLY_CONNECTED: Final = "fc"
CONVOLUTION: Final = "conv"
RECURRENT: Final = "recurrent"
TABLE: Final = "table"
OTHER: Final = "other"

KINDS: Final = (FULLY_CONNECTED, CONVOLUTION, RECURRENT, TABLE, OTHER)
ALL: Final = "all"
