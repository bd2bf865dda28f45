"""The oracle against what others wrote: Random123's test vectors, torch's own modules, finite differences, published counts."""
import math

import pytest
import torch
import torch.nn.functional as F

import foal_net
import golden
import layers
import miar
import philox
from test_models import FOAL_NET, MIAR, build

SPECS = {p.id: p.values[0] for p in FOAL_NET + MIAR}


@pytest.mark.parametrize("counter, key, expected", [
    # Random123 1.14, kat_vectors, philox4x32 10
    ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0], "d16cfe09 94fdcceb 5001e420 24126ea1"),
])
def test_philox_gives_random123_vectors(counter, key, expected):
    words = philox.words(key[1] << 32 | key[0], counter)
    assert " ".join(f"{w:08x}" for w in words) == expected


def test_uniform_never_reaches_its_ends():
    ends = philox.uniform([0, 0xFFFFFFFF])
    assert ends[0] == 2.0 ** -25 and ends[1] == 1 - 2.0 ** -25


def test_attention_equals_torch():
    generator = torch.Generator().manual_seed(3)
    parameters = {f"a.{part}": torch.randn(shape, generator=generator, dtype=torch.float64) for part, shape in {
        "query.weight": (8, 8), "query.bias": (8,), "key_value.weight": (16, 6), "key_value.bias": (16,),
        "output.weight": (8, 8), "output.bias": (8,)}.items()}
    query = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    context = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    module = torch.nn.MultiheadAttention(8, 4, kdim=6, vdim=6, dtype=torch.float64)
    state = {"q_proj_weight": parameters["a.query.weight"], "k_proj_weight": parameters["a.key_value.weight"][:8],
             "v_proj_weight": parameters["a.key_value.weight"][8:], "out_proj.weight": parameters["a.output.weight"],
             "in_proj_bias": torch.cat([parameters["a.query.bias"], parameters["a.key_value.bias"]]),
             "out_proj.bias": parameters["a.output.bias"]}
    module.load_state_dict(state)
    torch.testing.assert_close(layers.attention(query, context, parameters, "a", 4), module(query, context, context)[0])


def test_linear_layer_norm_gelu_and_cross_entropy_equal_their_equations_and_torch():
    generator = torch.Generator().manual_seed(4)
    x, w, b, matrix = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((5, 7), (7,), (7,), (3, 7)))
    labels = torch.tensor([0, 6, 2, 2, 1])
    torch.testing.assert_close(layers.linear(x, {"l.weight": matrix, "l.bias": b[:3]}, "l"), x @ matrix.T + b[:3])
    torch.testing.assert_close(layers.linear(x, {"l.weight": matrix}, "l"), x @ matrix.T)
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    torch.testing.assert_close(layers.layer_norm(x, {"n.weight": w, "n.bias": b}, "n"), centred / torch.sqrt(variance + 1e-5) * w + b)
    torch.testing.assert_close(layers.layer_norm(x, {"n.weight": w, "n.bias": b}, "n"), F.layer_norm(x, (7,), w, b))
    torch.testing.assert_close(layers.gelu(x), 0.5 * x * (1 + torch.erf(x / math.sqrt(2))))
    torch.testing.assert_close(layers.gelu(x), F.gelu(x))
    torch.testing.assert_close(layers.cross_entropy(x, labels), F.cross_entropy(x, labels, reduction="none"))


