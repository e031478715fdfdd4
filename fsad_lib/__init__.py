"""Few-shot anomaly detection with a personalised text-to-image model and its text encoder."""

import warnings

# Without ipywidgets, tqdm says so in every notebook; no progress bar is shown there anyway.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"
