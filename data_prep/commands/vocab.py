"""``narrowbert-prep vocab``: train a tokenizer on a corpus."""

import time
from collections.abc import Sequence

from data_prep.commands.arguments import PROGRAM, listed, prep_config
from data_prep.commands.terminal_progress import TerminalProgress


def run(argv: Sequence[str]) -> int:
    """Train a tokenizer and write it; the exit code."""
    from data_prep.report.statistics import notes_on_encodings, notes_on_tokens, notes_on_weights
    from data_prep.stages.vocabulary import build_vocabulary

    config = prep_config(argv, "vocab", "Train a tokenizer on the corpus and write tokenizer.json.")
    start = time.monotonic()
    with TerminalProgress() as progress:
        built = build_vocabulary(config, progress)
        for line in [*notes_on_encodings(built.encodings), *notes_on_weights(built.weights), *built.notes]:
            progress.note(line)
    if built.rejects:
        print(f"not in the vocabulary: {listed(built.rejects)} (`{PROGRAM} shards` lists each)")
    for line in notes_on_tokens(built.tokens):
        print(line)
    sampled = f" of {built.text_bytes:,} (vocabulary.sample_bytes)" if config.vocabulary.sample_bytes else ""
    print(f"trained on {built.trained_bytes:,} bytes{sampled}")
    print(
        f"{built.path}{' (the same was there already)' if built.already_there else ''}: {built.entries} entries, "
        f"{built.unknown_share:.3%} of the tokens are [UNK], sha256 {built.sha256}, {time.monotonic() - start:.1f} s"
    )
    return 0
