"""The identity and its relatives: layers that pass their input on at the start."""
