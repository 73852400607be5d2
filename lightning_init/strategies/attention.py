"""The matrices of attention: scaled by heads, or shaped as trained ones are."""
