"""What survives an interruption: a folder of finished pieces of work, and what a run is made from.

In: a piece of work, and all that it depends on. Out: the same piece, where an earlier call left it. The module
`checkpoints` keeps torch tensors; the rest needs no torch.
"""

from onnxpq.workspace.pieces import Piece, Workspace, opened, temporary
from onnxpq.workspace.run import Progress, Run

__all__ = ["Piece", "Progress", "Run", "Workspace", "checkpoints", "manifest", "opened", "temporary"]
