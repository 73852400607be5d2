"""What is this model? Parameters described by use, and the signals of a model at work."""
