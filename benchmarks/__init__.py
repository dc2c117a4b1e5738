"""What onnxpq reaches, measured: `python -m benchmarks` lists the scripts, README.md has the figures."""
