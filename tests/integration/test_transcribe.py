"""The examples as a newcomer runs them: a real broker, real processes, real speech."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from broker_pipeline import connect
from examples.shout import pipeline as shout

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` at the root of the repository."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.fixture
def speech() -> None:
    for package in ("onnxruntime", "soundfile", "soxr"):
        pytest.importorskip(package, reason="needs the extra 'transcribe'")


@pytest.mark.usefixtures("speech")
def test_the_demo_transcribes_the_recording_and_says_what_happened() -> None:
    """Nothing lost, doubled or out of order, at most 10 % of the words wrong: exit code 0."""
    done = run("-m", "examples.transcribe.demo", "--speed", "max")
    assert done.returncode == 0, done.stderr
    assert "FAILED" not in done.stderr
    lines = done.stdout.splitlines()
    texts = [line for line in lines if re.match(r"room-1 +\d", line)]
    assert "It was the best of times" in texts[0]
    assert "degree of comparison only" in texts[-1]
    packages = next(line for line in lines if line.startswith("packages"))
    assert f"452 sent, 452 left: 445 EXIT, {len(texts)} SUCCESS" in packages
    assert any(line.startswith("captions   452 sent, 452 left") for line in lines)
    assert any("median" in line for line in lines)
    assert any("Recognise SUCCESS" in line for line in lines)


@pytest.mark.usefixtures("speech")
def test_module_servers_that_die_and_hang_change_no_word() -> None:
    """Three of them recognise; one is killed and one stopped in the middle: the texts are those of
    a run without any, in order, none lost."""
    demo = ("-m", "examples.transcribe.demo", "--speed", "max")
    alone, harmed = run(*demo), run(*demo, "--servers", "3", "--harm")
    assert (alone.returncode, harmed.returncode) == (0, 0), harmed.stderr
    assert "was killed" in harmed.stderr
    texts = [
        [
            re.sub(r"[+]\S+ s", "", line)
            for line in done.stdout.splitlines()
            if line[:7] == "room-1 "
        ]
        for done in (alone, harmed)
    ]
    assert len(texts[0]) == 7
    assert texts[1] == texts[0]
    assert "452 sent, 452 left: 445 EXIT, 7 SUCCESS" in harmed.stdout
    # In the journey: who relayed it to which server, and what ran there.
    assert re.search(r"recogniser on \S+ SUCCESS.*\n.*Recognise SUCCESS", harmed.stdout)


@pytest.mark.usefixtures("speech")
def test_rooms_are_transcribed_side_by_side() -> None:
    """Each in its own order, complete."""
    done = run(
        "-m", "examples.transcribe.demo", "--speed", "max", "--rooms", "3", "--stagger", "0.2"
    )
    assert done.returncode == 0, done.stderr
    assert "1356 sent, 1356 left" in done.stdout
    assert len(re.findall(r"^words +room-\d", done.stdout, re.MULTILINE)) == 3


@pytest.mark.usefixtures("speech")
def test_a_file_that_is_no_audio_is_one_clear_line(tmp_path: Path) -> None:
    """Exit code 2, before anything is started."""
    for file in (ROOT / "pyproject.toml", tmp_path / "missing.wav"):
        done = run("-m", "examples.transcribe.demo", str(file))
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert file.name in done.stderr


@pytest.mark.usefixtures("speech")
def test_workers_that_cannot_load_their_model_end_the_demo() -> None:
    """Exit code 1, with what they said."""
    done = run("-m", "examples.transcribe.demo", TRANSCRIBE_ENGINE="parrot")
    assert done.returncode == 1
    assert "expected 'moonshine' or 'whisper'" in done.stderr


def test_shout_runs_by_itself() -> None:
    """A broker of its own, controller and worker in the process."""
    done = run("-m", "examples.shout", "hello", "", "world")
    assert done.returncode == 0, done.stderr
    left = set(done.stdout.splitlines()[-3:])
    assert left == {
        "1 SUCCESS 'HELLO' upper-cased",
        "2 EXIT '' empty",
        "3 SUCCESS 'WORLD' upper-cased",
    }


async def test_plain_nats_feeds_a_pipeline_and_reads_its_results_in_order() -> None:
    """Without this package: raw bytes in, what leaves in the order of the log."""
    async with connect() as client:
        await client.deploy(shout)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "examples/plain_nats.py", "shout", "room-1", "a", "b", "c"),
            cwd=ROOT,
            env={**os.environ, "NATS_URL": client.url},
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    lines = [line.split() for line in out.decode().splitlines()]
    assert [line[1] for line in lines] == ["bp.shout.0.out.success.room-1"] * 3
    places = [int(line[0]) for line in lines]
    assert places == sorted(places)
