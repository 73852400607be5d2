"""Which init is best here? Short fits of the user's own model, compared on paired seeds."""
