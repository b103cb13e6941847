"""A headless Chromium, spoken to over its debugging pipe: open a page, wait for it, read it, photograph it."""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LOAD_S = 120


def chromium_binary() -> str | None:
    """The browser, or None where it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One tab."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._buffer, self._number, self._session = b"", 0, ""

    def open(self, url: str) -> None:
        """Load an address in a new tab."""
        target = self._call("Target.createTarget", url=url)["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def wait_for(self, expression: str) -> None:
        """Until a JavaScript expression is true."""
        deadline = time.monotonic() + _LOAD_S
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, f"{expression} did not come true: {self.text()[:2000]}"
            time.sleep(0.3)

    def text(self) -> str:
        """What a reader of the page sees as text, figures' text included."""
        return self.evaluate("document.body ? document.body.innerText + ' ' + document.body.textContent : ''")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Photograph the visible part of the page."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                read = os.read(self._answers, 1 << 20)
                assert read, "the browser has ended"
                self._buffer += read
            first, self._buffer = self._buffer.split(b"\0", 1)
            answer = json.loads(first)
            if answer.get("id") == self._number:  # the rest are events
                assert "error" not in answer, answer
                return answer["result"]


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A Chromium with a profile of its own, killed afterwards."""
    binary = chromium_binary()
    assert binary is not None
    (commands_out, commands_in), (answers_out, answers_in) = os.pipe(), os.pipe()
    options = (
        f"--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --window-size=1600,2000 "
        f"--no-first-run --remote-debugging-pipe --user-data-dir={profile} about:blank"
    )
    process = subprocess.Popen(
        # Chromium reads commands from descriptor 3 and answers on 4.
        ["bash", "-c", f"exec {binary} {options} 3<&{commands_out} 4>&{answers_in}"],
        pass_fds=(commands_out, answers_in), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    os.close(commands_out)
    os.close(answers_in)
    try:
        yield Browser(commands_in, answers_out)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(commands_in)
        os.close(answers_out)
