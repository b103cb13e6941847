"""The commands of ``narrowbert``, one file each: its options, what it calls, what it prints.

A command's module has ``run(argv)``. It imports what computes only when it runs, so that a mistake in the options is
told at once. Nothing else of the project imports this room.
"""

PROGRAM = "narrowbert"
DESCRIPTION = "Pretrain NarrowBERT and use the result."
COMMANDS = {
    "plan": "Predict the parameters, FLOPs, speed-up, memory and time of a configuration. It starts nothing.",
    "train": "Train a run, or resume it from its newest checkpoint.",
    "evaluate": "Measure masked-LM loss and accuracy of a run's newest checkpoint on the validation split.",
    "report": "Compare runs side by side. The last one is the control.",
    "export": "Write a run's model as a folder that transformers loads.",
    "average": "Average the weights of a run's last checkpoints, or of several runs' ends, into a folder like a run's.",
    "convert": "Write any BERT or NarrowBERT as a folder that transformers loads, without training.",
    "onnx": "Write ONNX files of an exported or fine-tuned model, checked against torch.",
    "encode": "Turn lines of text into embeddings or predictions, as JSON lines.",
    "finetune": "Train an exported model on labelled examples: texts, pairs, tags or answers.",
    "checkpoints": "List the checkpoints of a run and verify every file.",
    "sync": "Send to MLflow the metrics that it does not have yet.",
}
"""Name of each command (and of its module) -> what it does, in a sentence."""
