"""ADP: few-shot anomaly detection via personalization (Kwak et al. 2023); README.md in this folder tells it on one page."""
