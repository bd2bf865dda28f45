"""muster train on a GPU: the CPU's model in float64, and the same bits on 1 to 4 ranks that share one GPU."""
import os
import re
import shutil

import pytest
import torch

import muster_program as mp
from test_world_sizes import COMMON, FOAL_NET, MIAR, missing_modalities

WHY = "" if torch.cuda.is_available() else "there is no usable GPU"


@pytest.fixture(autouse=True)
def gpu():
    if WHY and os.environ.get("MUSTER_REQUIRE_GPU") == "1":
        pytest.fail(f"MUSTER_REQUIRE_GPU=1, but {WHY}")
    if WHY:
        pytest.skip(WHY)


def require_mpirun(ranks):
    if ranks == 1 or shutil.which("mpirun"):
        return
    (pytest.fail if os.environ.get("MUSTER_REQUIRE_GPU") == "1" else pytest.skip)("there is no mpirun")


FOAL_NET_DATA = mp.CLASSIFICATION.replace("60", "63").replace("} }", "} standardize: true }")
SHARED = ["--set", "training.device=CUDA", "--set", "training.share_device=true"]


def experiments(folder):
    missing = missing_modalities(folder / "missing.h5")
    return {
        "foal_net": FOAL_NET + FOAL_NET_DATA + COMMON,
        "miar": MIAR + mp.REGRESSION.replace("60", "72") + COMMON,
        "miar_missing": MIAR + f'data {{ path: "{missing}" standardize: true }}\n' + COMMON,  # samples without context: no fused attention
    }


def training(fields):
    return f"training {{ epochs: 0 max_steps: 24 threads: 1 log_every_steps: 1 batch_size: 7 {fields} }}\n"


def train_on_gpu(folder, text, name, ranks, *settings):
    require_mpirun(ranks)
    return mp.train(folder, text, name, ranks, *SHARED, *settings)


def largest_difference(one, other):
    want, got = mp.weights(one / "weights/last.safetensors"), mp.weights(other / "weights/last.safetensors")
    assert want.keys() == got.keys()
    return max(abs(want[name] - got[name]).max() / max(1.0, abs(want[name]).max()) for name in want)


@pytest.mark.parametrize("where", ["ALWAYS", "NEVER"])
@pytest.mark.parametrize("name", ["foal_net", "miar", "miar_missing"])
def test_float64_is_the_cpus(name, where, tmp_path):
    text = experiments(tmp_path)[name] + training("precision: FP64")
    cpu = mp.train(tmp_path, text, "cpu", 1, "--set", "training.device=CPU")
    for ranks in (1, 3):
        gpu = train_on_gpu(tmp_path, text, f"gpu{ranks}", ranks, "--set", f"training.data_on_device={where}")
        assert all(rank["device"].startswith("cuda") for rank in mp.read_json(gpu / "environment.json")["ranks"])
        losses = [[row["loss"] for row in mp.metrics_rows(run, "train")] for run in (cpu, gpu)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-9)
        # Adam divides by gradients' own size, so that rounding of tiny ones shows more in weights than in losses.
        assert largest_difference(cpu, gpu) < 1e-6


@pytest.mark.parametrize("name", ["foal_net", "miar", "miar_missing"])
@pytest.mark.parametrize("precision", ["FP32", "BF16"])
def test_reproducible_on_any_number_of_ranks(name, precision, tmp_path):
    text = experiments(tmp_path)[name] + training(f"precision: {precision} reproducible: true microbatches: 4")
    fingerprints = {}
    for attempt, ranks in enumerate((1, 1, 2, 3, 4)):  # the first twice: a run repeats itself
        run = train_on_gpu(tmp_path, text, f"run{attempt}", ranks)
        fingerprints[attempt, ranks] = mp.muster("checkpoints", "fingerprint", run).stdout.split()[0]
    assert len(set(fingerprints.values())) == 1, fingerprints


# The host then looks at some steps only, and lets the GPU go on in between.
SELDOM = ["--set", "training.log_every_steps=7"]


@pytest.mark.parametrize("ranks", [1, 3])
def test_looking_seldom_changes_nothing(ranks, tmp_path):
    text = experiments(tmp_path)["miar"] + training("reproducible: true microbatches: 4")
    often, seldom = train_on_gpu(tmp_path, text, "often", ranks), train_on_gpu(tmp_path, text, "seldom", ranks, *SELDOM)
    rows = {row["step"]: row for row in mp.metrics_rows(often, "train")}
    for row in mp.metrics_rows(seldom, "train"):
        assert row["loss"] == rows[row["step"]]["loss"] and row["gradient_norm"] == rows[row["step"]]["gradient_norm"]
    assert [row["step"] for row in mp.metrics_rows(seldom, "train")] == [1, 7, 14, 21, 24]
    fingerprints = [mp.muster("checkpoints", "fingerprint", run).stdout.split()[0] for run in (often, seldom)]
    assert fingerprints[0] == fingerprints[1]


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_non_finite_step_between_looks_is_named(ranks, tmp_path):
    require_mpirun(ranks)
    text = experiments(tmp_path)["miar"].replace("learning_rate: 1e-3", "learning_rate: 1e38") + training("non_finite: STOP")
    config = mp.write_config(tmp_path / "c.txtpb", text)
    named = {}
    for device in ("CPU", "CUDA"):
        arguments = [*SELDOM, "--set", f"training.device={device}", "--set", "training.share_device=true"]
        error = mp.muster("train", config, "--run-dir", tmp_path / device, *arguments, ranks=ranks, code=70).stderr
        # The CPU's steps are looked at one by one.
        named[device] = (int(re.search(r"non-finite at step (\d+) \(epoch \d+\)", error)[1]), re.findall(r"samples (.*)", error))
        assert error.count("muster: ") == 1
    assert 1 < named["CUDA"][0] < 7 and len(named["CUDA"][1]) >= 1
    assert named["CUDA"] == named["CPU"]


def test_more_ranks_than_gpus_are_refused(tmp_path):
    ranks = torch.cuda.device_count() + 1
    require_mpirun(ranks)
    config = mp.write_config(tmp_path / "c.txtpb", experiments(tmp_path)["miar"] + training(""))
    message = mp.muster("train", config, "--run-dir", tmp_path / "run", "--set", "training.device=CUDA", ranks=ranks, code=2).stderr
    assert "training.share_device" in message and f"{ranks} ranks" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["foal_net", "miar"])
def test_resume_on_another_number_of_ranks(name, tmp_path):
    """The state goes through pinned memory to disk and back, and the rest of the run has the same bits."""
    text = "name: 'resumed'\n" + experiments(tmp_path)[name] + training("reproducible: true microbatches: 4") + "checkpoints { every_steps: 3 }\n"
    whole = train_on_gpu(tmp_path, text, "whole", 1)
    parts = train_on_gpu(tmp_path, text, "parts", 2, "--max-steps", "10")
    mp.muster("resume", parts, "--max-steps", 24, ranks=3)
    for which in ("best", "last"):
        assert mp.result(parts)[which]["fingerprint"] == mp.result(whole)[which]["fingerprint"]
