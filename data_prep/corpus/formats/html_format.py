""".html -> documents: the main text of each page."""

from collections.abc import Iterator

from data_prep.config import CleaningConfig
from data_prep.contract.command_line import UserError
from data_prep.corpus.documents import CorpusFile, Document, Partition, Reject, sample, whole_document
from data_prep.corpus.formats.line_formats import undecodable
from data_prep.corpus.streams import BLOCK_BYTES, TextStream

PAGE_BYTES = 1 << 25
"""A longer page, or record of .warc, is rejected."""

HTML = ("text/html", "application/xhtml+xml")


def require_html(kind: str) -> None:
    """Raise UserError where the extra that reads pages is not installed; ``kind`` is of the files that need it."""
    try:
        import fastwarc.warc  # noqa: F401
        import resiliparse.extract.html2text  # noqa: F401
    except ImportError as error:
        raise UserError(f"reading .{kind} files needs another package: pip install 'narrowbert[warc]'") from error


def page_text(text: str) -> str:
    """The main text of a page."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse_from_bytes(text.encode("utf-8", "surrogatepass"), "utf-8")
    return extract_plain_text(tree, main_content=True, alt_texts=False)


def page_documents(document_id: str, text: str, body: bytes, cleaning: CleaningConfig) -> Iterator[Document | Reject]:
    """The documents of a page, by its text."""
    if text.strip():
        yield from whole_document(document_id, text, cleaning)
    else:
        detail = "no text was found in the page" if body.strip() else "the page is empty"
        yield Reject(id=document_id, reason="empty", detail=detail, sample=sample(body[:BLOCK_BYTES]))


def problem_of(error: BaseException) -> str:
    """What the parsers say of anything that servers send; other errors are raised on."""
    # A panic of theirs is no Exception.
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


class HtmlReader:
    """The one document of a .html file."""

    last_start = 0

    def __init__(self, stream: TextStream, file: CorpusFile, cleaning: CleaningConfig) -> None:
        self.stream = stream
        self.name = file.name
        self.cleaning = cleaning

    def read(self, partition: Partition) -> Iterator[Document | Reject]:
        """The document of the file."""
        if partition.begin > 0:
            return
        body = self.stream.read(PAGE_BYTES + 1)
        if len(body) > PAGE_BYTES:
            reason, detail = "file_too_long", f"more than {PAGE_BYTES} bytes"
        elif self.stream.damage is not None:
            reason, detail = "damaged_file", str(self.stream.damage)
        else:
            found = self.stream.decoder.read(body)
            if found is None:
                yield undecodable(self.name, body, self.stream.decoder)
                return
            try:
                text = page_text(found.text)
            except BaseException as error:
                reason, detail = "not_html", problem_of(error)
            else:
                yield from page_documents(self.name, text, body, self.cleaning)
                return
        yield Reject(id=self.name, reason=reason, detail=detail, sample=sample(body[:BLOCK_BYTES]))
