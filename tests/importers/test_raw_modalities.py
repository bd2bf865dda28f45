"""Recordings and texts through the importer: the container holds what soundfile, soxr and tokenizers themselves give."""
import csv
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
import soxr
import tokenizers

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "importers"))
import container  # noqa: E402

IDS = ["a", "b", "sub/c", "d"]
TEXTS = ["I am so happy!", "no. never", "Why, Émile?", "well"]


@pytest.fixture
def data(tmp_path):
    (tmp_path / "wav/sub").mkdir(parents=True)
    with open(tmp_path / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "label", "words"], *zip(IDS, ["sad", "happy", "sad", "happy"], TEXTS)])
    return tmp_path


def noise(seed, length, channels=1):
    return np.random.default_rng(seed).normal(size=(length, channels)) * 0.2


def record(folder, lengths=(800, 1600, 4001, 16000), rate=16000, end="wav", subtype="PCM_16", channels=1):
    for seed, (sample, length) in enumerate(zip(IDS, lengths)):
        soundfile.write(folder / f"wav/{sample}.{end}", noise(seed, length, channels), rate, subtype=subtype)


def tokenizer_folder(folder, **special):
    """A small tokenizer of BERT's kind, which adds [CLS] and [SEP]."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "i", "am", "so", "happy", "no", "never", "why", "well", "!", ".", ",", "?", "em", "##ile"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=special.get("single", "[CLS] $A [SEP]"), special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.enable_padding(length=40)  # what a folder says of padding and truncation is not for us
    tokenizer.enable_truncation(3)
    (folder / "bert").mkdir()
    tokenizer.save(str(folder / "bert/tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def arrays(folder, *arguments, modalities=("audio=wav",), output="out.h5", **options):
    command = [sys.executable, "-B", ROOT / "importers/arrays.py", "--manifest", "manifest.csv", "-o", output]
    for modality in modalities:
        command += ["--modality", modality]
    return subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, **options)


def refused(folder, *arguments, code=65, **options):
    run = arrays(folder, *arguments, **options)
    assert run.returncode == code and "Traceback" not in run.stderr and not list(folder.glob("*.h5")), run.stdout + run.stderr
    return run.stderr


def contents(folder, name):
    with h5py.File(folder / "out.h5") as file:
        group = file[f"modalities/{name}"]
        offsets = group["offsets"][:]
        return [group["values"][a:b] for a, b in zip(offsets, offsets[1:])], dict(group.attrs), group["values"].dtype


@pytest.mark.parametrize("end, subtype, stored", [("wav", "PCM_16", "int16"), ("flac", "PCM_16", "int16"), ("wav", "PCM_U8", "int16"),
                                                  ("flac", "PCM_24", "float32"), ("wav", "FLOAT", "float32"), ("wav", "ULAW", "float32")])
def test_recordings_are_what_soundfile_reads(data, end, subtype, stored):
    record(data, end=end, subtype=subtype)
    run = arrays(data)
    assert run.returncode == 0, run.stderr
    values, attributes, dtype = contents(data, "audio")
    assert attributes == {"sample_rate": 16000} and dtype == stored
    for sample, found in zip(IDS, values):
        expected = soundfile.read(data / f"wav/{sample}.{end}", dtype="float32", always_2d=True)[0]
        np.testing.assert_array_equal(found / np.float32(32768) if stored == "int16" else found, expected)
    assert f"audio: waveform of 16000 Hz as {stored}, 1.40 s, 0.05 to 1.00 s per sample, missing for 0" in run.stdout


def test_mixed_files_and_mixed_precision(data):
    record(data)
    (data / "wav/a.wav").unlink()
    soundfile.write(data / "wav/a.flac", noise(9, 500), 16000, subtype="PCM_24")
    assert arrays(data).returncode == 0
    values, _, dtype = contents(data, "audio")
    assert dtype == np.float32
    np.testing.assert_array_equal(values[0], soundfile.read(data / "wav/a.flac", dtype="float32", always_2d=True)[0])
    np.testing.assert_array_equal(values[1], soundfile.read(data / "wav/b.wav", dtype="float32", always_2d=True)[0])


def test_what_is_too_loud_is_counted(data):
    record(data, subtype="FLOAT")
    assert "outside" not in arrays(data).stdout
    for sample, loudest in ((IDS[0], 1.5), (IDS[2], -3.25)):
        values = noise(1, 900)
        values[7] = loudest
        soundfile.write(data / f"wav/{sample}.wav", values, 16000, subtype="FLOAT")
    assert f"2 with values outside [-1, 1] (largest 3.25, wav/{IDS[2]}.wav)" in arrays(data, output="loud.h5").stdout


def test_another_rate_is_refused_or_resampled(data):
    record(data)
    soundfile.write(data / "wav/b.wav", noise(9, 4410), 44100)
    message = refused(data)
    assert "wav/b.wav: 44100 Hz, but 3 of the other files have 16000 Hz; --resample 16000 resamples it (manifest.csv:3)" in message
    run = arrays(data, "--resample", "16000")
    assert run.returncode == 0 and "1 resampled" in run.stdout, run.stderr
    values, attributes, dtype = contents(data, "audio")
    assert attributes == {"sample_rate": 16000} and dtype == np.float32
    expected = soxr.resample(soundfile.read(data / "wav/b.wav", dtype="float32")[0], 44100, 16000)
    np.testing.assert_array_equal(values[1][:, 0], expected)
    np.testing.assert_array_equal(values[0], soundfile.read(data / "wav/a.wav", dtype="float32", always_2d=True)[0])
    assert arrays(data, "--resample", "8000").returncode == 0
    values, attributes, _ = contents(data, "audio")
    assert attributes == {"sample_rate": 8000} and [len(v) for v in values] == [400, 800, 2001, 8000]


def test_channels_are_refused_or_averaged(data):
    record(data, channels=2)
    assert "wav/a.wav: has 2 channels, a waveform has one; --mono mean takes their mean (manifest.csv:2)" in refused(data)
    run = arrays(data, "--mono", "mean")
    assert run.returncode == 0 and "4 with the mean of their channels" in run.stdout, run.stderr
    values, _, dtype = contents(data, "audio")
    assert dtype == np.float32
    for sample, found in zip(IDS, values):
        both = soundfile.read(data / f"wav/{sample}.wav", dtype="float64")[0]
        np.testing.assert_allclose(found[:, 0], both.mean(1), rtol=0, atol=1e-7)


def test_the_first_seconds_are_kept_and_counted(data):
    record(data)
    run = arrays(data, "--max-seconds", "audio=0.1")
    assert run.returncode == 0 and "2 cropped to 0.1 s" in run.stdout, run.stdout + run.stderr
    values = contents(data, "audio")[0]
    assert [len(v) for v in values] == [800, 1600, 1600, 1600]
    np.testing.assert_array_equal(values[3], soundfile.read(data / "wav/d.wav", dtype="int16", always_2d=True)[0][:1600])
    assert arrays(data, "--max-seconds", "audio=0.1", "--resample", "8000").returncode == 0
    values = contents(data, "audio")[0]
    expected = soxr.resample(soundfile.read(data / "wav/d.wav", dtype="float32")[0][:1600], 16000, 8000)
    np.testing.assert_array_equal(values[3][:, 0], expected)


def test_missing_and_damaged_recordings(data):
    record(data)
    (data / "wav/a.wav").unlink()
    soundfile.write(data / "wav/d.wav", np.zeros((0, 1)), 16000)
    message = refused(data)
    assert "manifest.csv:2: wav/a.wav or wav/a.flac does not exist; --missing empty" in message
    assert "wav/d.wav: no samples (manifest.csv:5); --missing empty" in message
    run = arrays(data, "--text", "text=words", "--tokenizer", "bert", "--missing", "empty")
    assert run.returncode == 65 and "bert/tokenizer.json does not exist" in run.stderr
    tokenizer_folder(data)
    run = arrays(data, "--text", "text=words", "--tokenizer", "bert", "--missing", "empty")
    assert run.returncode == 0 and "missing for 2" in run.stdout, run.stderr
    assert [len(v) for v in contents(data, "audio")[0]] == [0, 1600, 4001, 0]
    (data / "out.h5").unlink()
    record(data)
    content = (data / "wav/b.wav").read_bytes()
    (data / "wav/b.wav").write_bytes(content[:-1001])
    (data / "wav/sub/c.wav").write_text("no recording")
    soundfile.write(data / "wav/d.wav", np.array([0.1, np.nan]), 16000, subtype="FLOAT")
    (data / "wav/a.wav").unlink()
    soundfile.write(data / "wav/a.flac", noise(0, 9000), 16000)
    (data / "wav/a.flac").write_bytes((data / "wav/a.flac").read_bytes()[:-2000])
    message = refused(data)
    for text in ("wav/b.wav: is damaged: 2199 bytes of samples, expected 3200 (manifest.csv:3)",
                 "wav/sub/c.wav: is no recording that can be read", "wav/a.flac: is damaged",
                 'wav/d.wav: id "d": 1 of 2 values are not finite, the first is nan in frame 1, column 0'):
        assert text in message, message


def test_a_folder_of_several_kinds(data):
    record(data)
    for sample, text in zip(IDS, TEXTS):
        (data / f"wav/{sample}.txt").write_text(text + "\n", encoding="utf-8")
    tokenizer = tokenizer_folder(data)
    assert "wav/a: there are .wav and .txt (manifest.csv:2); --modality 'audio=wav/*.wav' takes only the first" in refused(data)
    run = arrays(data, "--tokenizer", "bert", modalities=["audio=wav/*.wav", "text=wav/*.txt"])
    assert run.returncode == 0, run.stderr
    assert contents(data, "audio")[1] == {"sample_rate": 16000}
    assert [v[:, 0].tolist() for v in contents(data, "text")[0]] == [tokenizer.encode(text).ids for text in TEXTS]
    assert "say with which --tokenizer" in arrays(data, modalities=["text=wav/*.txt"]).stderr
    (data / "out.h5").unlink()
    for sample in IDS[1:]:
        (data / f"wav/{sample}.txt").unlink()
    (data / "wav/a.wav").unlink()
    assert "wav/a.txt: is no recording, but 3 of the other files are (manifest.csv:2)" in refused(data)


def test_texts_are_what_the_tokenizer_makes_of_them(data):
    tokenizer = tokenizer_folder(data)
    run = arrays(data, "--text", "text=words", "--tokenizer", "bert", modalities=[])
    assert run.returncode == 0, run.stderr
    values, attributes, dtype = contents(data, "text")
    expected = [tokenizer.encode(text).ids for text in TEXTS]
    assert dtype == np.int32 and attributes == {} and [v.shape[1] for v in values] == [1] * 4
    assert [v[:, 0].tolist() for v in values] == expected and max(map(len, expected)) == 7
    assert f"text: tokens of bert, {sum(map(len, expected))} in all, 3 to 7 per sample, missing for 0" in run.stdout
    run = arrays(data, "--text", "text=words", "--tokenizer", "bert", "--max-tokens", "text=5", modalities=[])
    assert run.returncode == 0 and f"{sum(len(ids) > 5 for ids in expected)} cropped to 5 tokens" in run.stdout, run.stderr
    tokenizer.enable_truncation(5)
    assert [v[:, 0].tolist() for v in contents(data, "text")[0]] == [tokenizer.encode(text).ids for text in TEXTS]


def test_segment_ids_are_kept_where_there_are_any(data):
    tokenizer = tokenizer_folder(data, single="[CLS] $A:1 [SEP]:1")
    run = arrays(data, "--text", "text=words", "--tokenizer", "bert", modalities=[])
    assert run.returncode == 0 and "with segment ids" in run.stdout, run.stderr
    encodings = [tokenizer.encode(text) for text in TEXTS]
    assert [v.T.tolist() for v in contents(data, "text")[0]] == [[e.ids, e.type_ids] for e in encodings]


def test_texts_that_are_none(data):
    tokenizer_folder(data)
    (data / "text").mkdir()
    for sample, content in zip(["a", "b"], [b"caf\xe9", b" \n"]):
        (data / f"text/{sample}.txt").write_bytes(content)
    (data / "manifest.csv").write_text("id,label,words\na,sad,yes\nb,happy,\n")
    options = ["--text", "words=words", "--tokenizer", "bert"]
    message = refused(data, *options, modalities=["text=text"])
    assert "text/a.txt: is not UTF-8 text" in message and "manifest.csv:3: no text in text/b.txt" in message
    assert 'manifest.csv:3: no text in column "words"; --missing empty takes it as "has no words"' in message
    (data / "bert/tokenizer.json").write_text("{}")
    assert "bert/tokenizer.json: is no tokenizer" in refused(data, *options, modalities=[])
    assert 'there is no column "spoken"' in refused(data, "--text", "text=spoken", "--tokenizer", "bert", modalities=[])


@pytest.mark.parametrize("arguments", [["--text", "text=words"], ["--max-seconds", "video=3"], ["--max-seconds", "audio=0"], ["--max-tokens", "audio=1.5"],
                                       ["--resample", "16"], ["--text", "audio=words", "--tokenizer", "bert"], ["--mono", "left"]])
def test_usage_errors(data, arguments):
    record(data)
    refused(data, *arguments, code=2)


def test_recordings_are_not_held_in_memory(data):
    """30 files of 4 MB each; the process may grow by far less than their sum."""
    long = np.zeros(2_000_000, dtype=np.int16)
    for i in range(30):
        soundfile.write(data / f"wav/{i}.wav", long, 16000)
    (data / "manifest.csv").write_text("id,label\n" + "".join(f"{i},0.5\n" for i in range(30)))
    code = f"""
