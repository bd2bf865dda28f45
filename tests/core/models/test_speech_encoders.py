"""Speech encoders against transformers: hidden states and gradients of random models in float64, samples of different lengths in one
call here, each alone there."""
import json
import sys
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers")
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model, WavLMConfig, WavLMModel)
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "helpers"))
from bf16 import Errors, single_and_exact
from muster_program import built, execute
from probe_program import probe

torch.set_num_threads(1)

# One frame (the shortest), nothing, one frame, two, 0.3 s and, in the first case, 6 s.
LENGTHS = [400, 0, 719, 720, 4800]
SMALL = dict(hidden_size=16, intermediate_size=24, conv_dim=[8] * 7, num_hidden_layers=2, num_attention_heads=4,
             num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, hidden_dropout=0.0, attention_dropout=0.0,
             activation_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0, mask_time_prob=0.0)
LARGE = dict(SMALL, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
CASES = {
    "wavlm-base": (WavLMConfig, WavLMModel, SMALL),
    "wavlm-large": (WavLMConfig, WavLMModel, dict(LARGE, num_hidden_layers=3, num_buckets=12, max_bucket_distance=40)),
    "wavlm-1": (WavLMConfig, WavLMModel, dict(SMALL, num_hidden_layers=1, num_attention_heads=1, num_buckets=320, hidden_size=32)),
    "wav2vec2-base": (Wav2Vec2Config, Wav2Vec2Model, dict(SMALL, layer_norm_eps=1e-3)),
    "wav2vec2-large": (Wav2Vec2Config, Wav2Vec2Model, dict(LARGE, num_hidden_layers=3, num_conv_pos_embeddings=5)),
    "wav2vec2-short": (Wav2Vec2Config, Wav2Vec2Model,
                       dict(SMALL, conv_dim=[6, 20, 4], conv_kernel=[7, 5, 3], conv_stride=[3, 2, 4], conv_bias=True,
                            feat_extract_activation="relu", hidden_act="gelu_new", num_hidden_layers=1)),
    "hubert-base": (HubertConfig, HubertModel, dict(SMALL, feat_proj_layer_norm=False)),
    "hubert-large": (HubertConfig, HubertModel, dict(LARGE, num_attention_heads=2, hidden_act="silu")),
}
worst = {"hidden": 0.0, "gradient": 0.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name -> (model in float64, its folder)."""
    models = {}

    def make(name, **changes):
        key = name + json.dumps(changes, sort_keys=True)
        if key not in models:
            config_class, model_class, settings = CASES[name]
            model = model_class(config_class(**dict(settings, **changes))).double().eval()
            generator = torch.Generator().manual_seed(len(models))
            with torch.no_grad():
                for parameter_name, parameter in model.named_parameters():
                    if parameter_name.endswith("norm.weight") or "original0" in parameter_name or "const" in parameter_name:
                        parameter.copy_(1 + 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
                    else:
                        fan_in = max(1, parameter[0].numel()) if parameter.dim() > 1 else 25
                        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / fan_in**0.5)
            folder = tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            (folder / "preprocessor_config.json").write_text('{"do_normalize": false}')
            models[key] = (model, folder)
        return models[key]

    return make


def waves(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [0.3 * torch.randn(length, generator=generator, dtype=torch.float64) + 0.05 for length in lengths]


def encode(folder, samples, tmp_path, settings="train: ALL", gradient=None, batch_index=None, **metadata):
    """What the encoder gives: tensors by name, and the frames of each sample."""
    tensors = {"values": torch.cat(samples).reshape(-1, 1),
               "offsets": torch.tensor(np.cumsum([0] + [len(sample) for sample in samples])),
               "batch_index": torch.tensor(batch_index if batch_index is not None else list(range(len(samples))))}
    if gradient is not None:
        tensors["gradient"] = gradient
    save_file(tensors, tmp_path / "in.safetensors", {key: str(value) for key, value in metadata.items()})
    done = probe("encoder", f'modality: "audio" path: "{folder}" {settings}', tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert done.returncode == 0, done.stderr
    out = load_file(tmp_path / "out.safetensors")
    offsets = out["offsets"].tolist()
    return out, [out["frames"][a:b] for a, b in zip(offsets, offsets[1:])]


def refusal(folder, tmp_path, settings="train: ALL"):
    tensors = {"values": torch.zeros(400, 1, dtype=torch.float64), "offsets": torch.tensor([0, 400]), "batch_index": torch.tensor([0])}
    save_file(tensors, tmp_path / "in.safetensors")
    done = probe("encoder", f'modality: "audio" path: "{folder}" {settings}', tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert done.returncode in (65, 78), done.stderr
    return done.stderr


def reference(model, samples, pick=lambda output: output.last_hidden_state):
    """The frames of each sample, computed alone."""
    frames = []
    for sample in samples:
        count = int(model._get_feat_extract_output_lengths(torch.tensor(len(sample)))) if len(sample) else 0
        if count < 1:
            frames.append(torch.zeros(0, model.config.hidden_size, dtype=torch.float64))
            continue
        frames.append(pick(model(sample[None], output_hidden_states=True))[0])
        assert len(frames[-1]) == count
    return frames


def assert_same_frames(ours, theirs, bound=1e-10):
    assert [len(frames) for frames in ours] == [len(frames) for frames in theirs]
    for one, other in zip(ours, theirs):
        if len(one):
            error = float((one - other.detach()).abs().max())
            worst["hidden"] = max(worst["hidden"], error)
            assert error < bound, error


def assert_same_gradients(out, model, trained):
    """`trained`: of a parameter's name, whether it has a gradient."""
    found = {name[len("grad.encoders.audio."):]: value for name, value in out.items() if name.startswith("grad.")}
    for name, parameter in model.named_parameters():
        ours = found.pop(name, None)
        if ours is None:
            assert not trained(name), name
            continue
        theirs = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        if not trained(name):
            assert not ours.any(), name
        elif name.endswith("k_proj.bias") or (name == "feature_extractor.conv_layers.0.conv.bias" and model.config.feat_extract_norm == "group"):
            assert not ours.any() and theirs.abs().max() < 1e-10, name  # the true gradient is 0
        else:
            error = float((ours - theirs).norm() / max(float(theirs.norm()), 1e-12))
            worst["gradient"] = max(worst["gradient"], error)
            assert error < 1e-9 and theirs.any(), (name, error)
    return found


def gradients(model, frames, seed=5):
    """Backward of a random gradient through the reference; returns it."""
    gradient = torch.randn(sum(len(each) for each in frames), frames[0].shape[1], generator=torch.Generator().manual_seed(seed),
                           dtype=torch.float64)
    model.zero_grad(set_to_none=True)
    torch.cat(frames).backward(gradient)
    return gradient


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_and_gradients(made, tmp_path, name):
    model, folder = made(name)
    samples = waves(LENGTHS + ([96000] if name in ("wavlm-base", "hubert-large") else [9999]))
    theirs = reference(model, samples)
    gradient = gradients(model, theirs)
    out, ours = encode(folder, samples, tmp_path, gradient=gradient, training=1)
    assert_same_frames(ours, theirs)
    assert_same_gradients(out, model, lambda name: True)


BFLOAT16 = [name for name in CASES if name.endswith(("-base", "-large"))]


@pytest.mark.parametrize("name", BFLOAT16)
def test_bfloat16(made, tmp_path, name):
    """Under autocast frames and gradients err no more than those of transformers' model under PyTorch's autocast."""
    single, exact = single_and_exact(made(name)[0])
    folder = tmp_path / "folder"
    single.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"do_normalize": false}')
    errors = Errors()
    for seed in range(8):  # a few values' error in one input says little
        samples = [sample.float() for sample in waves([400, 0, 720, 4800], seed)]
        truth = reference(exact, [sample.double() for sample in samples])
        gradient = gradients(exact, truth, seed)
        # oneDNN's grouped convolutions of so few channels in bfloat16 err by as much as there is, as of PyTorch 2.11.
        with torch.backends.mkldnn.flags(enabled=False):
            with torch.autocast("cpu", torch.bfloat16):
                theirs = reference(single, samples)
            single.zero_grad(set_to_none=True)
            torch.cat([frames.double() for frames in theirs]).backward(gradient)
        out, ours = encode(folder, samples, tmp_path, gradient=gradient.float(), training=1, bf16=1)
        assert [len(frames) for frames in ours] == [len(frames) for frames in truth]
        errors.add("frames", torch.cat(truth), out["frames"], torch.cat([frames.double() for frames in theirs]))
        others = dict(single.named_parameters())
        for parameter, value in exact.named_parameters():
            found = out["grad.encoders.audio." + parameter]
            if value.grad.norm() < 1e-10:  # the true gradient is 0, and ours is set so
                assert not found.any(), parameter
            else:
                errors.add(parameter, value.grad, found, others[parameter].grad)
    print(f"{name}: {errors.check()}")


def is_extractor(name):
    return name.startswith("feature_extractor.")


def layer_of(name):
    return int(name.split(".")[2]) if name.startswith("encoder.layers.") else None


@pytest.mark.parametrize("name", ["wavlm-large", "wav2vec2-base"])
def test_what_is_trained(made, tmp_path, name):
    model, folder = made(name)
    samples = waves(LENGTHS)
    theirs = reference(model, samples)
    gradient = gradients(model, theirs)
    layers = model.config.num_hidden_layers

    out, ours = encode(folder, samples, tmp_path, "train: TRANSFORMER", gradient=gradient)
    assert_same_frames(ours, theirs)
    assert_same_gradients(out, model, lambda name: not is_extractor(name))

    out, ours = encode(folder, samples, tmp_path, "train: TRANSFORMER top_layers: 1", gradient=gradient)
    assert_same_frames(ours, theirs)
    stable = model.config.do_stable_layer_norm
    assert_same_gradients(out, model, lambda name: layer_of(name) == layers - 1 or (stable and name.startswith("encoder.layer_norm")))

    out, ours = encode(folder, samples, tmp_path, "train: FROZEN")
    assert_same_frames(ours, theirs)


@pytest.mark.parametrize("name", ["wavlm-large", "wav2vec2-large", "hubert-base"])
def test_layer(made, tmp_path, name):
    model, folder = made(name)
    samples = waves(LENGTHS)
    for layer in range(1, model.config.num_hidden_layers + 1):
        theirs = reference(model, samples, lambda output: output.hidden_states[layer])
        gradient = gradients(model, theirs)
        out, ours = encode(folder, samples, tmp_path, f"train: ALL layer: {layer}", gradient=gradient)
        assert_same_frames(ours, theirs)
        final_norm = model.config.do_stable_layer_norm
        assert_same_gradients(out, model, lambda name: (layer_of(name) is None or layer_of(name) < layer) and
                              not (final_norm and name.startswith("encoder.layer_norm")))


@pytest.mark.parametrize("name", ["wavlm-large", "wav2vec2-base"])
@pytest.mark.parametrize("train", ["ALL", "TRANSFORMER top_layers: 1"])
def test_weighted_layers(made, tmp_path, name, train):
    model, folder = made(name)
    samples = waves(LENGTHS)
    weights = torch.zeros(model.config.num_hidden_layers + 1, dtype=torch.float64, requires_grad=True)
    theirs = reference(model, samples, lambda output: sum(w * h for w, h in zip(weights.softmax(0), output.hidden_states)))
    gradient = gradients(model, theirs)
    out, ours = encode(folder, samples, tmp_path, f"train: {train} weighted_layers: true", gradient=gradient)
    assert_same_frames(ours, theirs)
    layers = model.config.num_hidden_layers
    if train == "ALL":
        rest = assert_same_gradients(out, model, lambda name: not (model.config.do_stable_layer_norm and
                                                                   name.startswith("encoder.layer_norm")))
        assert set(rest) == {"layer_weights"}
    assert (out["grad.encoders.audio.layer_weights"] - weights.grad).norm() < 1e-9 * weights.grad.norm()
    # Weights that are in the file (of a classifier of transformers) are taken.
    tensors = load_file(folder / "model.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(dict(tensors, layer_weights=torch.arange(layers + 1, dtype=torch.float64)), other / "model.safetensors")
    out, _ = encode(other, samples, tmp_path, "train: ALL weighted_layers: true")
    assert out["value.encoders.audio.layer_weights"].tolist() == list(range(layers + 1))


def test_learning_rates(made, tmp_path):
    """Each layer's is that of the layer behind it times layer_decay; masking has to be on for the mask embedding to be trained."""
    model, folder = made("wavlm-large", mask_time_prob=0.1)
    samples = waves([720])
    names = [name for name, _ in model.named_parameters()]

    def scales(settings):
        out, _ = encode(folder, samples, tmp_path, settings)
        return {name[len("scale.encoders.audio."):]: float(value) for name, value in out.items() if name.startswith("scale.")}

    for settings, trained in (("train: ALL", lambda name: True), ("train: ALL spec_augment: false", lambda name: name != "masked_spec_embed"),
                              ("train: TRANSFORMER", lambda name: not is_extractor(name)), ("train: FROZEN", lambda name: False),
                              ("train: TRANSFORMER top_layers: 2", lambda name: name.startswith(("encoder.layers.1", "encoder.layers.2", "encoder.layer_norm")))):
        found = scales(settings + " learning_rate_scale: 0.1 layer_decay: 0.5")
        assert sorted(found) == sorted(names)
        for name in names:
            behind = 0 if name.startswith("encoder.layer_norm") else 3 if layer_of(name) is None else 2 - layer_of(name)
            assert abs(found[name] - (0.1 * 0.5**behind if trained(name) else 0)) < 1e-12, name
    found = scales("train: ALL layer: 2 layer_decay: 0.5")
    assert found["encoder.layers.1.layer_norm.weight"] == 1 and found["feature_projection.projection.bias"] == 0.25
    assert not any(name.startswith(("encoder.layers.2", "encoder.layer_norm")) for name in found)


def copied(folder, target, tensors=None, preprocessor=None, **config):
    target.mkdir()
    settings = dict(json.loads((folder / "config.json").read_text()), **config)
    (target / "config.json").write_text(json.dumps(settings))
    save_file(load_file(folder / "model.safetensors") if tensors is None else tensors, target / "model.safetensors")
    if preprocessor is not None:
        (target / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return target


def test_names_in_files(made, tmp_path):
    """Prefixes, heads, and both spellings of weight norm."""
    for name in ("wavlm-base", "hubert-base", "wav2vec2-base"):
        model, folder = made(name)
        tensors = load_file(folder / "model.safetensors")
        samples = waves(LENGTHS)
        theirs = reference(model, samples)
        state = model.state_dict()
        new, old = {}, {}
        for key, value in state.items():
            new["encoder.pos" + key[len("encoder.pos"):] if key.startswith("encoder.pos") else key] = value.clone()
            old[model.base_model_prefix + "." + key.replace("parametrizations.weight.original0", "weight_g")
                .replace("parametrizations.weight.original1", "weight_v")] = value.clone()
        assert any("original1" in key for key in new) and any("weight_v" in key for key in old)
        old.update({"lm_head.weight": torch.zeros(3, 2), "lm_head.bias": torch.zeros(3), "quantizer.codevectors": torch.zeros(1, 2),
                    "project_hid.weight": torch.zeros(2, 2), "project_q.bias": torch.zeros(2), "masked_spec_embed": torch.zeros(16)})
        for i, each in enumerate((tensors, new, old)):
            _, ours = encode(copied(folder, tmp_path / f"{name}-{i}", each), samples, tmp_path, "train: FROZEN")
            assert_same_frames(ours, theirs)


@pytest.mark.parametrize("name", ["wavlm-base", "wavlm-large"])
def test_standardized_waveforms(made, tmp_path, name):
    model, folder = made(name)
    samples = [sample * 3 + 0.4 for sample in waves([400, 5000])]
    raw = reference(model, samples)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    # The extractor itself works in float32: its function is called on float64.
    normed = [torch.tensor(extractor.zero_mean_unit_var_norm([sample.numpy()], None)[0]) for sample in samples]
    standardized = reference(model, normed)
    assert float((extractor(samples[1].numpy(), sampling_rate=16000, return_tensors="pt").input_values[0] - normed[1]).abs().max()) < 1e-5
    saved = tmp_path / "saved"
    saved.mkdir()
    extractor.save_pretrained(saved)
    preprocessor = json.loads((saved / "preprocessor_config.json").read_text())
    assert preprocessor["do_normalize"] is True
    cases = [(preprocessor, standardized), (dict(preprocessor, do_normalize=False), raw), ({"sampling_rate": 16000}, standardized),
             (None, standardized if name == "wavlm-large" else raw)]
    for i, (content, theirs) in enumerate(cases):
        _, ours = encode(copied(folder, tmp_path / str(i), preprocessor=content), samples, tmp_path, "train: FROZEN")
        assert_same_frames(ours, theirs)


@pytest.mark.parametrize("name", ["wavlm-base", "wav2vec2-large"])
def test_samples_do_not_see_each_other(made, tmp_path, name):
    """Whatever stands beside a sample, also with dropout and masks, which are keyed by the sample."""
    _, folder = made(name, mask_time_prob=0.5, mask_time_length=3, mask_feature_prob=0.3, mask_feature_length=2)
    samples = waves([720, 4800, 0, 8000, 401])
    rates = " ".join(f"{rate}: 0.3" for rate in ("hidden_dropout", "attention_dropout", "activation_dropout", "feature_projection_dropout"))
    for settings in ("train: ALL", f"train: ALL {rates} layerdrop: 0.3"):
        _, together = encode(folder, samples, tmp_path, settings, training=1, seed=3, step=7, batch_index=[4, 9, 2, 0, 5])
        _, order = encode(folder, samples[::-1], tmp_path, settings, training=1, seed=3, step=7, batch_index=[5, 0, 2, 9, 4])
        for one, other in zip(together, order[::-1]):
            assert len(one) == len(other) and (not len(one) or float((one - other).abs().max()) < 1e-12)
        for i, index in ((1, 9), (3, 0)):
            _, (alone,) = encode(folder, [samples[i]], tmp_path, settings, training=1, seed=3, step=7, batch_index=[index])
            assert float((alone - together[i]).abs().max()) < 1e-12
            _, (elsewhere,) = encode(folder, [samples[i]], tmp_path, settings, training=1, seed=3, step=7, batch_index=[index + 1])
            assert float((alone - elsewhere).abs().max()) > 1e-3  # other masks


@pytest.fixture(scope="module")
def transparent(tmp_path_factory):
    """Encoders whose frames show the masks: 1 where nothing is masked, 2 in masked frames, 0 in masked features."""
    def make(**masks):
        settings = dict(LARGE, conv_dim=[4], conv_kernel=[2], conv_stride=[2], num_hidden_layers=1, hidden_size=16, **masks)
        model = Wav2Vec2Model(Wav2Vec2Config(**settings)).double()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if any(part in name for part in ("projection.projection.weight", "original0", "pos_conv_embed.conv.bias", "out_proj", "output_dense")):
                    parameter.zero_()
            model.feature_projection.projection.bias.fill_(1)
            model.masked_spec_embed.fill_(2)
        folder = tmp_path_factory.mktemp("transparent")
        model.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("share,length,least,frames", [(0.4, 3, 1, 20), (0.05, 10, 2, 25), (0.65, 10, 0, 39), (0.05, 4, 0, 20),
                                                       (0.9, 1, 0, 7), (0.5, 5, 2, 4), (0.2, 5, 3, 6)])
def test_masks(transparent, tmp_path, share, length, least, frames):
    """Spans of time and of features are distributed as those of transformers' function for a sample alone."""
    count = 2000
    folder = transparent(mask_time_prob=share, mask_time_length=length, mask_time_min_masks=least, mask_feature_prob=0.3,
                         mask_feature_length=2, mask_feature_min_masks=1)
    gradient = torch.randn(count * frames, 16, dtype=torch.float64)
    out, ours = encode(folder, [torch.ones(2 * frames, dtype=torch.float64)] * count, tmp_path, "train: ALL layer: 1",
                       gradient=gradient, training=1, seed=11, step=2)
    ours = torch.stack(ours)
    assert set(ours.unique().tolist()) <= {0.0, 1.0, 2.0}
    features = (ours == 0).all(1)
    assert torch.equal(features, (ours == 0).any(1))
    times = (ours == 2).any(2)
    grad = (gradient.view(ours.shape) * (ours == 2)).sum((0, 1))
    assert (out["grad.encoders.audio.masked_spec_embed"] - grad).norm() <= 1e-9 * max(1, grad.norm())
    np.random.seed(3)

    def theirs(positions, *settings):
        if settings[1] > positions:  # where transformers refuses, nothing is masked
            return torch.zeros(count, positions, dtype=torch.bool)
        return torch.tensor(np.concatenate([_compute_mask_indices((1, positions), *settings[:2], min_masks=settings[2])
                                            for _ in range(count)]))

    for mine, other in ((times, theirs(frames, share, length, least)), (features, theirs(16, 0.3, 2, 1))):
        assert float((mine.double().mean(0) - other.double().mean(0)).abs().max()) < 5 * (0.5 / count)**0.5
        sizes = [torch.bincount(each.sum(1), minlength=mine.shape[1] + 1).double() / count for each in (mine, other)]
        assert float((sizes[0] - sizes[1]).abs().max()) < 5 * (0.5 / count)**0.5
        # Neighbours' masks have nothing to do with each other.
        if 0.01 < float(mine.double().mean()) < 0.99:
            centred = mine.double() - mine.double().mean(0)
            correlation = (centred[:-1] * centred[1:]).mean() / centred.square().mean()
            assert abs(float(correlation)) < 5 / count**0.5, correlation


def test_masks_are_off(transparent, tmp_path):
    samples = [torch.ones(60, dtype=torch.float64)] * 20
    config = dict(mask_time_prob=0.5, mask_time_length=3)
    folder, off = transparent(**config), transparent(**config, apply_spec_augment=False)

    def masked(folder, settings="", training=1, **metadata):
        _, frames = encode(folder, samples, tmp_path, "train: ALL layer: 1 " + settings, training=training, **metadata)
        return torch.stack(frames) == 2

    assert masked(folder).any() and masked(off, "spec_augment: true").any()
    assert not masked(folder, "spec_augment: false").any() and not masked(off).any() and not masked(folder, training=0).any()
    assert not torch.equal(masked(folder), masked(folder, step=1)) and torch.equal(masked(folder, step=3), masked(folder, step=3))


@pytest.mark.parametrize("name", ["wavlm-base", "hubert-base"])
def test_layerdrop(made, tmp_path, name):
    """A layer is left out for the whole batch or for none of it; WavLM keeps the first."""
    model, folder = made(name, num_hidden_layers=2)
    samples = waves([720, 4800])
    first_may_go = name != "wavlm-base"

    def with_layers(kept):
        layers, model.encoder.layers = model.encoder.layers, torch.nn.ModuleList(kept)
        frames = reference(model, samples)
        model.encoder.layers = layers
        return frames

    one, two = model.encoder.layers
    expected = {"both": with_layers([one, two]), "first": with_layers([one])}
    if first_may_go:
        expected.update(second=with_layers([two]), none=with_layers([]))
    counts = dict.fromkeys(expected, 0)
    for step in range(60):
        _, ours = encode(folder, samples, tmp_path, "train: TRANSFORMER layerdrop: 0.5", training=1, step=step)
        same = [key for key, frames in expected.items() if all((a - b).abs().max() < 1e-10 for a, b in zip(ours, frames))]
        assert len(same) == 1
        counts[same[0]] += 1
    assert min(counts.values()) > 60 / len(counts) / 3, counts


@pytest.mark.parametrize("name", ["wavlm-base", "wav2vec2-large"])
@pytest.mark.parametrize("noise", [dict(hidden_dropout=0.1), dict(attention_dropout=0.1), dict(activation_dropout=0.1),
                                   dict(feat_proj_dropout=0.1), dict(layerdrop=0.9), dict(mask_time_prob=0.3, mask_time_length=3),
                                   dict(mask_feature_prob=0.3, mask_feature_length=2)], ids=lambda noise: next(iter(noise)))
def test_what_is_frozen_computes_as_in_evaluation(made, tmp_path, name, noise):
    """Whatever config.json asks for in training. What is trained does have it."""
    model, folder = made(name, **noise)
    samples = waves([4800, 720, 8000])
    theirs = reference(model, samples)
    for settings in ("train: {}", "train: {} weighted_layers: true"):
        for train, as_in_evaluation in (("FROZEN", True), ("TRANSFORMER", False)):
            evaluated, frames = encode(folder, samples, tmp_path, settings.format(train))
            trained, _ = encode(folder, samples, tmp_path, settings.format(train), training=1, seed=3, step=7)
            assert torch.equal(trained["frames"], evaluated["frames"]) == as_in_evaluation, (settings, train)
            if "weighted" not in settings:
                assert_same_frames(frames, theirs)


def test_refused(made, tmp_path):
    model, folder = made("hubert-base")
    for i, (changes, words) in enumerate([
            (dict(add_adapter=True), "add_adapter"), (dict(conv_pos_batch_norm=True), "conv_pos_batch_norm"),
            (dict(adapter_attn_dim=4), "adapter_attn_dim"), (dict(feat_extract_norm="batch"), "feat_extract_norm"),
            (dict(conv_stride=[5, 2]), "conv_stride"), (dict(hidden_act="mish"), "hidden_act"), (dict(layerdrop=1.0), "layerdrop"),
            (dict(rotary=True), "rotary"), (dict(num_attention_heads=3), "num_attention_heads")]):
        message = refusal(copied(folder, tmp_path / str(i), **changes), tmp_path)
        assert words in message and "config.json" in message, message
    for settings, words in [("layer: 3", "layer"), ("train: TRANSFORMER top_layers: 3", "top_layers"),
                            ("spec_augment: true", "spec_augment"),
                            ("max_tokens: 3", "max_tokens")]:
        message = refusal(folder, tmp_path, settings)
        assert f"encoders[0].{words}" in message, message
    for i, (member, value) in enumerate([("sampling_rate", "fast"), ("feature_size", 80), ("feature_extractor_type", "WhisperFeatureExtractor"),
                                         ("do_ceptral_normalize", True), ("num_mel_bins", 80)]):
        message = refusal(copied(folder, tmp_path / f"preprocessor-{i}", preprocessor={member: value}), tmp_path)
        assert f"preprocessor_config.json: {member}" in message, message


def test_what_is_said_of_the_preprocessor(made, tmp_path):
    def notes(name, preprocessor):
        model, folder = made(name)
        target = copied(folder, tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}", preprocessor=preprocessor)
        run = execute([built("muster"), "encoders", "inspect", target, "--json"])
        assert run.returncode == 0, run.stderr
        return [note.replace(str(target), "DIR") for note in json.loads(run.stdout)["notes"]]

    extractor = Wav2Vec2FeatureExtractor()
    extractor.save_pretrained(tmp_path)
    everything = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert notes("wavlm-large", everything) == [] and notes("wavlm-base", dict(everything, padding_value=1, do_ceptral_normalize=False)) == []
    assert notes("wavlm-base", None) == ["DIR has no preprocessor_config.json: waveforms are not standardized (do_normalize false), as is usual "
                                         "with group norm in the feature extractor"]
    assert notes("wavlm-large", None) == ["DIR has no preprocessor_config.json: waveforms are standardized (do_normalize true), as is usual with "
                                          "layer norm in the feature extractor"]
    assert notes("wavlm-base", dict(everything, preemphasis=0.97, gain="high")) == [
        "DIR/preprocessor_config.json: these members are not known and do nothing here: 'gain': 'high', 'preemphasis': '0.97'"]
