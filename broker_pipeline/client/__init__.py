"""The client: deploys pipelines, writes to their instances, reads what leaves them."""
