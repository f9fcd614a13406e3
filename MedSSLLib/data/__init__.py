"""From scans to batches: plan, preprocessing, cache, samplers, views."""
