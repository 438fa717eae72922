#!/usr/bin/env python3
"""Calls any method of any server that has reflection, without its .proto files.

    generic.py [--server HOST:PORT]                       lists services and methods
    generic.py [--server HOST:PORT] SERVICE/METHOD JSON   prints each answer as a line of JSON

Needs grpcio and protobuf alone. The package grpcio-reflection has the first class of this file as
ProtoReflectionDescriptorDatabase.
"""
import argparse
import json
import sys

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

# What is needed of grpc/reflection/v1alpha/reflection.proto: message, field, number, type, repeated.
REFLECTION = "grpc.reflection.v1alpha"
FIELDS = [
    ("ServerReflectionRequest", "file_by_filename", 3, "string", False),
    ("ServerReflectionRequest", "file_containing_symbol", 4, "string", False),
    ("ServerReflectionRequest", "list_services", 7, "string", False),
    ("ServerReflectionResponse", "file_descriptor_response", 4, "FileDescriptorResponse", False),
    ("ServerReflectionResponse", "list_services_response", 6, "ListServiceResponse", False),
    ("ServerReflectionResponse", "error_response", 7, "ErrorResponse", False),
    ("FileDescriptorResponse", "file_descriptor_proto", 1, "bytes", True),
    ("ListServiceResponse", "service", 1, "ServiceResponse", True),
    ("ServiceResponse", "name", 1, "string", False),
    ("ErrorResponse", "error_code", 1, "int32", False),
    ("ErrorResponse", "error_message", 2, "string", False),
]


def message_class(pool, name):
    descriptor = pool.FindMessageTypeByName(name)
    if hasattr(message_factory, "GetMessageClass"):  # protobuf 4.22 and later
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(pool).GetPrototype(descriptor)


def reflection_pool():
    file = descriptor_pb2.FileDescriptorProto(
        name="reflection.proto", package=REFLECTION, syntax="proto3"
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    messages = {}
    for message, name, number, kind, repeated in FIELDS:
        if message not in messages:
            messages[message] = file.message_type.add(name=message)
            if message == "ServerReflectionRequest":
                messages[message].oneof_decl.add(name="message_request")
        field = messages[message].field.add(name=name, number=number)
        if message == "ServerReflectionRequest":  # a oneof, so that an empty string counts
            field.oneof_index = 0
        field.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
        if kind in ("string", "bytes", "int32"):
            field.type = getattr(kinds, "TYPE_" + kind.upper())
        else:
            field.type = kinds.TYPE_MESSAGE
            field.type_name = f".{REFLECTION}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


class Reflection:
    """The services of a server and the types of their messages, as the server describes them."""

    def __init__(self, channel):
        own = reflection_pool()
        self._request = message_class(own, f"{REFLECTION}.ServerReflectionRequest")
        self._call = channel.stream_stream(
            f"/{REFLECTION}.ServerReflection/ServerReflectionInfo",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=message_class(
                own, f"{REFLECTION}.ServerReflectionResponse"
            ).FromString,
        )
        self.pool = descriptor_pool.DescriptorPool()
        self._known = set()

    def _ask(self, **request):
        response = next(self._call(iter([self._request(**request)])))
        if response.error_response.error_code:
            raise LookupError(f"{request}: {response.error_response.error_message}")
        return response

    def services(self):
        response = self._ask(list_services="")
        return [service.name for service in response.list_services_response.service]

    def _add(self, response):
        """Adds files, those that they import first."""
        files = {}
        for serialized in response.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
            files[file.name] = (file, serialized)

        def add(name):
            if name in self._known:
                return
            if name not in files:
                self._add(self._ask(file_by_filename=name))
                return
            file, serialized = files[name]
            for imported in file.dependency:
                add(imported)
            self.pool.AddSerializedFile(serialized)
            self._known.add(name)

        for name in files:
            add(name)

    def methods(self, service):
        self._add(self._ask(file_containing_symbol=service))
        description = descriptor_pb2.ServiceDescriptorProto()
        self.pool.FindServiceByName(service).CopyToProto(description)
        return {method.name: method for method in description.method}


def call(channel, name, text):
    service, _, method_name = name.partition("/")
    reflection = Reflection(channel)
    methods = reflection.methods(service)
    if method_name not in methods:
        sys.exit(f"{service} has no method {method_name}; it has {', '.join(methods)}")
    method = methods[method_name]
    if method.client_streaming:
        sys.exit(f"{name} streams requests, which this program does not")
    request_class = message_class(reflection.pool, method.input_type.lstrip("."))
    response_class = message_class(reflection.pool, method.output_type.lstrip("."))
    invoke = channel.unary_stream if method.server_streaming else channel.unary_unary
    answer = invoke(
        f"/{service}/{method_name}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=response_class.FromString,
    )(json_format.Parse(text, request_class(), descriptor_pool=reflection.pool))
    for message in answer if method.server_streaming else [answer]:
        fields = json_format.MessageToDict(message, preserving_proto_field_name=True)
        print(json.dumps(fields), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("method", nargs="?", help="such as ferrite.v1.Inference/Generate")
    parser.add_argument("request", nargs="?", default="{}", help="a JSON object")
    arguments = parser.parse_args()
    with grpc.insecure_channel(
        arguments.server, options=[("grpc.enable_http_proxy", 0)]
    ) as channel:
        try:
            if arguments.method:
                call(channel, arguments.method, arguments.request)
                return
            reflection = Reflection(channel)
            for service in reflection.services():
                try:
                    for method in reflection.methods(service):
                        print(f"{service}/{method}")
                except LookupError as error:  # a server may have services that it cannot describe
                    print(f"{service} ({error})")
        except LookupError as error:
            sys.exit(str(error))
        except json_format.ParseError as error:
            sys.exit(f"the request: {error}")
        except grpc.RpcError as error:
            sys.exit(f"{error.code().name}: {error.details()}")


if __name__ == "__main__":
    main()
