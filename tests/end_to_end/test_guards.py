"""Where a number would be wrong without anyone noticing: the run stops, or says so."""
import re
import subprocess

import h5py
import numpy as np

import muster_program as mp

MIAR = """
miar { dim: 16 heads: 2 ffn_dim: 16 alignment_dim: 8 alignment_source: FRAMES }
training { epochs: 2 batch_size: 8 }
"""
FOAL_NET = """
foal_net { projection_dim: 8 heads: 2 layers: 1 }
training { epochs: 2 batch_size: 8 }
"""


def test_missing_modalities_from_the_models_own_start(tmp_path):
    """Biases start at 0, so the embedding of a missing modality is exactly zero: it has no direction, and must not give NaN."""
    lengths = {"text": [0, 3, 2] * 8, "audio": [4, 0, 1] * 8, "vision": [2, 2, 0] * 8}
    mp.tiny_data(tmp_path / "d.h5", task="regression", lengths=lengths)
    run = mp.train(tmp_path, 'data { path: "d.h5" }' + MIAR)
    assert all(np.isfinite(row["gradient_norm"]) for row in mp.metrics_rows(run, "train"))


def test_a_sample_of_zeros(tmp_path):
    """Faces that were not found are often stored as frames of zeros."""
    random = np.random.default_rng(3)
    values = {m: [np.zeros((2, dim)) if i % 6 == 1 else random.normal(size=(3, dim)) for i in range(24)]
              for m, dim in {"audio": 8, "vision": 4}.items()}
    lengths = {m: [len(frames) for frames in values[m]] for m in values}
    mp.tiny_data(tmp_path / "d.h5", lengths=lengths, values=values)
    run = mp.train(tmp_path, 'data { path: "d.h5" }' + FOAL_NET)
    assert all(np.isfinite(row["gradient_norm"]) for row in mp.metrics_rows(run, "train"))


def test_weights_that_diverged_in_the_last_update_have_no_scores(tmp_path):
    mp.tiny_data(tmp_path / "d.h5")
    config = mp.write_config(tmp_path / "c.txtpb", 'data { path: "d.h5" }' + FOAL_NET)
    answer = mp.muster("train", config, "--set", "optimizer.learning_rate=1e38", "--max-steps", 1, "--run-dir", tmp_path / "run",
                       code=70)
    assert "outputs are not finite" in answer.stderr and not (tmp_path / "run" / "result.json").exists()


def test_init_from_of_another_scale_or_other_classes(tmp_path):
    mp.tiny_data(tmp_path / "d.h5")
    text = 'data { path: "d.h5" standardize: true }' + FOAL_NET
    weights = mp.train(tmp_path, text, "first") / "weights" / "best.safetensors"
    second = mp.write_config(tmp_path / "second.txtpb", text)
    start = ["train", second, "--init-from", weights, "--run-dir", tmp_path / "second"]
    assert "data.standardize" in mp.muster(*start, "--set", "data.standardize=false", code=65).stderr
    with h5py.File(tmp_path / "d.h5", "a") as f:
        f.attrs["class_names"] = f.attrs["class_names"][::-1]
    assert "classes" in mp.muster(*start, code=65).stderr
    assert not (tmp_path / "second").exists()


def test_evaluate_refuses_data_that_changed(tmp_path):
    mp.tiny_data(tmp_path / "d.h5")
    run = mp.train(tmp_path, 'data { path: "d.h5" }' + FOAL_NET)
    mp.muster("evaluate", run)
    with h5py.File(tmp_path / "d.h5", "a") as f:
        f["samples/label"][:] = f["samples/label"][()][::-1]
    assert "SHA-256" in mp.muster("evaluate", run, code=65).stderr
    mp.muster("evaluate", run, "--data", tmp_path / "d.h5")


def test_left_out_samples_are_named_by_predict(tmp_path):
    mp.tiny_data(tmp_path / "d.h5")
    run = mp.train(tmp_path, 'data { path: "d.h5" missing_modality: DROP }' + FOAL_NET)
    mp.tiny_data(tmp_path / "lacks.h5", lengths={"audio": [0, 0] + [3] * 22, "vision": [2] * 24})
    answer = mp.muster("predict", "--weights", run / "weights/best.safetensors", "--config", run / "config.txtpb", "--data",
                       tmp_path / "lacks.h5", "-o", tmp_path / "p.csv")
    assert re.search(r"left out 2 of all samples, .*: \S+, \S+", answer.stderr)
    assert len(mp.predictions(tmp_path / "p.csv")) == 22


def test_a_disk_that_is_full_behind_standard_output(tmp_path):
    config = mp.write_config(tmp_path / "experiment.txtpb", mp.SMALL_FOAL_NET + mp.CLASSIFICATION)
    with open("/dev/full", "w") as full:
        result = subprocess.run([mp.built("muster"), "config", config], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 74 and "standard output could not be written" in result.stderr
