"""Where torch computes."""

import torch


def best() -> torch.device:
    """A GPU where torch has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
