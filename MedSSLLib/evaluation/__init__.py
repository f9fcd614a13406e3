"""Comparing segmentations with references: metrics, calibration, intervals."""
