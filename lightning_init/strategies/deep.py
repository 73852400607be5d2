"""Very deep transformers: scaled by the number of layers, so that none dominates."""
