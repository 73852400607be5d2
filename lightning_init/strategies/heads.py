"""Output layers that start at what the labels are on average."""
