"""Few-shot anomaly detection with text-to-image and vision-language models: ADP, AnomalySD and TGVIG; see README.md."""

import warnings

# Without ipywidgets, tqdm says so in every notebook; no progress bar is shown there anyway.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"
