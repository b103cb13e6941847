"""The commands of ``narrowbert``, one file each: its options, what it calls, what it prints.

A command's module has ``run(argv)``. It imports what computes only when it runs, so that a mistake in the options is
told at once. Nothing else of the project imports this room.
"""

PROGRAM = "narrowbert"
DESCRIPTION = "Pretrain NarrowBERT and use the result."
_OF_RUNS = {
    "plan": "Predict the parameters, FLOPs, speed-up, memory and time of a configuration. It starts nothing.",
    "train": "Train a run, or resume it from its newest checkpoint.",
    "evaluate": "Measure masked-LM loss and accuracy of a run's newest checkpoint on the validation split.",
    "report": "Compare runs side by side. The last one is the control.",
    "average": "Average the weights of a run's last checkpoints, or of several runs' ends, into a folder like a run's.",
    "checkpoints": "List the checkpoints of a run and verify every file.",
    "sync": "Send to MLflow the metrics that it does not have yet.",
}
_OF_MODELS = {
    "export": "Write a run's model as a folder that transformers loads.",
    "convert": "Write any BERT or NarrowBERT as a folder that transformers loads, without training.",
    "resize": "Write a model of other sizes, made of one that is there: wider and deeper, or smaller.",
    "onnx": "Write ONNX files of an exported or fine-tuned model, checked against torch.",
    "encode": "Turn lines of text into embeddings or predictions, as JSON lines.",
    "finetune": "Train an exported model on labelled examples: texts, pairs, tags or answers.",
}
COMMANDS = _OF_RUNS | _OF_MODELS
"""Name of each command -> what it does, in a sentence."""


def module_of(command: str) -> str:
    """The module of a command."""
    return f"{__name__}.{'runs' if command in _OF_RUNS else 'models'}.{command}"
