"""The worker role, `python -m workers.worker TARGET`."""

import sys

from broker_pipeline.cli.main import main

if __name__ == "__main__":
    main(["worker", *sys.argv[1:]])
