"""What happened to many, in one file: chosen, recorded, read."""
