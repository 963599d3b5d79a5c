"""The pure core: every decision, and nothing that waits, reads a clock or talks to anyone."""
