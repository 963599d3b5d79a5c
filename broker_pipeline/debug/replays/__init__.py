"""What was recorded, run again and compared."""
