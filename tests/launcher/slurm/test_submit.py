"""`muster submit`: the job script, what is refused, and what lies in the run directory afterwards."""
import difflib
import os
import shutil
import subprocess

import pytest

import muster_program as mp
from slurm_fakes import Cluster


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def golden(cluster):
    return f'''#!/bin/bash
# A Slurm job that trains, saves before its time is up, and requeues itself until the run is finished.
# `muster submit` wrote this file; it may be edited and submitted again: sbatch --chdir={cluster.folder} {cluster.folder}/runs/e/job.sbatch
#
#SBATCH --job-name=e
#SBATCH --chdir={cluster.folder}
#SBATCH --output={cluster.folder}/runs/e/logs/slurm-%j.out
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --time=8:00:00
# Slurm may requeue the job, which then appends to the same output file.
#SBATCH --requeue
#SBATCH --open-mode=append
# Asks the ranks to save and stop this many seconds before the time limit (Slurm may do it up to a minute earlier).
#SBATCH --signal=USR1@120

muster={os.path.realpath(mp.built("muster"))}
run={cluster.folder}/runs/e

# Slurm signals the ranks itself when time is short (--signal above). Signals that only this shell gets are forwarded to srun, which passes
# them on to the ranks. USR2 asks them to save and stop.
asked=0
srun=""
ask() {{
  asked=$((asked + 1))
  if [ -n "$srun" ]; then kill -USR2 "$srun" 2> /dev/null; fi
}}
trap ask TERM INT USR1 USR2

# Records where the job has started, and ends it here if its ranks could not find each other.
"$muster" requeue "$run" --begin --mpi pmix || exit

# The same line begins and continues the run. When a rank has ended, the others have half a minute to do so.
code=75
if [ "$asked" = 0 ]; then
  srun --mpi=pmix --wait=30 "$muster" \\
    train {cluster.config} --set seed=3 \\
    --run-dir "$run" --resume auto &
  srun=$!
  # Asked before srun had a process number.
  if [ "$asked" != 0 ]; then kill -USR2 "$srun" 2> /dev/null; fi
  # A signal interrupts `wait`: its exit code counts if no signal came meanwhile.
  before=-1
  while [ "$before" != "$asked" ]; do
    before=$asked
    wait "$srun"
    code=$?
  done
fi

# Finished, requeued or failed: this decides by the exit code, and asks Slurm to requeue the job.
exec "$muster" requeue "$run" --exit-code "$code" --max-restarts 3
'''


PLAIN = ["--nodes", "2", "--time", "8:00:00"]
SEED = ["--set", "seed=3"]
OTHERS = {
    "gpus": ([*PLAIN, "--gpus-per-node", 4, "--cpus-per-task", 6], SEED,
             ["#SBATCH --ntasks-per-node=1", '  srun --mpi=pmix --wait=30 "$muster" \\'],
             ["#SBATCH --ntasks-per-node=4", "#SBATCH --gpus-per-node=4", "#SBATCH --cpus-per-task=6", "",
              "# Threads of each rank, unless the experiment says how many.", "export OMP_NUM_THREADS=6",
              '  srun --mpi=pmix --wait=30 --cpus-per-task=6 "$muster" \\']),
    "options": (["--nodes", "1-2", "--time", "8:00:00", "--partition", "p", "--account", "a b", "--qos", "q", "--constraint", "x|y", "--grace", 300, "--max-restarts", 9,
                 "--job-name", "it's", "--ranks-per-node", 3, "--sbatch=--mem=64G", "--sbatch=--mail-user=a@b"], SEED,
                ["#SBATCH --job-name=e", "#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1", "#SBATCH --signal=USR1@120", '  srun --mpi=pmix --wait=30 "$muster" \\',
                 'exec "$muster" requeue "$run" --exit-code "$code" --max-restarts 3'],
                ['#SBATCH --job-name="it\'s"', "#SBATCH --nodes=1-2",
                 "# Not as tasks: after the first start Slurm would insist on that many tasks and nodes.",
                 "#SBATCH --mincpus=3", "#SBATCH --partition=p", '#SBATCH --account="a b"',
                 "#SBATCH --qos=q", '#SBATCH --constraint="x|y"', "#SBATCH --signal=USR1@300", "# Further options, as given.", "#SBATCH --mem=64G",
                 "#SBATCH --mail-user=a@b",
                 '  srun --mpi=pmix --wait=30 --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=3 --ntasks=$((3 * SLURM_JOB_NUM_NODES)) "$muster" \\', 'exec "$muster" requeue "$run" --exit-code "$code" --max-restarts 9']),
}


