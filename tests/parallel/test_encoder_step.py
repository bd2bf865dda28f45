"""Foal-Net with a fine-tuned WavLM: losses and gradients of every parameter, the encoder's too, on any number of ranks and
microbatches against PyTorch's autograd of transformers' model and the Foal-Net oracle in one process.

By default a choice of ranks and microbatches; `./test.sh --full`: all of them."""
import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import WavLMConfig, WavLMModel

import foal_net
import golden
import muster_program as mp
from probe_program import client

FULL = os.environ.get("MUSTER_FULL_TESTS") == "1"
TOLERANCE = 1e-9
SAMPLES = [41, 200, 97, 133, 60, 160, 75]  # values; strides multiply to 20, the shortest legal sample has 30
ENCODER = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, conv_dim=(8, 8, 8), conv_kernel=(10, 3, 2),
               conv_stride=(5, 2, 2), num_feat_extract_layers=3, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, num_buckets=16,
               max_bucket_distance=20, do_stable_layer_norm=True, feat_extract_norm="layer", hidden_dropout=0.0, attention_dropout=0.0,
               activation_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0, apply_spec_augment=False)
SMALL = dict(projection_dim=16, heads=2, layers=1)


def without_dropout(value, rate, name, row):
    return value


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory):
    """A WavLM of random weights in its folder."""
    torch.manual_seed(3)
    model = WavLMModel(WavLMConfig(**ENCODER)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # nothing is 0 or 1, and all of it is seen
            parameter.copy_(parameter.float().double() + 0.1 * torch.randn(parameter.shape).double())
    folder = tmp_path_factory.mktemp("wavlm")
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "sampling_rate": 16000}))
    return model, folder


def encoded(model, parameters, wave):
    own = {name[len("encoders.audio."):]: value for name, value in parameters.items() if name.startswith("encoders.audio.")}
    x = wave[:, 0]
    x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-7)
    return torch.func.functional_call(model, own, (x[None],)).last_hidden_state[0]


def is_trained(name, train):
    if name == "encoders.audio.masked_spec_embed":
        return False  # nothing is masked
    return not name.startswith("encoders.audio.feature_extractor.") or train == "ALL"


def case(wavlm, train, labels=None, **fields):
    model, _ = wavlm
    generator = torch.Generator().manual_seed(5)
    config = golden.full_config("foal_net", None, audio_dim=ENCODER["hidden_size"], video_dim=8, classes=3, **{**SMALL, **fields})
    parameters = golden.random_parameters(config, generator)
    for name, value in model.named_parameters():
        parameters["encoders.audio." + name] = value.detach().clone()
    batch = {"audio": [torch.randn(n, 1, generator=generator).double() for n in SAMPLES],
             "vision": [torch.randn(1 + i % 3, 8, generator=generator).double() for i in range(len(SAMPLES))],
             "labels": torch.tensor(labels or [0, 1, 2, 0, 1, 1, 2])}
    return parameters, batch, config


def oracle(wavlm, parameters, batch, config, train):
    """Losses and gradients by PyTorch's autograd, by name as the probe gives them."""
    leaves = {name: value.clone().requires_grad_(is_trained(name, train)) for name, value in parameters.items()}
    frames = [encoded(wavlm[0], leaves, wave) for wave in batch["audio"]]
    run = foal_net.forward({name: value for name, value in leaves.items() if not name.startswith("encoders.")},
                           {**batch, "audio": frames}, config, seed=1, step=0, dropout=without_dropout)
    run["loss"]["total"].backward()
    result = {"outputs": run["outputs"].detach()}
    result.update({f"loss.{term}": value.detach() for term, value in run["loss"].items()})
    gradients = {name: leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for name, leaf in leaves.items() if leaf.requires_grad}
    golden.zero_key_bias(gradients)
    for name in gradients:
        if name.endswith("k_proj.bias"):
            gradients[name].zero_()  # the softmax does not see it: what is left is rounding
    result.update({f"gradients.{name}": value for name, value in gradients.items()})
    return result


def probed(wavlm, tmp_path, parameters, batch, config, train, ranks, microbatches, recompute=False, reproducible=False):
    files = [tmp_path / "input.safetensors", tmp_path / "config.json", tmp_path / "output.safetensors"]
    golden.write_case(parameters, batch, config, 1, 1, microbatches, *files[:2])
    written = json.loads(files[1].read_text())
    written["experiment"] += f'encoders {{ modality: "audio" path: "{wavlm[1]}" train: {train} }}\n'
    files[1].write_text(json.dumps({**written, "recompute_encoders": recompute, "reproducible": reproducible}))
    start = ["mpirun", "--oversubscribe", "-n", ranks] if ranks > 1 else []
    run = mp.execute([*start, *client(), "model", *files])
    assert run.returncode == 0, run.stderr
    return load_file(files[2])


def differences(expected, actual):
    size = max(value.abs().max().item() for name, value in expected.items() if name.startswith("gradients."))
    for name, want in expected.items():
        scale = max(want.abs().max().item(), 1e-3 * size if name.startswith("gradients.") else 1e-3)
        difference = (want - actual[name]).abs().max().item() / scale
        if not difference <= TOLERANCE:
            yield f"{name}: differs by {difference:.3g}"


