"""The bridge role, `python -m workers.bridge TARGET`."""

import sys

from broker_pipeline.cli.main import main

if __name__ == "__main__":
    main(["bridge", *sys.argv[1:]])
