"""A filter that a user wrote, in a file of their own."""

import importlib.util
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Self

from data_prep.config import PrepConfig
from data_prep.contract.command_line import UserError, one_line
from data_prep.filters.analysis import AnalysedText
from data_prep.filters.document_filter import DocumentFilter, Refusal, Verdict

_KEY = "filters.python.path"


class OwnPython(DocumentFilter):
    """Calls ``check(text)`` of the file: None or True keeps the document, False drops it, another text takes its
    place, and (False, "why") drops it for that reason. The file is part of the corpus: its hash is in the manifest.
    """

    reason = "python"
    config_keys = (_KEY,)

    def __init__(self, path: str) -> None:
        self._path = path
        self._check = _load(path)

    @classmethod
    def open(cls, config: PrepConfig) -> Self | None:
        """The filter of ``filters.python.path``.

        Raises:
            UserError: the file cannot be read, fails, or has no ``check``.
        """
        options = config.filters.python
        return cls(options.path) if options.enabled and options.path else None

    def check(self, text: AnalysedText) -> Verdict:
        """What the file's function says.

        Raises:
            UserError: it failed, or gave something else than it may.
        """
        try:
            answer = self._check(text.text)
        except Exception as error:  # whatever a user's code raises
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"{_KEY} {self._path}: check failed at line {where.lineno} on the document {text.document.key}: "
                f"{type(error).__name__}: {one_line(str(error))}"
            ) from error
        match answer:
            case None | True:
                return None
            case False:
                return Refusal(detail="check gave False")
            case str():
                return None if answer == text.text else answer
            case (False, str(why)):
                return Refusal(detail=one_line(why))
        raise UserError(
            f"{_KEY} {self._path}: check gave {type(answer).__name__} for the document {text.document.key}: expected "
            "None, True, False, a text, or (False, 'why')"
        )


def _load(path: str) -> Callable[[str], object]:
    try:
        source = Path(path).read_bytes()
        spec = importlib.util.spec_from_loader("own_filter", loader=None, origin=path)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        exec(compile(source, path, "exec"), module.__dict__)
    except OSError as error:
        raise UserError(f"cannot read {_KEY} {path}: {error.strerror}") from error
    except Exception as error:  # whatever a user's code raises
        raise UserError(f"{_KEY} {path} fails: {type(error).__name__}: {one_line(str(error))}") from error
    check = module.__dict__.get("check")
    if not callable(check):
        raise UserError(f"{_KEY} {path} has no function check(text)")
    return check
