"""The states that come and go with the calls of a module that is hosted for somebody else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from broker_pipeline.errors import StateError
from broker_pipeline.modules import Module, is_stateful, state_type, walk


class StateCodec:
    """The states of all stateful modules inside, as one blob."""

    def __init__(self, module: Module[Any]) -> None:
        self._types = {
            path: state_type(inner) for path, inner in walk([module]) if is_stateful(inner)
        }
        self._decode = msgspec.msgpack.Decoder(dict[str, bytes]).decode

    def unpack(self, raw: bytes) -> dict[str, object]:
        """States by the path of their module. Raises StateError."""
        try:
            return {
                path: msgspec.msgpack.decode(state, type=self._types[path] or Any)
                for path, state in self._decode(raw).items()
            }
        except (ValueError, RecursionError, KeyError) as error:
            raise StateError(
                f"a state of {len(raw)} bytes is none of this module ({type(error).__name__}: "
                f"{error}); expected what RunResponse.state said after the package before: do not "
                f"change the module's states while instances are open"
            ) from error

    def pack(self, states: Mapping[str, object]) -> bytes:
        """The blob. Raises StateError."""
        try:
            return msgspec.msgpack.encode(
                {path: msgspec.msgpack.encode(state) for path, state in states.items()}
            )
        except Exception as error:  # a state is the user's, and so may be what encodes it
            raise StateError(
                f"the state after a package cannot be encoded ({type(error).__name__}: {error}); "
                f"expected a msgspec.Struct or bytes"
            ) from error
