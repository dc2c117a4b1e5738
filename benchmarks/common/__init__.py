"""Data, models and results, for all groups."""
