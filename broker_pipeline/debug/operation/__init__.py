"""A pipeline at work: what it does now, and what is wrong with it."""
