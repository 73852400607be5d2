"""Recurrent nets: a recipe per gate."""
