"""Models to and from elsewhere: TorchScript, ONNX, MONAI bundles, foreign weights."""
