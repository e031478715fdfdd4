"""Few-shot anomaly detection with a personalised text-to-image model and its text encoder."""

__version__ = "0.1.0"
