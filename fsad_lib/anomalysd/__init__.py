"""AnomalySD (Yan et al., arXiv 2408.01960): a fine-tuned inpainting model repaints what is masked as normal; see README.md here."""
