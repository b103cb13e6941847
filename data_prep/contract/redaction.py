"""Secrets kept out of what a run records: by key, inside URLs and log lines, and by value.

Everything that leaves the process for a file, a log or MLflow passes through ``redact`` or
``redact_text``: configuration, tags, environment, the shipper's log.
"""

import io
import itertools
import os
import re
from collections.abc import Mapping
from typing import Any, TextIO
from urllib.parse import unquote

REDACTED = "***"
_SECRET_WORDS = {
    "password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials", "apikey", "jwt", "webhook",
    "webhooks", "dsn",
}  # fmt: skip
_SECRET_PAIRS = {
    *((kind, "key") for kind in ("api", "access", "private", "account", "signing", "storage", "encryption", "master")),
    *((kind, "key") for kind in ("shared", "license")), ("connection", "string"), ("connection", "str"),
}  # fmt: skip
_SECRET_ENDINGS = ("password", "passwd", "passphrase", "apikey", "secretkey", "accesskey", "authtoken", "accesstoken")
_SECRET_LAST_WORDS = {"pwd", "pass", "pat", "sas"}  # alone they are words: PWD is the working folder
_PLACES = {"file", "path", "dir", "folder"}  # HF_TOKEN_PATH tells where a secret lies

# A vocabulary has tokens too: cls_token, token_type_ids and max_token are no secrets.
_WORDS_BEFORE_A_HARMLESS_TOKEN = {"cls", "sep", "mask", "pad", "unk", "bos", "eos", "special", "max", "num", "per"}
_WORDS_AFTER_A_HARMLESS_TOKEN = {"type", "id", "ids", "count", "embedding", "embeddings", "level"}
_SECRET_QUERY_KEYS = {"sig", "signature", "key", "auth", "code"}
_SHORTEST_SECRET = 5  # shorter values of secret variables are words that occur everywhere

# scheme://user:password@host or scheme://token@host. A password may hold '/' and '@' (database URLs). What stands
# before the @ of abfs://container@account is no secret.
_USER_INFO = re.compile(
    r"(?P<scheme>\b(?!(?:abfss?|az)://[a-z0-9$-]{1,63}@)[a-zA-Z][a-zA-Z0-9+.-]*://)(?:[^\s:/?#@\"'<>]*:[^\s\"'<>]*|[^\s/?#@\"'<>]+)@"
)
_PASSWORD = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s:/?#@\"'<>]*:(?P<password>[^\s\"'<>]+)@")
_QUERY = re.compile(
    r"(?P<start>[?&;](?P<key>[^=&;\s#?]+)=)[^&;\s#\"'<>]+?(?=[:,.]?(?:[&;\s#\"'<>]|$))"
)  # a colon behind it is the sentence's
_AUTHORIZATION = re.compile(r"\b(?P<scheme>Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}")
_NAME = re.compile(r"(?P<key>\b[A-Za-z][\w.-]*)[\"']?\s*[=:]\s*")
_A_PATH = re.compile(r"(?:/|~/|\.{1,2}/)[^\s=]*\.[A-Za-z0-9]{1,8}|(?:/[A-Za-z0-9._-]+){2,}/?")
_VALUE = re.compile(r"\"[^\"]*\"|'[^']*'|[^\s,;&\"'}\]]+")


def is_secret_key(key: str) -> bool:
    """Whether a value under this name is a secret: ``hf_token``, ``apiKey``, ``MLFLOW_TRACKING_PASSWORD``."""
    words = [word for word in re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()) if word]
    if not words or words[-1] in _PLACES:
        return False
    if _SECRET_WORDS & set(words) or any(pair in _SECRET_PAIRS for pair in itertools.pairwise(words)):
        return True
    if any(word.endswith(_SECRET_ENDINGS) for word in words):
        return True
    if len(words) > 1 and words[-1] in _SECRET_LAST_WORDS:
        return True
    for position, word in enumerate(words):
        before = words[position - 1] if position else ""
        after = words[position + 1] if position + 1 < len(words) else ""
        harmless = before in _WORDS_BEFORE_A_HARMLESS_TOKEN or after in _WORDS_AFTER_A_HARMLESS_TOKEN
        if word == "token" and not harmless:
            return True
    return False


def is_secret(key: str, value: str) -> bool:
    """Whether ``value`` under this name is a secret; the path of a credentials file is none."""
    return is_secret_key(key) and not ("credential" in key.lower() and _A_PATH.fullmatch(value.strip("\"'")))


def secret_values(environment: Mapping[str, str]) -> set[str]:
    """The secrets that the environment holds: values of secret names, and passwords inside URLs."""
    # A switch such as SOME_TOKEN=false is no secret, and its value is a word.
    found = {value for key, value in environment.items() if is_secret(key, value) and value.lower() != "false"}
    for value in environment.values():
        found |= {match["password"] for match in _PASSWORD.finditer(value)}
    found |= {unquote(value) for value in found}
    return {value for value in found if len(value) >= _SHORTEST_SECRET}


def redact_text(text: str, environment: Mapping[str, str] | None = None) -> str:
    """``text`` without user names and passwords in URLs, secret ``key=value``, and the environment's secrets."""
    for secret in sorted(secret_values(os.environ if environment is None else environment), key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return _without_assigned_secrets(redact_urls(text))


def redact_urls(text: str) -> str:
    """``text`` without user names, passwords and signatures in URLs, and without ``Bearer ...``.

    Other text stays as it is, so that a line for the user says what it means: the token [MASK] is no secret.
    """
    text = _USER_INFO.sub(rf"\g<scheme>{REDACTED}@", text)
    text = _AUTHORIZATION.sub(rf"\g<scheme> {REDACTED}", text)
    return _QUERY.sub(_without_secret_value, text)


def _without_secret_value(match: re.Match[str]) -> str:
    key = match["key"].lower()
    secret = is_secret_key(key) or key.split("-")[-1] in _SECRET_QUERY_KEYS
    return match["start"] + REDACTED if secret else match[0]


def _without_assigned_secrets(text: str) -> str:
    """``key=value`` and ``key: value``. Names may follow each other ("failed: password=x"), so each is tried."""
    position = 0
    while name := _NAME.search(text, position):
        position = name.end()
        value = _VALUE.match(text, position)
        if value and is_secret(name["key"], value[0]):
            text = text[:position] + REDACTED + text[value.end() :]
            position += len(REDACTED)
    return text


def redact(value: Any, key: str = "") -> Any:
    """A configuration without its secrets: dictionaries and lists are copied, text goes through ``redact_text``."""
    if isinstance(value, Mapping):
        return {name: redact(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner, key) for inner in value]
    if value is None or isinstance(value, bool):
        return value
    if is_secret(key, str(value)):
        return REDACTED
    return redact_text(value) if isinstance(value, str) else value


class RedactingStream(io.TextIOBase):
    """A text stream that redacts whole lines before it passes them on: for the logs of libraries."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._line = stream, ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._stream.write(redact_text(line) + "\n")
        return len(text)

    def flush(self) -> None:
        self._stream.flush()
