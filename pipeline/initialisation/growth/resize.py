"""A model of other sizes, written in the exported form: the change of level of a V-cycle.

"A Multi-Level Framework for Accelerating Training Transformer Models" (ICLR 2024), algorithm 1: a model is trained a
little, coalesced, its smaller form trained, grown again, and blended with what it was before.
"""

import dataclasses
from pathlib import Path
from typing import Any

from data_prep.contract.command_line import UserError
from data_prep.contract.tokenizer import load_tokenizer, special_ids
from pipeline.checkpoints.reading import load_run_model
from pipeline.export.configuration_narrowbert import NarrowBertConfig
from pipeline.export.folder import check_output, export_config, write_export
from pipeline.export.names import CONFIG_NAMES, State, from_transformers, to_transformers
from pipeline.initialisation.growth.coalesce import coalesce, interpolate
from pipeline.initialisation.growth.grow import SIZES, Growth, shrink_problems
from pipeline.initialisation.match import match
from pipeline.initialisation.pretrained import model_config_of, tokenizer_of
from pipeline.initialisation.source import open_source
from pipeline.initialisation.tokenizer import different_tokenizer
from pipeline.layout import parse_layout
from pipeline.runs.ancestry import split_source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A run's or an export's, in the exported form."""

    name: str
    """Where it is."""
    state: State
    """Parameters in fp32."""
    model_config: dict[str, Any]
    """The training model's configuration with its vocabulary's size."""
    config: NarrowBertConfig
    """The export's."""
    tokenizer_path: Path
    """Its tokenizer.json or vocab.txt."""
    special_ids: dict[str, int]
    """In it."""


def resize(
    source: str, output: Path, sizes: dict[str, Any], growth: Growth, blend: str | None = None, alpha: float = 0.5
) -> list[str]:
    """Write a model of other sizes, made of one that is there.

    Args:
        source: RUN, RUN@STEP, or the folder of a model of transformers.
        output: the folder to make.
        sizes: of the new model: ``hidden_size``, ``num_attention_heads``, ``ffn_hidden_size`` and ``layout``; what is
            not given stays. All grow, or all become smaller.
        growth: how units and layers are copied; a smaller model merges those that it would copy.
        blend: a model of the new sizes, given like ``source``, to blend with; None: none.
        alpha: share of the new model in the blend.

    Returns:
        Lines on what was done.

    Raises:
        UserError: no such model, one that does not fit, or ``output`` exists already.
    """
    check_output(output)
    if not 0 <= alpha <= 1:
        raise UserError(f"--alpha is {alpha}: give a share from 0 to 1")
    there = open_model(source)
    model_config = {**there.model_config, **sizes}
    here = _checked_config(model_config, there.special_ids)
    is_smaller = any(getattr(here, name) < getattr(there.config, name) for name in SIZES) or (
        here.num_hidden_layers < there.config.num_hidden_layers
    )
    if is_smaller:
        problems = shrink_problems(there.config, here, growth.depth)
        if problems:
            raise UserError(f"{source} cannot become smaller so: {'; '.join(problems)}")
        state, lines = coalesce(there.state, there.config, here, growth.depth), list[str]()
    else:
        growth.check(source, there.config, here)
        state, lines = growth.apply(there.state, there.config, here), growth.remarks(there.config, here)
    facts = {"layout": here.layout, "made of": f"{there.name}, layout {there.config.layout}"}
    if blend is not None:
        state = _blended(open_model(blend), there, here, state, alpha)
        facts["blended with"] = f"{blend}, of which {1 - alpha:g}"
    write_export(
        from_transformers(state, here), model_config=model_config, tokenizer_path=there.tokenizer_path,
        special_ids=there.special_ids, facts=facts, output=output,
    )  # fmt: skip
    return [f"{key}: {value}" for key, value in facts.items()] + lines


def open_model(source: str) -> Model:
    """Read a run's model, or a model of transformers.

    Raises:
        UserError: there is none, or it is damaged.
    """
    run_dir, step = split_source(source)
    if (run_dir / "run.json").is_file():
        model, state = load_run_model(run_dir, step)
        tokenizer_path = run_dir / "tokenizer.json"
        if not tokenizer_path.is_file():
            raise UserError(f"{run_dir} has no tokenizer.json: copy that of its shards there")
        ids = special_ids(load_tokenizer(tokenizer_path))
        model_config = {**dataclasses.asdict(model.config), "vocab_size": state.vocab_size}
        config = export_config(model_config, ids)
        weights = to_transformers({name: p.detach() for name, p in model.named_parameters()}, config)
        name = f"step {state.step:,} of {run_dir}"
    else:
        folder = Path(source)
        opened = open_source(folder)
        tokenizer_path = tokenizer_of(folder)
        ids = special_ids(load_tokenizer(tokenizer_path))
        model_config = model_config_of(opened, None)
        config = export_config(model_config, ids)
        matched = match(opened, config, (), tokenizer_path)
        weights, name = matched.read()[0], str(folder)
    return Model(
        name=name, state=weights, model_config=model_config, config=config, tokenizer_path=tokenizer_path,
        special_ids=ids,
    )  # fmt: skip


def _checked_config(model_config: dict[str, Any], ids: dict[str, int]) -> NarrowBertConfig:
    try:
        parse_layout(str(model_config["layout"]))
        return export_config(model_config, ids)
    except ValueError as error:
        raise UserError(f"no model has these sizes: {error}") from error


def _blended(before: Model, there: Model, here: NarrowBertConfig, state: State, alpha: float) -> State:
    different = [
        f"{name} {getattr(before.config, name)} there, {getattr(here, name)} here"
        for name in CONFIG_NAMES.values()
        if getattr(before.config, name) != getattr(here, name)
    ]
    different += different_tokenizer(before.tokenizer_path.parent, there.tokenizer_path).values()
    if different:
        raise UserError(f"{before.name} is no model of these sizes to blend with: {'; '.join(different)}")
    return interpolate(before.state, state, alpha)
