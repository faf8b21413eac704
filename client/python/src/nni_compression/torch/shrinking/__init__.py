"""Smaller dense models without the filters that masks remove."""