def differences(before, after):
    lines = [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]
    return [line[2:] for line in lines if line[0] == "-"], [line[2:] for line in lines if line[0] == "+"]


def shellcheck(script):
    if shutil.which("shellcheck"):
        checked = subprocess.run(["shellcheck", "-"], input=script, text=True, capture_output=True)
        assert checked.returncode == 0, checked.stdout


def test_the_script(cluster):
    script = cluster.script(*PLAIN, train=SEED)
    assert script == golden(cluster)
    shellcheck(script)
    assert not (cluster.folder / "runs").exists() and not cluster.calls("sbatch")
    assert cluster.calls("squeue") == []


@pytest.mark.parametrize("name", OTHERS)
def test_the_script_with_options(name, cluster):
    options, train, removed, added = OTHERS[name]
    script = cluster.script(*options, train=train)
    assert differences(golden(cluster), script) == (removed, added)
    shellcheck(script)


def test_the_script_of_an_array(cluster):
    script = cluster.script(*PLAIN, "--array", "0-4%2", train=["--set", "seed={task}", "--set", 'name="a $b {task}"'])
    run = f"{cluster.folder}/runs/a $b 0-"  # the first task's name names all
    assert '#SBATCH --array="0-4%2"' in script or "#SBATCH --array=0-4%2" in script
    assert f'#SBATCH --output="{run}%a/logs/slurm-%A_%a.out"' in script
    assert '''--set "seed=${SLURM_ARRAY_TASK_ID}" --set "name=\\"a \\$b ${SLURM_ARRAY_TASK_ID}\\""''' in script
    assert 'run="' + run.replace("$", "\\$") + '${SLURM_ARRAY_TASK_ID}"' in script
    shellcheck(script)


def test_the_script_of_a_run_directory_with_an_odd_name(cluster):
    """Slurm fills in %j and the like in names of files."""
    script = cluster.script(train=["--run-dir", "it's 50%j #1"])
    assert f'#SBATCH --output="{cluster.folder}/it\'s 50%%j #1/logs/slurm-%j.out"' in script and "50%j #1'" in script
    shellcheck(script)


def test_the_script_with_a_site_profile(cluster):
    site = cluster.folder / ".config/muster/there.txtpb"
    site.parent.mkdir(parents=True)
    site.write_text('partition: "gpu" account: "mine" modules: ["gcc/12", "openmpi"] setup: "export A=1" gpus_per_node: 4 mpi: "pmix_v4"\n'
                    'grace_seconds: 60 sbatch: ["--exclusive"] time: "1:00:00"\n')
    script = cluster.script("--site", "there", "--account", "other", "--nodes", 2, train=SEED)
    for line in ("#SBATCH --partition=gpu", "#SBATCH --account=other", "#SBATCH --gpus-per-node=4", "#SBATCH --ntasks-per-node=4", "#SBATCH --time=1:00:00",
                 "#SBATCH --signal=USR1@60", "#SBATCH --exclusive", "module load gcc/12 openmpi || exit", "export A=1",
                 '"$muster" requeue "$run" --begin --mpi pmix_v4 || exit'):
        assert line in script.splitlines()
    assert script.index("module load") < script.index("export A=1") < script.index("srun --mpi=pmix_v4")
    shellcheck(script)
    assert cluster.script("--account", "other", "--nodes", 2, train=SEED, changes={"MUSTER_SITE": "there"}) == script
    site.rename(site.parent / "site.txtpb")
    assert cluster.script("--account", "other", "--nodes", 2, train=SEED) == script
    cluster.script(train=SEED, changes={"XDG_CONFIG_HOME": "/" + "x" * 300})  # nowhere to look: no profile
    # Not from the working directory either, where another user may have put it.
    (cluster.folder / "there").write_text('setup: "export PLANTED=1"\n')
    (cluster.folder / "there.txtpb").write_text('setup: "export PLANTED=1"\n')
    for planted in (cluster.submit("--site", "there", code=2), cluster.submit(code=2, changes={"MUSTER_SITE": "there"})):
        assert "site profile 'there': there is no" in planted.stderr and "./there" in planted.stderr
    (cluster.folder / "bad.txtpb").write_text('partitoin: "x"\ngpus_per_node: "four"\nnodes: 2\n')
    error = cluster.submit("--site", "bad.txtpb", code=78).stderr
    assert "3 problems" in error and "bad.txtpb:1: unknown field partitoin; did you mean partition?" in error
    assert "bad.txtpb:2: gpus_per_node" in error and "bad.txtpb:3: unknown field nodes" in error


