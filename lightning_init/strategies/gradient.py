"""Schemes that learn the scale of each tensor by gradient descent."""
