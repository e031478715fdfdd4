"""ADP: few-shot anomaly detection via personalization (Kwak et al. 2023); see README.md here."""
