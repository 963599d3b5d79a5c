"""`python -m broker_pipeline`: the command line."""

from broker_pipeline.cli.main import main

if __name__ == "__main__":
    main()
