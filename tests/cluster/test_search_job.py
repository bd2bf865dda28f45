"""A search as a Slurm job that queues itself again: the script of docs/search.md, on a real Slurm of two nodes (local_slurm.py)."""
import os
import re
from pathlib import Path

from local_slurm import mp, slurm  # noqa: F401

import searching as s

TRIALS = 16


def test_a_stopped_search_comes_back_and_ends(slurm):
    script = re.search(r"cat > (search\.sbatch) <<'EOF'\n(.*?\n)EOF\n", (mp.ROOT / "docs/search.md").read_text(), re.DOTALL)
    (slurm.base / script[1]).write_text(script[2])
    s.write_search(slurm.base, trials=TRIALS, epochs=60, more="name: \"small\"\n").rename(slurm.base / "search.txtpb")
    # What the command line says wins over the script: these nodes are small.
    path = f"{Path(mp.built('muster')).parent}:{os.environ['PATH']}"
    sent = slurm.run("sbatch", "--parsable", "--ntasks-per-node=1", "--time=10", script[1], cwd=slurm.base, changes={"PATH": path}).stdout.strip()
    directory = slurm.base / "runs/small"

    def ended():
        return sum(state in ("COMPLETE", "PRUNED") for state in s.states(directory)) if s.is_begun(directory) else 0

    slurm.wait(sent, lambda _: ended() >= 2)
    before = ended()
    slurm.run("scancel", "--signal=USR1", sent)
    job = slurm.wait_for_state(sent, "COMPLETED")
    assert job["Restarts"] == "1" and 2 <= before < TRIALS, "it must have been stopped half way"
    assert s.states(directory) == ["COMPLETE"] * TRIALS
    assert len({str(trial.params) for trial in s.study(directory).trials}) == TRIALS
    output = (slurm.base / f"slurm-{sent}.out").read_text()
    assert "2 groups of 1 rank" in output and "Continue with: muster search run search.txtpb" in output and f"{TRIALS} trials: {TRIALS} complete" in output
