"""Fine-tuning tasks: one file per task, opened by name."""

from transformers import PreTrainedTokenizerBase

from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.tasks.base import Splits, Task
from pipeline.finetune.tasks.tagging import TaggingTask
from pipeline.finetune.tasks.text import TextTask


def open_task(config: FinetuneConfig, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> Task:
    """The task that the configuration names.

    Raises:
        UserError: labels that cannot be read, or that the training examples do not have.
    """
    if config.task == "tagging":
        return TaggingTask(config, splits, tokenizer)
    if config.task == "question_answering":
        from pipeline.finetune.tasks.questions import QuestionTask

        return QuestionTask(config, splits, tokenizer)
    if config.task == "contrastive":
        from pipeline.finetune.tasks.contrastive import ContrastiveTask

        return ContrastiveTask(config, splits, tokenizer)
    return TextTask(config, splits, tokenizer)
