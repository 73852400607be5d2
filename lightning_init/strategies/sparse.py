"""Pruned layers, and layers that will be."""
