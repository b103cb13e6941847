"""Personal data that is easy to know by its form: it is replaced, and the document stays."""

import ipaddress
import re
from typing import Self

from data_prep.config import PrepConfig
from data_prep.filter_config import PiiConfig
from data_prep.filters.analysis import AnalysedText
from data_prep.filters.document_filter import DocumentFilter, Verdict

_EMAIL = re.compile(r"\b[\w.!#$%&'*+/=?^`{|}~-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_]{2,24}\b")
_IP = re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?!\.?\d)")
_PHONE = re.compile(r"(?<![\w+.,/-])(?:\+|00)[1-9](?:[ ./-]?\(?\d\)?){7,14}(?![\d-])")
_NORTH_AMERICAN = re.compile(r"(?<![\w+.,/-])(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}(?![\w-])")


class Pii(DocumentFilter):
    """E-mail addresses, public IPv4 addresses and telephone numbers are replaced, as FineWeb does for the first two
    (Penedo et al. 2024, section 3.7; the replacement addresses are those of RFC 2606 and RFC 5737).

    Telephone numbers are those with a country code (ITU-T E.164) or of North America's form: other digits may be
    anything.
    """

    reason = "pii"
    config_keys = ("filters.pii",)

    def __init__(self, config: PiiConfig) -> None:
        self.config = config

    @classmethod
    def open(cls, config: PrepConfig) -> Self | None:
        """The filter, where it is on."""
        return cls(config.filters.pii) if config.filters.pii.enabled else None

    def check(self, text: AnalysedText) -> Verdict:
        """The text with what was found replaced."""
        config, found = self.config, text.text
        if config.email is not None and "@" in found:
            found = _EMAIL.sub(lambda _: config.email or "", found)
        if config.ip is not None and "." in found:
            found = _IP.sub(lambda address: (config.ip or "") if _is_public(address[0]) else address[0], found)
        if config.phone is not None:
            found = _PHONE.sub(lambda _: config.phone or "", found)
            found = _NORTH_AMERICAN.sub(lambda _: config.phone or "", found)
        return None if found == text.text else found


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:  # with a zero in front
        return False
