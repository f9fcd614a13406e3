"""Networks, moving averages and the alignment of feature maps."""
