"""hjepa: hierarchical joint-embedding predictive architectures, composed from plugins."""

__version__ = "0.1.0"
