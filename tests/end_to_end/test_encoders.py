"""Runs whose features come from encoders that are trained with the model, or frozen: the same bits on any number of ranks, resumed,
evaluated, and without anything of the encoders' folders. Encoders are those of the quickstart."""
import json
import os
import re
import shutil
import signal
import subprocess
import time

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file

import muster_program as mp
from faulty_disk import shim
from test_resume import Job, rows, saved, scores, steps

FULL = os.environ.get("MUSTER_FULL_TESTS") == "1"
TINY = mp.ROOT / "experiments/encoders"
RAW = "data { synthetic { kind: CLASSIFICATION raw: true samples: 36 } modalities: ['audio', 'text'] }\n"
SMALL = "foal_net { projection_dim: 16 adapter_dim: 0 layers: 1 feature_dropout: 0.1 }\n"
SHORT = 'encoders {{ modality: "audio" path: "{}" train: {} max_seconds: 0.5 {} }}\n'


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a tiny WavLM, which masks in training, and a tiny BERT, both of random weights."""
    folder = tmp_path_factory.mktemp("encoders")
    config = json.loads((TINY / "tiny_wavlm/config.json").read_text())
    config.update(hidden_size=16, intermediate_size=24, num_attention_heads=2, conv_dim=[8] * 7, apply_spec_augment=True, mask_time_prob=0.4,
                  mask_time_length=2, mask_feature_prob=0.2, mask_feature_length=3, layerdrop=0.2)
    (folder / "small").mkdir()
    (folder / "small/config.json").write_text(json.dumps(config))
    shutil.copy(TINY / "tiny_wavlm/preprocessor_config.json", folder / "small")
    mp.muster("encoders", "init", "--config", folder / "small/config.json", "--seed", 4, "-o", folder / "wavlm")
    mp.muster("encoders", "init", "--config", TINY / "tiny_bert/config.json", "--seed", 5, "-o", folder / "bert")
    return folder


def encoders(folders, audio="TRANSFORMER", text="ALL", more=""):
    return (SHORT.format(folders / "wavlm", audio, more) +
            f'encoders {{ modality: "text" path: "{folders / "bert"}" train: {text} learning_rate_scale: 0.5 layer_decay: 0.9 }}\n')


def training(steps=6, fields="reproducible: true microbatches: 5"):
    return f'name: "exact"\noptimizer {{ learning_rate: 1e-3 clip_norm: 1 }}\ntraining {{ epochs: 0 max_steps: {steps} batch_size: 11 {fields} }}\n'


def test_same_bits_on_any_number_of_ranks(folders, tmp_path):
    """Dropout, masks, layerdrop, partners on other ranks, uneven batches; with recompute; and a run that changes ranks in between."""
    text = RAW + SMALL + encoders(folders) + training()
    one = mp.train(tmp_path, text, "ranks1")
    rows = mp.metrics_rows(one, "train")
    assert len({row["terms"]["mem"] for row in rows}) > 1 and all(np.isfinite(row["loss"]) for row in rows)
    for ranks in (2, 3, 4):
        assert mp.bits(mp.train(tmp_path, text, f"ranks{ranks}", ranks)) == mp.bits(one), ranks
    recomputed = mp.train(tmp_path, text, "recompute", 2, "--set", "training.recompute=ENCODERS")
    assert mp.bits(recomputed) == mp.bits(one)
    resumed = mp.train(tmp_path, RAW + SMALL + encoders(folders) + training(3), "resumed", 3)
    assert mp.bits(resumed) != mp.bits(one)
    mp.muster("resume", resumed, "--set", "training.max_steps=6", ranks=2)
    assert mp.bits(resumed) == mp.bits(one)
    # What a change of the seed changes, so that equal bits mean something.
    assert mp.bits(mp.train(tmp_path, text, "seed2", 1, "--set", "seed=2")) != mp.bits(one)


STEPS, OFTEN = 24, "reproducible: true microbatches: 5 log_every_steps: 1"


@pytest.fixture(scope="module")
def uninterrupted(folders, tmp_path_factory):
    return mp.train(tmp_path_factory.mktemp("uninterrupted"), RAW + SMALL + encoders(folders) + training(STEPS, OFTEN))


@pytest.mark.parametrize("recompute", ["NONE", "ENCODERS"])
def test_killed_and_resumed_on_other_ranks(recompute, folders, uninterrupted, tmp_path):
    """All ranks die at once some steps behind a checkpoint; more of them end with the weights of one that nothing happened to."""
    text = RAW + SMALL + encoders(folders) + training(STEPS, f"{OFTEN} recompute: {recompute}") + "checkpoints { every_epochs: 0 every_steps: 10 }\n"
    config, run = mp.write_config(tmp_path / "run.txtpb", text), tmp_path / "run"
    with Job(tmp_path, "train", config, "--run-dir", run, ranks=2) as job:
        job.wait_until(lambda: saved(run) > 0 and steps(run) > saved(run))
        ranks = job.ranks()
        for pid in ranks:
            os.kill(pid, signal.SIGKILL)
        assert len(ranks) == 2 and job.end() in (76, 137), job.text()
    at = saved(run)
    assert at in (10, 20) and not (run / "result.json").exists()
    assert f"continues after step {at}" in mp.muster("resume", run, ranks=3).stderr
    assert mp.result(run)["resumed"] and mp.result(run)["last"]["step"] == STEPS
    for which in ("best", "last"):
        assert mp.result(run)[which]["fingerprint"] == mp.result(uninterrupted)[which]["fingerprint"]
    assert scores(run) == scores(uninterrupted) and rows(run) == rows(uninterrupted)


def test_bfloat16(tmp_path):
    """The quickstart in BF16: not the numbers of FP32, near them, and the same on two ranks but for rounding."""
    small = {"data.synthetic.samples": 60, "encoders[0].max_seconds": 0.5, "training.epochs": 2, "training.batch_size": 12,
             "training.log_every_steps": 1, "optimizer.warmup_steps": 2, "optimizer.learning_rate": 3e-4}
    losses = {}
    for name, precision, ranks in (("fp32", "FP32", 1), ("one", "BF16", 1), ("two", "BF16", 2)):
        changes = [word for field, value in {**small, "training.precision": precision}.items() for word in ("--set", f"{field}={value}")]
        mp.muster("train", mp.ROOT / "experiments/foal_net_raw_quickstart.txtpb", "--run-dir", tmp_path / name, *changes, ranks=ranks)
        losses[name] = np.array([row["loss"] for row in mp.metrics_rows(tmp_path / name, "train") + mp.metrics_rows(tmp_path / name, "valid")])
        assert np.isfinite(losses[name]).all() and mp.result(tmp_path / name)["best"]["epoch"] in (1, 2)
        assert {str(value.dtype) for value in mp.weights(tmp_path / name / "weights/last.safetensors").values()} == {"float32"}
    print(*(f"{name} {values.round(5)}" for name, values in losses.items()), sep="\n")
    away = np.abs(losses["one"] / losses["fp32"] - 1)
    assert 1e-5 < away.max() < 0.02
    assert np.abs(losses["two"] / losses["one"] - 1).max() <= 1e-3


@pytest.mark.parametrize("model", ["miar { dim: 16 heads: 2 ffn_dim: 32 alignment_dim: 8 layers: 1 }\n", mp.SMALL_LATE_FUSION])
def test_other_models_take_encoders_too(model, folders, tmp_path):
    text = RAW + model + encoders(folders) + training(4, "precision: FP64")
    one, two = (mp.train(tmp_path, text, f"ranks{ranks}", ranks) for ranks in (1, 3))
    theirs = mp.weights(two / "weights/last.safetensors")
    start = load_file(folders / "bert/model.safetensors")
    for name, value in mp.weights(one / "weights/last.safetensors").items():
        assert np.abs(value - theirs[name]).max() <= 1e-9, name
        if name.startswith("encoders.text.") and name.endswith("query.weight"):
            assert np.abs(value - start[name[len("encoders.text."):]]).max() > 1e-6, name


def test_a_run_needs_nothing_of_the_folders(folders, tmp_path):
    """Frozen parts stay as they are, weights files have them, and the run keeps what describes the encoders."""
    mine = tmp_path / "folders"
    shutil.copytree(folders, mine)
    text = RAW + SMALL + encoders(mine, "TRANSFORMER", "FROZEN") + training(4)
    run = mp.train(tmp_path, text)
    best, start = mp.weights(run / "weights/best.safetensors"), load_file(folders / "wavlm/model.safetensors")
    for name, value in start.items():
        same = np.array_equal(best["encoders.audio." + name], value)
        # The keys' bias has no gradient: the softmax does not see it.
        assert same == (name.startswith("feature_extractor.") or name.endswith("k_proj.bias")), name
    for name, value in load_file(folders / "bert/model.safetensors").items():
        assert np.array_equal(best["encoders.text." + name], value), name
    environment = mp.read_json(run / "environment.json")
    assert set(environment["encoders"]) == {"audio", "text"} and len(environment["encoders"]["audio"]["sha256"]) == 64
    scores = mp.muster("evaluate", run).stdout
    shutil.rmtree(mine)
    assert mp.muster("evaluate", run).stdout == scores
    mp.muster("data", "synth", "--kind", "classification", "--raw", "--samples", 12, "-o", tmp_path / "new.h5")
    mp.muster("predict", "--weights", run / "weights/best.safetensors", "--config", run / "config.txtpb", "--data", tmp_path / "new.h5",
              "-o", tmp_path / "new.csv")
    assert len(mp.predictions(tmp_path / "new.csv")) == 12
    mp.muster("resume", run, "--set", "training.max_steps=6", ranks=2)
    straight = mp.train(tmp_path, RAW + SMALL + encoders(folders, "TRANSFORMER", "FROZEN") + training(6), "straight")
    assert mp.bits(run) == mp.bits(straight)


def refusal(folder, text, code=78, *arguments):
    config = mp.write_config(folder / "refused.txtpb", text)
    error = mp.muster("train", config, "--run-dir", folder / "refused", *arguments, code=code).stderr
    assert not (folder / "refused").exists()
    return error


def test_what_does_not_fit_is_refused(folders, tmp_path):
    audio = SHORT.format(folders / "wavlm", "ALL", "")
    text = f'encoders {{ modality: "text" path: "{folders / "bert"}" }}\n'
    error = refusal(tmp_path, RAW + SMALL + audio)
    assert 'data.modalities: "text" is of tokens, which needs an encoder' in error
    error = refusal(tmp_path, RAW + SMALL + audio + text.replace("bert", "wavlm"))
    assert 'encoders[1].path: this encoder takes waveforms, but "text" holds tokens' in error and "refused.txtpb:" in error
    error = refusal(tmp_path, mp.CLASSIFICATION + SMALL + audio)
    assert 'encoders[0].modality: "audio" holds features' in error
    error = refusal(tmp_path, RAW + SMALL + audio + audio + text)
    assert 'encoders[1].modality: "audio" has an encoder already, encoders[0]' in error
    error = refusal(tmp_path, RAW + SMALL + audio + text, 78, "--set", "encoders[0].top_layers=7")
    assert "encoders[0].top_layers" in error
    error = refusal(tmp_path, RAW + SMALL + audio + text, 78, "--set", "encoders[1].train=FROZEN", "--set", "encoders[1].hidden_dropout=0.1")
    assert "encoders[1].hidden_dropout is 0.1, but encoders[1].train is FROZEN" in error
    error = refusal(tmp_path, RAW + SMALL + audio + text, 78, "--set", "encoders[5].train=FROZEN")
    assert "encoders[5]" in error and "there are 2 encoders" in error
    error = refusal(tmp_path, RAW + SMALL + audio + text.replace('bert"', 'nothing"'), 74)
    assert "nothing" in error
    error = refusal(tmp_path, RAW + SMALL + audio + text, 78, "--set", "encoders[1].max_tokens=-1")
    assert "encoders[1].max_tokens" in error


def test_settings_from_the_command_line(folders, tmp_path):
    config = mp.write_config(tmp_path / "e.txtpb", RAW + SMALL + encoders(folders))
    shown = mp.muster("config", config, "--set", "encoders[1].train=FROZEN", "--set", "encoders[0].layer_decay=0.5").stdout
    assert shown.count("encoders {") == 2 and "train: FROZEN" in shown and "layer_decay: 0.5" in shown and "train: TRANSFORMER" in shown
    run = mp.train(tmp_path, RAW + SMALL + encoders(folders) + training(2), "run", 1, "--set", "encoders[0].train=FROZEN", "--set",
                   "encoders[0].spec_augment=false")
    assert "train: FROZEN" in (run / "config.txtpb").read_text()
    error = mp.muster("resume", run, "--set", "encoders[0].train=ALL", "--set", "training.max_steps=3", code=78).stderr
    assert "encoders[0].train is FROZEN in this run and cannot become ALL" in error
    shown = mp.muster("config", config, "--set", "encoders[0]=").stdout
    assert shown.count("encoders {") == 1 and 'modality: "text"' in shown and "learning_rate_scale: 0.5" in shown


def features_of(path):
    with h5py.File(path) as file:
        return {name: (group["values"][:], group["offsets"][:]) for name, group in file["modalities"].items()}


def test_features_are_extracted_on_any_number_of_ranks_and_after_a_kill(folders, tmp_path):
    """`data encode` writes what the encoders give in evaluation; training on it begins with the scores of frozen encoders."""
    text = RAW.replace("36", "150") + SMALL + encoders(folders, "FROZEN", "FROZEN")
    config = mp.write_config(tmp_path / "e.txtpb", text)
    one, two, killed = (tmp_path / f"{name}.h5" for name in ("one", "two", "killed"))
    assert "150 samples encoded" in mp.muster("data", "encode", config, "-o", one).stdout
    mp.muster("data", "encode", config, "-o", two, ranks=2)
    assert one.read_bytes() == two.read_bytes()

    with subprocess.Popen([mp.built("muster"), "data", "encode", config, "-o", killed], env=mp.environment(), stderr=subprocess.DEVNULL) as process:
        while len(pieces := sorted(tmp_path.glob("killed.h5.parts/*.safetensors"))) < 2 and process.poll() is None:
            time.sleep(0.002)
        process.kill()
    assert not killed.exists()
    other = mp.muster("data", "encode", config, "-o", killed, "--set", "encoders[1].layer=1", code=2).stderr
    assert "killed.h5.parts holds pieces of another encoding" in other
    # Pieces that are not what they should be are encoded again: another one, and one of whose values a bit has changed.
    shutil.copy(pieces[1], pieces[1].with_stem("00000009"))
    damaged = bytearray(pieces[0].read_bytes())
    damaged[-5] ^= 1
    pieces[0].write_bytes(damaged)
    assert "of them by an earlier call" in mp.muster("data", "encode", config, "-o", killed, ranks=3).stdout
    assert killed.read_bytes() == one.read_bytes() and not (tmp_path / "killed.h5.parts").exists()

    shown = json.loads(mp.muster("data", "inspect", one, "--json").stdout)
    assert shown["samples"] == 150
    extracted = features_of(one)
    assert extracted["audio"][0].shape[1] == 16 and extracted["text"][0].shape[1] == 64
    # Evaluated without a step: the features are all that could differ.
    trained = mp.train(tmp_path, text + training(1, ""), "frozen", 1, "--set", "optimizer.learning_rate=1e-30")
    on_features = "data { path: 'one.h5' modalities: ['audio', 'text'] }\n" + SMALL + training(1, "")
    again = mp.train(tmp_path, on_features, "features", 1, "--set", "optimizer.learning_rate=1e-30")
    first, second = (mp.metrics_rows(run, "valid")[-1]["loss"] for run in (trained, again))
    assert abs(first - second) <= 1e-5 * abs(first)


def test_what_cannot_be_extracted(folders, tmp_path):
    config = mp.write_config(tmp_path / "e.txtpb", mp.CLASSIFICATION + SMALL)
    assert "has no encoders" in mp.muster("data", "encode", config, "-o", tmp_path / "f.h5", code=2).stderr
    config = mp.write_config(tmp_path / "w.txtpb", RAW + SMALL + encoders(folders, "FROZEN", "FROZEN", "weighted_layers: true"))
    error = mp.muster("data", "encode", config, "-o", tmp_path / "f.h5", code=78).stderr
    assert "encoders[0].weighted_layers" in error and error.count("\n") <= 2
    (tmp_path / "f.h5.parts").mkdir()
    (tmp_path / "f.h5.parts/mine.txt").write_text("mine")
    config = mp.write_config(tmp_path / "e.txtpb", RAW + SMALL + encoders(folders, "FROZEN", "FROZEN"))
    assert "mine.txt" in mp.muster("data", "encode", config, "-o", tmp_path / "f.h5", code=2).stderr
    assert (tmp_path / "f.h5.parts/mine.txt").read_text() == "mine" and not (tmp_path / "f.h5").exists()


def cached(run):
    """Of the frozen encoders: ([KEY.h5], other entries of the folder)."""
    entries = sorted((run / "frozen_features").iterdir()) if (run / "frozen_features").exists() else []
    return [path for path in entries if path.suffix == ".h5"], [path for path in entries if path.suffix != ".h5"]


def losses(run):
    """(kind, step, name, value) of all rows."""
    return [(row["kind"], row["step"], name, value) for row in mp.metrics_rows(run) for name, value in [("loss", row["loss"]), *row["terms"].items()]]


def test_a_frozen_encoder_runs_before_the_first_step(folders, tmp_path):
    """The losses are those of training on what `data encode` has written, with an adapter behind the frozen encoder and a trained one beside it."""
    mp.muster("data", "synth", "--kind", "classification", "--raw", "--samples", 36, "-o", tmp_path / "raw.h5")
    audio, text = encoders(folders, "FROZEN").splitlines()
    alone = mp.write_config(tmp_path / "alone.txtpb", "data { path: 'raw.h5' modalities: ['audio'] }\n" + mp.SMALL_LATE_FUSION + audio)
    mp.muster("data", "encode", alone, "-o", tmp_path / "encoded.h5")
    data = "data {{ path: '{}.h5' modalities: ['audio', 'text'] standardize: {} }}\n"
    rest = SMALL.replace("adapter_dim: 0", "adapter_dim: 6") + text + "\n" + training(8, "log_every_steps: 1")
    config = mp.write_config(tmp_path / "once.txtpb", data.format("raw", "true") + audio + "\n" + rest)
    assert "the frozen encoder of audio runs once" in mp.muster("train", config, "--run-dir", tmp_path / "once", "--dry-run").stderr
    assert not (tmp_path / "once").exists()
    messages = mp.muster("train", config, "--run-dir", tmp_path / "once").stderr
    assert messages.count("running the frozen encoder of audio once over 36 samples") == 1
    expected = losses(mp.train(tmp_path, data.format("encoded", "false") + rest, "encoded"))
    actual = losses(tmp_path / "once")
    assert len(actual) > 30 and [row[:3] for row in actual] == [row[:3] for row in expected]
    for one, other in zip(actual, expected):
        assert abs(one[3] - other[3]) <= 1e-5 * abs(other[3]), (one, other)
    # The run has the encoder's weights, and other commands run it on recordings.
    best = mp.weights(tmp_path / "once/weights/best.safetensors")
    for name, value in load_file(folders / "wavlm/model.safetensors").items():
        assert np.array_equal(best["encoders.audio." + name], value), name
    scores = json.loads(mp.muster("evaluate", tmp_path / "once", "--json").stdout)
    assert abs(scores["loss"] - mp.result(tmp_path / "once")["test"]["loss"]) <= 1e-5 * scores["loss"]
    assert cached(tmp_path / "once") == ([], [])


@pytest.mark.parametrize("change", ["encoders[0].weighted_layers=true", "training.precision=FP64"])
def test_what_runs_in_the_step_although_it_is_frozen(change, folders, tmp_path):
    config = mp.write_config(tmp_path / "step.txtpb", RAW + SMALL + encoders(folders, "FROZEN", "TRANSFORMER") + training(1, ""))
    assert "runs once" not in mp.muster("train", config, "--run-dir", tmp_path / "step", "--set", change).stderr


def stopped(when, *arguments):
    """Sends SIGTERM to a run as soon as when() holds; it stops in good order. Returns what it said."""
    with subprocess.Popen([mp.built("muster"), *map(str, arguments)], env=mp.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True) as process:
        while not when():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        process.terminate()
        messages = process.communicate()[1]
    assert process.returncode == 75, messages
    return messages


def test_frozen_features_outlive_interruptions_and_changes_of_ranks(folders, tmp_path):
    text = RAW.replace("36", "150") + SMALL + encoders(folders, "FROZEN", "FROZEN") + training(30)
    reference = mp.train(tmp_path, text, "reference")
    config, run = mp.write_config(tmp_path / "run.txtpb", text), tmp_path / "run"
    messages = stopped(lambda: list(run.glob("frozen_features/*.parts/*.safetensors")), "train", config, "--run-dir", run)
    assert "stopped by SIGTERM while the frozen encoder of audio and of text ran" in messages and f"muster resume {run}" in messages
    assert not cached(run)[0] and len(cached(run)[1]) == 1
    # Other features that are there, of other settings, are neither used nor kept.
    other = run / "frozen_features" / f"{'0' * 64}.h5"
    other.write_text("something else")
    messages = stopped(lambda: (run / "metrics.jsonl").stat().st_size > 0, "resume", run)
    assert "in an earlier job" in messages and not other.exists()
    (features,), (description,) = cached(run)
    with h5py.File(features) as file:
        assert set(file["modalities"]) == {"audio", "text"} and len(file["samples/id"]) == 150
        first = file["modalities/text/values"].id.get_offset()
    assert mp.read_json(description)["encoding"] == features.stem == description.stem

    damaged, foreign = tmp_path / "damaged", tmp_path / "foreign"
    shutil.copytree(run, damaged)
    shutil.copytree(run, foreign)
    assert "the frozen encoder of audio and of text has run in an earlier job" in mp.muster("resume", run, ranks=2).stderr
    with open(damaged / features.relative_to(run), "r+b") as file:
        file.seek(first)
        file.write(b"\0\0\x80\x3f")
    messages = mp.muster("resume", damaged).stderr
    assert f"warning: {damaged / features.relative_to(run)}: is not what was written there. The frozen encoders run again" in messages
    (foreign / description.relative_to(run)).write_text(json.dumps({**mp.read_json(foreign / description.relative_to(run)), "encoding": "0" * 64}))
    assert "The frozen encoders run again" in mp.muster("resume", foreign).stderr
    for path in (run, damaged, foreign):
        assert mp.bits(path) == mp.bits(reference) and not (path / "frozen_features").exists(), path


def test_extraction_that_is_asked_to_stop(folders, tmp_path):
    config = mp.write_config(tmp_path / "e.txtpb", RAW.replace("36", "300") + SMALL + encoders(folders, "FROZEN", "FROZEN"))
    once, twice = tmp_path / "once.h5", tmp_path / "twice.h5"
    mp.muster("data", "encode", config, "-o", once)
    messages = stopped(lambda: list(tmp_path.glob("twice.h5.parts/*.safetensors")), "data", "encode", config, "-o", twice)
    assert re.search(rf"stopped by SIGTERM: features of at least \d+ of 300 samples are kept in {twice}.parts; continue, on any number of ranks, "
                     "with the same command", messages), messages
    assert not twice.exists()
    assert "of them by an earlier call" in mp.muster("data", "encode", config, "-o", twice, ranks=2).stdout
    assert twice.read_bytes() == once.read_bytes()


def test_what_is_in_the_way_of_features(folders, tmp_path):
    """It is named before any work is done, and neither used nor removed."""
    text = RAW.replace("36", "150") + SMALL + encoders(folders, "FROZEN", "FROZEN") + training(4)
    config, run = mp.write_config(tmp_path / "run.txtpb", text), tmp_path / "run"
    stopped(lambda: list(run.glob("frozen_features/*.parts/*.safetensors")), "train", config, "--run-dir", run)
    (parts,), kept = run.glob("frozen_features/*.parts"), tmp_path / "kept"

    def refused(path, what):
        error = mp.muster("resume", run, code=74).stderr
        assert f"{path} {what}" in error and f"remove it, then: muster resume {run}" in error and "running the frozen" not in error, error

    (parts / "mine.txt").write_text("mine")
    refused(parts, "holds 'mine.txt', which is no piece of it")
    (parts / "mine.txt").unlink()
    parts.rename(kept)
    parts.write_text("mine")
    refused(parts, "is not a folder")
    parts.unlink()
    kept.rename(parts)
    for end in (".h5", ".json"):
        (folder := parts.with_suffix(end)).mkdir()
        refused(folder, "is not a file")
        folder.rmdir()
    mp.muster("resume", run)
    assert mp.bits(run) == mp.bits(mp.train(tmp_path, text, "straight"))

    (tmp_path / "f.h5.parts").write_text("mine")
    error = mp.muster("data", "encode", config, "-o", tmp_path / "f.h5", code=2).stderr
    assert f"{tmp_path / 'f.h5.parts'} is not a folder: remove it, or give another output" in error


def interrupted(run, config, *arguments):
    """A run without a checkpoint."""
    stopped(lambda: list(run.glob("frozen_features/*.parts/*.safetensors")), "train", config, "--run-dir", run, *arguments)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)


def test_an_encoder_that_has_gone_or_moved(folders, tmp_path):
    mine = tmp_path / "folders"
    shutil.copytree(folders, mine)
    text = RAW.replace("36", "150") + SMALL + encoders(mine, "FROZEN", "FROZEN") + training(4)
    config, run = mp.write_config(tmp_path / "run.txtpb", text), tmp_path / "run"
    interrupted(run, config)
    (mine / "wavlm").rename(mine / "moved")
    error = mp.muster("resume", run, code=74).stderr
    assert f"encoders[0].path: {mine / 'wavlm'} is not there any more" in error and "--set encoders[0].path=" in error, error
    described = (mine / "bert/config.json").read_bytes()
    (mine / "bert/config.json").unlink()
    moved = ("--set", f"encoders[0].path={mine / 'moved'}")
    error = mp.muster("resume", run, *moved, code=74).stderr
    assert f"encoders[1].path: {mine / 'bert/config.json'} is not there any more" in error, error
    (mine / "bert/config.json").write_bytes(described)
    (mine / "moved/preprocessor_config.json").rename(mine / "preprocessor")
    assert "preprocessor_config.json is not there any more" in mp.muster("resume", run, *moved, code=74).stderr
    (mine / "preprocessor").rename(mine / "moved/preprocessor_config.json")
    # The same encoder in another place is no change, before the first checkpoint and after.
    (mine / "link").symlink_to(mine / "bert")
    messages = mp.muster("resume", run, *moved, "--set", f"encoders[1].path={mine / 'link'}").stderr
    assert ".path" not in messages and "top_layers" not in messages, messages
    (mine / "moved").rename(mine / "wavlm")
    messages = mp.muster("resume", run, "--set", f"encoders[0].path={mine / 'wavlm'}", "--set", "training.max_steps=5").stderr
    assert "training.max_steps: 4 -> 5" in messages and ".path" not in messages and "top_layers" not in messages, messages
    messages = mp.muster("resume", run, "--set", f"encoders[0].path={mine / 'bert'}", "--set", "training.max_steps=6").stderr
    assert f'encoders[0].path: "{mine / "wavlm"}" -> "{mine / "bert"}"' in messages, messages


def test_notes_on_what_has_no_effect(folders, tmp_path):
    silent = tmp_path / "silent"
    shutil.copytree(folders / "wavlm", silent)
    (silent / "preprocessor_config.json").unlink()
    text = "data { standardize: true synthetic { kind: CLASSIFICATION raw: true samples: 36 } modalities: ['audio', 'text'] }\n" + SMALL
    config = mp.write_config(tmp_path / "e.txtpb", text + encoders(folders, "FROZEN", "FROZEN") + training(1))

    def notes(*arguments):
        return [line for line in mp.muster("train", config, "--dry-run", *arguments).stderr.splitlines() if line.startswith("note: ")]

    ineffective = [note for note in notes("--set", "training.recompute=ENCODERS") if "no effect" in note]
    assert len(ineffective) == 4, ineffective
    for field in ("encoders[1].learning_rate_scale = 0.5", "encoders[1].layer_decay = 0.9", "data.standardize = true", "training.recompute = ENCODERS"):
        assert sum(field in note for note in ineffective) == 1, ineffective
    for trained in ("encoders[1].train=ALL", "foal_net.adapter_dim=4", "encoders[0].weighted_layers=true"):
        assert not any("recompute" in note for note in notes("--set", "training.recompute=ENCODERS", "--set", trained)), trained
    (note,) = [note for note in notes("--set", f"encoders[0].path={silent}") if "preprocessor" in note]
    assert note.startswith(f"note: encoder of audio: {silent} has no preprocessor_config.json: waveforms are standardized (do_normalize true)")
    assert not any("preprocessor" in note for note in notes())
    messages = mp.muster("data", "encode", config, "-o", tmp_path / "f.h5", "--set", f"encoders[0].path={silent}").stderr
    assert note in messages


def test_segment_ids_that_the_encoder_does_not_have(folders, tmp_path):
    mp.muster("data", "synth", "--kind", "classification", "--raw", "--samples", 36, "-o", tmp_path / "raw.h5")
    with h5py.File(tmp_path / "raw.h5", "r+") as file:
        group, sample = file["modalities/text"], file["samples/id"].asstr()[3]
        values = np.hstack([group["values"][:], np.zeros_like(group["values"])])
        values[group["offsets"][3] + 1, 1] = 7
        del group["values"]
        group["values"] = values
    text = "data { path: 'raw.h5' modalities: ['audio', 'text'] }\n" + SMALL + encoders(folders) + training(1)
    error = refusal(tmp_path, text, 65)
    assert "1 value is not among the encoder's segment ids (column 1), which end at 1 (type_vocab_size 2)" in error, error
    assert f"sample '{sample}', text, frame 1, column 1: 7" in error and "import the texts without segment ids" in error, error


def test_frozen_features_on_any_number_of_ranks_and_without_room(folders, tmp_path):
    """One rank of two has no room for a piece, and then rank 0 none for the whole: both end with 74, and the run goes on from there."""
    text = RAW + SMALL + encoders(folders, "FROZEN", "FROZEN") + training(4)
    one, two, three = (mp.bits(mp.train(tmp_path, text, f"ranks{ranks}", ranks)) for ranks in (1, 2, 3))
    assert one == two == three
    config, run = mp.write_config(tmp_path / "run.txtpb", text), tmp_path / "run"
    for words, ranks, rank, at, name in ((("train", config, "--run-dir", run), 2, 1, 1, ".parts/00000001.safetensors"),
                                         (("resume", run), 1, 0, 32, ".h5")):
        full = shim(run / "frozen_features", "ENOSPC", at=at, sticky=1, rank=rank)
        error = mp.muster(*words, ranks=ranks, changes=full, code=74).stderr
        assert "No space left on device" in error and re.search(f"frozen_features/[0-9a-f]{{64}}{re.escape(name)}", error), error
        assert not cached(run)[0]
    assert "in an earlier job" in mp.muster("resume", run).stderr
    assert mp.bits(run) == one
