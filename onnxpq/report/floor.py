"""What a result has to keep to be written: records, and their text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StandsStill:
    """An output that does not depend on the samples any more.

    Attributes:
        output: its name.
        reason: what it does, as the rest of a sentence.
    """

    output: str
    reason: str


@dataclass(frozen=True)
class FloorReport:
    """What the output that counts has lost, and what it may lose.

    Attributes:
        output: its name.
        measure: what the loss is, in words.
        loss: 0 for nothing.
        limit: the largest loss that is written.
        still: outputs, of all, that do not depend on the samples any more.
        resolution: half the width of the 95 % interval of the loss; None where the loss is no share of samples.
        way: of running the model, where it is not the only one: "without the operator library".
    """

    output: str
    measure: str
    loss: float
    limit: float
    still: tuple[StandsStill, ...] = ()
    resolution: float | None = None
    way: str = ""

    @property
    def kept(self) -> bool:
        """Whether the result may be written. NaN is below no limit."""
        return self.loss <= self.limit and not self.still

    def to_text(self) -> str:
        """As a person reads it."""
        found = f"{self.measure} of output '{self.output}' {_percent(self.loss)}, at most {_percent(self.limit)}"
        if self.resolution is not None:
            found += f"; so many samples tell it to {_percent(self.resolution)}"
        way = f" {self.way}" if self.way else ""
        lines = [f"Floor{way} {'kept' if self.kept else 'MISSED'}: {found}"]
        lines += [f"  Output '{entry.output}' {entry.reason}; the original's does not." for entry in self.still]
        return "\n".join(lines)

    def sentence(self) -> str:
        """Why a result that misses the floor is not written, and what to do."""
        causes = [f"output '{entry.output}' {entry.reason}, which the original's does not" for entry in self.still]
        if not self.loss <= self.limit:
            found = f"the {self.measure} of output '{self.output}' is {_percent(self.loss)}"
            causes.append(f"{found}, more than {_percent(self.limit)}")
        way, advice = (f" {self.way}", "Take --body float, a smaller") if self.way else ("", "Take a smaller")
        return (
            f"The result is too far from the original{way}: {'; '.join(causes)}. {advice} --sub-vector or more "
            "--codewords, a larger size, more training (--minutes), or leave layers out (--exclude); --floor sets how "
            "much may be lost."
        )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
