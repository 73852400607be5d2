"""Residual branches without normalization: what ends a branch starts small, or at zero."""
