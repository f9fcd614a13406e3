"""The only door to image files: reading, geometry, labels, pieces."""
