"""A base and a fine-tune of it, trained on the spot, and what compression keeps of the latter."""
