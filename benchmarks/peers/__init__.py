"""What other tools make of the same models."""
