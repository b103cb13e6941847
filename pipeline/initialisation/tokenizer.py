"""Whether a model's tokenizer gives the ids that its weights know."""

from pathlib import Path

from data_prep.contract.tokenizer import load_tokenizer


def different_tokenizer(folder: Path, tokenizer_path: Path) -> dict[str, str]:
    """``tokenizer`` and what is wrong, where the one that ``folder`` brings, if any, gives other ids to words."""
    here = load_tokenizer(tokenizer_path).get_vocab(with_added_tokens=True)
    if (folder / "tokenizer.json").is_file():
        there = load_tokenizer(folder / "tokenizer.json").get_vocab(with_added_tokens=True)
    elif (folder / "vocab.txt").is_file():
        lines = (folder / "vocab.txt").read_text(encoding="utf-8", errors="replace").split("\n")
        there = {token: number for number, token in enumerate(lines if lines[-1] else lines[:-1])}
    else:
        return {}
    count = sum(here.get(token) != number for token, number in there.items())
    return {"tokenizer": f"tokenizer with other ids for {count} of its {len(there)} tokens"} if count else {}
