"""The paper's main table on small models, through arrays that wait for their artifacts: as on one machine."""

import re
import shutil

import pytest
import yaml

from tests.helpers.commands import harness, results
from tests.slurm.cluster.sweep import PROFILE

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

METHODS = ("none", "memit", "onceedit")
"""One without artifacts of its own, one whose statistics are computed on the model, one that joins two models."""


@pytest.fixture(scope="module")
def stores(running_cluster, tmp_path_factory):
    """What `--launch local` and SLURM leave of the same table, on the same trained models."""
    folder = tmp_path_factory.mktemp("main_table")
    profile = folder / "profile.yaml"
    profile.write_text(yaml.safe_dump(PROFILE | {"mem_gb": 4, "time_min": 20, "cpus_per_task": 2, "packing": 4}))
    stores = {"local": folder / "local", str(profile): folder / "slurm"}
    axes = ("method=" + ",".join(METHODS), "model=tiny/llama", "dataset=counterfact")
    only = [word for axis in axes for word in ("--only", axis)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in running_cluster.environment.items():
            patch.setenv(name, value)
        for launch, store in stores.items():
            if launch != "local":
                shutil.copytree(stores["local"] / "artifacts/tiny-model", store / "artifacts/tiny-model")
            arguments = ["--scale", "mini", *only, "--edits", 5, "--store", store, "--launch", launch]
            run = harness("run", "suites/main_table.yaml", *arguments, timeout_s=900)
            assert run.returncode == 0, run.stdout + run.stderr
    return stores.values()


def test_cells_equal_those_of_one_machine_bit_for_bit(stores):
    local, slurm = map(results, stores)
    assert len({name.partition("/")[0] for name in local}) == len(METHODS)
    assert slurm == local


def test_artifacts_equal_those_of_one_machine_bit_for_bit(stores):
    local, slurm = (
        {str(file.relative_to(store)): file.read_bytes() for file in store.glob("artifacts/*/*/*.safetensors")}
        for store in stores
    )
    kinds = {name.split("/")[1] for name in local}
    assert kinds == {"tiny-model", "second-moments", "relative-state", "plugin-edit"}
    assert slurm == local


def test_arrays_are_submitted_at_once_and_wait_for_those_before_them(stores):
    _, slurm = stores
    files = slurm.glob("launches/*/submitit/[0-9]*_submission.sh")
    scripts = {int(file.name.partition("_")[0]): file.read_text() for file in files}
    arrays = sorted(scripts)
    awaited = [re.findall(r"--dependency=afterany:(\S+)", scripts[array]) for array in arrays]
    assert len(arrays) >= 3, "what is computed on models, what is computed on an edited plug-in, and cells"
    assert [{int(each) for ids in line for each in ids.split(":")} for line in awaited] == [
        set(arrays[:place]) for place in range(len(arrays))
    ]


def test_both_write_the_same_tables(stores):
    local, slurm = (
        {
            file.name: file.read_text()
            for file in store.glob("reports/*/main_table.*")
            if file.suffix in {".tex", ".csv"}
        }
        for store in stores
    )
    assert slurm == local
