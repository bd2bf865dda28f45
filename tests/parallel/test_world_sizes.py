"""The number of ranks is not a hyperparameter: one rank and several train the same model."""
import json
import re

import numpy as np
import pytest

import muster_program as mp

FOAL_NET = """
foal_net { projection_dim: 16 adapter_dim: 8 layers: 1 heads: 2 feature_dropout: 0.1 projection_dropout: 0.3 fusion_dropout: 0.2
           classifier_dropout: 0.25 avel_weight: 1 mem_weight: 0.5 }
"""
MIAR = "miar { dim: 16 heads: 2 ffn_dim: 32 alignment_dim: 8 layers: 1 dropout: 0.2 alignment_weight: 0.4 }\n"
COMMON = "optimizer { learning_rate: 1e-3 weight_decay: 0.1 clip_norm: 20 } evaluation { batch_size: 5 }\n"


def training(fields=""):
    return f"training {{ epochs: 4 precision: FP64 threads: 1 log_every_steps: 1 batch_size: 7 {fields} }}\n"


# Each case and what its config must show, so that a change of a default cannot hollow the test out.
EVERY_LOSS_OF_FOAL_NET = {"feature_dropout", "projection_dropout", "fusion_dropout", "classifier_dropout", "avel_weight", "mem_weight",
                          "adapter_dim"}
EVERY_LOSS_OF_MIAR = {"dropout", "alignment_weight"}


def missing_modalities(path):
    n = 54
    lengths = {m: 1 + (np.arange(n) * factor) % 6 for m, factor in (("text", 5), ("audio", 7), ("vision", 11))}
    for position, m in enumerate(lengths):
        lengths[m] = np.where(np.arange(n) % 5 == position, 0, lengths[m])
    return mp.tiny_data(path, "regression", n, lengths=lengths)


# name: (experiment, fields that must be above 0, terms of the loss, world sizes)
def cases(folder):
    missing = missing_modalities(folder / "missing.h5")
    foal_terms, miar_terms = {"classification", "avel", "mem"}, {"regression", "alignment"}
    # Sizes that leave a last batch of fewer samples than ranks.
    foal, sentiment = mp.CLASSIFICATION.replace("60", "63"), mp.REGRESSION.replace("60", "72")
    return {
        "foal_net": (FOAL_NET + foal + COMMON + training(), EVERY_LOSS_OF_FOAL_NET, foal_terms),
        "foal_net_three_microbatches": (
            FOAL_NET.replace("}", "mem_positive: RECOMPUTE }") + foal.replace("} }", "} standardize: true }") + COMMON +
            training("microbatches: 3 sampling: CLASS_BALANCED"), EVERY_LOSS_OF_FOAL_NET | {"standardize", "CLASS_BALANCED"}, foal_terms),
        "miar": (MIAR + sentiment + COMMON + training(), EVERY_LOSS_OF_MIAR, miar_terms),
        "miar_missing": (MIAR + f'data {{ path: "{missing}" standardize: true }}\n' + COMMON + training("microbatches: 3"),
                         EVERY_LOSS_OF_MIAR | {"standardize"}, miar_terms),
    }


def field_values(run):
    text = (run / "config.txtpb").read_text()
    values = dict(re.findall(r"^\s*(\w+): (\S+)$", text, re.MULTILINE))
    return values


def is_on(values, field):
    if field == "standardize":
        return values[field] == "true"
    if field == "CLASS_BALANCED":
        return values["sampling"] == field
    return float(values[field]) > 0


def close(want, got, limit, what):
    want, got = np.asarray(want, dtype=float), np.asarray(got, dtype=float)
    assert want.shape == got.shape, what
    undefined = np.isnan(want)
    assert (np.isnan(got) == undefined).all(), what
    want, got = want[~undefined], got[~undefined]
    scale = max(1.0, np.abs(want).max(initial=0))
    assert np.abs(want - got).max(initial=0) <= limit * scale, f"{what}: differs by {np.abs(want - got).max():.3g}"


def same_run(one, other):
    for file in ("best", "last"):
        want, got = (mp.weights(run / "weights" / f"{file}.safetensors") for run in (one, other))
        assert want.keys() == got.keys()
        for name in want:
            assert want[name].dtype == np.float64
            close(want[name], got[name], 1e-10, f"{file} weights, {name}")

    rows = [mp.metrics_rows(run) for run in (one, other)]
    assert len(rows[0]) == len(rows[1])
    for want, got in zip(*rows):
        what = f"metrics.jsonl, {want['kind']} at step {want['step']}"
        assert want.keys() == got.keys(), what
        assert (want["kind"], want["step"], want["epoch"]) == (got["kind"], got["step"], got["epoch"]), what
        for key in {"loss", "gradient_norm", "learning_rate"} & want.keys():
            close(want[key], got[key], 1e-9, f"{what}, {key}")
        assert want["terms"].keys() == got["terms"].keys()
        for term in want["terms"]:
            close(want["terms"][term], got["terms"][term], 1e-9, f"{what}, {term}")
        if want["kind"] == "valid":
            for metric, value in want["metrics"].items():
                close(value, got["metrics"][metric], 1e-9, f"{what}, {metric}")

    for split in ("valid", "test"):
        tables = [mp.predictions(run / f"predictions-{split}.csv") for run in (one, other)]
        assert [list(row) for row in tables[0]] == [list(row) for row in tables[1]]
        for want, got in zip(*tables):
            for column, value in want.items():
                try:
                    close(float(value), float(got[column]), 1e-9, f"prediction of {want['id']}, {column}")
                except ValueError:
                    assert value == got[column], f"prediction of {want['id']}, {column}"
    results = [mp.result(run) for run in (one, other)]
    for split in ("valid", "test"):
        want, got = (result[split] for result in results)
        assert want["samples"] == got["samples"] and want.get("confusion") == got.get("confusion")
        for metric, value in want["metrics"].items():
            close(value, got["metrics"][metric], 1e-9, f"{split} {metric}")
    assert results[0]["best"]["step"] == results[1]["best"]["step"]


