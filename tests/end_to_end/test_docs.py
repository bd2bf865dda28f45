"""Docs are code: runs README.md and docs/*.md as a reader would, and checks what they name.

Each page gets a fresh folder that holds the links LINKED. Its fences are then taken in order:

    ```sh                        run by bash; must exit with 0
    ```sh exit=78                must exit with 78
    ```sh small="a.b=1 c=2"      every `train` and `study` in it gets --set a.b=1 --set c=2, in place of its own --set a.b=...:
                                 the same lines, on less data
    ```sh no-test: REASON        not run; shown as skipped, with the reason
    ```text output               what the block before it prints: every line, except "...", must be in its output
    ```txtpb FILE                written to FILE, with small="a.b=1" in place of its own set: "a.b=..."
    ```LANGUAGE part of FILE     must stand in that file of the project (line breaks aside)
Anything else (other languages, ```text, indented blocks without muster) is only read.
"""
import atexit
import functools
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from muster_program import ROOT, SERVED, built, environment, execute
from probe_program import client

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED_PAGES = [*PAGES, *sorted((ROOT / "docs").glob("*/*.md")), ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("*/README.md"))]
LINKED = ("experiments", "importers", ".venv", "docs")
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.M | re.S)
SECONDS = 200


def fences(page):
    """(line number, info string, text) of every fenced block."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start()) + 1, found[1].strip(), found[2]) for found in FENCE.finditer(text)]


def names(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


def smaller(script, settings):
    for setting in map(shlex.quote, settings.split()):
        name, lines = setting.partition("=")[0], []
        for line in script.splitlines(keepends=True):
            own = re.sub(rf"--set {name}=\S+", f"--set {setting}", line)
            lines.append(own if own != line else re.sub(r"\b(train|study) (?=[\w./$])", rf"\1 --set {setting} ", line))
        script = "".join(lines)
    return script


@functools.lru_cache(maxsize=None)
def program_folder():
    """Holds `muster`: of the commands that `probe serve` runs as well, its calls, which start at once."""
    folder = tempfile.mkdtemp(prefix="muster-docs-")
    atexit.register(shutil.rmtree, folder)
    script = Path(folder) / "muster"
    script.write_text(f'#!/bin/sh\ncase "$1" in {"|".join(SERVED)}) exec {shlex.join(client())} muster "$@";; esac\nexec {built("muster")} "$@"\n')
    script.chmod(0o755)
    return folder


def run_script(script, folder):
    path = os.pathsep.join([program_folder(), os.path.dirname(sys.executable), os.environ["PATH"]])
    with subprocess.Popen(["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment({"PATH": path}), text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          start_new_session=True) as process:
        try:
            output = process.communicate(timeout=SECONDS)[0]
        except BaseException:
            os.killpg(process.pid, 9)
            raise
    return process.returncode, output


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_commands_do_what_the_page_says(page, tmp_path):
    for linked in LINKED:
        if (ROOT / linked).exists():
            (tmp_path / linked).symlink_to(ROOT / linked)
    output = None
    for line, info, text in fences(page):
        where = f"{page.name}:{line}"
        language, _, rest = info.partition(" ")
        if rest.startswith("part of "):
            file = (ROOT / rest[8:]).read_text(encoding="utf-8")
            assert " ".join(text.split()) in " ".join(file.split()), f"{where}: this is not in {rest[8:]}"
        elif language == "txtpb" and rest:
            file, _, small = rest.partition(" small=")
            for setting in small.strip('"').split():
                text = re.sub(rf'set: "{setting.partition("=")[0]}=[^"]*"', f'set: "{setting}"', text)
            (tmp_path / file).write_text(text, encoding="utf-8")
        elif info == "text output":
            assert output is not None, f"{where}: shows the output of no command"
            for shown in filter(None, map(str.strip, text.splitlines())):
                assert shown == "..." or shown in output, f"{where}: not in the output: {shown}\nThe output is:\n{output}"
        elif language == "sh" and not rest.startswith("no-test: "):
            options = {key: value.strip('"') for key, value in re.findall(r'(\w+)=("[^"]*"|\d+)', rest)}
            readable = set(options) <= {"exit", "small"} and bool(options) == bool(rest)
            assert readable, f"{where}: cannot read the fence's options: {rest}"
            code, output = run_script(smaller(text, options.get("small", "")), tmp_path)
            assert code == int(options.get("exit", 0)), f"{where}: exit code {code}\n{text}\n{output}"


UNTESTED = [(f"{page.relative_to(ROOT)}:{line}", info[12:]) for page in PAGES for line, info, _ in fences(page)
            if info.startswith("sh no-test: ")]


@pytest.mark.parametrize("where, reason", UNTESTED, ids=[where for where, _ in UNTESTED])
def test_not_run(where, reason):
    pytest.skip(f"{where} is not run: {reason}")


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_muster_command_is_in_a_fence(page):
    """An indented command would look the same and never be run."""
    text = FENCE.sub(lambda found: "\n" * found[0].count("\n"), page.read_text(encoding="utf-8"))
    loose = [number for number, line in enumerate(text.splitlines(), 1) if re.match(r" {4,}(\. |\./|muster |mpirun |for )", line)]
    assert not loose, f"{page.name}, lines {loose}: put commands into ```sh fences"


def anchors(page):
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED_PAGES, ids=names(LINKED_PAGES))
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name}: {target} does not exist"
        assert linked.is_relative_to(ROOT), f"{page.name}: {target} is outside the project"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{page.name}: {target}: no such heading"


@functools.lru_cache(maxsize=None)
def help_text(*command):
    result = execute([built("muster"), *command, "--help"])
    assert result.returncode == 0, result.stderr
    return result.stdout


def listed_subcommands(*command):
    listing = help_text(*command).partition("Subcommands:")[2]
    return set(re.findall(r"^  ([a-z]\S*)", listing, re.M))


def test_every_subcommand_and_option_exists():
    commands = {name: listed_subcommands(name) for name in listed_subcommands()}
    assert {"train", "launch", "data"} <= set(commands), "cannot read muster --help"
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        scripts = "".join(script for _, info, script in fences(page) if info.startswith("sh"))
        scripts = re.sub(r"#.*|git clone.*", "", scripts)
        code = re.findall(r"`(muster [^`\n]+)`", text) + re.findall(r"\b(muster [^\n]+)", scripts)
        for line in code:
            words = line.split("#")[0].split()[1:]
            if not words or not re.fullmatch(r"[a-z]+", words[0]):
                continue
            assert words[0] in commands, f"{page.name}: there is no `muster {words[0]}`: {line}"
            if commands[words[0]] and len(words) > 1 and re.fullmatch(r"[a-z]+", words[1]):
                assert words[1] in commands[words[0]], f"{page.name}: there is no `muster {words[0]} {words[1]}`: {line}"
    for page in [ROOT / "docs" / name for name in ("models.md", "training.md", "config.md")]:
        own = re.sub(r"(?s)```.*?```|`s(run|batch) [^`]*`|`--mpi[^`]*`", "", page.read_text(encoding="utf-8"))
        for option in re.findall(r"`(--[a-z][a-z-]+)", own):
            everything = ((name, sub) for name, subs in commands.items() for sub in (subs or {""}))
            assert any(option in help_text(*filter(None, command)) for command in everything), f"{page.name}: no command has {option}"


def schema():
    """Every field path of an experiment, from the proto file."""
    messages, path = {}, ROOT / "core" / "config" / "experiment.proto"
    for name, body in re.findall(r"^message (\w+) \{\n(.*?)^\}", path.read_text(encoding="utf-8"), re.M | re.S):
        messages[name] = re.findall(r"^ +(?:optional |repeated )?(\w+) (\w+) = \d+;", body, re.M)

    def paths(message, prefix):
        for kind, name in messages[message]:
            yield prefix + name
            if kind in messages:
                yield from paths(kind, prefix + name + ".")
    return set(paths("Experiment", ""))


def test_every_setting_exists():
    known = schema()
    blocks = "|".join(sorted({path.split(".")[0] for path in known if "." in path}))
    for page in PAGES:
        for path in re.findall(rf"`((?:{blocks})(?:\.[a-z_0-9]+)+)", page.read_text(encoding="utf-8")):
            assert path in known or path.endswith((".txtpb", ".md", ".h5")), f"{page.name}: there is no setting {path}"


def test_every_metric_exists(tmp_path):
    known = set()
    for model in ("foal_net {}", "miar {}", "late_fusion {}"):
        config = tmp_path / "metric.txtpb"
        config.write_text(f'data {{ path: "x.h5" }}\n{model}\nevaluation {{ select_by: "?" }}\n')
        listing = execute([built("muster"), "config", config]).stderr
        known |= set(re.split(r", | or ", re.search(r"no metric .*Valid: (.*)", listing)[1]))
    assert {"WA", "MAE", "loss"} <= known
    table = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"), re.M)
    named = {name for row in table for name in re.findall(r"`(\w+)`", row)}
    assert named == known - {"loss"}, "docs/metrics.md and the program disagree"
    for page in [*PAGES, *(ROOT / "experiments").glob("*.txtpb")]:
        for name in re.findall(r'select_by(?:: "|=)(\w+)', page.read_text(encoding="utf-8")):
            assert name in known or name == "accuracy", f"{page.name}: there is no metric {name}"


EXPERIMENTS = sorted((ROOT / "experiments").glob("*.txtpb"))
CORPORA = sorted((ROOT / "docs" / "corpora").glob("*.md"))


def import_commands(page):
    """The words after `muster data import` of every such command on a page."""
    scripts = "".join(script for _, info, script in fences(page) if info.startswith("sh"))
    return [shlex.split(line, comments=True) for line in re.findall(r"^muster data import (.*)$", scripts.replace("\\\n", ""), re.M)]


@pytest.mark.parametrize("page", [ROOT / "docs" / "data.md", *CORPORA], ids=lambda page: page.name)
def test_importers_know_the_options_of_the_commands(page):
    for words in import_commands(page):
        try:
            importlib.import_module(words[0].replace("-", "_")).parse_arguments(words[1:])
        except SystemExit:
            pytest.fail(f"{page.name}: muster data import {shlex.join(words)}")


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_experiments_are_valid_and_their_data_can_be_imported(experiment):
    result = execute([built("muster"), "config", experiment])
    assert result.returncode == 0 and "no effect" not in result.stderr, result.stderr
    data = re.search(r'^data \{[^}]*?\bpath: "([^"]+)"', experiment.read_text(encoding="utf-8"), re.M)
    if data:
        made = [page for page in CORPORA for words in import_commands(page) if f"experiments/{data[1]}" in words]
        assert made, f"no page of docs/corpora makes {data[1]}"
        assert any(f"experiments/{experiment.name})" in page.read_text(encoding="utf-8") for page in made), f"{made} name no {experiment.name}"


def documented(section):
    """First-column names of the tables under a heading of docs/training.md."""
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").partition(f"\n### {section}\n")[2].split("\n#")[0]
    return {name for row in re.findall(r"^\| (`[^|]*) \|", text, re.M) for name in re.findall(r"`([\w.]+)`", row)}


def test_run_directory_is_as_documented(tmp_path):
    config = tmp_path / "small.txtpb"
    config.write_text("data { synthetic { kind: CLASSIFICATION samples: 60 } }\nfoal_net { projection_dim: 8 layers: 1 }\n"
                      "training { epochs: 1 }\n")
    result = execute([built("muster"), "train", config, "--run-dir", tmp_path / "run"])
    assert result.returncode == 0, result.stderr
    assert documented("result.json") == set(json.loads((tmp_path / "run" / "result.json").read_text()))
    assert documented("environment.json") >= set(json.loads((tmp_path / "run" / "environment.json").read_text()))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"train", "valid"}
    assert documented("metrics.jsonl") >= {key for row in rows for key in row}
    files = {str(file.relative_to(tmp_path / "run")) for file in (tmp_path / "run").rglob("*") if file.is_file()}
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    named = [name.rstrip(".") for name in re.findall(r"`([^`\s]+)`", text)]
    assert not [file for file in files if not any(file == name or (name.endswith(("/", "tfevents")) and file.startswith(name)) for name in named)]
