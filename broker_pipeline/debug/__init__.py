"""What happened, and how to run it again; and how a pipeline is at work now."""
