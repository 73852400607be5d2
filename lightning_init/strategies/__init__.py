"""What should its weights be? Named strategies, plans, and the one function that writes."""
