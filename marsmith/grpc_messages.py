"""TorchServe's gRPC messages, described here instead of generated, and by field number only.

The numbers are those of TorchServe's ``inference.proto`` and ``management.proto``; fields that
marsmith does not use are left out. The wire carries no names, so one package is enough for both.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, empty_pb2, message_factory

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
    "bool": _Field.TYPE_BOOL,
}
_NAME, _VERSION = ("model_name", "string", 1), ("model_version", "string", 2)
_MESSAGES = {
    # A map is a repeated message of key and value on the wire
    "Input": [("key", "string", 1), ("value", "bytes", 2)],
    "PredictionsRequest": [_NAME, _VERSION, ("input", "Input", 3)],
    "PredictionResponse": [("prediction", "bytes", 1)],
    "TorchServeHealthResponse": [("health", "string", 1)],
    "ManagementResponse": [("msg", "string", 1)],
    "DescribeModelRequest": [_NAME, _VERSION, ("customized", "bool", 3)],
    "ListModelsRequest": [("limit", "int32", 1), ("next_page_token", "int32", 2)],
    "RegisterModelRequest": [("synchronous", "bool", 8), ("url", "string", 9)],
    "SetDefaultRequest": [_NAME, _VERSION],
    "UnregisterModelRequest": [_NAME, _VERSION],
    "ScaleWorkerRequest": [
        _NAME,
        _VERSION,
        ("max_worker", "int32", 3),
        ("min_worker", "int32", 4),
        ("synchronous", "bool", 6),
    ],
}


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="ts.proto", package="ts", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, kind, number in fields:
            if kind in _SCALARS:
                message.field.add(name=field, number=number, type=_SCALARS[kind], label=1)
            else:
                message.field.add(name=field, number=number, type_name=f".ts.{kind}", label=3)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    find = pool.FindMessageTypeByName
    return {name: message_factory.GetMessageClass(find(f"ts.{name}")) for name in _MESSAGES}


CLASSES = {**_classes(), "Empty": empty_pb2.Empty}
"""Message classes by name; bytes come from ``SerializeToString()``, and go to ``FromString``."""
