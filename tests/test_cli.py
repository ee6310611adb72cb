"""The command line as users see it: one line per mistake, no lost results, no repeated work."""

import contextlib
import json
import shutil
import subprocess
import sys

import pytest

from harness import __version__, cli_suites
from harness.cli import main
from harness.cli_shared import SuiteOptions
from harness.run import status
from harness.store import tracking
from harness.suite import load
from harness.suite.load import find_suite
from tests.helpers.commands import ROOT, environment, harness, harness_here, results
from tests.helpers.fake_store import FakeStore
from tests.helpers.small_suites import write_suite

MAIN = "suites/main_table.yaml"


@pytest.fixture(scope="module")
def finished(home):
    """A store with a finished suite."""
    done = harness("run", home / "small.yaml", "--store", home / "store", "--no-report")
    assert done.returncode == 0, done.stderr
    assert "4 cells finished, 0 were there already, 0 failed" in done.stdout
    return home / "store"


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    """Pretend that this machine has no SLURM."""
    monkeypatch.setenv("PATH", "/nowhere")


@pytest.fixture
def store(finished, tmp_path):
    """A copy of the finished store that a test may damage."""
    return shutil.copytree(finished, tmp_path / "store")


def state(store):
    """Names, bytes and times of all cells and artifacts in a store."""
    return {
        str(path.relative_to(store)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for folder in ("cells", "artifacts")
        for path in (store / folder).rglob("*")
    }


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr of a command that failed."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("harness: ")
    assert "Traceback" not in done.stdout
    return done.stderr


def truncate(home):
    file = home / "records" / "counterfact.json"
    file.write_text(file.read_text()[:5000])


def clip_weights(home):
    for model in ("llama", "gptj"):
        file = home / model / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])


MISTAKES = {
    "an unknown method": ({"methods": ["none", "romme"]}, None, ["unknown method 'romme'", "rome", ":"]),
    "a typo in a key": ({"modles": ["tiny/llama"]}, None, ["modles", "models"]),
    "a typo in an option": ({"methods": [{"name": "ft-l", "layre": 1}]}, None, ["layre", "layer"]),
    "an unregistered method": (
        {"methods": ["none", "knife"]},
        None,
        ["unknown method 'knife'", "harness list methods"],
    ),
    "a model path that does not exist": (
        {"models": [{"name": "tiny/llama", "weights": "pretrained", "path": "nowhere/model"}]},
        None,
        ["no such folder: nowhere/model"],
    ),
    "a data folder that does not exist": (
        {"datasets": [{"name": "counterfact", "path": "nowhere", "edits": 8}]},
        None,
        ["no such folder: nowhere"],
    ),
    "a truncated data file": ({}, truncate, ["counterfact.json", "record"]),
    "a truncated weight file": ({}, clip_weights, ["model.safetensors", "damaged"]),
    "more edits than records": (
        {"datasets": [{"name": "counterfact", "path": None, "edits": 8000}]},
        None,
        ["80 records, 8000 requested", "edits: 80"],
    ),
    "a missing cluster": ({"launch": "a100"}, None, ["--launch local", "--scale mini"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported_in_one_line_and_nothing_is_lost(mistake, home, store, tmp_path):
    changes, damage, words = MISTAKES[mistake]
    spoilt = tmp_path / "home"
    for name in ("llama", "gptj", "records"):
        shutil.copytree(home / name, spoilt / name)
    for entry in changes.get("datasets", []):
        if entry["path"] is None:
            entry["path"] = str(spoilt / "records")
    suite = write_suite(spoilt / "small.yaml", **changes)
    if damage:
        damage(spoilt)
    before = state(store)
    line = refused(harness_here("run", suite, "--store", store, "--no-report"))
    for word in words:
        assert word in line
    assert state(store) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "suites/mian_table.yaml"], ["suites/mian_table.yaml: no such file", "list suites"]),
        (["run", "elsewhere/main_table.yaml"], ["elsewhere/main_table.yaml", "'main_table'"]),
        (["run", "mian_table"], ["no suite 'mian_table'", "did you mean 'main_table'?"]),
        (["plan", MAIN, "--backend", "easyedti"], ["unknown backend 'easyedti'", "did you mean 'easyedit'?"]),
        (["plan", MAIN, "--plugin", "nowhere.py"], ["no such file", "nowhere.py"]),
        (["run", MAIN, "--scale", "minni"], ["unknown scale 'minni'", "did you mean 'mini'?"]),
        (["run", MAIN, "--scale", "mini", "--only", "method=onceedti"], ["onceedti", "onceedit"]),
        (["run", MAIN, "--scale", "mini", "--only", "methods=none"], ["methods"]),
        (["run", MAIN], ["needs SLURM", "--launch local", "--scale mini"]),
        (["plan", MAIN, "--data", "nowhere"], ["no such folder: nowhere"]),
        (["plan", MAIN, "--edits", "0"], ["at least one edit"]),
        (["explain", "nothing"], ["no such results folder"]),
        (["run", MAIN, "--scale", "mini", "--only", "method=ROME"], ["did you mean 'rome'?"]),
    ],
)
def test_a_wrong_argument_is_reported_in_one_line(arguments, words, tmp_path):
    line = refused(harness_here(*arguments, "--store", tmp_path / "store"))
    for word in words:
        assert word in line
    assert not (tmp_path / "store").exists()