# (ranks, microbatches or 0 for one per rank, recompute, reproducible, train)
CHOSEN = [(1, 1, False, False, "TRANSFORMER"), (1, 3, True, False, "ALL"), (2, 0, False, False, "ALL"), (2, 7, True, True, "TRANSFORMER"),
          (3, 0, True, False, "TRANSFORMER"), (3, 8, False, True, "ALL"), (4, 0, False, False, "TRANSFORMER")]
ALL = [(ranks, microbatches, recompute, reproducible, train) for ranks in (1, 2, 3, 4) for microbatches in range(1, 9)
       for recompute in (False, True) for reproducible in (False, True) for train in ("TRANSFORMER", "ALL")
       if not reproducible or microbatches >= ranks]


@pytest.mark.parametrize("ranks,microbatches,recompute,reproducible,train", ALL if FULL else CHOSEN)
def test_gradients_equal_autograd_of_the_whole_model(ranks, microbatches, recompute, reproducible, train, wavlm, tmp_path):
    parameters, batch, config = case(wavlm, train, mem_weight=0.7)
    expected = oracle(wavlm, parameters, batch, config, train)
    actual = probed(wavlm, tmp_path, parameters, batch, config, train, ranks, microbatches, recompute, reproducible)
    gradients = {name for name in actual if name.startswith("gradients.")}
    assert gradients == {name for name in expected if name.startswith("gradients.")}
    problems = list(differences(expected, actual))
    assert not problems, "\n".join(problems)


def test_the_alignment_loss_reaches_the_encoder(wavlm, tmp_path):
    """With frozen features AVEL acts on nothing that the classifier sees. Here it does: without it every gradient of the encoder differs."""
    actual = {}
    for weight in (1.0, 0.0):
        parameters, batch, config = case(wavlm, "TRANSFORMER", avel_weight=weight, mem_weight=0.0)
        actual[weight] = probed(wavlm, tmp_path, parameters, batch, config, "TRANSFORMER", 2, 0)
        problems = list(differences(oracle(wavlm, parameters, batch, config, "TRANSFORMER"), actual[weight]))
        assert not problems, "\n".join(problems)
    encoder = [name for name in actual[0.0] if name.startswith("gradients.encoders.") and not name.endswith("k_proj.bias")]
    assert encoder
    for name in encoder:
        assert (actual[1.0][name] - actual[0.0][name]).norm() > 1e-3 * actual[0.0][name].norm() > 0, name


def test_adapter_behind_the_encoder(wavlm, tmp_path):
    parameters, batch, config = case(wavlm, "TRANSFORMER", adapter_dim=6, labels=[1, 1, 1, 1, 2, 1, 1])
    actual = probed(wavlm, tmp_path, parameters, batch, config, "TRANSFORMER", 3, 5)
    problems = list(differences(oracle(wavlm, parameters, batch, config, "TRANSFORMER"), actual))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("ranks", [2, 3])
def test_bytes_are_as_documented(ranks, wavlm, tmp_path):
    """Rank 0 sends, beside what every step does, its frames that other ranks' rows are paired with, each once to each rank, and a gradient for
    each of its rows that is paired with another rank's frames."""
    parameters, batch, config = case(wavlm, "TRANSFORMER")
    probed(wavlm, tmp_path, parameters, batch, config, "TRANSFORMER", ranks, 0)
    with safe_open(tmp_path / "output.safetensors", framework="np") as file:
        sent = int(file.metadata()["bytes_sent"])
    with torch.no_grad():
        frames = [encoded(wavlm[0], parameters, wave) for wave in batch["audio"]]
        embeddings = {role: torch.stack([foal_net.embedding(x, parameters, config, role, without_dropout, i) for i, x in enumerate(samples)])
                      for role, samples in (("audio", frames), ("video", batch["vision"]))}
        scores = foal_net.similarity(embeddings["video"], embeddings["audio"], parameters, config)
    partner = foal_net.mem_negatives(scores, batch["labels"], 1, 0, 1)  # whose audio each row gets
    n = len(SAMPLES)
    ends = [sum(n // ranks + (r < n % ranks) for r in range(rank + 1)) for rank in range(ranks)]
    owner = [next(rank for rank in range(ranks) if row < ends[rank]) for row in range(n)]
    item = ENCODER["hidden_size"] * 8
    fetched = sum(len(frames[p]) * item for rank in range(1, ranks) for p in {partner[row] for row in range(n) if owner[row] == rank} if owner[p] == 0)
    given_back = sum(len(frames[partner[row]]) * item for row in range(n) if owner[row] == 0 and owner[partner[row]] != 0)
    trained = sum(-(-value.numel() // 8) * 8 for name, value in parameters.items() if not name.startswith("encoders.") or is_trained(name, "TRANSFORMER"))
    gathered = (ranks - 1) * (ends[0] * 2 * config["projection_dim"] * 8 + 2 * 8)
    assert fetched > 0 and given_back > 0
    assert sent == gathered + 2 * trained * 8 * (ranks - 1) // ranks + fetched + given_back
