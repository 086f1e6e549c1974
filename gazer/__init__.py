"""gazer: a passive DNS sensor."""

__version__ = "0.1.0"