def test_example_profiles_are_valid(cluster):
    profiles = list((mp.ROOT / "cluster/sites").glob("*.txtpb"))
    assert profiles
    for profile in profiles:
        assert "#SBATCH" in cluster.script("--site", profile, train=["--set", "training.device=CPU"])


def test_an_installed_muster_has_profiles_and_template(cluster, tmp_path):
    subprocess.run(["cmake", "--install", os.path.dirname(mp.built("muster")), "--prefix", tmp_path / "there"], check=True, capture_output=True)
    words = ["--dry-run", "--site", tmp_path / "there/share/muster/cluster/sites/local-slurm.txtpb", "train", cluster.config]
    script = mp.execute([tmp_path / "there/bin/muster", "submit", *words], tmp_path, cluster.environment()).stdout
    assert "#SBATCH --ntasks-per-node=2" in script and f"muster={tmp_path}/there/bin/muster" in script


def test_another_template(cluster):
    (cluster.folder / "own.in").write_text("#!/bin/bash\n@SBATCH@\n@SETUP@\nrun=@RUN@\n@SRUN@\n")
    assert cluster.script(*PLAIN, "--template", "own.in").startswith("#!/bin/bash\n#SBATCH --job-name=e\n")
    (cluster.folder / "own.in").write_text("@SBATCH@ @RUM@\n")
    assert "@RUM@, which muster does not know" in cluster.submit("--template", "own.in", code=2).stderr
    (cluster.folder / "own.in").write_text("@SBATCH@\n")
    assert "lacks @RUN@" in cluster.submit("--template", "own.in", code=2).stderr


def test_submit(cluster):
    said = cluster.submit(*PLAIN, train=["--run-dir", "run", *SEED]).stdout
    assert said.startswith("submitted job 41: e, 1 run on 2 nodes with 1 rank each") and "scancel 41" in said
    assert cluster.calls("sbatch") == [f"sbatch --parsable {cluster.run}/job.sbatch"]
    assert sorted(path.name for path in cluster.run.iterdir()) == ["job.sbatch", "logs", "submission.json"]
    submission = mp.read_json(cluster.run / "submission.json")
    assert submission["job"] == "41" and submission["command"] == ["train", "e.txtpb", "--run-dir", "run", *SEED]
    assert (cluster.run / "job.sbatch").read_text() == golden(cluster).replace("/runs/e", "/run")
    # While it is queued, no second one; afterwards again.
    cluster.say("squeue.said", f"PENDING {cluster.run}/job.sbatch")
    assert "41 is PENDING" in cluster.submit(*PLAIN, train=["--run-dir", "run"], code=2).stderr
    cluster.say("squeue.said", "PENDING /elsewhere/job.sbatch")  # a new cluster, which counts from 1 again
    cluster.say("sbatch.said", "a note of the site\n42")
    cluster.submit(train=["--run-dir", "run"])
    assert mp.read_json(cluster.run / "submission.json")["job"] == "42" and "--time" not in (cluster.run / "job.sbatch").read_text()
    (cluster.bin / "squeue.said").unlink()
    # The run begins in the prepared directory; then there is something to go on with; then it is finished.
    assert "has not begun yet" in cluster.muster("resume", "run", code=2).stderr
    cluster.muster("train", "e.txtpb", "--run-dir", "run", "--resume", "auto", "--max-steps", 2)
    (cluster.run / "result.json").unlink()
    assert "holds an unfinished run: the job continues it" in cluster.submit(train=["--run-dir", "run"]).stdout
    cluster.muster("train", "e.txtpb", "--run-dir", "run", "--resume", "auto")
    assert mp.result(cluster.run)["last"]["step"] == 4
    assert "holds a finished run" in cluster.submit(train=["--run-dir", "run"], code=2).stderr


