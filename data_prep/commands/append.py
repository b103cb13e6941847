"""``narrowbert-prep append``: the documents of a shard folder and new ones."""

from collections.abc import Sequence

from data_prep.commands.repack import make_of_documents

_DESCRIPTION = """Make a shard folder of the documents of another one, which was made with
--keep_documents true, and of those of --corpus.paths; duplicates of what is there are dropped. Only the new documents
are tokenized."""


def run(argv: Sequence[str]) -> int:
    """Make a shard folder out of another one; the exit code."""
    from data_prep.reuse.kept_documents import append

    return make_of_documents(append, argv, "append", _DESCRIPTION)
