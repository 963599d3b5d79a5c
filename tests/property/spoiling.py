"""Ways to spoil valid bytes, for Hypothesis, for seeded runs and for the coverage-guided fuzzer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from broker_pipeline._proto.v1 import data_package_pb2 as pb

Pick = Callable[[int, int], int]
"""A number from the first to the second, both included."""

DEEP = 200
"""Levels of nesting: twice what protobuf takes, and more than a stack frame or two."""


def _nested() -> bytes:
    """A package whose modules are nested deeper than protobuf reads."""
    raw = b""
    for _ in range(DEEP):
        raw = b"\x42" + _varint(len(raw)) + raw  # ModuleRecord.sub_modules
    for tag in (b"\x32", b"\x4a", b"\x6a"):  # PhaseRecord.modules, .phases, .controllers
        raw = tag + _varint(len(raw)) + raw
    return raw


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


HOSTILE: Sequence[bytes] = (
    b"",
    b"\x00",
    b"\xff",
    b"\xc3\x28",  # no UTF-8
    b"\xed\xa0\x80",  # a lone surrogate
    b"\r\n",
    b"\xff" * 10,  # a varint that does not end in time
    b"\xff" * 9 + b"\x01",  # 2**64 - 1
    b"\x80" * 9 + b"\x01",  # 2**63
    b"\x0b" * DEEP,  # groups in groups
    _nested(),
    b"\xdd\xff\xff\xff\xff",  # MessagePack: an array, a map and bytes of 4 G
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\x91" * 2_000,
    b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",  # NaN
    b"[" * 2_000,
    b'{"a":' * 2_000,
    b"NaN",
    b"1e999",
    b"-1",
    b"-0",
    b"9223372036854775808",
    b"18446744073709551616",
    b"9" * 5_000,
    b"null",
    b"a" * 100_000,
)


def spoil(raw: bytes, pick: Pick) -> bytes:
    """Valid bytes with one to three things wrong with them."""
    spoiled = bytearray(raw)
    for _ in range(pick(1, 3)):
        at, to = sorted((pick(0, len(spoiled)), pick(0, len(spoiled))))
        how = pick(0, 5)
        if how == 0 and spoiled:
            spoiled[min(at, len(spoiled) - 1)] ^= 1 << pick(0, 7)
        elif how == 1:
            del spoiled[at:]
        elif how == 2:
            spoiled[at:at] = spoiled[at:to][:1_000]
        elif how == 3:
            spoiled[at:to] = HOSTILE[pick(0, len(HOSTILE) - 1)]
        elif how == 4:
            spoiled[at:at] = HOSTILE[pick(0, len(HOSTILE) - 1)]
        elif spoiled:
            spoiled[min(at, len(spoiled) - 1)] = pick(0, 255)
    return bytes(spoiled)


@st.composite
def spoiled(draw: st.DrawFn, valid: st.SearchStrategy[bytes]) -> bytes:
    """What `valid` gives, spoiled; now and then as it was, or something that never was valid."""
    raw = draw(st.one_of(valid, st.binary(max_size=100), st.sampled_from(HOSTILE)))
    if draw(st.integers(0, 7)) == 0:
        return raw
    return spoil(raw, lambda low, high: draw(st.integers(low, high)))


def travelled(phases: int = 2, status: int = pb.STATUS_SUCCESS) -> pb.DataPackage:
    """A package as a worker gives it back, with something in every field."""
    package = pb.DataPackage(
        id=2, pipeline="demo", shard=0, instance="a", epoch=2, sequence=1,
        content_type="application/json", data=b'{"a": [1, 2.5, null]}', attributes={"k": "v"},
        start_time_ns=5,
    )  # fmt: skip
    record = package.controllers.add(
        name="c0", mode=pb.MODE_ORDER_BY_SEQUENCE, sequence=1, status=pb.STATUS_RUNNING,
        start_time_ns=6, input_waiting_time_ns=1, previous_sequences=[0, 0],
    )  # fmt: skip
    for number in range(phases):
        phase = record.phases.add(
            name=f"p{number}", status=status, worker="w", start_time_ns=7, total_time_ns=2
        )
        module = phase.modules.add(name="m", status=status, message="done", error=1)
        module.sub_modules.add(name="inner", status=status, total_time_ns=1)
    package.errors.add(type="ValueError", message="x", traceback="t", host="h", worker="w")
    return package
