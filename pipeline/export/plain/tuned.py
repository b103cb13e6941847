"""A fine-tuned model, or an encoder alone, written in a plain form."""

from pathlib import Path

from data_prep.contract.command_line import UserError
from pipeline.export import AUTO_CLASSES, NarrowBertConfig, NarrowBertForMaskedLM, NarrowBertModel
from pipeline.export.folder import check_output, pooling_of, whole_folder, write_pooling
from pipeline.export.model_folder import open_config, open_model, open_tokenizer, read_settings
from pipeline.export.modeling_narrowbert import NarrowBertPreTrainedModel
from pipeline.export.plain.forms import FORMS, check_form
from pipeline.export.plain.writing import write_plain


def is_tuned(folder: Path) -> bool:
    """Whether a folder holds one of our models other than a masked-LM model.

    Raises:
        UserError: as of ``read_settings``.
    """
    settings = read_settings(folder)
    is_ours = settings.get("model_type") == NarrowBertConfig.model_type
    return is_ours and settings.get("architectures") not in (None, [NarrowBertForMaskedLM.__name__])


def export_tuned(folder: Path, output: Path, model_type: str, pooling: str | None) -> list[str]:
    """Write the model with its tokenizer, its labels, and what sentence-transformers reads.

    Args:
        folder: one of which ``is_tuned`` is true.
        output: the folder to make; it may exist if it is empty.
        model_type: a key of FORMS.
        pooling: ``cls`` or ``mean``, of an encoder; the folder's own where it is None.

    Returns:
        Lines that say what was written, and what a user should know.

    Raises:
        UserError: the model is damaged or none of the form, or ``output`` exists already.
    """
    check_output(output)
    config, form = open_config(folder), FORMS[model_type]
    name = (config.architectures or [""])[0]
    assert isinstance(config, NarrowBertConfig), "no other type is opened"
    check_form(config, form, name)
    if pooling is not None and name != NarrowBertModel.__name__:
        raise UserError(f"--pooling makes embeddings, and {folder} holds a {name}: leave it out")
    tokenizer = open_tokenizer(folder, config)
    model = open_model(folder, next(auto for auto, our in AUTO_CLASSES.items() if our.__name__ == name))
    assert isinstance(model, NarrowBertPreTrainedModel)
    pooling = pooling or pooling_of(folder)
    with whole_folder(output) as partial:
        described, remarks = write_plain(partial, model, form)
        tokenizer.model_input_names = list(form.inputs)
        tokenizer.save_pretrained(partial)
        if pooling is not None:
            write_pooling(partial, described, pooling)
    return [f"{folder} is a {name} of layout {config.layout}, here a {form.classes[name]}", *remarks]
