"""Self-supervised pre-training of an encoder with any method."""
