"""Which one package somebody means: by its id, by its place, or by how it left."""

from __future__ import annotations

from dataclasses import dataclass

from broker_pipeline.core.names import escape_instance
from broker_pipeline.debug.inspection.finding import Finder
from broker_pipeline.debug.inspection.history import parse_package_id
from broker_pipeline.debug.recordings.recorded_rows import RecordedRows
from broker_pipeline.errors import ClientError, SelectionError, UnknownPackageError
from broker_pipeline.journey import Outcome

_EXPECTED = (
    "expected one of: a package's id; --instance with --sequence; --error N, 1 for the oldest "
    "ERROR and -1 for the newest; --last"
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One package.

    Args:
        package_id: `pipeline/shard/number`.
        instance: a name; with `sequence` a place, else whose packages `error` and `last` count.
        sequence: the sequence id in the instance.
        epoch: in which life of it; None: the newest that has it.
        error: the n-th ERROR: 1 is the oldest, -1 the newest.
        last: the newest that left.

    Raises:
        SelectionError: that names no package, or several ways to one.
    """

    package_id: str | None = None
    instance: str | None = None
    sequence: int | None = None
    epoch: int | None = None
    error: int | None = None
    last: bool = False

    def __post_init__(self) -> None:
        given = (self.package_id, self.sequence, self.error, self.last or None)
        ways = [each for each in given if each is not None]
        if len(ways) != 1:
            said = "several packages are named" if ways else "no package is named"
            raise SelectionError(f"{said}; {_EXPECTED}")
        if self.sequence is not None and self.instance is None:
            raise SelectionError(f"a sequence id alone names no package; {_EXPECTED}")
        if self.package_id is not None and self.instance is not None:
            raise SelectionError(f"a package's id says of which instance it is; {_EXPECTED}")
        if self.epoch is not None and self.sequence is None:
            raise SelectionError(f"a life alone names no package: give --sequence; {_EXPECTED}")
        if self.error == 0:
            raise SelectionError(f"there is no ERROR 0; {_EXPECTED}")

    async def in_log(self, finder: Finder) -> int:
        """Its number. Raises UnknownPackageError, and as `Finder` does."""
        if self.package_id is not None:
            return finder.by_id(self.package_id)
        token = self._token
        if self.sequence is not None and token is not None:
            return await finder.by_sequence(token, self.sequence, self.epoch)
        if self.error is not None:
            return await finder.nth(Outcome.ERROR, self.error, token)
        return await finder.nth(None, -1, token)

    def in_recording(self, recording: RecordedRows) -> int:
        """Its number. Raises UnknownPackageError, RecordingError."""
        if self.package_id is not None:
            return parse_package_id(self.package_id, recording.meta.pipeline)[1]
        token = self._token
        if self.sequence is not None and token is not None:
            found = recording.find(token, self.sequence, self.epoch)
        elif self.error is not None:
            found = recording.nth(Outcome.ERROR, self.error, token)
        else:
            found = recording.nth(None, -1, token)
        if found is None:
            raise UnknownPackageError(
                f"the recording {str(recording.path)!r} has no such package; expected one of "
                f"those in it: `broker-pipeline recording` says what it holds"
            )
        return found

    @property
    def _token(self) -> str | None:
        try:
            return None if self.instance is None else escape_instance(self.instance)
        except ClientError as error:
            raise SelectionError(f"no instance can be named so: {error}") from error
