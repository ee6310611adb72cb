"""Modules of a checkout without the imports of their packages, in a process of its own as the worker is."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
TREE = {
    "__init__.py": "raise ImportError('the package itself')",
    "models/__init__.py": "raise ImportError('all methods')",
    "util/__init__.py": "raise ImportError('util')",
    "util/nethook.py": "HERE = __name__",
    "util/hparams.py": "class HyperParams: pass",
    "models/ft/__init__.py": "from .ft_main import apply_ft_to_model",
    "models/ft/ft_main.py": "import hydra\nfrom ...util import nethook, HyperParams\ndef apply_ft_to_model(): return nethook.HERE",
    "trainer/__init__.py": "raise ImportError('all trainers')",
    "trainer/algs/__init__.py": "raise ImportError('all algorithms')",
    "trainer/algs/MEND.py": "class MEND: pass",
    "evaluate/__init__.py": "raise ImportError('evaluate')",
    "evaluate/evaluate.py": "from ..models.melo.melo import LORA\nfrom openai import OpenAI\nfrom matplotlib.style import context",
}


def run(folder: Path, code: str, path: str = "") -> str:
    """Output of some code after `install`, with `path` in front of what is importable."""
    for name, text in TREE.items():
        file = folder / "easyeditor" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    start = f"""
import sys
from pathlib import Path
sys.path.insert(0, {path!r})
from methods.easyedit import loader
loader.install(Path({str(folder)!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", start + code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_method_is_imported_without_the_packages_around_it(tmp_path):
    assert (
        run(tmp_path, "from easyeditor.models.ft import apply_ft_to_model as a; print(a())")
        == "easyeditor.util.nethook\n"
    )


def test_names_that_packages_hand_on_come_from_their_modules(tmp_path):
    code = """
from easyeditor.trainer import MEND
from easyeditor.util.alg_train_dict import ALG_TRAIN_DICT
print(MEND.__module__, ALG_TRAIN_DICT["MEND"] is MEND)
"""
    assert run(tmp_path, code) == "easyeditor.trainer.algs.MEND True\n"


def test_a_name_that_nobody_hands_on_is_an_import_error(tmp_path):
    assert "cannot import name" in run(
        tmp_path, "try:\n  from easyeditor.trainer import SERAC\nexcept ImportError as error: print(error)"
    )


def test_an_absent_module_is_imported_and_fails_only_when_it_is_called(tmp_path):
    code = """
loader._add("openai", loader._Unused("openai"))
import easyeditor.evaluate.evaluate as evaluate
try:
    evaluate.OpenAI(key="1")
except ModuleNotFoundError as error:
    print(error)
"""
    assert run(tmp_path, code) == "openai.OpenAI: 'openai' is not installed\n"


def test_a_module_that_is_there_is_the_real_one(tmp_path):
    (tmp_path / "hydra.py").write_text("REAL = True")
    assert run(tmp_path, "import hydra; print(hydra.REAL)", path=str(tmp_path)) == "True\n"


def test_a_second_installation_in_one_process_is_refused(tmp_path):
    code = f"try:\n  loader.install(Path({str(tmp_path)!r}))\nexcept RuntimeError as error: print(error)"
    assert run(tmp_path, code) == "easyeditor has already been imported\n"