def test_miar_interaction_equals_torch_modules_without_missing_modalities():
    """One sample, one layer, one modality's path rebuilt from nn.MultiheadAttention and F.layer_norm."""
    parameters, batch, config = build(SPECS["miar-layers-1-tokens"])
    p, d = parameters, config["dim"]
    h = {}
    for m in ("text", "audio", "vision"):
        x = batch[m][0] @ p[f"encoder.{m}.input.weight"].T + p[f"encoder.{m}.input.bias"]
        pos = torch.tensor([[(math.cos if c % 2 else math.sin)(t / 10000 ** (c // 2 * 2 / d)) for c in range(d)]
                            for t in range(len(x))], dtype=torch.float64)
        h[m] = F.layer_norm(x + pos, (d,), p[f"encoder.{m}.norm.weight"], p[f"encoder.{m}.norm.bias"])

    def norm(x, name):
        return F.layer_norm(x, (d,), p[name + ".weight"], p[name + ".bias"])

    context = torch.cat([norm(h[m], f"layers.0.{m}.attention_norm") for m in ("text", "vision")])
    block = "layers.0.audio.attention"
    weight, bias = p[block + ".key_value.weight"], p[block + ".key_value.bias"]
    token = p["token.audio"][None]
    update, _ = F.multi_head_attention_forward(
        norm(token, "layers.0.audio.attention_norm")[:, None], context[:, None], context[:, None], d, config["heads"],
        None, torch.cat([p[block + ".query.bias"], bias]), None, None, False, 0.0, p[block + ".output.weight"],
        p[block + ".output.bias"], use_separate_proj_weight=True, q_proj_weight=p[block + ".query.weight"],
        k_proj_weight=weight[:d], v_proj_weight=weight[d:])
    z = token + update[:, 0]
    hidden = F.gelu(F.linear(norm(z, "layers.0.audio.ffn_norm"), p["layers.0.audio.ffn.input.weight"],
                             p["layers.0.audio.ffn.input.bias"]))
    z = z + F.linear(hidden, p["layers.0.audio.ffn.output.weight"], p["layers.0.audio.ffn.output.bias"])
    _, u, _ = miar.sample_forward({m: batch[m][0] for m in h}, p, config, layers.no_dropout, 0)
    torch.testing.assert_close(u["audio"], norm(z, "token_norm.audio")[0])


def test_row_mean_targets_have_the_gradient_of_kl_divergence():
    generator = torch.Generator().manual_seed(5)
    s = torch.randn(6, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    target = F.normalize((labels[:, None] == labels).double(), p=1, dim=1)
    ours, = torch.autograd.grad(foal_net.avel_loss(s, s, labels, "ROW_MEAN"), s)
    kl, = torch.autograd.grad(F.kl_div(F.log_softmax(s, 1), target, reduction="batchmean"), s)
    torch.testing.assert_close(ours, kl)


@pytest.mark.parametrize("name", [
    "foal_net-adapter", "foal_net-EXP_SCALE-ROW_MEAN", "foal_net-RAW_DIVISOR-ROW_SUM", "miar-missing-layers-2-tokens",
    "miar-missing-layers-3-frames", "miar-classification"])
def test_gradients_equal_finite_differences(name):
    spec = {**SPECS[name], "n": 5}  # they have every kind of missing modality, and every class, one of them twice
    parameters, batch, config = build(spec)
    gradients = golden.run_case(parameters, batch, config, 1)
    model = golden.MODELS[config["model"]]
    generator = torch.Generator().manual_seed(6)
    for key, value in parameters.items():
        direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        sides = [model.forward({**parameters, key: value + sign * 1e-6 * direction}, batch, config, seed=1)["loss"]["total"]
                 for sign in (1, -1)]
        slope = ((sides[0] - sides[1]) / 2e-6).item()
        assert (gradients[f"gradients.{key}"] * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-7), key


def test_every_parameter_has_an_effect():
    for name in ("foal_net-adapter", "miar-layers-2-tokens"):
        parameters, batch, config = build(SPECS[name])
        result = golden.run_case(parameters, batch, config, 1)
        silent = [key for key in parameters if result[f"gradients.{key}"].abs().max() == 0]
        assert not silent


@pytest.mark.parametrize("name, bound", [
    ("exp-scale-upper-bound", math.log(100)), ("exp-scale-lower-bound", 0.0),
    ("clamped-upper-bound", 0.5), ("clamped-lower-bound", 0.001)])
def test_temperature_is_put_back_on_its_bound_after_a_step(name, bound):
    result = golden.run_case(*build(SPECS["foal_net-" + name]), 1)
    assert result["parameters.avel.temperature"].item() == bound


def test_mem_negatives_have_another_label_and_follow_the_softmax():
    generator = torch.Generator().manual_seed(7)
    labels = torch.tensor([0, 1, 1, 2, 0])
    scores = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    counts = torch.zeros(5, 5)
    draws = 4000
    for step in range(draws):
        chosen = foal_net.mem_negatives(scores, labels, 1, step, 0)
        for i, j in enumerate(chosen):
            assert j >= 0 and labels[j] != labels[i]
            counts[i, j] += 1
    same = labels[:, None] == labels
    expected = torch.softmax(scores.masked_fill(same, -math.inf), 1)
    assert (counts / draws - expected).abs().max() < 0.035  # more than four standard deviations


def test_mem_draws_depend_on_seed_step_and_direction():
    labels = torch.arange(8)
    draws = [foal_net.mem_negatives(torch.zeros(8, 8), labels, *key) for key in ((1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1),
                                                                                 ((1 << 32) + 1, 0, 0))]
    assert len(set(map(tuple, draws))) == len(draws)


def test_mem_finds_no_candidate_when_all_labels_agree():
    assert foal_net.mem_negatives(torch.zeros(3, 3), [1, 1, 1], 1, 0, 0) == [-1, -1, -1]


def test_reuse_and_recompute_agree_without_dropout():
    parameters, batch, config = build(SPECS["foal_net-adapter"])
    reuse = golden.run_case(parameters, batch, {**config, "mem_positive": "REUSE"}, 2)
    recompute = golden.run_case(parameters, batch, {**config, "mem_positive": "RECOMPUTE"}, 2)
    for key, value in reuse.items():
        torch.testing.assert_close(value, recompute[key])


def test_empty_context_leaves_the_residual():
    parameters, batch, config = build(SPECS["miar-two-modalities-never-both"])
    recorded = record(parameters, batch, config)
    assert ("layers.0.text.attention", 0) not in recorded  # row 0 has no audio: nothing to attend to
    assert ("layers.0.audio.attention", 0) in recorded     # audio's token still attends to the text


def record(parameters, batch, config):
    sites = {}

    def dropout(x, p, site, row):
        assert (site, row) not in sites, f"{site} runs twice for row {row}"
        sites[site, row] = (tuple(x.shape), p)
        return x

    golden.MODELS[config["model"]].forward(parameters, batch, config, seed=1, dropout=dropout)
    return sites


def test_foal_net_dropout_sites():
    spec = SPECS["foal_net-adapter-recompute"]
    parameters, batch, config = build(spec)
    config.update(feature_dropout=0.1, projection_dropout=0.5, fusion_dropout=0.2, classifier_dropout=0.3)
    sites = record(parameters, batch, config)
    expected = {}
    chosen = foal_net.forward(parameters, batch, config, seed=1)["negatives"]
    for i in range(spec["n"]):
        audio, video = len(batch["audio"][i]), len(batch["vision"][i])
        negatives = {"video": len(batch["vision"][chosen[0][i]]), "audio": len(batch["audio"][chosen[1][i]])}
        expected["feature.audio", i] = ((audio, 12), 0.1)
        expected["feature.video", i] = ((video, 8), 0.1)
        expected["mismatched.feature.audio", i] = ((negatives["audio"], 12), 0.1)
        expected["mismatched.feature.video", i] = ((negatives["video"], 8), 0.1)
        expected["avel.audio", i] = expected["avel.video", i] = ((16,), 0.5)
        expected["classifier", i] = ((20,), 0.3)
        for prefix in ("", "mismatched.", "recompute."):
            for layer in (0, 1):
                expected[f"{prefix}fusion.audio_attends_video.{layer}", i] = ((audio, 12), 0.2)
                expected[f"{prefix}fusion.video_attends_audio.{layer}", i] = ((video, 8), 0.2)
    assert sites == expected


def test_miar_dropout_sites():
    spec = SPECS["miar-layers-2-tokens"]
    parameters, batch, config = build(spec)
    config["dropout"] = 0.25
    expected = {}
    for i in range(spec["n"]):
        for k in ("text", "audio", "vision", "joint"):
            rows = 1 if k == "joint" else len(batch[k][i]) + 1
            for layer in (0, 1):
                for part in ("attention", "ffn"):
                    expected[f"layers.{layer}.{k}.{part}", i] = ((rows, 8), 0.25)
        expected["head", i] = ((8,), 0.25)
    assert record(parameters, batch, config) == expected


@pytest.mark.parametrize("model, fields, count", [
    ("foal_net", dict(audio_dim=1024, video_dim=768), 14_321_161),
    ("foal_net", dict(audio_dim=74, video_dim=36, adapter_output_dim=128), 938_505),
    ("miar", dict(modalities=[("text", 768), ("audio", 5), ("vision", 20)]), 1_872_513),
    ("miar", dict(modalities=[("text", 768), ("audio", 74), ("vision", 35)]), 1_883_265),
    ("miar", dict(modalities=[("text", 768), ("audio", 33), ("vision", 709)]), 1_964_289),
])
def test_parameter_counts(model, fields, count):
    config = golden.full_config(model, **fields)
    parameters = golden.MODELS[model].initial_parameters(config, torch.Generator().manual_seed(1))
    shapes = golden.MODELS[model].parameter_shapes(config)
    assert {name: tuple(value.shape) for name, value in parameters.items()} == shapes
    assert sum(value.numel() for value in parameters.values()) == count


@pytest.mark.parametrize("key", ["key_value.weight", "query.weight"])
def test_foal_net_initial_spread(key):
    config = golden.full_config("foal_net", audio_dim=1024, video_dim=768)
    parameters = foal_net.initial_parameters(config, torch.Generator().manual_seed(1))
    assert parameters[f"fusion.audio_attends_video.0.{key}"].std().item() == pytest.approx(0.02, rel=0.01)
    assert parameters["avel.temperature"].item() == pytest.approx(2.6592600, abs=1e-7)
