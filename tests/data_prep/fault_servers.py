"""A web server of this machine that fails as it is told."""

import contextlib
import http.client
import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

Server = TypeVar("Server", bound=http.server.ThreadingHTTPServer)


class FaultServer(http.server.ThreadingHTTPServer):
    """Serves contents by path, with or without ranges, and keeps what was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.contents: dict[str, bytes] = {}
        """Path -> content; the ETag is its hash."""
        self.ranges = True
        self.faults: list[int | str | None] = []
        """What the next answers are: a status, "cut" after half of what is due, "drop" without a word, or sound."""
        self.before_answer: dict[int, dict[str, bytes]] = {}
        """Number of an answer -> contents that change before it."""
        self.asked: list[tuple[str, str | None]] = []
        """(path, range) of every request."""
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, FaultServer)
        server.contents.update(server.before_answer.get(len(server.asked), {}))
        server.asked.append((self.path, self.headers["Range"]))
        fault = server.faults.pop(0) if server.faults else None
        content = server.contents.get(self.path.partition("?")[0])
        if isinstance(fault, int) or content is None:
            self.send_error(fault if isinstance(fault, int) else 404)
            return
        if fault == "drop":
            self.close_connection = True
            return
        begin, end = 0, len(content)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "") if server.ranges else None
        if asked:
            begin, end = int(asked[1]), min(int(asked[2]) + 1, len(content))
            if begin >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        self.send_header("ETag", f'"{hash(content)}"')
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        due = content[begin:end]
        if fault == "cut":
            due = due[: len(due) // 2]
            self.close_connection = True
        with contextlib.suppress(ConnectionError):  # the reader has what it wants
            self.wfile.write(due)

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """A server that is up while the body runs."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def fault_server() -> AbstractContextManager[FaultServer]:
    """A fault server that is up while the body runs."""
    return running(FaultServer())


class FaultProxy(http.server.ThreadingHTTPServer):
    """Hands requests on to another server, keeps what was asked for, and fails as it is told."""

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Forwarding)
        self.port_behind = port
        self.asked: list[tuple[str, str, str | None]] = []
        """(method, path, range) of every request."""
        self.faults: list[int | str | None] = []
        """As those of FaultServer, for the next GETs."""
        self.put_faults: list[int | str | None] = []
        """The same for the next PUTs, "cut" left out."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Forwarding(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        proxy = self.server
        assert isinstance(proxy, FaultProxy)
        proxy.asked.append((self.command, self.path, self.headers["Range"]))
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        faults = {"GET": proxy.faults, "PUT": proxy.put_faults}.get(self.command)
        fault = faults.pop(0) if faults else None
        if isinstance(fault, int):
            self.send_error(fault)
            return
        if fault == "drop":
            self.close_connection = True
            return
        behind = http.client.HTTPConnection("127.0.0.1", proxy.port_behind, timeout=30)
        behind.request(self.command, self.path, body or None, headers=dict(self.headers.items()))
        answer = behind.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if fault == "cut":
            content = content[: len(content) // 2]
            self.close_connection = True
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content)
        behind.close()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, *_: object) -> None: ...


def fault_proxy(port: int) -> AbstractContextManager[FaultProxy]:
    """A proxy that is up while the body runs."""
    return running(FaultProxy(port))
