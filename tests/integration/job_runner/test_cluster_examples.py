"""The files of `examples/cluster/`: run with stand-ins for the commands of SLURM, and with what Kubernetes would do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tensordb_data import TensorDB
from tests.integration.job_runner.test_worker import until
from tests.steady.processes import Popen

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "examples/cluster"

# As slurmstepd does, `srun` starts the tasks of a step, and ends with the highest status of them.
SRUN = """#!/bin/bash
pids=()
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
    while [[ "$1" == --* ]]; do shift; done
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
    pids+=($!)
done
echo "${pids[@]}" > "$STEP.new" && mv "$STEP.new" "$STEP"
highest=0
for pid in "${pids[@]}"; do wait "$pid"; status=$?; ((status > highest)) && highest=$status; done
exit $highest
"""
SCONTROL = """#!/bin/bash
if [ "$1 $2" = "show hostnames" ]; then echo 127.0.0.1; else echo "$@" >> "$STEP.asked"; fi
"""
TRAIN = """
import os, sys
from pathlib import Path
import torch
from torch.utils.data import DataLoader
from tensordb_data import TensorDB
from tensordb_data.torch import QueryDataset, StepCheckpointer

assert os.environ["MASTER_ADDR"] == "127.0.0.1"
torch.distributed.init_process_group("gloo")
db = TensorDB(os.environ["TENSORDB"], blobs=os.environ["BLOBS"])
loader = DataLoader(QueryDataset(db.data.find({"dataset": "d"}), batch_size=2, shuffle=True, seed=0), batch_size=None)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
optimizer = torch.optim.SGD(model.parameters(), 1e-3)
steps = int(sys.argv[1])
with StepCheckpointer(db, run="r", model=model, optimizer=optimizer, every=1000, stream=loader) as ckpt:
    start = ckpt.restore()
    for step, batch in enumerate(loader, start + 1):
        loss = model(batch["n"][:, None].float()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ckpt.step(loss=loss.item())
        if step == start + 5:
            Path(f"{os.environ['STEP']}.began-{os.environ['RANK']}").touch()
        if step == steps:
            break
print("rank", os.environ["RANK"], "from", start, "to", step, flush=True)
torch.distributed.destroy_process_group()
"""


class Slurm:
    """The commands of SLURM in a folder, and the environment of a job."""

    def __init__(self, folder: Path, tasks: int, **environment: str) -> None:
        commands, self.step = folder / "bin", folder / "step"
        commands.mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (commands / name).write_text(text)
            (commands / name).chmod(0o755)
        path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {
            **os.environ, "PATH": path, "STEP": str(self.step), "SLURM_NTASKS": str(tasks), "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "node1", "SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "3",
            "PYTHONPATH": str(ROOT), **environment,
        }  # fmt: skip

    def sbatch(self, script: str, *words: str) -> subprocess.Popen[str]:
        """Run a job script."""
        command = ["bash", str(CLUSTER / script), *words]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.environment
        )

    def send(self, number: signal.Signals) -> None:
        """To each task of the step."""
        for pid in self.step.read_text().split():
            os.kill(int(pid), number)

    def asked(self) -> str:
        """What `scontrol` was asked to do."""
        asked = self.step.with_suffix(".asked")
        return asked.read_text() if asked.exists() else ""


@pytest.mark.slow
def test_a_training_run_is_put_back_and_goes_on(
    db: TensorDB, mongo_uri: str, warehouse_dir: Path, tmp_path: Path
) -> None:
    with db.data.writer("d") as writer:
        writer.add_many(n=list(range(100)))
    program = tmp_path / "train.py"
    program.write_text(TRAIN)
    slurm = Slurm(tmp_path, 2, TENSORDB=mongo_uri, BLOBS=f"file://{warehouse_dir}/blobs")
    job = slurm.sbatch("train.sbatch", sys.executable, str(program), "1000000")
    began = [slurm.step.with_suffix(f".began-{rank}") for rank in (0, 1)]
    until(lambda: all(path.exists() for path in began) or job.poll() is not None)
    slurm.send(signal.SIGUSR1)
    told, _ = job.communicate(timeout=100)
    assert job.returncode == 138, told
    assert slurm.asked() == "requeue 4711\n"
    saved = db.params.find({"run": "r"}).one()
    assert saved.step is not None and saved.step >= 5
    again = slurm.sbatch("train.sbatch", sys.executable, str(program), str(saved.step + 10))
    told, _ = again.communicate(timeout=100)
    assert again.returncode == 0, told
    for rank in (0, 1):
        assert f"rank {rank} from {saved.step} to {saved.step + 10}" in told
    assert slurm.asked() == "requeue 4711\n"


def test_a_worker_of_an_array_ends_when_it_is_told(db: TensorDB, mongo_uri: str, tmp_path: Path) -> None:
    path = tmp_path / "waits"
    waits = db.jobs.push("t", entry="tests.integration.workload:waits", args={"path": str(path)})
    slurm = Slurm(tmp_path, 1, TENSORDB=mongo_uri)
    job = slurm.sbatch("workers.sbatch", "--allow", "tests.integration.workload")
    until(lambda: path.with_suffix(".begun").exists() or job.poll() is not None)
    slurm.send(signal.SIGTERM)
    until(lambda: any(worker.draining for worker in db.jobs.workers()))  # it takes no further job
    other = db.jobs.push("t", entry="tests.integration.workload:add", args={"a": 1, "b": 2})
    path.touch()
    told, _ = job.communicate(timeout=60)
    assert job.returncode == 0, told
    assert db.jobs.find({"_id": waits.id}).one().status == "done", told
    found = db.jobs.find({"_id": waits.id}).one()
    assert found["worker"] == "slurm-4711-3"
    assert db.jobs.find({"_id": other.id}).one().status == "ready"


def test_a_pod_gives_its_job_back(db: TensorDB, mongo_uri: str, tmp_path: Path) -> None:
    yaml: Any = pytest.importorskip("yaml")
    manifest = yaml.safe_load((CLUSTER / "workers.yaml").read_text())
    pod = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    hook = container["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert hook.startswith("kill -TERM 1; sleep ")
    assert int(hook.rpartition(" ")[2]) < pod["terminationGracePeriodSeconds"] - 5
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    path = tmp_path / "waits"
    job = db.jobs.push("t", entry="tests.integration.workload:waits", args={"path": str(path)})
    command = [word.replace("mypkg.", "tests.integration.workload") for word in container["command"]]
    secret = container["env"][0]["name"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), secret: mongo_uri}
    command[0] = str(Path(sys.executable).with_name(command[0]))
    with Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as worker:
        try:
            until(lambda: path.with_suffix(".begun").exists() or worker.poll() is not None)
            worker.send_signal(signal.SIGTERM)
            until(lambda: any(each.draining for each in db.jobs.workers()))
            worker.send_signal(signal.SIGTERM)
            told = worker.communicate(timeout=60)[1]
        finally:
            worker.kill()
    found = db.jobs.find({"_id": job.id}).one()
    assert (found.status, found["attempts"]) == ("ready", 0), told
