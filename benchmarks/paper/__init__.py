"""The paper's evaluation, reproduced and extended: methods that compress fully-connected layers, at equal bytes.

    python -m benchmarks.paper run         # every row that is not stored yet
    python -m benchmarks.paper tables      # docs/evaluation/ from the stored rows

What is compared, and how to read it: docs/evaluation.md.
"""