@pytest.mark.parametrize("name", ["foal_net", "foal_net_three_microbatches", "miar", "miar_missing"])
def test_same_model_on_any_number_of_ranks(name, tmp_path):
    text, switched_on, terms = cases(tmp_path)[name]
    one = mp.train(tmp_path, text, "ranks1")
    values = field_values(one)
    assert all(is_on(values, field) for field in switched_on), "the test must cover what it says"
    rows = mp.metrics_rows(one, "train")
    assert len(rows) >= 20 and all(set(row["terms"]) == terms for row in rows)
    assert min(rows[0]["terms"].values()) > 0  # of a full batch: a single sample has nothing to be aligned against
    trained = mp.read_json(one / "environment.json")["data"]["train"]
    assert trained % 7 in (1, 2, 3), "the last batch must leave a rank of four without samples"
    for ranks in (2, 3, 4):
        other = mp.train(tmp_path, text, f"ranks{ranks}", ranks)
        assert mp.result(other)["world_size"] == ranks
        same_run(one, other)


def test_widths_that_heads_do_not_divide(tmp_path):
    """74 and 36 features, as COVAREP and FACET have, mapped to a width of the model's own."""
    data = mp.tiny_data(tmp_path / "data.h5", n=48, dims={"audio": 74, "vision": 36})
    text = FOAL_NET.replace("heads: 2", "heads: 4 adapter_output_dim: 16") + f'data {{ path: "{data}" standardize: true }}\n' + COMMON + training()
    one, two = (mp.train(tmp_path, text, f"ranks{ranks}", ranks) for ranks in (1, 2))
    same_run(one, two)
    best = one / "weights/best.safetensors"
    assert mp.weights(best)["adapter.audio.projection.weight"].shape == (16, 74)
    assert json.loads(mp.muster("evaluate", one, "--json").stdout) == mp.result(one)["test"]

    def check(*arguments, code=0):
        return mp.muster("train", tmp_path / "ranks1.txtpb", "--dry-run", *arguments, code=code).stderr
    check("--init-from", best)
    assert "adapter.audio" in check("--init-from", best, "--set", "foal_net.adapter_output_dim=8", code=65)
    assert "set foal_net.adapter_output_dim to a multiple of 4, e.g. 128" in check("--set", "foal_net.adapter_output_dim=0", code=78)


@pytest.mark.parametrize("name", ["foal_net", "miar_missing"])
def test_microbatches_change_nothing(name, tmp_path):
    text = cases(tmp_path)[name][0].replace("microbatches: 3", "")
    whole, pieces = (mp.train(tmp_path, text, f"pieces{n}", 1, "--set", f"training.microbatches={n}") for n in (1, 4))
    same_run(whole, pieces)


def test_dropout_is_at_work(tmp_path):
    """Runs that agree because dropout is silently off would prove nothing."""
    text = cases(tmp_path)["miar"][0]
    with_dropout, without = (mp.train(tmp_path, text, f"dropout{p}", 1, "--set", f"miar.dropout={p}", "--max-steps", "3") for p in (0.2, 0))
    first = [mp.metrics_rows(run, "train")[0]["loss"] for run in (with_dropout, without)]
    assert abs(first[0] - first[1]) > 1e-6


@pytest.mark.parametrize("config_seed", [1, 2])
def test_evaluation_does_not_depend_on_ranks(config_seed, tmp_path):
    text = cases(tmp_path)["foal_net"][0] + f"seed: {config_seed}\n"
    run = mp.train(tmp_path, text, "run", 2, "--max-steps", "3")
    outputs = [mp.muster("evaluate", run, "--split", "all", "--json", "-o", tmp_path / f"{ranks}.csv", ranks=ranks) for ranks in (1, 3)]
    one, three = (mp.predictions(tmp_path / f"{ranks}.csv") for ranks in (1, 3))
    assert [row["id"] for row in one] == [row["id"] for row in three] and len(one) == 63
    for want, got in zip(one, three):
        assert want["prediction"] == got["prediction"]
        for column in (c for c in want if c.startswith("probability_")):
            close(float(want[column]), float(got[column]), 1e-9, column)
    want, got = (json.loads(output.stdout) for output in outputs)
    close(want["loss"], got["loss"], 1e-9, "loss")
    assert want["metrics"] == got["metrics"] and want["confusion"] == got["confusion"]
