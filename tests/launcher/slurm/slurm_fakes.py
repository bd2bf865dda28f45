"""Pretended Slurm commands that write down what they are called with, and answer as they are told. Shared by test_submit and test_requeue."""
import json
import os

import muster_program as mp

TEXT = mp.SMALL_LATE_FUSION + mp.REGRESSION + "training { max_steps: 4 log_every_steps: 1 }\ncheckpoints { every_steps: 2 }\n"
FAKES = {
    "sbatch": '. "$FAKES/sbatch.do"; echo "$(cat "$FAKES/sbatch.said")"; exit "$(cat "$FAKES/sbatch.code")"',
    "squeue": 'cat "$FAKES/squeue.said" 2> /dev/null || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }',
    "scontrol": 'if [ "$1" = show ]; then cat "$FAKES/shown" || exit 1; else exit "$(cat "$FAKES/requeue.code")"; fi',
    "srun": 'if [ "$1" = --mpi=list ]; then cat "$FAKES/mpi"; cat "$FAKES/mpi.errors" >&2; exit; fi; . "$FAKES/srun.sh"',
}
RUNNING = "JobId=41 JobState=RUNNING Reason=None Requeue=1 Restarts=0 RunTime=00:01:00 TimeLimit=01:00:00"


class Cluster:
    def __init__(self, folder):
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        for name, body in FAKES.items():
            (self.bin / name).write_text(f'#!/bin/bash\nprintf "%s\\n" "{name} $*" >> "$FAKES/calls"\n{body}\n')
            (self.bin / name).chmod(0o755)
        self.config = mp.write_config(folder / "e.txtpb", TEXT)
        self.run = folder / "run"
        for name, text in {"sbatch.said": "41;here", "sbatch.code": "0", "sbatch.do": "", "shown": RUNNING, "requeue.code": "0", "mpi": "MPI plugin types are...\n\tpmix\n", "mpi.errors": "",
                           "srun.sh": "exit 0", "calls": ""}.items():
            self.say(name, text)
        self.job = {"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "4"}

    def say(self, name, text):
        (self.bin / name).write_text(text)

    def environment(self, changes=None):
        return {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "FAKES": str(self.bin), "HOME": str(self.folder), "XDG_CONFIG_HOME": None,
                "MUSTER_SITE": None, "SLURM_CONF": None, **(changes or {})}

    def muster(self, *words, code=0, changes=None):
        return mp.muster(*words, cwd=self.folder, changes=self.environment(changes), code=code)

    def submit(self, *options, train=(), code=0, changes=None):
        return self.muster("submit", *options, "train", "e.txtpb", *train, code=code, changes=changes)

    def script(self, *options, train=(), **more):
        return self.submit("--dry-run", *options, train=train, **more).stdout

    def calls(self, name):
        return [line for line in (self.bin / "calls").read_text().splitlines() if line.split()[0] == name and "--mpi=list" not in line]

    def rows(self, event=None):
        rows = [json.loads(line) for line in (self.run / "logs/jobs.jsonl").read_text().splitlines()]
        return [row for row in rows if event in (None, row["event"])]

    def requeue(self, code, *options, expected=None, changes=None):
        return self.muster("requeue", "run", "--exit-code", code, *options, code=code if expected is None else expected, changes={**self.job, **(changes or {})})
