"""The controller role, `python -m workers.controller TARGET`."""

import sys

from broker_pipeline.cli.main import main

if __name__ == "__main__":
    main(["controller", *sys.argv[1:]])
