"""Inside a Trainer: when weights may change, what is watched, what is said."""
