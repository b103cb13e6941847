"""The batch scripts as text: one held to a golden file, all held to shellcheck and to a shell's own reading."""

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.batch import job_name_of, prep_script, train_script
from cluster.config import ClusterConfig, PrepJobsConfig, check_cluster, seconds_of
from data_prep.contract.command_line import UserError, read_config

GOLDEN = Path(__file__).parent / "golden" / "train.sh"
PRESETS = sorted((Path(__file__).parents[2] / "configs" / "cluster").glob("*.yaml"))


def golden_script() -> str:
    """Every kind of line once."""
    config = ClusterConfig(
        partition="gpu", account="lab-1", nodes=2, processes_per_node=8, gpus_per_node=8, cpus_per_process=12,
        memory_per_node="0", time_limit="1-00:00:00", exclusive=True, sbatch_options=("--exclude=node[3,7]",),
        python="/opt/a b/bin/python", modules=("cuda/12.8",), setup_script="/opt/site's/setup.sh",
        environment=("NCCL_DEBUG=WARN", "ODD_VALUE=it's; two \"words\""), container="pyxis",
        container_image="nvcr.io#nvidia/pytorch:25.10-py3", container_mounts=("/shared:/shared",),
    )  # fmt: skip
    check_cluster(config)
    return train_script(
        config,
        run_dir=Path("/shared/runs/it's 100%"),
        work_dir=Path("/home/me"),
        arguments=["--config", "/shared/runs/it's 100%/submission/config.yaml"],
        job_name="mine",
    )


def test_script_is_the_golden_one() -> None:
    assert golden_script() == GOLDEN.read_text(), "meant so? python -m tests.cluster.test_batch writes it anew"


def read_preset(path: Path) -> ClusterConfig:
    config = read_config(ClusterConfig, ["--config", str(path)], "test", "test")
    check_cluster(config)
    return config


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
@pytest.mark.parametrize("kind", ["train", "prep"])
def test_shellcheck_has_nothing_to_say(preset: Path, kind: str, tmp_path: Path) -> None:
    assert {path.stem for path in PRESETS} == {"local-slurm", "h100x8", "cpu-nodes"}
    script = tmp_path / "job.sh"
    config = read_preset(preset)
    if kind == "train":
        script.write_text(
            train_script(config, run_dir=tmp_path, work_dir=tmp_path, arguments=["--config", "c"], job_name="n")
        )
    else:
        script.write_text(prep_script(config, submission=tmp_path, work_dir=tmp_path, arguments=["--config", "c"]))
    assert not re.search("@[A-Z_]+@", script.read_text())
    shellcheck(script)


def test_shellcheck_of_every_kind_of_line() -> None:
    shellcheck(GOLDEN)


def test_apptainer_stands_in_front_of_the_command(tmp_path: Path) -> None:
    config = ClusterConfig(
        gpus_per_node=1, container="apptainer", container_image="/images/it's.sif", container_mounts=("/a b:/data",)
    )
    check_cluster(config)
    for text in (
        train_script(config, run_dir=tmp_path, work_dir=tmp_path, arguments=["--config", "c"], job_name="n"),
        prep_script(config, submission=tmp_path, work_dir=tmp_path, arguments=["--config", "c"]),
    ):
        (tmp_path / "job.sh").write_text(text)
        shellcheck(tmp_path / "job.sh")
        command = shlex.split(next(line for line in text.splitlines() if line.startswith("readonly command=(")))
        start = ["exec", "--nv", "--bind", "/a b:/data", "/images/it's.sif", "python", "-P", "-m"]
        assert command[2:10] == start, command


