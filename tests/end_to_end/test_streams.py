"""Standard input, output and error as shells, schedulers and loops leave them: closed, broken, shared; and variables left in a shell."""
import json
import subprocess

import muster_program as mp
import pytest

TINY = mp.CLASSIFICATION + mp.SMALL_FOAL_NET + "training { epochs: 1 batch_size: 20 }\n"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return mp.write_config(tmp_path_factory.mktemp("streams") / "tiny.txtpb", TINY)


def shell(line, folder, **changes):
    """A line of bash, in which $muster is the program."""
    return mp.execute(["bash", "-c", line], folder, {"muster": mp.built("muster"), **changes})


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_no_message_goes_into_a_file_that_got_the_number_of_a_closed_stream(config, tmp_path, closed):
    ended = shell(f'"$muster" train {config} --run-dir run {closed}', tmp_path)
    assert ended.returncode == 0, ended
    run = tmp_path / "run"
    assert not (run / "lock").exists()
    for file in run.rglob("*"):
        if file.is_file() and file.suffix in (".json", ".jsonl"):
            for text in file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]:
                json.loads(text)
    reference = tmp_path / "reference"
    mp.muster("train", config, "--run-dir", reference)
    for file in ("metrics.jsonl",):
        assert len((run / file).read_text().splitlines()) == len((reference / file).read_text().splitlines())
    events = [next(folder.glob("events.out.tfevents.*")).stat().st_size for folder in (run, reference)]
    assert abs(events[0] - events[1]) < 100, "the TensorBoard file holds something else, too"


def test_a_command_that_cannot_print_its_result_says_so(config, tmp_path):
    ended = shell(f'"$muster" config {config} >&-', tmp_path)
    assert ended.returncode == 74 and "standard output could not be written" in ended.stderr


@pytest.mark.parametrize("line", ['"$muster" train {config} --run-dir run | true', '"$muster" train {config} --run-dir run 2>&1 | head -1',
                                  '"$muster" launch -n 2 train {config} --run-dir run 2>&1 | head -1',
                                  '"$muster" launch -n 1 train {config} --run-dir run 2>&1 | true'])
def test_a_closed_pipe_ends_no_training(config, tmp_path, line):
    ended = shell(line.format(config=config) + "; exit ${PIPESTATUS[0]}", tmp_path)
    assert ended.returncode == 0, ended
    assert (tmp_path / "run/result.json").is_file()


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path):
    mp.tiny_data(tmp_path / "data.h5")
    ended = shell('"$muster" data inspect data.h5 | true; echo ${PIPESTATUS[0]}', tmp_path)
    assert ended.stdout.strip() == "0" and not ended.stderr


@pytest.mark.parametrize("command", ["launch -n 2 train {config} --set training.seed=$seed --run-dir run-$seed", "train {config} --set training.seed=$seed --run-dir run-$seed",
                                     "submit --dry-run train {config} --run-dir run-$seed"])
def test_a_loop_over_lines_keeps_its_lines(config, tmp_path, command):
    (tmp_path / "seeds.txt").write_text("1\n2\n3\n")
    ended = shell('while read -r seed; do "$muster" ' + command.format(config=config) + " >/dev/null 2>&1; echo $seed; done <seeds.txt", tmp_path)
    assert ended.stdout.split() == ["1", "2", "3"], ended


LEFT_IN_A_SHELL = {"SLURM_PROCID": "1", "SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "2", "PMIX_RANK": "1"}


@pytest.mark.parametrize("words", [["data", "verify", "bad.h5"], ["data", "inspect", "bad.h5"], ["config", "bad.h5"], ["checkpoints", "nowhere"],
                                   ["status", "nowhere"], ["submit", "train", "nowhere.txtpb"]], ids=lambda words: "-".join(words))
def test_a_command_that_runs_alone_always_says_why_it_failed(tmp_path, words):
    (tmp_path / "bad.h5").write_text("no data")
    for changes in (LEFT_IN_A_SHELL, {"SLURM_PROCID": "1"}, {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}):
        ended = subprocess.run([mp.built("muster"), *words], cwd=tmp_path, env=mp.environment(changes), capture_output=True, text=True)
        assert ended.returncode not in (0, 70) and ended.stderr.startswith("muster: "), (changes, ended)


@pytest.mark.parametrize("words", [["train", "nowhere.txtpb"], ["resume", "nowhere"], ["evaluate", "nowhere"], ["search", "run", "nowhere.txtpb"]], ids=lambda words: words[0])
def test_a_rank_number_without_a_job_silences_nothing(tmp_path, words):
    ended = subprocess.run([mp.built("muster"), *words], cwd=tmp_path, env=mp.environment({"SLURM_PROCID": "1", "PMIX_RANK": "1"}), capture_output=True, text=True)
    assert ended.returncode not in (0, 70) and ended.stderr.startswith("muster: "), ended
