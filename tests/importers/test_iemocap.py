"""The importer of the IEMOCAP folder, on a small corpus of the same layout, oddities included. What it must give is read here with
csv and soundfile."""
import csv
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
import tokenizers

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "importers"))
import iemocap  # noqa: E402

CODES = ["neu", "hap", "exc", "ang", "sad", "fru", "xxx", "sur", "neu", "oth"]
NAMES = {"ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad"}
HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"


@pytest.fixture
def corpus(tmp_path):
    generator = np.random.default_rng(3)
    root = tmp_path / "IEMOCAP_full_release"
    for session in (1, 2):
        for dialog in (f"Ses0{session}F_impro01", f"Ses0{session}M_script02_1b"):
            evaluations, transcripts, start = [], [], 6.29
            for number in range(10):
                sample = f"{dialog}_{'FM'[number % 2]}{number:03d}"
                ratings = generator.integers(2, 11, size=3) / 2
                evaluations.append(f"[{start:.4f} - {start + 1.5:.4f}]\t{sample}\t{CODES[(number + session) % 10]}\t"
                                   f"[{ratings[0]:.4f}, {ratings[1]:.4f}, {ratings[2]:.4f}]\nC-E1:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n")
                transcripts.append(f"{sample} [{start:08.4f}-{start + 1.5:08.4f}]: I said it {number} times.\n")
                path = root / f"Session{session}/sentences/wav/{dialog}/{sample}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, generator.normal(size=800 + 10 * number) * 0.1, 16000, subtype="PCM_16")
                start += 1.5
            transcripts.insert(3, f"{dialog}_MXX0 [1.0-2.0]: [BREATHING]\nM: what the other said\n")
            folder = root / f"Session{session}/dialog"
            for name, lines in (("EmoEvaluation", evaluations), ("transcriptions", transcripts)):
                (folder / name).mkdir(parents=True, exist_ok=True)
                (folder / name / f"{dialog}.txt").write_text((HEADER if name == "EmoEvaluation" else "") + "".join(lines))
                (folder / name / f"._{dialog}.txt").write_bytes(b"\0\5\x16\7 what macOS hides")
            (folder / "EmoEvaluation/Categorical").mkdir(exist_ok=True)
            (folder / f"EmoEvaluation/Categorical/{dialog}_e1_cat.txt").write_text(f"{dialog}_F000 :Neutral; ()\n")
    return tmp_path


def evaluation(corpus, dialog="Ses01F_impro01"):
    return corpus / f"IEMOCAP_full_release/Session{dialog[4]}/dialog/EmoEvaluation/{dialog}.txt"


def table(corpus):
    """{id: (code, valence, arousal, dominance)} of all utterances, sorted by id."""
    found = {}
    for path in corpus.rglob("EmoEvaluation/Ses*.txt"):
        for cells in csv.reader(path.read_text(encoding="latin-1").splitlines(), delimiter="\t"):
            if cells and cells[0].startswith("["):
                found[cells[1]] = (cells[2], *map(float, cells[3].strip("[]").split(",")))
    return dict(sorted(found.items()))


def run(corpus, *arguments, code=0):
    before = sorted(corpus.rglob("*"))
    assert iemocap.main([str(corpus / "IEMOCAP_full_release"), f"-o={corpus}/out.h5", *map(str, arguments)]) == code
    if code:
        assert sorted(corpus.rglob("*")) == before, "something was written"


def usage(corpus, *arguments):
    with pytest.raises(SystemExit) as error:
        iemocap.main([str(corpus), "-o=out.h5", *arguments])
    assert error.value.code == 2


def test_the_corpus_is_what_its_files_say(corpus, capsys):
    run(corpus)
    expected = {sample: values for sample, values in table(corpus).items() if values[0] in NAMES}
    with h5py.File(corpus / "out.h5") as file:
        ids = list(file["samples/id"].asstr())
        assert ids == list(expected) and file.attrs["task"] == "classification"
        assert list(file.attrs["class_names"]) == ["angry", "happy", "neutral", "sad"]
        names = np.array(file.attrs["class_names"])
        assert list(names[file["samples/label"][:]]) == [NAMES[values[0]] for values in expected.values()]
        assert list(file["samples/group"].asstr()) == [sample[:5] for sample in ids] and "split" not in file["samples"]
        for column, name in enumerate(("valence", "arousal", "dominance"), start=1):
            np.testing.assert_array_equal(file[f"samples/targets/{name}"][:], np.float32([values[column] for values in expected.values()]))
        # The dialog's letter says who wears the markers, the utterance's who speaks.
        speakers = file["samples/targets/speaker"]
        assert [speakers.attrs["class_names"][i] for i in speakers[:]] == [sample[:5] + sample.split("_")[-1][0] for sample in ids]
        assert list(speakers.attrs["class_names"]) == ["Ses01F", "Ses01M", "Ses02F", "Ses02M"]
        scenario = file["samples/targets/scenario"]
        assert [scenario.attrs["class_names"][i] for i in scenario[:]] == ["improvised" if "impro" in sample else "scripted" for sample in ids]
        emotion = file["samples/targets/emotion"]
        assert [emotion.attrs["class_names"][i] == "excited" for i in emotion[:]] == [values[0] == "exc" for values in expected.values()]
        audio = file["modalities/audio"]
        assert audio.attrs["sample_rate"] == 16000 and audio["values"].dtype == np.int16
        for sample, first, last in zip(ids, audio["offsets"][:], audio["offsets"][1:]):
            path = corpus / f"IEMOCAP_full_release/Session{sample[4]}/sentences/wav/{sample.rsplit('_', 1)[0]}/{sample}.wav"
            np.testing.assert_array_equal(audio["values"][first:last, 0], soundfile.read(path, dtype="int16")[0])
    out = capsys.readouterr().out
    assert "left out, since the annotators did not agree (xxx): 4" in out
    assert "left out, of other emotions: frustrated 4, other 4, surprised 4" in out
    assert "WARNING: Ses01 12, Ses02 12; usually reported are Ses01 1085, Ses02 1023" in out


