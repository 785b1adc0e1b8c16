"""The files of docs/scale: the launcher starts a failing command again, Slurm's script goes back into the queue."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from jaxprune.search.journal import read_journal, without_times

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER, SBATCH, JOBSET = (
    ROOT / "docs" / "scale" / name for name in ("launcher.sh", "slurm.sbatch", "jobset.yaml")
)

FAKE = """#!/usr/bin/env bash
echo "$@" >> calls
number=$(wc -l < calls)
"""
"""The beginning of a command that notes its arguments, and counts how often it was called."""


def program(path: Path, body: str) -> Path:
    path.write_text(FAKE + body)
    path.chmod(0o755)
    return path


@pytest.fixture
def launch(tmp_path):
    """Starts the launcher in an empty folder with a command of this body; waits of 0 s."""

    def start(body: str, *options: str, **environment: str) -> subprocess.Popen:
        command = program(tmp_path / "evolve", body)
        return subprocess.Popen(
            [LAUNCHER, command, *(options or ("--run-dir", "run"))], cwd=tmp_path,
            env={**os.environ, "WAIT": "0", **environment}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


class TestLauncher:
    def test_a_command_that_fails_twice_is_run_three_times_and_resumes(self, launch, tmp_path):
        process = launch("((number > 2)) || exit 1")
        assert process.communicate(timeout=60)[1].count("Starting again in 0 s") == 2
        assert process.returncode == 0
        assert calls(tmp_path) == ["--run-dir run --resume"] * 3

    def test_resume_is_said_once_and_the_folder_in_either_way(self, launch, tmp_path):
        process = launch("exit 0", "--resume", "--run-dir=run")
        process.communicate(timeout=60)
        assert process.returncode == 0 and calls(tmp_path) == ["--resume --run-dir=run"]

    def test_a_usage_error_ends_it_at_once(self, launch, tmp_path):
        process = launch("exit 2")
        assert "a usage error (status 2). Not started again" in process.communicate(timeout=60)[1]
        assert process.returncode == 2 and len(calls(tmp_path)) == 1

    def test_an_error_with_status_2_after_progress_is_no_usage_error(self, launch, tmp_path):
        process = launch("((number > 1)) && exit 0; mkdir run; echo line >> run/journal.jsonl; exit 2")
        process.communicate(timeout=60)
        assert process.returncode == 0 and len(calls(tmp_path)) == 2

    def test_failures_without_progress_end_it(self, launch, tmp_path):
        process = launch("exit 7", MAX_FAILURES="3")
        told = process.communicate(timeout=60)[1]
        assert (
            "3 failures in a row without progress in run, the last with status 7. Not started again." in told
        )
        assert process.returncode == 7 and len(calls(tmp_path)) == 3

    @pytest.mark.parametrize("file", ["journal.jsonl", "bases/a/bank-search.jsonl"])
    def test_progress_starts_the_count_anew(self, launch, tmp_path, file):
        """Fails on odd calls without progress; every second one adds a line, so that two in a row never fail so."""
        (tmp_path / "run" / file).parent.mkdir(parents=True)
        process = launch(
            f"((number > 6)) && exit 0; ((number % 2)) || echo line >> run/{file}; exit 1", MAX_FAILURES="2"
        )
        process.communicate(timeout=60)
        assert process.returncode == 0 and len(calls(tmp_path)) == 7

    def test_waits_grow_up_to_the_longest(self, launch, tmp_path):
        sleep = tmp_path / "sleep"
        sleep.write_text('#!/bin/sh\necho "$1" >> waits\n')
        sleep.chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        launch("exit 1", WAIT="10", MAX_WAIT="50", MAX_FAILURES="6", PATH=path).communicate(timeout=60)
        assert (tmp_path / "waits").read_text().split() == ["10", "20", "40", "50", "50"]

    @pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_a_signal_reaches_the_command_and_nothing_starts_again(self, launch, tmp_path, sent, status):
        body = "trap 'exit 143' TERM; trap 'exit 130' INT; touch ready; while :; do sleep 0.05; done"
        process = launch(body)
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        process.send_signal(sent)
        process.communicate(timeout=60)
        assert process.returncode == status and len(calls(tmp_path)) == 1

    def test_a_command_without_a_run_directory_is_refused(self, launch, tmp_path):
        process = launch("exit 0", "--preset", "paper")
        assert (
            "needs a command with --run-dir DIR, on a disk that outlives"
            in process.communicate(timeout=60)[1]
        )
        assert process.returncode == 2 and not (tmp_path / "calls").exists()


@pytest.fixture
def cluster(tmp_path):
    """Runs Slurm's script with a fake `srun`, which runs its task here, and a fake `scontrol`."""

    def submit(task: str) -> subprocess.Popen:
        program(tmp_path / "srun", 'shift; exec "$@"')
        (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" >> requeued\n')
        (tmp_path / "scontrol").chmod(0o755)
        command = program(tmp_path / "jaxprune", task)
        (tmp_path / "docs").symlink_to(ROOT / "docs")
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "JAXPRUNE": str(command),
            "SLURM_JOB_ID": "12",
        }
        return subprocess.Popen(
            ["bash", SBATCH], cwd=tmp_path, env={**os.environ, "WAIT": "0", "RUN_DIR": "run", **environment},
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return submit


class TestSlurm:
    def test_a_search_that_ends_is_not_put_back_into_the_queue(self, cluster, tmp_path):
        process = cluster("exit 0")
        assert process.communicate(timeout=60)[1] == "" and process.returncode == 0
        started, search = calls(tmp_path)
        assert started.startswith("--kill-on-bad-exit=1 ") and started.endswith(search)
        assert search.startswith("evolve --preset paper --data-dir ")
        assert search.endswith(" --distributed --run-dir run --resume")
        assert not (tmp_path / "requeued").exists()

    def test_the_notice_before_the_time_limit_saves_and_goes_back_into_the_queue(self, cluster, tmp_path):
        process = cluster("trap 'touch saved; exit 143' TERM; touch ready; while :; do sleep 0.05; done")
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 143 and (tmp_path / "saved").exists()
        assert (tmp_path / "requeued").read_text() == "requeue 12\n"

    def test_a_usage_error_is_not_put_back(self, cluster, tmp_path):
        process = cluster("exit 2")
        assert "a usage error" in process.communicate(timeout=60)[1]
        assert process.returncode == 2 and not (tmp_path / "requeued").exists()

    def test_the_settings_of_the_job_are_those_that_it_needs(self):
        told = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", SBATCH.read_text(), re.MULTILINE))
        assert told["ntasks-per-node"] == "1" and told["signal"] == "B:TERM@300"
        assert "requeue" in told and told["open-mode"] == "append"


class TestJobSet:
    spec = yaml.safe_load(JOBSET.read_text())["spec"]

    def test_one_pod_for_each_host_of_the_slice(self):
        (hosts,) = self.spec["replicatedJobs"]
        job = hosts["template"]["spec"]
        pod = job["template"]["spec"]
        (container,) = pod["containers"]
        chips = [
            int(number) for number in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
        ]
        resources = container["resources"]
        assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"]
        assert resources["requests"] == resources["limits"]
        assert job["completions"] * resources["limits"]["google.com/tpu"] == chips[0] * chips[1]
        assert self.spec["network"] == {"enableDNSHostnames": True, "subdomain": "jaxprune"}

    def test_a_pod_that_fails_restarts_all_and_an_eviction_is_no_failure(self):
        job = self.spec["replicatedJobs"][0]["template"]["spec"]
        assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"
        assert job["podFailurePolicy"]["rules"][0]["onPodConditions"] == [{"type": "DisruptionTarget"}]
        policy = self.spec["failurePolicy"]
        assert (
            policy["maxRestarts"] > 0 and policy["rules"][0]["action"] == "RestartJobSetAndIgnoreMaxRestarts"
        )

    def test_everything_that_is_written_goes_to_the_bucket(self):
        template = self.spec["replicatedJobs"][0]["template"]["spec"]["template"]
        pod = template["spec"]
        (container,), (volume,) = pod["containers"], pod["volumes"]
        (mount,) = container["volumeMounts"]
        assert template["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
        assert mount["name"] == volume["name"] and volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
        paths = [
            text.split("=")[1]
            for text in container["command"]
            if text.startswith(("--run-dir", "--data-dir"))
        ]
        paths += [variable["value"] for variable in container["env"]]
        assert len(paths) == 3 and all(path.startswith(mount["mountPath"] + "/") for path in paths)


@pytest.mark.parametrize("script", [LAUNCHER, SBATCH], ids=["launcher", "slurm"])
def test_scripts_are_valid_bash(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("file", [SBATCH, JOBSET], ids=["slurm", "jobset"])
def test_every_option_of_the_search_exists(file, capsys):
    from jaxprune.cli import main

    with pytest.raises(SystemExit):
        main(["evolve", "--help"])
    known = capsys.readouterr().out
    lines = [
        line for line in file.read_text().splitlines() if "SBATCH" not in line and not line.startswith("#")
    ]
    options = set(re.findall(r"(?<=[ (])--(?!kill-on)[a-z][a-z-]+", "\n".join(lines)))
    assert {"--preset", "--run-dir", "--resume", "--distributed"} <= options
    missing = {option for option in options if not re.search(rf"{option}\b", known)}
    assert not missing


@pytest.mark.slow
def test_a_search_that_is_killed_ends_as_one_that_is_not(tmp_path):
    """The launcher around a real search, which SIGKILL ends after eight lines of its journal the first time."""
    search = [
        *(
            sys.executable,
            "-m",
            "jaxprune.cli",
            "evolve",
            "--task",
            "digits",
            "--fitness",
            "finetune",
            "--no-report",
        ),
        *(
            "--generations",
            "2",
            "--population",
            "3",
            "--bases",
            "digits=2",
            "--base-epochs",
            "1",
            "--epochs",
            "1",
        ),
    ]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = tmp_path / "search"
    command.write_text(
        f"""#!/usr/bin/env bash
        [[ -e started ]] && exec "$@"
        touch started
        "$@" & child=$!
        until (($(wc -l < {killed}/journal.jsonl 2>/dev/null || echo 0) >= 8)); do sleep 0.05; done
        kill -KILL $child
        wait $child
        """
    )
    command.chmod(0o755)
    environment = {**os.environ, "WAIT": "0", "PYTHONPATH": str(ROOT)}
    launched = [LAUNCHER, command, *search, "--run-dir", killed]
    told = subprocess.run(
        launched, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert told.returncode == 0 and "status 137, 0 of 5 failures without progress" in told.stderr
    subprocess.run(
        [*search, "--run-dir", whole], env=environment, check=True, capture_output=True, timeout=280
    )
    lines = [[without_times(line) for line in read_journal(run / "journal.jsonl")] for run in (killed, whole)]
    assert lines[0] == lines[1] and len(lines[0]) > 8
