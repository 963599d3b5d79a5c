"""Everything on one machine, `python -m workers.up TARGET`."""

import sys

from broker_pipeline.cli.main import main

if __name__ == "__main__":
    main(["up", *sys.argv[1:]])
