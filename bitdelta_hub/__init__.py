"""Fine-tuned models as small, verified differences from their base."""

__version__ = "0.1.0"
