"""The benchmarks run and say what their pages say they say. Their figures are for people: no test judges a time."""
import os
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


def test_contrastive():
    run = mp.execute([mp.built("benchmarks/contrastive"), "--rows", "64,1100", "--repeats", 1])
    assert run.returncode == 0, run.stderr
    rows = [[float(cell) for cell in line.strip("|").split("|")] for line in run.stdout.splitlines() if line.startswith("|  ") and "rows" not in line]
    assert [row[0] for row in rows] == [64, 1100]
    for _, plain, tiled, *_, difference in rows:
        assert plain > 0 and tiled > 0 and abs(difference) < 1e-4  # the two computed the same loss


@pytest.mark.parametrize("ranks", [2, 3])
def test_collectives(ranks):
    run = mp.execute(["mpirun", "--oversubscribe", "-n", ranks, mp.built("benchmarks/collectives"), 8, 64])
    assert run.returncode == 0, run.stderr
    rows = table(run.stdout, "backend")
    assert {row[0] for row in rows} >= {"mpi", "threads"} and {row[1] for row in rows} == {"all_reduce", "all_gather", "all_to_all", "broadcast", "tree_sum"}
    assert all(float(number) >= 0 for row in rows for number in row[5:])


@pytest.mark.parametrize("ranks", [1, 2])
def test_checkpoint(ranks, tmp_path):
    run = mp.execute([sys.executable, mp.ROOT / "benchmarks" / "checkpoint.py", mp.built("benchmarks/checkpoint").rsplit("/", 2)[0], "--ranks", ranks,
                      "--parameters", 3000, "--saves", 1, "--folder", tmp_path])
    assert run.returncode == 0, run.stderr
    rows = [line.split() for line in run.stdout.splitlines() if line.split()[0] in ("muster", "pytorch")]
    assert [row[:2] for row in rows] == [[program, mode] for program in ("muster", "pytorch") for mode in ("async", "sync")]
    assert all(float(number) > 0 for row in rows for number in row[2:5])
    assert "of PyTorch's async_save" in run.stdout.splitlines()[-1] and not list(tmp_path.iterdir())


def test_search(tmp_path):
    run = mp.execute([sys.executable, mp.ROOT / "benchmarks" / "search.py", mp.built("muster").rsplit("/", 1)[0], "--trials", 1, "--rounds", 1, "--samples", 9, "--epochs", 1,
                      "--shortest", 3, "--folder", tmp_path])
    assert run.returncode == 0, run.stdout + run.stderr
    rows = table(run.stdout, "program")[:4]
    assert [row[:2] for row in rows] == [[program, count] for count in "12" for program in ("muster", "pytorch")] and all(float(row[3]) > 0 for row in rows)
    # The PyTorch model is the same model.
    ours, _, theirs, *_, error, _, peer_error = run.stdout.splitlines()[-1].replace(",", "").split()[3:]
    assert ours == theirs and float(error) == pytest.approx(float(peer_error), abs=1e-4) and not list(tmp_path.iterdir())


@pytest.mark.skipif(os.environ.get("MUSTER_FULL_TESTS") != "1", reason="starts transformers six times: ./test.sh --full")
def test_encoder_step():
    run = mp.execute([sys.executable, mp.ROOT / "benchmarks" / "encoder_step.py", mp.built("muster").rsplit("/", 1)[0], "--size", "tiny", "--steps", 2,
                      "--rounds", 1, "--seconds", 1.5])
    assert run.returncode == 0, run.stdout + run.stderr
    ours, theirs = next(line for line in run.stdout.splitlines() if line.startswith("losses of step 1")).split(":")[1].split(",")
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    assert "of the time and" in run.stdout.splitlines()[-1]