def test_order_and_choice_of_classes(corpus, capsys):
    run(corpus, "--class-names", "sad, angry,happy,neutral", "--max-seconds", "audio=0.01")
    with h5py.File(corpus / "out.h5") as file:
        assert list(file.attrs["class_names"]) == ["sad", "angry", "happy", "neutral"]
        assert set(np.diff(file["modalities/audio/offsets"][:])) == {160}
        ids, labels = list(file["samples/id"].asstr()), file["samples/label"][:]
    codes = {sample: values[0] for sample, values in table(corpus).items()}
    assert [["sad", "angry", "happy", "neutral"][label] for label in labels] == [NAMES[codes[sample]] for sample in ids]
    for choice, kept in (("all", set(CODES) - {"xxx"}), ("6", {"ang", "exc", "fru", "hap", "neu", "sad"}), ("bad=ang+fru,good=hap", {"ang", "fru", "hap"})):
        run(corpus, "--classes", choice)
        with h5py.File(corpus / "out.h5") as file:
            assert list(file["samples/id"].asstr()) == [sample for sample, code in codes.items() if code in kept]
    assert "usually reported" not in capsys.readouterr().out.rpartition("out.h5:")[2]
    (corpus / "out.h5").unlink()
    run(corpus, "--class-names", "sad,angry", code=65)
    for wrong in ("5", "a=ang", "a=ang,b=ang", "a=ang,b=xxx", "a=,b=hap"):
        usage(corpus, "--classes", wrong)


def test_usual_numbers(capsys):
    rows = iemocap.Utterances()
    for session, count in iemocap.USUAL.items():
        rows.ids += [f"{session}F_impro01_F{i:03d}" for i in range(count)]
    rows.ratings = [(1.0, 5.0, 2.5)] * len(rows.ids)
    assert iemocap.check_notes(rows, iemocap.FOUR) == ["5531 utterances (Ses01 1085, Ses02 1023, Ses03 1151, Ses04 1031, Ses05 1241), as usually reported"]
    rows.ratings[7] = (1.0, -1.0, 2.0)
    rows.ids.pop()
    rows.ratings.pop()
    first, second = iemocap.check_notes(rows, iemocap.FOUR)
    assert first.startswith("WARNING: Ses01 1085") and "Ses05 1240; usually reported are" in first and second.startswith("WARNING: 1 utterances have")
    assert iemocap.check_notes(rows, iemocap.PRESETS["6"]) == [second]


def test_oddities_of_the_files(corpus, capsys):
    path = evaluation(corpus)
    text = path.read_text()
    repeated = next(line for line in text.splitlines(True) if line.startswith("["))
    path.write_bytes((text + repeated).replace("\n", "\r\n").encode() + "A-F1:\tval 2;\t(d\xe9prim\xe9)\r\n".encode("latin-1"))
    run(corpus)
    assert "lines that are there twice, and count once: 1" in capsys.readouterr().out
    with h5py.File(corpus / "out.h5") as file:
        assert len(file["samples/id"]) == 24
    (corpus / "out.h5").unlink()
    path.write_text(text + repeated.replace("\thap", "\tsad"))
    run(corpus, code=65)
    assert f'"Ses01F_impro01_F000" was evaluated differently in {path}:3' in capsys.readouterr().err


def tokenizer(folder):
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "I": 1, "said": 2, "it": 3, "times": 4, ".": 5, "déjà": 6}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    return made


