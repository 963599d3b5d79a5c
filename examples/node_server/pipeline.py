"""A pipeline whose module is served by Node.js: README.md beside this file says how to run it."""

import os

from broker_pipeline import Controller, ExternalModule, ExternalOptions, Mode, Phase, Pipeline

TARGET = os.environ.get("WORDS_TARGET", "localhost:50061")

pipeline = Pipeline(
    "words",
    [
        Controller(
            "count",
            mode=Mode.ORDER_BY_SEQUENCE,
            phases=[
                Phase(
                    "words",
                    [
                        ExternalModule(
                            "words",
                            target=TARGET,
                            # Counting twice does no harm: when a server dies its packages go to
                            # another, and do not leave as ERROR.
                            options=ExternalOptions(timeout_s=30, idempotent=True),
                        )
                    ],
                )
            ],
        ),
    ],
)
