"""The demonstration: simulated patients from an atlas, and the whole loop on them."""
