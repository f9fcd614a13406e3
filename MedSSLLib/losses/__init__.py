"""Loss functions and rules for gradients, without state."""