def test_a_wrong_argument_is_one_line_and_exit_code_2_in_a_shell():
    assert refused(harness("run", "mian_table")).startswith("harness: no suite 'mian_table'")


@pytest.mark.parametrize(
    "arguments", [["sync", "--watch", "-1"], ["status", MAIN, "--watch", "no"], ["logs", "x", "--lines", "0"]]
)
def test_an_invalid_number_is_refused_immediately(arguments):
    done = harness_here(*arguments)
    assert done.returncode == 2
    assert "above 0, found" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["rnu", MAIN], ["run"], ["list", "method"], ["run", MAIN, "--modle", "x"], ["data", "show"]]
)
def test_a_usage_error_is_explained_and_nothing_runs(arguments):
    done = harness_here(*arguments)
    assert done.returncode == 2
    assert "Usage: harness" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(("rest", "expected"), [([], 5.0), (["--all"], 5.0), (["0.5", "--all"], 0.5)])
def test_the_interval_of_watch_is_optional(rest, expected, monkeypatch, home, tmp_path):
    watched = []
    monkeypatch.setattr(
        status, "show", lambda plan, launcher, console, **options: watched.append(options["watch_s"]) or 0
    )
    assert main(["status", str(home / "small.yaml"), "--store", str(tmp_path), "--watch", *rest]) == 0
    assert watched == [expected]


