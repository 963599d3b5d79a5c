"""One package in one phase, run again under your eyes."""
