"""Using a model: sliding windows, predictions on the source grid, features, estimated quality."""