import resource, sys
sys.path.insert(0, {str(ROOT / 'importers')!r})
import arrays, soundfile
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = arrays.main(["--manifest", "manifest.csv", "--modality", "audio=wav", "-o", "out.h5"])
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown)
sys.exit(code or grown > 40_000)
"""
    run = subprocess.run([sys.executable, "-B", "-c", code], cwd=data, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("frames, dtype, rate, expected", [
    (np.zeros((3, 2), "i2"), "int16", 16000, "one value per frame, not 2"), (np.zeros((3, 1), "i2"), "int16", None, "not \"int16\""),
    (np.zeros((3, 1), "i4"), "int32", 16000, "dtype of a waveform"), (np.zeros((3, 1)), "float32", 16, "the sample rate is a whole number of Hz"),
    (np.zeros((3, 3), "i4"), "int32", None, "tokens have one number per frame"), (np.array([[-1], [0], [1]]), "int32", None, "1 of 3 ids are not from 0"),
    (np.array([[2**24], [0], [1]]), "int32", None, "the first is 16777216 in frame 0, column 0"), (np.zeros((3, 1)), "int32", None, "must be whole numbers"),
    (np.full((3, 1), 40000), "int16", 16000, "3 of 3 values are not from -32768 to 32767")])
def test_writer_refuses_wrong_raw_data(tmp_path, frames, dtype, rate, expected):
    with pytest.raises(container.DataError, match=expected):
        container.write_container(tmp_path / "x.h5", "x", "regression", ["a"], {"m": [frames]}, [0.5], dtype={"m": dtype}, sample_rates={"m": rate})
    assert not list(tmp_path.iterdir())


def test_writer_writes_raw_data(tmp_path):
    wave, ids = np.array([[-32768], [5]], "i2"), np.array([[3, 0], [7, 1]])
    container.write_container(tmp_path / "x.h5", "x", "regression", ["a"], {"w": [wave], "t": [ids]}, [0.5],
                              dtype={"w": "int16", "t": "int32"}, sample_rates={"w": 8000})
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["modalities/w"].attrs["sample_rate"] == 8000 and file["modalities/t/values"].dtype == np.int32
        np.testing.assert_array_equal(file["modalities/w/values"][:], wave)
        np.testing.assert_array_equal(file["modalities/t/values"][:], ids)


def test_ids_of_tokens_from_files(data):
    (data / "ids/sub").mkdir(parents=True)
    for sample, tokens in zip(IDS, ([5, 6, 7], [[9]], [[1], [2]], [3, 4])):
        np.save(data / f"ids/{sample}.tokens.npy", np.array(tokens, dtype=np.int64))
    run = arrays(data, modalities=["text=ids"])
    assert run.returncode == 0, run.stderr
    with h5py.File(data / "out.h5") as file:
        assert file["modalities/text/values"].dtype == np.int32 and file["modalities/text/values"][:].ravel().tolist() == [5, 6, 7, 9, 1, 2, 3, 4]
        assert file["modalities/text/offsets"][:].tolist() == [0, 3, 4, 6, 8]
    for sample, tokens in zip(IDS, (np.ones(3), np.ones((2, 3), dtype=int), np.array([-1]), np.array([1 << 24]))):
        np.save(data / f"ids/{sample}.tokens.npy", tokens)
    run = arrays(data, modalities=["text=ids"], output="bad.h5")
    assert run.returncode == 65 and not (data / "bad.h5").exists()
    for place, problem in zip(("ids/a", "ids/b", "ids/sub/c", "ids/d"), ("must be whole numbers", "expected [tokens]", "are not from 0", "are not from 0")):
        assert any(line.startswith(f"{place}.tokens.npy: ") and problem in line for line in run.stderr.splitlines()), run.stderr