def test_an_interrupt_prints_one_line_and_exits_with_130(monkeypatch, capsys, home, tmp_path):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(status, "show", interrupted)
    assert main(["status", str(home / "small.yaml"), "--store", str(tmp_path)]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_a_closed_pipe_ends_the_command_quietly_with_141():
    with subprocess.Popen(
        [sys.executable, "-m", "harness", "schema"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_the_version_is_that_of_the_package():
    assert harness("--version").stdout == f"harness {__version__}\n"


def test_a_plugin_file_is_loaded_here_and_in_other_processes(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from harness.registry import register\n"
        "from methods.none import Unedited\n"
        "@register('mine', title='Mine', family='weights', version=1)\n"
        "class Mine(Unedited):\n    pass\n"
    )
    code = (
        "import os, sys; from harness.cli import main\n"
        "main(['--plugin', 'mine.py', 'list', 'methods']); main(['list', 'methods', '--plugin', 'mine.py'])\n"
        "print(os.environ['HARNESS_PLUGINS'])"
    )
    env = environment() | {"PYTHONPATH": str(ROOT), "HARNESS_PLUGINS": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert sum(line.split()[:2] == ["mine", "Mine"] for line in done.stdout.splitlines()) == 2
    assert done.stdout.splitlines()[-1] == str(plugin)


def test_a_suite_is_found_by_name_and_the_users_own_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_suite("main_table") == ROOT / MAIN
    here = tmp_path / "main_table.yaml"
    here.touch()
    assert find_suite("main_table").resolve() == here
    mine = tmp_path / "suites" / "main_table.yaml"
    mine.parent.mkdir()
    mine.touch()
    assert find_suite("main_table").resolve() == mine
    assert find_suite("main_table.yaml").resolve() == here


def test_the_users_own_suites_and_scales_are_listed_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for kind, folder in (("suites", "suites"), ("scales", "suites/scales")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "zzz.yaml").write_text("description: mine [first]\n")
        (tmp_path / folder / "broken.yaml").write_text("a: b: c\n")
        assert main(["list", kind]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        names = [words[0] for words in lines[1:] if words[0] != "paper"]
        assert names[:2] == ["broken", "zzz"]
        assert {"suites": "main_table", "scales": "mini"}[kind] in names[2:]
        assert ["zzz", "mine", "[first]", f"{folder}/zzz.yaml"] in lines


def test_doctor_needs_no_torch_and_does_not_wrap_commands():
    code = """if True:
        import sys
        sys.modules["torch"] = None
        from harness.cli import main
        from methods.easyedit import checkout
        checkout.absent = lambda: ["einops"]
        sys.exit(main(["doctor"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "✗ CUDA: torch cannot be imported" in done.stdout
    assert "python -m pip install 'editing-harness[easyedit]'" in done.stdout


def test_hyper_parameters_are_shown_with_their_sources_before_anything_is_run(capsys):
    assert main(["hparams", "rome", "llama3-8b"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["layers", "[5]"] and "EasyEdit's file for Llama3-8B" in line for line in shown)
    assert shown[-1] == "variants: faithful-easyedit, corrected, encore, nas"
    assert main(["hparams", "rome", "llama3-8b", "--variant", "corrected"]) == 0
    assert capsys.readouterr().out.splitlines() != shown
    assert main(["hparams", "rmoe"]) == 2
    assert "did you mean 'rome'" in capsys.readouterr().err


def test_doctor_tells_what_is_optional_from_what_is_wrong(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    assert main(["doctor"]) == 0
    assert "– datasets: synthetic records only; for real ones: python -m harness data fetch" in capsys.readouterr().out
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "gone"))
    main(["doctor"])
    assert "✗ datasets: HARNESS_DATA: no such folder" in capsys.readouterr().out


def test_a_read_only_store_is_reported_in_one_line_and_keeps_its_cells(home, store):
    before = state(store)
    store.chmod(0o555)
    line = refused(harness_here("run", home / "small.yaml", "--store", store, "--no-report"))
    assert "Permission denied" in line
    assert "--store" in line
    assert state(store) == before


def test_a_concurrent_run_on_the_same_store_is_refused_in_one_line(home, store):
    before = state(store)
    holder = (
        "import sys; from pathlib import Path; from harness.store.store import Store\n"
        "with Store(Path(sys.argv[1])).locked():\n    print('locked', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, store], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout
        first.stdout.readline()
        line = refused(harness_here("run", home / "small.yaml", "--store", store, "--no-report", "--force"))
        first.communicate()
    assert f"another run is writing to this store (pid {first.pid}" in line
    assert state(store) == before


def test_a_second_run_does_nothing(home, finished):
    before = state(finished)
    again = harness_here("run", home / "small.yaml", "--store", finished, "--no-report")
    assert again.returncode == 0
    assert "0 cells finished, 4 were there already, 0 failed" in again.stdout
    assert state(finished) == before


def test_a_filter_runs_some_cells_and_a_later_run_the_rest(home, tmp_path):
    common = (home / "small.yaml", "--store", tmp_path / "store", "--no-report")
    assert (
        "1 cell finished, 0 were"
        in harness("run", *common, "--only", "method=none", "--only", "model=tiny/llama").stdout
    )
    first = results(tmp_path / "store")
    assert "3 cells finished, 1 were" in harness("run", *common).stdout
    assert first.items() <= results(tmp_path / "store").items()


def test_force_reproduces_the_same_results_bit_for_bit(home, store):
    first, before = results(store), state(store)
    forced = harness("run", home / "small.yaml", "--store", store, "--no-report", "--force")
    assert "4 cells finished, 0 were there already" in forced.stdout
    assert results(store) == first
    assert state(store) != before


def test_a_failed_cell_stops_no_other_and_is_reported_at_the_end(home, tmp_path):
    exploding = {"name": "ft-l", "label": "exploding", "layer": 1, "steps": 3, "batch": 4, "lr": 1e30}
    suite = write_suite(home / "failing.yaml", methods=[exploding, "none"])  # Llama's norms survive this rate
    store = tmp_path / "store"
    done = harness("run", suite, "--store", store, "--no-report")
    assert done.returncode == 1
    assert "3 cells finished, 0 were there already, 1 failed" in done.stdout
    assert "the loss is not a number" in done.stdout
    (failed,) = (store / "cells").glob("exploding-tiny_gptj-*")
    assert (failed / "FAILED").is_file()
    assert not (failed / "DONE").exists()
    assert "Traceback" in (failed / "log.txt").read_text()
    assert harness("status", suite, "--store", store).returncode == 1
    before = results(store)
    again = harness("retry", suite, "--store", store, "--no-report")
    assert again.returncode == 1
    assert "0 cells finished, 3 were there already, 1 failed" in again.stdout
    assert results(store) == before


def test_plan_shows_what_a_run_would_do_without_doing_it(home, store, tmp_path):
    to_do = harness_here("plan", home / "small.yaml", "--store", tmp_path / "none").stdout
    assert "4 cells, 4 can run here, 0 done, 4 to do" in to_do
    assert "artifact unedited-outputs: 2 to build" in to_do
    assert not (tmp_path / "none").exists()
    done = harness_here("plan", home / "small.yaml", "--store", store).stdout
    assert "4 can run here, 4 done, 0 to do" in done
    assert "artifact unedited-outputs: 2 built" in done


def test_the_plan_of_the_main_table_lists_all_methods_models_datasets_and_what_is_missing(tmp_path):
    out = harness_here("plan", MAIN, "--store", tmp_path, "--detect", "0.05").stdout
    rows = [line for line in out.splitlines() if line.startswith("│")]
    for method in ("none", "ft-l", "mend", "rome", "memit", "defer", "grace", "wise", "onceedit"):
        for model in ("llama2-7b", "mistral-7b-v0.1", "gpt-j-6b"):
            for data in ("zsre", "counterfact"):
                assert any({method, model, data} <= set(row.split()) for row in rows), (method, model, data)
    for reason in ("launch 'a100' needs SLURM", "54 cells with zsre: no records of 'zsre': no folder given"):
        assert f"cannot run: {reason}" in out
    assert (
        "52 comparisons, SD of paired differences 0.40, assumed); 1,000 edits can show differences of at least 0.0"
        in out
    )


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["list", "suites"], ["plan", MAIN], ["plan", MAIN, "--scale", "mini"]],
)
def test_help_and_plan_import_nothing_heavy(arguments, tmp_path):
    code = (
        "import sys; from harness.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'transformers', 'mlflow', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    store = ["--store", str(tmp_path)] if "plan" in arguments else []
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, *store],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_explain_finds_a_cell_by_folder_or_id_and_prints_the_sources_of_settings(finished):
    folder = min(path.name for path in (finished / "cells").glob("ft-l-*"))
    cell_id = json.loads((finished / "cells" / folder / "cell.json").read_text())["cell_id"]
    for name in (folder, folder.rpartition("-")[2], cell_id):
        out = harness_here("explain", name, "--store", finished).stdout
        assert "our choice: rows per backward pass" in out
        assert "reliability" in out


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("methods", "mend"),
        ("models", "tiny/gptj"),
        ("datasets", "zsre"),
        ("formats", "knowedit"),
        ("protocols", "generation"),
        ("tables", "main"),
        ("suites", "main_table"),
        ("scales", "mini"),
        ("profiles", "local"),
        ("launchers", "local"),
        ("backends", "easyedit"),
    ],
)
def test_names_are_listed(what, name):
    assert any(line.split()[0] == name for line in harness_here("list", what).stdout.splitlines())


def test_the_schema_of_suites_is_printed_as_json():
    assert "methods" in json.loads(harness_here("schema").stdout)["properties"]


@pytest.mark.slow
def test_a_run_ends_in_a_table_and_mlflow_runs(home, store):
    write_suite(home / "tabled.yaml", name="tabled", tables=["main"])
    done = harness("run", home / "tabled.yaml", "--store", store)
    assert done.returncode == 0, done.stderr
    assert (store / "mlflow.db").is_file()
    assert (store / "reports" / "tabled.paper" / "main_table.tex").is_file()
    assert "MLflow: " in done.stdout


@pytest.mark.parametrize("store", ["/proc/nope", "{file}", "{file}/below", "{long}"])
@pytest.mark.parametrize("verb", ["run", "retry", "status", "plan"])
def test_a_store_that_cannot_exist_is_one_line_with_a_command_that_names_another(store, verb, home, tmp_path):
    (tmp_path / "file").write_text("mine")
    place = store.format(file=tmp_path / "file", long=tmp_path / ("x" * 300))
    done = harness_here(verb, home / "small.yaml", "--store", place)
    if verb in ("status", "plan") and place == "/proc/nope":
        assert done.returncode == 0, "nothing is written, and nothing is there"
        return
    fix = refused(done).partition(" → ")[2].split()
    assert fix[-2] == "--store"
    assert fix[-1] != place
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_one_line_that_says_to_free_space_and_go_on(home, tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["/usr/bin/mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs permission to mount a tmpfs")
    try:
        with contextlib.suppress(OSError):
            (place / "filler").write_bytes(b"x" * 100_000)
        line = refused(harness_here("run", home / "small.yaml", "--store", place))
        assert "No space left on device → free some space and run the same command again" in line
    finally:
        subprocess.run(["/usr/bin/umount", str(place)], check=True)


def test_tables_that_cannot_be_written_are_reported_after_the_import_into_mlflow(home, store, monkeypatch):
    imported = []

    def sync(*arguments):
        imported.append(arguments)
        return tracking.SyncResult(0, 0, 4, (), "sqlite:///there")

    monkeypatch.setattr(tracking, "sync", sync)
    (store / "reports").write_text("no folder")
    line = refused(harness_here("run", home / "small.yaml", "--store", store))
    assert "cannot write" in line
    assert [name for _, name, *_ in imported] == ["small.paper"]


@pytest.mark.parametrize("name", ["speed.v2", "speed.v2.mini"])
def test_a_suite_with_a_dot_in_its_name_is_imported_by_its_name_and_that_of_its_manifest(name, tmp_path, monkeypatch):
    fake = FakeStore(tmp_path)
    fake.write_manifest()
    manifest = tmp_path / "suites" / "main_table.mini.json"
    renamed = json.loads(manifest.read_text()) | {"suite": "speed.v2", "file": ""}
    manifest.with_name("speed.v2.mini.json").write_text(json.dumps(renamed))
    imported = []

    def sync(store, suite, *_):
        imported.append(suite)
        return tracking.SyncResult(0, 0, 0, (), "sqlite:///there")

    monkeypatch.setattr(tracking, "sync", sync)
    assert harness_here("sync", name, "--store", tmp_path).returncode == 0
    assert imported == [name]


def test_filters_and_a_launch_profile_go_together(home):
    """The manifest lists what the filters leave out, too, and is launched in the same way."""
    narrow = cli_suites.load(SuiteOptions(str(home / "small.yaml"), only=["method=none"], launch="local"))
    complete = load.whole(narrow)
    assert [method.name for method in narrow.methods] == ["none"]
    assert [method.name for method in complete.methods] == ["none", "ft-l"]
    assert complete.launch == narrow.launch == "local"


@pytest.mark.parametrize(
    ("source", "words"), [("lama2", "did you mean 'llama2-7b'?"), ("gpt2", "as in openai-community/gpt2")]
)
def test_a_word_that_is_no_model_is_one_line(source, words):
    for action in ("show", "fetch"):
        line = refused(harness_here("models", action, source))
        assert words in line
        assert line.rstrip().endswith("→ python -m harness list models")
