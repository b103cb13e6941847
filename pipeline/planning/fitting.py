"""What a configuration must give up to fit into a device's memory."""

from pipeline.config import RunConfig
from pipeline.config_checks import with_less_memory
from pipeline.model.arithmetic import RowShape
from pipeline.planning.memory import bucket_bytes, predict_memory


def fitting_line(config: RunConfig, shape: RowShape, processes: int, gibibytes: float) -> str:
    """Whether a process fits into a GPU's memory, and if not, which options let it.

    Args:
        config: of the run.
        shape: of its rows.
        processes: of the run.
        gibibytes: of the device's memory.
    """
    needed = _needed(config, shape, processes)
    if needed <= gibibytes:
        return f"fits, with {gibibytes - needed:.1f} GiB to spare"
    for changed, options in with_less_memory(config, processes):
        needed = _needed(changed, shape, processes)
        if needed <= gibibytes:
            return f"does not fit; {needed:.1f} GiB with {' '.join(options)}"
    return f"does not fit: {needed:.1f} GiB at least; take more processes, shorter rows or a smaller model"


def _needed(config: RunConfig, shape: RowShape, processes: int) -> float:
    total = predict_memory(config, shape, processes, on_gpu=True).total
    return (total + (bucket_bytes(config, processes) if config.training.zero_stage else 0)) / 2**30
