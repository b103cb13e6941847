"""Which split a document goes to, and how often it is taken: drawn by a hash of its id, so it can be known early."""

import hashlib
from collections.abc import Sequence

from data_prep.config import PrepConfig
from data_prep.contract.command_line import UserError
from data_prep.corpus.documents import CorpusFile

_ONE_DRAW = "all of a document goes to the same split"


def document_draw(document_id: str, purpose: str = "") -> float:
    """Uniform in [0, 1): the first 53 bits of the id's sha256, as many as a float holds."""
    digest = hashlib.sha256(f"{purpose}{document_id}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def copies_of(document_id: str, weight: float) -> int:
    """How often a document of a file of this weight is taken."""
    copies = int(weight)
    return copies + (weight > copies and document_draw(document_id, "weight:") < weight - copies)


def check_draws(files: Sequence[CorpusFile], config: PrepConfig) -> None:
    """Refuse a corpus of whole .txt files that leaves a split empty: their draws are known before anything is read.

    Raises:
        UserError: naming the split, and what would fill it.
    """
    if config.corpus.txt_documents != "file" or any(file.kind != "txt" for file in files):
        return
    draws = sorted(document_draw(file.name) for file in files if copies_of(file.name, file.weight))
    for name, found in (
        ("validation", [draw for draw in draws if draw < config.validation_fraction]),
        ("train", [draw for draw in draws if draw >= config.validation_fraction]),
    ):
        if found:
            continue
        remedy = "give --corpus.txt_documents paragraph (or line), or more files"
        if name == "validation" and len(draws) > 1 and draws[0] < 0.5:
            remedy += f", or --validation_fraction {draws[0] + 0.001:.3g} or more"
        found_there = "1 .txt file" if len(draws) == 1 else f"{len(draws)} .txt files"
        raise UserError(
            f"the {name} split would be empty: the corpus is {found_there}, a file is one document, and {_ONE_DRAW}; "
            f"{remedy}"
        )


def more_documents(config: PrepConfig) -> str:
    """What helps where a split has too little text."""
    if config.corpus.txt_documents != "file":
        return f"give more text, in more documents ({_ONE_DRAW})"
    return (
        f"give more text, in more documents ({_ONE_DRAW}, and a .txt file is one unless --corpus.txt_documents is "
        "paragraph or line)"
    )
