"""Where torch computes."""

import torch


def best() -> torch.device:
    """A GPU where torch has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe() -> str:
    """What torch computes on, as far as it decides the last digits of a result."""
    if best().type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU with {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
