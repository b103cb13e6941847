from pathlib import Path

from tests.processes import TINY_RUN, run_command


def test_a_run_that_compiles_nothing_does_not_load_the_compiler(tmp_path: Path, shard_folder: Path) -> None:
    argv = ["train", *TINY_RUN, "--training.train_steps", "1", "--model.layout", "sf:sf"]
    argv += ["--data.path", str(shard_folder), "--run_dir", str(tmp_path / "run")]
    loaded = run_command("pipeline", *argv, PYTHONPROFILEIMPORTTIME="1").stderr
    assert "deepspeed.runtime.zero.stage_1_and_2" in loaded
    assert "torch._inductor.compile_fx" not in loaded
