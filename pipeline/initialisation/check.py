"""Whether a run can start from the weights that it is told to start from, before anything is written or started."""

from pipeline.config import RunConfig
from pipeline.data.mixture import Mixture
from pipeline.runs.directory import has_checkpoint


def check_start(config: RunConfig, shards: Mixture) -> None:
    """Refuse weights that do not fit; a run that has saved something reads its own. No weight is read.

    Raises:
        UserError: what ``init`` names is not there, or does not fit the model or the shards.
    """
    if has_checkpoint(config):
        return
    # Each imports what the other starts do without.
    if config.init.from_huggingface is not None:
        from pipeline.initialisation.load import check_init

        check_init(config, shards)
    if config.init.from_run is not None:
        from pipeline.initialisation.from_run import check_from_run

        check_from_run(config, shards)
