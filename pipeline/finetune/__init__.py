"""Downstream tasks on an exported model: ``narrowbert finetune``."""