def test_transcripts_and_features(corpus, capsys):
    made = tokenizer(corpus)
    path = corpus / "IEMOCAP_full_release/Session1/dialog/transcriptions/Ses01F_impro01.txt"
    text = path.read_text().replace("I said it 0 times.", "I said déjà 0 times.")
    path.write_bytes(text.encode("latin-1") + b"Ses01F_impro01_F000 [001.0-002.0]: Something else.\n")
    (corpus / "clip").mkdir()
    kept = [sample for sample, values in table(corpus).items() if values[0] in NAMES]
    features = {sample: np.random.default_rng(i).normal(size=(i % 4 + 1, 3)).astype(np.float32) for i, sample in enumerate(kept)}
    for sample, frames in features.items():
        np.save(corpus / f"clip/{sample}.npy", frames)
    run(corpus, "--tokenizer", corpus, "--modality", f"vision={corpus}/clip", "--max-tokens", "text=4")
    with h5py.File(corpus / "out.h5") as file:
        assert set(file["modalities"]) == {"audio", "vision", "text"}
        for row, sample in enumerate(file["samples/id"].asstr()):
            number, word = int(sample[-3:]), "déjà" if sample == "Ses01F_impro01_F000" else "it"
            first, last = file["modalities/text/offsets"][row:row + 2]
            assert file["modalities/text/values"][first:last, 0].tolist() == made.encode(f"I said {word} {number} times.").ids[:4]
            first, last = file["modalities/vision/offsets"][row:row + 2]
            np.testing.assert_array_equal(file["modalities/vision/values"][first:last], features[sample])
    assert "utterances with two transcripts, of which the first is taken (1): Ses01F_impro01_F000" in capsys.readouterr().out
    run(corpus, "--no-wav", "--modality", f"vision={corpus}/clip")
    with h5py.File(corpus / "out.h5") as file:
        assert list(file["modalities"]) == ["vision"]
    run(corpus, "--modality", f"audio={corpus}/clip")  # features in place of the recordings
    with h5py.File(corpus / "out.h5") as file:
        assert file["modalities/audio/values"].shape[1] == 3


def test_what_is_missing(corpus, capsys):
    kept = [sample for sample, values in table(corpus).items() if values[0] in NAMES]
    gone = corpus / f"IEMOCAP_full_release/Session1/sentences/wav/{kept[0].rsplit('_', 1)[0]}/{kept[0]}.wav"
    gone.rename(gone.with_name(f"._{gone.name}"))
    (corpus / "clip").mkdir()
    for sample in kept[1:-1]:
        np.save(corpus / f"clip/{sample}.npy", np.zeros((2, 3)))
    run(corpus, "--modality", f"vision={corpus}/clip", code=65)
    error = capsys.readouterr().err
    assert f"{gone} does not exist; --missing empty" in error and f"clip/{kept[-1]}.npy does not exist" in error
    assert "3 problems; nothing was written" in error and f"{evaluation(corpus)}:" in error
    run(corpus, "--modality", f"vision={corpus}/clip", "--missing", "drop")
    assert f"left out, for want of a modality (2): {kept[0]} (audio, vision), {kept[-1]} (vision)" in capsys.readouterr().out
    with h5py.File(corpus / "out.h5") as file:
        assert list(file["samples/id"].asstr()) == kept[1:-1]
    run(corpus, "--modality", f"vision={corpus}/clip", "--missing", "empty")
    assert f"left out, for want of any modality (1): {kept[0]} (audio, vision)" in capsys.readouterr().out
    with h5py.File(corpus / "out.h5") as file:
        assert list(file["samples/id"].asstr()) == kept[1:] and np.diff(file["modalities/vision/offsets"][:])[-1] == 0


def test_everything_that_is_wrong_is_listed(corpus, capsys):
    path = evaluation(corpus)
    path.write_text(path.read_text() + "[1.0 - 2.0]\tSes02F_impro01_F000\tneu\t[1, 2, 3]\n[1.0 - 2.0]\tSes01F_impro01_F099\tjoy\t[1, 2, 3]\n"
                    "[1.0 - 2.0]\tSes01F_impro01_F098\tneu\t[1, 2]\n[1.0 - 2.0]\t../../etc/passwd\tneu\t[1, 2, 3]\n")
    wav = next(path for path in sorted(corpus.rglob("Session2/**/*.wav")) if table(corpus)[path.stem][0] in NAMES)
    wav.write_bytes(b"RIFF no recording")
    run(corpus, code=65)
    error = capsys.readouterr().err
    for text in ('"Ses02F_impro01_F000" is no utterance of Session1', 'unknown emotion "joy"; known: ang, hap', "is no evaluation; expected",
                 '"../../etc/passwd" is no utterance', f"{wav}: is no recording"):
        assert text in error, error
    assert "5 problems; nothing was written" in error


def test_folders_that_are_no_corpus(corpus, capsys):
    assert iemocap.main([str(corpus), f"-o={corpus}/out.h5"]) == 0  # the folder around it will do
    (corpus / "empty/Session1").mkdir(parents=True)
    for folder, message in ((corpus / "nothing", "holds no folders Session1 to Session5"), (corpus / "empty", "holds no evaluations (.txt)")):
        assert iemocap.main([str(folder), f"-o={corpus}/other.h5"]) == 65
        assert message in capsys.readouterr().err and not (corpus / "other.h5").exists()
    usage(corpus, "--no-wav")
    usage(corpus, "--max-seconds", "vision=3")
    usage(corpus, "--tokenizer", "x", "--modality", "text=y")


def test_same_input_same_bytes(corpus):
    run(corpus)
    first = (corpus / "out.h5").read_bytes()
    run(corpus)
    assert (corpus / "out.h5").read_bytes() == first
