"""training.reproducible: the same bits on any number of ranks. Compared are files, byte for byte."""
import functools
import json
import os
import re
from pathlib import Path

import pytest

import muster_program as mp
from test_world_sizes import COMMON, EVERY_LOSS_OF_FOAL_NET, EVERY_LOSS_OF_MIAR, FOAL_NET, MIAR, field_values, is_on, missing_modalities

FULL = os.environ.get("MUSTER_FULL_TESTS") == "1"
# At least three epochs of each case: every uneven batch comes three times, and a difference of one bit in any step is one in all weights after it. Fifty
# epochs (what only a long run could show: schedules, moments of Adam that have settled) in the full run.
STEPS = 200 if FULL else 10
# What may differ: how fast it was, who did what, what was sent.
OF_THE_JOB = {"samples_per_second", "microbatches", "bytes_sent"}


def training(batch_size, fields=""):
    # The name of the experiment is written into the weights: the same for all.
    return (f'name: "exact"\ntraining {{ epochs: 0 max_steps: {STEPS} batch_size: {batch_size} log_every_steps: 1 '
            f"reproducible: true {fields} }}\n")


def more(*ranks):
    return ranks if FULL else ()


def few_lengths(path):
    """Torch compiles a bfloat16 product on a CPU for each number of rows, for milliseconds: ragged, but with few different numbers."""
    samples = range(84)
    return mp.tiny_data(path, "classification", 84, lengths={"audio": [2 + i % 2 for i in samples], "vision": [3 - i // 2 % 2 for i in samples]})


# Batches of 13 and 11 leave uneven microbatches and a last batch with fewer samples than microbatches. The last numbers of ranks are for the full run:
# the default run has 2, 3, 4 and 8 ranks, and a number that divides the microbatches and one that does not with most models.
def cases(folder):
    missing = missing_modalities(folder / "missing.h5")
    foal_net = FOAL_NET + mp.CLASSIFICATION.replace("60", "84").replace("} }", "} standardize: true }") + COMMON
    return {
        "foal_net": (foal_net + training(13), EVERY_LOSS_OF_FOAL_NET | {"standardize"}, {"classification", "avel", "mem"}, (2, 3, 8, *more(4))),
        "foal_net_recompute_five_microbatches": (
            foal_net.replace("mem_weight", "mem_positive: RECOMPUTE mem_weight") + training(13, "microbatches: 5 sampling: CLASS_BALANCED"),
            EVERY_LOSS_OF_FOAL_NET | {"CLASS_BALANCED"}, {"classification", "avel", "mem"}, (2, 4)),
        "miar": (MIAR + mp.REGRESSION.replace("60", "80") + COMMON + training(11), EVERY_LOSS_OF_MIAR, {"regression", "alignment"}, (3, 4, *more(2, 8))),
        "miar_missing": (MIAR + f'data {{ path: "{missing}" standardize: true }}\n' + COMMON + training(7, "microbatches: 4"),
                         EVERY_LOSS_OF_MIAR | {"standardize"}, {"regression", "alignment"}, (3, 4)),
        "late_fusion": ("late_fusion { dim: 16 hidden_dim: 12 dropout: 0.2 }\n" + mp.REGRESSION.replace("60", "80") + COMMON + training(11),
                        {"dropout"}, {"regression"}, (2, 3, *more(4))),
        "late_fusion_missing": ("late_fusion { dim: 16 hidden_dim: 12 }\n" + f'data {{ path: "{missing}" standardize: true }}\n' + COMMON +
                                training(7, "microbatches: 4"), {"standardize"}, {"regression"}, (4, *more(3))),
        "foal_net_multilabel": (FOAL_NET + f'data {{ path: "{mp.tiny_data(folder / "multilabel.h5", "multilabel", 84)}" standardize: true }}\n' + COMMON +
                                training(13), EVERY_LOSS_OF_FOAL_NET | {"standardize"}, {"multilabel", "avel", "mem"}, (2, *more(3, 4))),
        "miar_multilabel_augmented": (
            MIAR + f'data {{ path: "{folder / "multilabel.h5"}" standardize: true clip_standardized: 1.2 augment {{ modality_dropout: 0.3 }} }}\n' + COMMON +
            training(11), {"standardize", "clip_standardized", "modality_dropout"}, {"multilabel", "alignment"}, (3, *more(2, 4))),
        "foal_net_bf16": (FOAL_NET + f'data {{ path: "{few_lengths(folder / "few.h5")}" standardize: true }}\n' + COMMON + training(13, "precision: BF16"),
                          EVERY_LOSS_OF_FOAL_NET | {"standardize"}, {"classification", "avel", "mem"}, (3,)),
    }


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    return cases(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def one_rank(experiments, tmp_path_factory):
    """The run of an experiment on one rank, made when it is first asked for."""
    return functools.cache(lambda name: mp.train(tmp_path_factory.mktemp(name), experiments[name][0], "ranks1"))


def rows(run):
    return [{name: value for name, value in row.items() if name not in OF_THE_JOB} for row in mp.metrics_rows(run)]


def require_same_bits(one, other):
    assert mp.bits(one) == mp.bits(other)
    for file in ("weights/best.safetensors", "weights/last.safetensors", "predictions-valid.csv", "predictions-test.csv"):
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    assert rows(one) == rows(other)  # JSON with all digits: losses, norms, metrics of every step and validation
    results = [{name: value for name, value in mp.result(run).items() if name not in ("seconds", "world_size", "checkpoints")} for run in (one, other)]
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["foal_net", "foal_net_recompute_five_microbatches", "miar", "miar_missing", "late_fusion", "late_fusion_missing", "foal_net_multilabel",
                                  "miar_multilabel_augmented", "foal_net_bf16"])
def test_same_bits_on_any_number_of_ranks(name, experiments, one_rank, tmp_path):
    text, switched_on, terms, world_sizes = experiments[name]
    one = one_rank(name)
    values = field_values(one)
    assert values["reproducible"] == "true" and all(is_on(values, field) for field in switched_on), "the test must cover what it says"
    train_rows = mp.metrics_rows(one, "train")
    assert len(train_rows) == STEPS and all(set(row["terms"]) == terms for row in train_rows)
    assert all(min(row["terms"].values()) > 0 for row in train_rows[:3]) and mp.metrics_rows(one, "valid")
    pieces = int(values["microbatches"]) or 8
    trained, batch_size = mp.read_json(one / "environment.json")["data"]["train"], int(re.search(r"batch_size: (\d+)", text.split("training")[1])[1])
    assert batch_size % pieces and trained % batch_size, "microbatches must be uneven, and the last batch short"
    for ranks in world_sizes:
        other = mp.train(tmp_path, text, f"ranks{ranks}", ranks)
        require_same_bits(one, other)
        # It was really shared: nobody ran more than its part.
        for row in mp.metrics_rows(other, "train"):
            assert len(row["microbatches"]) == ranks and max(row["microbatches"]) <= -(-pieces // ranks)
            assert row["bytes_sent"] > 0


def test_default_mode_has_other_bits(experiments, tmp_path):
    """The comparison would notice: without reproducible the order of sums depends on the ranks."""
    text = experiments["miar"][0].replace("reproducible: true", "")
    one, two = (mp.train(tmp_path, text, f"ranks{ranks}", ranks, "--max-steps", "5") for ranks in (1, 2))
    assert mp.bits(one) != mp.bits(two)


def test_number_of_microbatches_is_part_of_the_bits(experiments, one_rank, tmp_path):
    assert "microbatches: 0" in (one_rank("miar") / "config.txtpb").read_text(), "8 by default"
    other = mp.train(tmp_path, experiments["miar"][0], "pieces4", 1, "--set", "training.microbatches=4")
    assert mp.bits(other) != mp.bits(one_rank("miar"))


def test_evaluate_and_predict_have_the_same_bits(one_rank, tmp_path):
    outputs, files = [], []
    for ranks in (1, 2, 3, *more(8)):
        files.append(tmp_path / f"{ranks}.csv")
        words = ("evaluate", one_rank("foal_net"), "--split", "all", "--json", "-o", files[-1])
        outputs.append(json.loads(mp.muster(*words, ranks=ranks).stdout))
    assert all(output == outputs[0] for output in outputs)
    assert all(file.read_bytes() == files[0].read_bytes() for file in files)


@pytest.mark.parametrize("name, world_sizes", [("quickstart", (4, *more(2, 3))), ("sentiment", (3, *more(2, 4))), ("late_fusion", (2, *more(3, 4)))])
def test_the_shipped_experiments(name, world_sizes, tmp_path):
    """README's and docs' command, on every model."""
    config, runs = mp.ROOT / "experiments" / f"{name}.txtpb", []
    for ranks in (1, *world_sizes):
        runs.append(tmp_path / f"{name}{ranks}")
        mp.muster("train", config, "--set", "training.reproducible=true", "--max-steps", 25 if FULL else 10, "--run-dir", runs[-1], ranks=ranks)
    assert len({mp.bits(run) for run in runs}) == 1


def refused(folder, ranks, *sets):
    arguments = [word for item in sets for word in ("--set", item)]
    config = mp.write_config(folder / "refused.txtpb", mp.SMALL_MIAR + mp.REGRESSION + "training { reproducible: true }\n")
    result = mp.muster("train", config, "--run-dir", folder / "refused", *arguments, ranks=ranks, code=78)
    assert not (folder / "refused").exists() and result.stderr.count("muster: ") == 1, result.stderr
    return result.stderr


def test_more_ranks_than_microbatches_is_refused(tmp_path):
    message = refused(tmp_path, 3, "training.microbatches=2")
    assert "--set training.microbatches=2" in message and "3 ranks" in message and "training.microbatches=3" in message
    assert "8 microbatches (the default)" in refused(tmp_path, 9)


def test_threads_are_refused(tmp_path):
    message = refused(tmp_path, 1, "training.threads=2")
    assert "training.threads" in message and "more ranks" in message


def test_other_processors_are_refused(tmp_path):
    """A rank with another code path of the matrix library cannot give the same bits: named, with its value."""
    config = mp.write_config(tmp_path / "c.txtpb", mp.SMALL_MIAR + mp.REGRESSION + "training { reproducible: true }\n")
    script = (f'export MKL_CBWR=$([ "$OMPI_COMM_WORLD_RANK" = 2 ] && echo SSE4_2,STRICT || echo AVX2,STRICT); '
              f'exec {mp.built("muster")} train {config} --run-dir {tmp_path / "run"}')
    result = mp.execute(["mpirun", "--oversubscribe", "-n", 3, "sh", "-c", script])
    assert result.returncode == 78 and "rank 2" in result.stderr and "SSE4_2" in result.stderr, result.stderr
    assert result.stderr.count("muster: ") == 1


def test_loose_matrix_products_are_refused(tmp_path):
    config = mp.write_config(tmp_path / "c.txtpb", mp.SMALL_MIAR + mp.REGRESSION + "training { reproducible: true }\n")
    result = mp.muster("train", config, "--run-dir", tmp_path / "run", changes={"MKL_CBWR": "AVX2"}, code=78)
    assert "MKL_CBWR=AVX2" in result.stderr and "STRICT" in result.stderr


def test_the_processor_is_recorded(tmp_path):
    run = mp.train(tmp_path, mp.SMALL_MIAR + mp.REGRESSION + "training { epochs: 1 reproducible: true }\n", "run", 1, changes={"MKL_CBWR": ""})
    numerics = mp.read_json(run / "environment.json")["numerics"]
    processor = dict(re.split(r"\s*: ", line, maxsplit=1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ": " in line)
    assert f'{processor["vendor_id"]} {processor["cpu family"]} {processor["model"]}' in numerics and "STRICT" in numerics


# From 1,024 rows on ranks share the batch-wide losses: 1,300 rows are six blocks, the last a short one.
BIG = "name: \"exact\" training { max_steps: 2 epochs: 0 batch_size: 1300 log_every_steps: 1 %s } evaluation { batch_size: 1300 every_epochs: 0 }\n"


def big_cases(folder):
    n = 1800
    lengths = {m: [0 if i % 9 == position else 1 + i % 2 for i in range(n)] for position, m in enumerate(("text", "audio", "vision"))}
    missing = mp.tiny_data(folder / "missing.h5", "regression", n, lengths=lengths)
    small = mp.tiny_data(folder / "small.h5", "classification", n, lengths={m: [1 + i % 2 for i in range(n)] for m in ("audio", "vision")})
    return {"foal_net": mp.SMALL_FOAL_NET.replace("layers: 1", "layers: 1 heads: 2") + f'data {{ path: "{small}" standardize: true }}\n',
            "miar_missing": mp.SMALL_MIAR + f'data {{ path: "{missing}" }}\n'}


@pytest.mark.parametrize("name", ["foal_net", "miar_missing"])
def test_shared_batch_wide_losses(name, tmp_path):
    """Shared among ranks or not: the same bits, and in default mode in float64 the same numbers but for rounding."""
    text = big_cases(tmp_path)[name]
    exact = [mp.train(tmp_path, text + BIG % "reproducible: true", f"exact{ranks}", ranks) for ranks in (1, 3, *more(2))]
    for other in exact[1:]:
        require_same_bits(exact[0], other)
    usual = [mp.train(tmp_path, text + BIG % "precision: FP64", f"usual{ranks}", ranks) for ranks in (1, 3)]
    want, got = (mp.weights(run / "weights" / "last.safetensors") for run in usual)
    for tensor, value in want.items():
        assert abs(value - got[tensor]).max() <= 1e-10 * max(1, abs(value).max()), tensor
