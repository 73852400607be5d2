"""Weights from a file: of the same model, of a similar one, of a larger one."""
