"""TGVIG (Lee and Choi, CVPR 2024): text-guided variational image generation of further normal images."""
