"""How the miniature foundation models were made: the image pool, the captions and the training loops."""
