"""What all stages of one run share: its settings, where things are kept, and who is told what happens."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from onnxpq.config import Config
from onnxpq.runtime import Libraries
from onnxpq.support import memory
from onnxpq.workspace.pieces import Workspace

Progress: TypeAlias = Callable[[str, int, int], None]
"""Is told the stage ("lookups", "sensitivity", "caching", "clustering", "training", "verification"), what
is done, of how much."""


@dataclass
class Run:
    """One run of the pipeline.

    Attributes:
        config: the settings.
        libraries: custom-operator libraries that the model needs.
        progress: is told how far each stage is.
        workspace: where what is done is kept, for a run that is interrupted.
        layers: where quantized layers are kept: a target asks for some of them again.
        notes: sentences for the user.
        seconds: that each stage took.
    """

    config: Config
    libraries: Libraries = ()
    progress: Progress | None = None
    workspace: Workspace = field(default_factory=Workspace)
    layers: Workspace = field(default_factory=Workspace)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def ticker(self, stage: str) -> Callable[[int, int], None] | None:
        """What is told the progress of a stage."""
        return None if self.progress is None else partial(self.progress, stage)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage; what it freed goes back to the system."""
        started = time.perf_counter()
        yield
        memory.give_back()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
