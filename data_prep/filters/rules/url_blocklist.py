"""Documents of blocked sites and pages."""

import contextlib
from array import array
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import numpy as np
import xxhash

from data_prep.config import PrepConfig
from data_prep.contract.command_line import UserError
from data_prep.filter_config import UrlBlocklistConfig
from data_prep.filters.analysis import AnalysedText
from data_prep.filters.document_filter import DocumentFilter, Refusal
from data_prep.filters.word_ngrams import as_bytes

_KEY = "filters.url_blocklist"


class UrlBlocklist(DocumentFilter):
    """Drops documents by their URL, as RefinedWeb and FineWeb do (Penedo et al. 2023, arXiv 2306.01116, appendix G.1).

    A domain stands for its subdomains too. Pages are compared without scheme, ``www.``, fragment and closing slash.
    A document without a URL passes. Lists are kept as hashes, 8 bytes a line.
    """

    reason = "url_blocklist"
    config_keys = (_KEY, "corpus.url_field")

    def __init__(self, config: UrlBlocklistConfig) -> None:
        self._domains = _hashes(config.domains, "domains")
        self._urls = _hashes(config.urls, "urls")

    @classmethod
    def open(cls, config: PrepConfig) -> Self | None:
        """The lists, where they are on.

        Raises:
            UserError: one cannot be read.
        """
        return cls(config.filters.url_blocklist) if config.filters.url_blocklist.enabled else None

    def check(self, text: AnalysedText) -> Refusal | None:
        """The longest domain of the document's URL that is blocked, or the URL itself."""
        place = _place(text.document.url or "")
        if place is None:
            return None
        host, page = place
        labels = host.split(".")
        for start in range(len(labels)):
            domain = ".".join(labels[start:])
            if _holds(self._domains, domain):
                return Refusal(rule="domain", detail=f"{domain} is in {_KEY}.domains")
        return Refusal(rule="url", detail=f"{page} is in {_KEY}.urls") if _holds(self._urls, page) else None


def _place(url: str) -> tuple[str, str] | None:
    """(host, host and what stands behind it) of a URL, with or without its scheme; None where it has no host."""
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        host = (parts.hostname or "").rstrip(".")
    except ValueError:
        return None
    if not host.isascii():
        with contextlib.suppress(UnicodeError):  # else compared as it is written
            host = host.encode("idna").decode()
    host = host.removeprefix("www.")
    page = host + parts.path.rstrip("/") + (f"?{parts.query}" if parts.query else "")
    return (host, page) if host else None


def _hashes(path: str | None, key: str) -> np.ndarray:
    """[lines] u64, rising, of the domains or pages of a list; blank lines and those that begin with # are left out."""
    found = array("Q")
    try:
        if path is not None:
            with Path(path).open(encoding="utf-8-sig") as stream:
                for number, line in enumerate(stream, start=1):
                    entry = line.strip()
                    if not entry or entry.startswith("#"):
                        continue
                    place = _place(entry)
                    if place is None or (key == "domains" and place[0] != place[1]):
                        what = "domain, such as example.com" if key == "domains" else "URL"
                        raise UserError(f"{_KEY}.{key} {path}: line {number} is no {what}: {entry[:80]!r}")
                    found.append(_hash(place[key == "urls"]))
    except OSError as error:
        raise UserError(f"cannot read {_KEY}.{key} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{_KEY}.{key} {path} is no UTF-8: {error.reason} at byte {error.start}") from error
    return np.unique(np.frombuffer(found, dtype=np.uint64))


def _hash(entry: str) -> int:
    return xxhash.xxh3_64_intdigest(as_bytes(entry))


def _holds(hashes: np.ndarray, entry: str) -> bool:
    value = np.uint64(_hash(entry))
    place = int(np.searchsorted(hashes, value))
    return place < len(hashes) and hashes[place] == value
