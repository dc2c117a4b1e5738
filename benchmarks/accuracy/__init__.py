"""What models lose at a size."""
