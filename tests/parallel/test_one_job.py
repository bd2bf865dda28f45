"""Ranks of one job must be one job: the same program, experiment and data; and the work and the bytes are what the formulas say."""
import shutil

import numpy as np
import pytest

import muster_program as mp


def run_ranks(commands, folder):
    """One job whose rank r runs commands[r] (a list of words)."""
    script = "case $OMPI_COMM_WORLD_RANK in " + " ".join(
        f"{rank}) exec {' '.join(str(word) for word in words)} ;;" for rank, words in enumerate(commands)) + " esac"
    return mp.execute(["mpirun", "--oversubscribe", "-n", len(commands), "sh", "-c", script], cwd=folder)


def refused(result, code, *texts):
    assert result.returncode == code, result.stderr
    assert result.stderr.count("muster: ") == 1, result.stderr
    for text in texts:
        assert text in result.stderr, result.stderr


@pytest.mark.parametrize("other", [0, 1, 2])
def test_another_experiment_on_one_rank_is_refused(other, tmp_path):
    config = mp.write_config(tmp_path / "c.txtpb", mp.SMALL_MIAR + mp.REGRESSION)
    train = [mp.built("muster"), "train", config, "--run-dir", tmp_path / "run"]
    commands = [train + (["--set", "training.batch_size=31"] if rank == other else []) for rank in range(3)]
    refused(run_ranks(commands, tmp_path), 78, "experiment", f"rank {other}")
    assert not (tmp_path / "run").exists()


def test_another_build_on_one_rank_is_refused(tmp_path):
    config = mp.write_config(tmp_path / "c.txtpb", mp.SMALL_MIAR + mp.REGRESSION)
    changed = tmp_path / "muster"
    shutil.copy(mp.built("muster"), changed)
    with open(changed, "ab") as file:
        file.write(b"\0")  # another file, which runs like the first
    commands = [[program, "train", config, "--run-dir", tmp_path / "run"] for program in (mp.built("muster"), mp.built("muster"), changed)]
    refused(run_ranks(commands, tmp_path), 78, "program", "rank 2")


def test_other_data_on_one_rank_is_refused(tmp_path):
    """The same path, another file, as on nodes with disks of their own: here each rank has its own working folder behind the path."""
    for rank in range(3):
        folder = tmp_path / f"node{rank}"
        folder.mkdir()
        mp.tiny_data(folder / "data.h5", "regression", labels=np.arange(24) / 10 + (0.1 if rank == 1 else 0))
    config = mp.write_config(tmp_path / "c.txtpb", mp.SMALL_MIAR + 'data { path: "/proc/self/cwd/data.h5" }\n')
    commands = [["env", "-C", tmp_path / f"node{rank}", mp.built("muster"), "train", config, "--run-dir", tmp_path / "run"] for rank in range(3)]
    refused(run_ranks(commands, tmp_path), 65, "data", "rank 1")
    # Equal copies are one dataset.
    shutil.copy(tmp_path / "node0" / "data.h5", tmp_path / "node1" / "data.h5")
    result = run_ranks([words + ["--set", "training.epochs=1"] for words in commands], tmp_path)
    assert result.returncode == 0, result.stderr


def test_other_weights_on_one_rank_are_refused(tmp_path):
    """The same path on other nodes' disks, for training and for prediction."""
    text = mp.SMALL_MIAR + mp.REGRESSION + "training { epochs: 1 }\n"
    for rank in range(2):
        mp.train(tmp_path, text, f"node{rank}", 1, "--set", f"seed={rank + 1}")
    config, weights = tmp_path / "node0.txtpb", "/proc/self/cwd/weights/last.safetensors"
    mp.muster("data", "synth", "--kind", "regression", "--samples", 20, "-o", tmp_path / "new.h5")
    for words in (["train", config, "--init-from", weights, "--run-dir", tmp_path / "run"],
                  ["predict", "--weights", weights, "--config", config, "--data", tmp_path / "new.h5", "-o", tmp_path / "out.csv"]):
        commands = [["env", "-C", tmp_path / f"node{rank}", mp.built("muster"), *words] for rank in (0, 0, 1)]
        refused(run_ranks(commands, tmp_path), 70, "weights", "rank 2")
        assert not (tmp_path / "run").exists() and not (tmp_path / "out.csv").exists()


def test_other_options_on_one_rank_are_refused(tmp_path):
    config = mp.write_config(tmp_path / "c.txtpb", mp.SMALL_MIAR + mp.REGRESSION)
    train = [mp.built("muster"), "train", config, "--run-dir", tmp_path / "run"]
    refused(run_ranks([train, train + ["--dry-run"], train], tmp_path), 78, "rank 1")


def padded_parameters(run, item=4):
    """Elements of the flat arena: each parameter starts on a boundary of 64 bytes."""
    boundary = 64 // item
    return sum(-(-value.size // boundary) * boundary for name, value in mp.weights(run / "weights" / "last.safetensors").items())


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("reproducible", [False, True])
def test_work_and_bytes_are_as_documented(ranks, reproducible, tmp_path):
    batch, width, terms = 24, 2 * 16, 2  # samples; AVEL's two embeddings; classification and MEM
    small = mp.SMALL_FOAL_NET.replace("adapter_dim: 8", "adapter_dim: 0")  # what encoders send beside: test_encoder_step.py
    text = (small + mp.CLASSIFICATION + f"training {{ batch_size: {batch} sampling: CLASS_BALANCED drop_last: true log_every_steps: 1 "
            f"epochs: 1 reproducible: {str(reproducible).lower()} }}\n")
    run = mp.train(tmp_path, text, "run", ranks)
    pieces = 8 if reproducible else ranks
    owned = [pieces // ranks + (rank < pieces % ranks) for rank in range(ranks)]
    parameters = padded_parameters(run)
    for row in mp.metrics_rows(run, "train"):
        assert row["microbatches"] == owned and max(owned) == -(-pieces // ranks)
        if reproducible and ranks == 3:
            continue  # boundaries that cut nodes of the tree: below
        rows = batch // pieces * owned[0]  # rank 0 writes the log
        gathered = (ranks - 1) * (rows * width * 4 + owned[0] * terms * 8)
        # The sum of gradients moves the same bytes either way: an all-reduce's, or slices out and the finished slice back.
        slices = [parameters // ranks + (rank < parameters % ranks) for rank in range(ranks)]
        gradients = (parameters - slices[0] + (ranks - 1) * slices[0]) * 4 if reproducible else 2 * parameters * 4 * (ranks - 1) // ranks
        assert row["bytes_sent"] == gathered + gradients
