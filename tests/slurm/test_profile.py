"""Profiles of SLURM clusters: what may be in one, and one line for each mistake."""

import pytest
import yaml

from harness.errors import UserError
from harness.run.profiles import load_profile, profile_names
from slurm.profile import SlurmProfile
from tests.helpers.commands import ROOT

BASE = "launcher: slurm\ncpus_per_task: 4\nmem_gb: 16\ntime_min: 60\n"
CLASSES = "launcher: slurm\nclasses:\n- {name: small, mem_gb: 8, time_min: 30}\n"


@pytest.fixture
def refusal(tmp_path):
    def refused(text):
        file = tmp_path / "site.yaml"
        file.write_text(text)
        with pytest.raises(UserError) as caught:
            load_profile(str(file))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BASE + "partion: gpu\n", "site.yaml:5: unknown key 'partion' in the file (did you mean 'partition'?)"),
        (BASE + "mem_gb: 8\n", "site.yaml:5: duplicate key 'mem_gb', first on line 3"),
        (BASE + "packing: 0\n", "site.yaml:5: packing: input should be greater than or equal to 1"),
        (BASE + "signal_delay_s: 1.5\n", "site.yaml:5: signal_delay_s: expected a whole number"),
        (BASE + "setup: module load cuda\n", "site.yaml:5: setup: expected a list, found text 'module load cuda'"),
        (BASE + "additional: {--exclude: node1}\n", "site.yaml:5: additional."),
        (BASE + "additional: {job-name: mine}\n", "site.yaml:5: additional: 'job-name' is set by the launch itself"),
        ("launcher: slurm\n", "mem_gb and time_min are both needed where there are no classes"),
        ("launcher: slurm\nmem_gb: 4\n", "mem_gb and time_min are both needed where there are no classes"),
        (CLASSES + "mem_gb: 4\n", "mem_gb and time_min are those of the classes where there are any"),
        (CLASSES + "- {name: big, mem: 9, time_min: 60}\n", "site.yaml:4: unknown key 'mem' in classes[1]"),
        (CLASSES + "- {name: small, mem_gb: 9, time_min: 60}\n", "two classes are called 'small'"),
        (CLASSES + "- {name: big, mem_gb: 9, time_min: 10}\n", "class 'big' is smaller than 'small' before it"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(refusal, text, message):
    assert message in refusal(text)


def test_plain_memory_and_time_are_one_class_and_a_class_has_its_own_gres_and_cpus(tmp_path):
    file = tmp_path / "site.yaml"
    file.write_text(BASE + "gres: gpu:1\n")
    (only,) = load_profile(str(file)).profile.resources
    assert (only.mem_gb, only.time_min, only.gres, only.cpus_per_task) == (16, 60, "gpu:1", 4)
    file.write_text(CLASSES + "- {name: big, mem_gb: 8, time_min: 60, gres: 'gpu:2', cpus_per_task: 8}\ngres: gpu:1\n")
    small, big = load_profile(str(file)).profile.resources
    assert (small.name, small.gres, small.cpus_per_task) == ("small", "gpu:1", 1)
    assert (big.name, big.gres, big.cpus_per_task) == ("big", "gpu:2", 8)


@pytest.mark.parametrize(
    ("said", "device"),
    [
        ("{}", "cpu"),
        ("{gres: 'gpu:1'}", "cuda"),
        ("{additional: {gpus-per-node: 1}}", "cuda"),
        ("{additional: {exclude: 'gpu[1-3]'}}", "cpu"),
    ],
)
def test_cells_compute_on_a_gpu_where_a_profile_asks_for_one_in_either_way(tmp_path, said, device):
    file = tmp_path / "site.yaml"
    file.write_text(BASE + yaml.safe_dump(yaml.safe_load(said)).replace("{}", ""))
    profile = load_profile(str(file)).profile
    assert (profile.device("auto"), profile.device("cpu")) == (device, "cpu")


def test_the_template_has_every_key_with_its_default_and_is_no_profile_by_itself():
    file = ROOT / "slurm" / "template.yaml"
    written, made = yaml.safe_load(file.read_text()), load_profile(str(file)).profile
    alternatives = {"mem_gb", "time_min"}
    assert written.keys() == SlurmProfile.model_fields.keys() - alternatives
    for key in written.keys() - {"launcher", "classes"}:
        assert getattr(made, key) == SlurmProfile.model_fields[key].get_default(call_default_factory=True), key
    assert "template" not in profile_names()
