"""How is it doing? Readings in, findings out: symptom, place, likely cause, remedy."""
