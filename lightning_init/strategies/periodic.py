"""Layers before a sine."""
