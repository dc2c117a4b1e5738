"""What runs at all."""
