"""Text that was decoded in a wrong encoding, encoded again and kept so, put right."""

import importlib
from collections.abc import Callable
from functools import cache

from data_prep.contract.command_line import UserError


def repaired(text: str) -> str:
    """The text with its mojibake repaired, each line by itself: one text may have been put together from several.

    Raises:
        UserError: the library ftfy is not installed.
    """
    fix = require_ftfy()
    if text.isascii():
        return text
    return "".join(line if line.isascii() else fix(line) for line in text.splitlines(keepends=True))


@cache
def require_ftfy() -> Callable[[str], str]:
    """What repairs a line: all that ftfy does to encodings, and nothing that it does to quotes, widths or controls.

    Raises:
        UserError: the library is not installed.
    """
    try:
        return importlib.import_module("ftfy").fix_encoding
    except ImportError as error:
        raise UserError(
            "cleaning.repair_mojibake needs the library ftfy: pip install 'narrowbert[mojibake]'"
        ) from error
