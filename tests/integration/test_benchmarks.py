"""The benchmarks run and say what their pages say they say. Their figures are for people: no test judges a time."""
import sys

import pytest

import muster_program as mp


def table(text, first):
    """Rows of whitespace-separated columns from the line that starts with `first` on, which names them."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().lstrip("#").strip().startswith(first))
    return [line.split() for line in lines[start + 1:] if line.strip() and not line.lstrip().startswith("#")]


@pytest.mark.parametrize("ranks", [1, 2])
def test_reproducible(ranks):
    starter = ["mpirun", "--oversubscribe", "-n", ranks] if ranks > 1 else []
    run = mp.execute([*starter, mp.built("benchmarks/reproducible"), "--workload", "miar_aligned", "--batch", 9, "--repeats", 1])
    assert run.returncode == 0, run.stderr
    assert f"{ranks} ranks" in run.stdout
    (name, usual, exact, ratio), = table(run.stdout, "workload")
    assert name == "miar_aligned" and float(usual) > 0 and float(exact) > 0
    assert float(ratio) == pytest.approx(float(exact) / float(usual), abs=0.02)


def test_scaling():
    run = mp.execute([sys.executable, mp.ROOT / "benchmarks" / "scaling.py", mp.built("muster").rsplit("/", 1)[0], "--workload", "miar_aligned", "--batch", 4,
                      "--rounds", 1])
    assert run.returncode == 0, run.stderr
    assert "times as fast" in run.stdout.splitlines()[-1]
