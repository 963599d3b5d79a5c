"""A module server, `python -m workers.serve TARGET`."""

import sys

from broker_pipeline.cli.main import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
