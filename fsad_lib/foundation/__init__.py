"""What is pretrained: CLIP, diffusion models, image backbones, and the learned words that go into them."""
