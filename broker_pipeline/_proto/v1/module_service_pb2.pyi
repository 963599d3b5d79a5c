from broker_pipeline._proto.v1 import data_package_pb2 as _data_package_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("description",)
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    description: Description
    def __init__(self, description: _Optional[_Union[Description, _Mapping]] = ...) -> None: ...

class Description(_message.Message):
    __slots__ = ("name", "version", "server", "content_types", "capacity", "stateful", "message_bytes_max", "references", "heartbeat_ns")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPES_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    STATEFUL_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_NS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    server: str
    content_types: _containers.RepeatedScalarFieldContainer[str]
    capacity: int
    stateful: bool
    message_bytes_max: int
    references: bool
    heartbeat_ns: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., server: _Optional[str] = ..., content_types: _Optional[_Iterable[str]] = ..., capacity: _Optional[int] = ..., stateful: _Optional[bool] = ..., message_bytes_max: _Optional[int] = ..., references: _Optional[bool] = ..., heartbeat_ns: _Optional[int] = ...) -> None: ...

class RunRequest(_message.Message):
    __slots__ = ("call", "package", "timeout_ns", "state", "traceparent")
    CALL_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_NS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    call: int
    package: _data_package_pb2.DataPackage
    timeout_ns: int
    state: bytes
    traceparent: str
    def __init__(self, call: _Optional[int] = ..., package: _Optional[_Union[_data_package_pb2.DataPackage, _Mapping]] = ..., timeout_ns: _Optional[int] = ..., state: _Optional[bytes] = ..., traceparent: _Optional[str] = ...) -> None: ...

class RunResponse(_message.Message):
    __slots__ = ("call", "package", "status", "payload", "message", "modules", "errors", "state", "load", "total_time_ns")
    CALL_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    call: int
    package: int
    status: _data_package_pb2.Status
    payload: Payload
    message: str
    modules: _containers.RepeatedCompositeFieldContainer[_data_package_pb2.ModuleRecord]
    errors: _containers.RepeatedCompositeFieldContainer[_data_package_pb2.Error]
    state: bytes
    load: Load
    total_time_ns: int
    def __init__(self, call: _Optional[int] = ..., package: _Optional[int] = ..., status: _Optional[_Union[_data_package_pb2.Status, str]] = ..., payload: _Optional[_Union[Payload, _Mapping]] = ..., message: _Optional[str] = ..., modules: _Optional[_Iterable[_Union[_data_package_pb2.ModuleRecord, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[_data_package_pb2.Error, _Mapping]]] = ..., state: _Optional[bytes] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., total_time_ns: _Optional[int] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("data", "content_type", "attributes", "reference")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DATA_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    content_type: str
    attributes: _containers.ScalarMap[str, str]
    reference: _data_package_pb2.PayloadReference
    def __init__(self, data: _Optional[bytes] = ..., content_type: _Optional[str] = ..., attributes: _Optional[_Mapping[str, str]] = ..., reference: _Optional[_Union[_data_package_pb2.PayloadReference, _Mapping]] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("running", "waiting", "run_time_ns")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    RUN_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    run_time_ns: int
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., run_time_ns: _Optional[int] = ...) -> None: ...

class StreamRequest(_message.Message):
    __slots__ = ("requests", "cancelled")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RunRequest]
    cancelled: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, requests: _Optional[_Iterable[_Union[RunRequest, _Mapping]]] = ..., cancelled: _Optional[_Iterable[int]] = ...) -> None: ...

class StreamResponse(_message.Message):
    __slots__ = ("responses", "credit", "load", "description")
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    responses: _containers.RepeatedCompositeFieldContainer[RunResponse]
    credit: int
    load: Load
    description: Description
    def __init__(self, responses: _Optional[_Iterable[_Union[RunResponse, _Mapping]]] = ..., credit: _Optional[int] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., description: _Optional[_Union[Description, _Mapping]] = ...) -> None: ...
