"""Nodes of the scene: cases, annotations, results, views."""
