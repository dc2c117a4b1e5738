"""Tools that know nothing of models: memory, files, units, digits, hashes. Each module stands by itself."""

__all__ = ["checks", "device", "figures", "fingerprint", "kinds", "memory", "units", "writing"]
