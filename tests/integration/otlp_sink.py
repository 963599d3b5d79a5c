"""A receiver of OTLP traces over HTTP that keeps what comes, or behaves badly."""

from __future__ import annotations

import gzip
import threading
from collections import defaultdict
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Received:
    """A span, with who did the work."""

    service: str
    process: str
    scope: str
    span: Any

    @property
    def attributes(self) -> dict[str, Any]:
        """By name."""
        return {each.key: _value(each.value) for each in self.span.attributes}


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


class OtlpSink:
    """Listens on a free port.

    Args:
        hangs: it takes requests and answers none.
    """

    def __init__(self, *, hangs: bool = False, status: int = 200) -> None:
        self.received: list[Received] = []
        self.paths: set[str] = set()
        self.asked = 0
        self.closing = threading.Event()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sink.asked += 1
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                if hangs:
                    sink.closing.wait(60)
                    return
                if self.headers.get("Content-Encoding") == "gzip":
                    raw = gzip.decompress(raw)
                sink.paths.add(self.path)
                sink.take(ExportTraceServiceRequest.FromString(raw))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def take(self, request: Any) -> None:
        """Keep what came."""
        for group in request.resource_spans:
            who = {each.key: _value(each.value) for each in group.resource.attributes}
            for scope in group.scope_spans:
                self.received += [
                    Received(
                        who["service.name"], who.get("service.instance.id", ""), scope.scope.name,
                        span,
                    )
                    for span in scope.spans
                ]  # fmt: skip

    def __enter__(self) -> OtlpSink:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def traces(self) -> dict[bytes, list[Received]]:
        """What came, by trace; a span that came twice with the same id is one."""
        found: dict[bytes, dict[bytes, Received]] = defaultdict(dict)
        for each in list(self.received):
            found[each.span.trace_id][each.span.span_id] = each
        return {trace: list(spans.values()) for trace, spans in found.items()}

    def named(self, name: str) -> list[Received]:
        """The spans of that name."""
        return [each for each in list(self.received) if each.span.name == name]


def one_tree(spans: list[Received]) -> Received:
    """The root of spans that form one tree, in which children do not begin before parents."""
    by_id = {each.span.span_id: each for each in spans}
    assert len(by_id) == len(spans), "an id is used twice"
    roots = [each for each in spans if not each.span.parent_span_id]
    names = sorted(each.span.name for each in spans)
    assert len(roots) == 1, f"{len(roots)} roots in {names}"
    for each in spans:
        assert each.span.end_time_unix_nano >= each.span.start_time_unix_nano
        if each is not roots[0]:
            assert each.span.parent_span_id in by_id, f"{each.span.name} hangs below nothing"
    return roots[0]


def parent_of(child: Received, spans: list[Received]) -> Received:
    """What a span hangs below."""
    (found,) = [each for each in spans if each.span.span_id == child.span.parent_span_id]
    return found
