"""Which slices to annotate next."""
