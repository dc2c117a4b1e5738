"""The paper's evaluation: see docs/evaluation.md."""
