"""Schemes that look at each output channel on one batch."""
