"""A real Prometheus with the files of infra/, as a process of a test."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.integration.processes import BOUND_S
from tests.integration.proxies import find
from tests.monitoring import INFRA

SCRAPE_S = 1
STATIC = "          - 127.0.0.1:9464\n          - 127.0.0.1:9465\n"
MISSING = "prometheus is not installed: make tools"
installed = find("prometheus") is not None and find("promtool") is not None


def promtool(*arguments: str) -> str:
    """What it says; an AssertionError with that where it refuses."""
    program = find("promtool")
    assert program is not None
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def local_copy(directory: Path, listed: Sequence[str], filed: Sequence[str]) -> Path:
    """The shipped configuration and rules, scraping often: some roles are in it, others in a
    file."""
    text = (INFRA / "prometheus" / "prometheus.yml").read_text()
    assert STATIC in text
    text = text.replace(STATIC, "".join(f"          - {each}\n" for each in listed))
    text = re.sub(r"(_interval|_timeout): 1\ds", rf"\1: {SCRAPE_S}s", text)
    (directory / "prometheus.yml").write_text(text)
    shutil.copy(INFRA / "prometheus" / "rules.yml", directory)
    (directory / "targets").mkdir()
    groups = [{"targets": list(filed), "labels": {"site": "here"}}]
    (directory / "targets" / "roles.json").write_text(json.dumps(groups))
    return directory / "prometheus.yml"


class Prometheus:
    """One that runs.

    Attributes:
        url: of its API.
        begun: when it was started, Unix time.
    """

    def __init__(self, process: asyncio.subprocess.Process, url: str, reading: Any) -> None:
        self.url = url
        self.begun = time.time()
        self._process = process
        self._reading = reading

    @classmethod
    async def start(cls, config: Path) -> Prometheus:
        """Start it on a free port, and wait until it answers."""
        program = find("prometheus")
        assert program is not None
        process = await asyncio.create_subprocess_exec(
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={config.parent}/data",
            "--web.listen-address=127.0.0.1:0",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        said, address = "", None
        async with asyncio.timeout(BOUND_S):
            async for line in process.stderr:
                said += line.decode()
                address = re.search(r'msg="Listening on" address=(\S+)', said)
                if address and "Server is ready to receive web requests" in said:
                    reading = asyncio.create_task(process.stderr.read())
                    return cls(process, f"http://{address[1]}", reading)
        raise AssertionError(f"Prometheus ended: {said[-2000:]}")

    async def end(self) -> None:
        """Kill it: nothing of it is needed any more."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._reading

    def get(self, path: str, **parameters: object) -> Any:
        """What its API answers. Raises AssertionError with the error that it says."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                said = json.load(error)
        raise AssertionError(f"{said['error']}: {parameters}")

    def values(self, expr: str) -> list[tuple[dict[str, str], list[float]]]:
        """What an expression gave at each scrape since it began: labels and numbers. Series that
        never had one are left out."""
        found = self.get(
            "query_range", query=expr, start=self.begun, end=time.time(), step=SCRAPE_S
        )
        series = [
            (each["metric"], [float(value) for _, value in each["values"]])
            for each in found["result"]
        ]
        kept = [
            (labels, [value for value in values if not math.isnan(value)])
            for labels, values in series
        ]
        return [(labels, values) for labels, values in kept if values]
