"""The API over gRPC: Google's own client against a server process, and what REST's read of it.

The client for Go is not here: it cannot be built where these tests run. What it sends, in its
order, was read in its source and is sent by the Python client.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.cloud.aiplatform_v1beta1 import SessionServiceAsyncClient
from google.longrunning import operations_pb2
from google.protobuf import json_format

from servers import free_port
from servers_http import Command, command, plain, wait_until
from threadline import Event, MissingExtraError, VertexAiSessionService
from threadline.server.auth import KeyFile
from threadline.server.process import Settings
from threadline.sync import DatabaseSessionService
from threadline.testing.service_suite import HOSTILE_IDS
from threadline.vertex import wire
from vertex.clients import ENGINE, Client, python
from vertex.test_clients import EVENTS, TIME, USER, event, said

PARENT = f"projects/my-project/locations/us-central1/reasoningEngines/{ENGINE}"
GO = [("x-goog-api-client", "gl-go/1.26.6 gapic/1.126.0 gax/2.15.0 grpc/1.75.0 pb/1.36.9")]
_numbers = itertools.count()


class Server(Command):
    """`threadline serve` with gRPC."""

    def __init__(self, db: str, *options: str) -> None:
        self.grpc_port = free_port()
        super().__init__(db, *options, "--grpc-port", str(self.grpc_port))

    def client(self, version: str = "v1beta1", **metadata: str) -> Any:
        """Return Google's client, which sends this with every call."""
        module = importlib.import_module(
            f"google.cloud.aiplatform_{version}.services.session_service"
        )
        channel = grpc.insecure_channel(
            f"127.0.0.1:{self.grpc_port}",
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        given = [(key.replace("_", "-"), value) for key, value in metadata.items()]
        channel = grpc.intercept_channel(channel, _Metadata(given))
        transport = module.transports.SessionServiceGrpcTransport(channel=channel)
        return module.SessionServiceClient(transport=transport)


class _Metadata(grpc.UnaryUnaryClientInterceptor):
    def __init__(self, given: list[tuple[str, str]]) -> None:
        self.given = given

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details._replace(metadata=[*details.metadata, *self.given]), request)