def shellcheck(script: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here: apt-get install shellcheck")
    ended = subprocess.run(
        ["shellcheck", "--shell=bash", str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stdout


def test_presets_are_complete() -> None:
    for preset in PRESETS:
        content = yaml.safe_load(preset.read_text())
        for name in (
            "partition", "nodes", "processes_per_node", "gpus_per_node", "cpus_per_process", "time_limit",
            "signal_lead_seconds", "max_crashes", "max_requeues", "continue_by", "shared_paths", "prep",
        ):  # fmt: skip
            assert name in content, f"{preset.name} does not say {name}"


TEXT = st.text(st.characters(exclude_characters="\\", exclude_categories=("Cc", "Cs")), min_size=1, max_size=20)


@settings(max_examples=25, deadline=None)
@given(folder=TEXT, value=TEXT, argument=TEXT)
def test_a_shell_reads_what_was_meant(folder: str, value: str, argument: str) -> None:
    config = ClusterConfig(environment=(f"ODD_VALUE={value}",), python="python")
    run_dir = Path("/shared") / folder.replace("/", "-")
    script = train_script(config, run_dir=run_dir, work_dir=Path("/"), arguments=[argument], job_name="n")
    lines = script.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("readonly run_dir="))
    end = next(i for i, line in enumerate(lines) if line.startswith("readonly nodes="))
    exported = next(line for line in lines if line.startswith("export ODD_VALUE="))
    assert all(line.startswith("#") or line in ("", "set -uo pipefail") for line in lines[:start])
    read = "\n".join([*lines[start:end], exported, r'printf "%s\0" "$run_dir" "$ODD_VALUE" "${command[@]}"'])
    ended = subprocess.run(["bash", "-c", read], capture_output=True, timeout=20, check=True)
    expected = [str(run_dir), value, "python", "-P", "-m", "pipeline", "train", argument]
    assert ended.stdout.decode().split("\0")[:-1] == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"job_name": "a b"}, "job_name is 'a b'"),
        ({"job_name": "a\n#SBATCH --uid=0"}, "job_name"),
        ({"job_name": "$(touch x)"}, "job_name"),
        ({"partition": "a'b"}, "partition"),
        ({"account": "a;b"}, "account"),
        ({"qos": ""}, "qos"),
        ({"nodes": 0}, "nodes is 0"),
        ({"max_crashes": 0}, "max_crashes is 0"),
        ({"memory_per_node": "64 G"}, "such as 64G"),
        ({"time_limit": "a day"}, "time_limit is 'a day'"),
        ({"time_limit": "0"}, "more than 0"),
        ({"time_limit": "5", "signal_lead_seconds": 300}, "leaves no time"),
        ({"sbatch_options": ("--comment=a b",)}, "without white space"),
        ({"sbatch_options": ("--nodes=3",)}, "sets --nodes itself"),
        ({"sbatch_options": ("-N3",)}, "--name=value"),
        ({"environment": ("A=1\nB=2",)}, "without line breaks"),
        ({"environment": ("1A=1",)}, "NAME=value"),
        ({"modules": ("a;b",)}, "modules"),
        ({"setup_script": "a\nb"}, "setup_script"),
        ({"container": "pyxis"}, "belong together"),
        ({"container_mounts": ("/a:/b",)}, "needs cluster.container"),
        ({"gpus_per_node": 8, "processes_per_node": 4}, "give the same number"),
        ({"prep": PrepJobsConfig(array_tasks=0)}, "prep.array_tasks is 0"),
        ({"prep": PrepJobsConfig(time_limits=("map",))}, "prep.time_limits has 'map': give STAGE=TIME"),
        ({"prep": PrepJobsConfig(time_limits=("map=soon",))}, "prep.time_limits map is 'soon'"),
    ],
)
def test_wrong_presets_are_one_line(values: dict[str, object], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        check_cluster(dataclasses.replace(ClusterConfig(), **values))  # type: ignore[arg-type]
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("module", "code"), [("tool/1.0", 0), ("gone/2.0", 2)])
def test_modules_are_loaded_and_then_the_variables_set(module: str, code: int, tmp_path: Path) -> None:
    if not Path("/etc/profile.d/modules.sh").exists():
        pytest.skip("no environment modules here: apt-get install environment-modules")
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool/1.0").write_text('#%Module\nsetenv TOOL "from the module"\nprepend-path PATH /opt/tool/bin\n')
    (tmp_path / "setup.sh").write_text("export SITE=set\n")
    config = ClusterConfig(modules=(module,), setup_script=str(tmp_path / "setup.sh"), environment=("MINE=$TOOL",))
    script = prep_script(config, submission=tmp_path, work_dir=tmp_path, arguments=[])
    setup = script[script.index("say() {") : script.index("set +eE")]
    ended = subprocess.run(
        ["bash", "-c", "set -uo pipefail\n" + setup + '\nprintf "%s," "$SITE" "$TOOL" "$MINE" "${PATH%%:*}"'],
        env={"PATH": "/usr/bin:/bin", "MODULEPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert ended.returncode == code, ended.stderr
    if code:
        assert ended.stdout.endswith(": cluster.modules failed\n")
    else:
        assert ended.stdout == "set,from the module,$TOOL,/opt/tool/bin,"


def test_times_are_slurms() -> None:
    times = ["90", "1:30", "2:00:00", "1-0", "1-2:30", "1-2:30:10"]
    assert [seconds_of(time) for time in times] == [5400, 90, 7200, 86_400, 95_400, 95_410]


def test_job_names_come_from_folders() -> None:
    names = [job_name_of(ClusterConfig(), Path(folder)) for folder in ("/r/my run", "/r/$(x)", "/r/-", "/r/ok_1")]
    assert names == ["my-run", "x-", "narrowbert", "ok_1"]


if __name__ == "__main__":
    GOLDEN.write_text(golden_script())
    sys.exit()
