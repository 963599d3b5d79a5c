from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATUS_UNSPECIFIED: _ClassVar[Status]
    STATUS_RUNNING: _ClassVar[Status]
    STATUS_WAITING: _ClassVar[Status]
    STATUS_WAITING_OUTPUT: _ClassVar[Status]
    STATUS_SUCCESS: _ClassVar[Status]
    STATUS_EXIT: _ClassVar[Status]
    STATUS_ERROR: _ClassVar[Status]
    STATUS_OVERFLOW: _ClassVar[Status]
    STATUS_OUTDATED: _ClassVar[Status]

class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODE_UNSPECIFIED: _ClassVar[Mode]
    MODE_NOT_PARALLEL: _ClassVar[Mode]
    MODE_NO_ORDER: _ClassVar[Mode]
    MODE_ORDER_BY_SEQUENCE: _ClassVar[Mode]
    MODE_FIRST_WINS: _ClassVar[Mode]
STATUS_UNSPECIFIED: Status
STATUS_RUNNING: Status
STATUS_WAITING: Status
STATUS_WAITING_OUTPUT: Status
STATUS_SUCCESS: Status
STATUS_EXIT: Status
STATUS_ERROR: Status
STATUS_OVERFLOW: Status
STATUS_OUTDATED: Status
MODE_UNSPECIFIED: Mode
MODE_NOT_PARALLEL: Mode
MODE_NO_ORDER: Mode
MODE_ORDER_BY_SEQUENCE: Mode
MODE_FIRST_WINS: Mode

class Error(_message.Message):
    __slots__ = ("type", "message", "traceback", "host", "worker", "path", "details")
    class DetailsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    type: str
    message: str
    traceback: str
    host: str
    worker: str
    path: str
    details: _containers.ScalarMap[str, str]
    def __init__(self, type: _Optional[str] = ..., message: _Optional[str] = ..., traceback: _Optional[str] = ..., host: _Optional[str] = ..., worker: _Optional[str] = ..., path: _Optional[str] = ..., details: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ModuleRecord(_message.Message):
    __slots__ = ("name", "status", "start_offset_ns", "waiting_time_ns", "total_time_ns", "message", "error", "sub_modules", "server")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    START_OFFSET_NS_FIELD_NUMBER: _ClassVar[int]
    WAITING_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SUB_MODULES_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    name: str
    status: Status
    start_offset_ns: int
    waiting_time_ns: int
    total_time_ns: int
    message: str
    error: int
    sub_modules: _containers.RepeatedCompositeFieldContainer[ModuleRecord]
    server: str
    def __init__(self, name: _Optional[str] = ..., status: _Optional[_Union[Status, str]] = ..., start_offset_ns: _Optional[int] = ..., waiting_time_ns: _Optional[int] = ..., total_time_ns: _Optional[int] = ..., message: _Optional[str] = ..., error: _Optional[int] = ..., sub_modules: _Optional[_Iterable[_Union[ModuleRecord, _Mapping]]] = ..., server: _Optional[str] = ...) -> None: ...

class PhaseRecord(_message.Message):
    __slots__ = ("name", "status", "worker", "start_time_ns", "total_time_ns", "modules", "state_stream_seq")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    START_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    STATE_STREAM_SEQ_FIELD_NUMBER: _ClassVar[int]
    name: str
    status: Status
    worker: str
    start_time_ns: int
    total_time_ns: int
    modules: _containers.RepeatedCompositeFieldContainer[ModuleRecord]
    state_stream_seq: int
    def __init__(self, name: _Optional[str] = ..., status: _Optional[_Union[Status, str]] = ..., worker: _Optional[str] = ..., start_time_ns: _Optional[int] = ..., total_time_ns: _Optional[int] = ..., modules: _Optional[_Iterable[_Union[ModuleRecord, _Mapping]]] = ..., state_stream_seq: _Optional[int] = ...) -> None: ...

class ControllerRecord(_message.Message):
    __slots__ = ("name", "mode", "sequence", "status", "start_time_ns", "input_waiting_time_ns", "output_waiting_time_ns", "total_time_ns", "phases", "previous_sequences")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    START_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    INPUT_WAITING_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_WAITING_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    name: str
    mode: Mode
    sequence: int
    status: Status
    start_time_ns: int
    input_waiting_time_ns: int
    output_waiting_time_ns: int
    total_time_ns: int
    phases: _containers.RepeatedCompositeFieldContainer[PhaseRecord]
    previous_sequences: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., mode: _Optional[_Union[Mode, str]] = ..., sequence: _Optional[int] = ..., status: _Optional[_Union[Status, str]] = ..., start_time_ns: _Optional[int] = ..., input_waiting_time_ns: _Optional[int] = ..., output_waiting_time_ns: _Optional[int] = ..., total_time_ns: _Optional[int] = ..., phases: _Optional[_Iterable[_Union[PhaseRecord, _Mapping]]] = ..., previous_sequences: _Optional[_Iterable[int]] = ...) -> None: ...

class PayloadReference(_message.Message):
    __slots__ = ("bucket", "object", "size")
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    bucket: str
    object: str
    size: int
    def __init__(self, bucket: _Optional[str] = ..., object: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class DataPackage(_message.Message):
    __slots__ = ("id", "pipeline", "shard", "instance", "epoch", "sequence", "content_type", "data", "attributes", "outcome", "start_time_ns", "end_time_ns", "controllers", "errors", "reference")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    END_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    CONTROLLERS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    id: int
    pipeline: str
    shard: int
    instance: str
    epoch: int
    sequence: int
    content_type: str
    data: bytes
    attributes: _containers.ScalarMap[str, str]
    outcome: Status
    start_time_ns: int
    end_time_ns: int
    controllers: _containers.RepeatedCompositeFieldContainer[ControllerRecord]
    errors: _containers.RepeatedCompositeFieldContainer[Error]
    reference: PayloadReference
    def __init__(self, id: _Optional[int] = ..., pipeline: _Optional[str] = ..., shard: _Optional[int] = ..., instance: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., content_type: _Optional[str] = ..., data: _Optional[bytes] = ..., attributes: _Optional[_Mapping[str, str]] = ..., outcome: _Optional[_Union[Status, str]] = ..., start_time_ns: _Optional[int] = ..., end_time_ns: _Optional[int] = ..., controllers: _Optional[_Iterable[_Union[ControllerRecord, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[Error, _Mapping]]] = ..., reference: _Optional[_Union[PayloadReference, _Mapping]] = ...) -> None: ...