def test_submit_from_within_a_job(cluster):
    """What an allocation says of itself would mislead the srun of the new job."""
    cluster.say("sbatch.do", 'env > "$FAKES/environment"')
    cluster.submit(changes={**cluster.job, "SLURM_RESTART_COUNT": "2", "SLURM_MEM_PER_CPU": "9", "SLURM_CONF": "/conf", "OTHER": "1"})
    seen = (cluster.bin / "environment").read_text().splitlines()
    assert [line for line in seen if line.startswith("SLURM_")] == ["SLURM_CONF=/conf"] and "OTHER=1" in seen


def test_submit_an_array(cluster):
    cluster.submit("--array", "1,3", train=["--set", "seed={task}"])
    assert cluster.calls("sbatch") == [f"sbatch --parsable {cluster.folder}/runs/e-1/job.sbatch"]
    assert [mp.read_json(cluster.folder / f"runs/e-{task}/submission.json")["job"] for task in (1, 3)] == ["41_1", "41_3"]
    assert (cluster.folder / "runs/e-1/job.sbatch").read_text() == (cluster.folder / "runs/e-3/job.sbatch").read_text()
    assert "put {task} into it" in cluster.submit("--array", "1,3", train=["--run-dir", "run"], code=2).stderr
    assert "say which" in cluster.submit(train=["--set", "seed={task}"], code=2).stderr
    assert "write 0-4" in cluster.submit("--array", "4-0", code=2).stderr


@pytest.mark.parametrize("options,train,code,text", [
    ([], ["--set", "training.epoch=3"], 78, "training.epoch"),
    ([], ["--set", "data.synthetic=", "--set", "data.path=absent.h5"], 74, "absent.h5"),
    (["--nodes", "3", "--ranks-per-node", "3"], ["--set", "training.reproducible=true"], 78, "less than this job's 9 ranks"),
    (["--gpus-per-node", "2", "--ranks-per-node", "3"], [], 2, "3 ranks on 2 GPUs"),
    (["--nodes", "2-1"], [], 2, "--nodes 2-1"),
    (["--sbatch", "mem=3"], [], 2, "--mem=64G"),
    (["--sbatch=--array=0-3"], [], 2, "give --array to submit itself"),
    (["--time", "2"], [], 2, "--time 2 leaves no time to train"),
    ([], ["--run-dir", "a\\b"], 2, "backslash"),
    ([], ["--nodes", "2"], 2, "Options of the job go before train"),
    ([], ["--init-from", "absent"], 65, "no such weights file"),
    ([], ["--time-limit", "soon"], 2, "is not a duration"),
    ([], ["--dry-run"], 2, "goes before train"),
])
def test_mistakes_are_found_before_queueing(options, train, code, text, cluster):
    assert text in cluster.submit(*options, train=train, code=code).stderr
    assert not cluster.calls("sbatch") and not (cluster.folder / "runs").exists()


def test_sbatch_refuses(cluster):
    cluster.say("sbatch.said", "sbatch: error: invalid partition specified: nix")
    cluster.say("sbatch.code", "1")
    assert "invalid partition specified: nix" in cluster.submit(train=["--run-dir", "run"], code=2).stderr
    assert not cluster.run.exists()
    (cluster.bin / "sbatch").unlink()
    error = cluster.submit(code=2, changes={"PATH": str(cluster.bin)}).stderr
    assert "no sbatch on the PATH" in error
    assert "a job runs train, not resume" in cluster.muster("submit", "resume", "run", code=2).stderr
