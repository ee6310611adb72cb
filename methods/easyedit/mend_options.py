"""MEND's hyper-parameters under EasyEdit's names, for editing and for training the hypernetwork."""

from typing import TYPE_CHECKING, Any

from methods.easyedit.editor import common_options
from methods.mend.hparams import HypernetworkHparams

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

MODEL_CLASSES = {"llama": "LlamaForCausalLM", "gptj": "GPTJForCausalLM"}
"""Model classes by architecture, as in `hparams/MEND`; the others use `AutoModelForCausalLM` and are recognised by name."""


def edit_options(hparams: HypernetworkHparams, batch: int, model: "LoadedModel") -> dict[str, Any]:
    """The options of `hparams/MEND/llama-7b.yaml`, without the archive."""
    return {
        **_options(hparams, model),
        "alg_name": "MEND",
        "lr_scale": 1.0,
        "eval_only": True,
        "batch_size": batch,
    }


def training_options(hparams: HypernetworkHparams, has_leading_space: bool, model: "LoadedModel") -> dict[str, Any]:
    """The options of `hparams/TRAINING/MEND/llama-7b.yaml`: one edit per iteration, `train_batch` edits per optimiser step.

    Args:
        hparams: hyper-parameters of the hypernetwork.
        has_leading_space: see the workaround leading-space.
        model: the model to be edited.
    """
    gpt = has_leading_space and model.spec.architecture == "gptj"
    return {
        **_options(hparams, model),
        "alg": "MEND",
        "eval_only": False,
        "archive": None,
        "batch_size": 1,
        "max_iters": hparams.steps * hparams.train_batch + 1,  # it stops before the last one (BaseTrainer.py:187)
        "tokenizer_class": "GPT2Tokenizer" if gpt else "AutoTokenizer",
    }


def _options(hparams: HypernetworkHparams, model: "LoadedModel") -> dict[str, Any]:
    from methods.common.factors import edited_modules

    named = common_options(model, "MEND")
    single = hparams.train_batch
    return {
        **{name: named[name] for name in ("model_name", "device", "model_parallel")},
        "model_class": MODEL_CLASSES.get(model.spec.architecture, "AutoModelForCausalLM"),
        "tokenizer_class": "AutoTokenizer",
        "tokenizer_name": named["model_name"],
        "inner_params": list(edited_modules(model, hparams.layers, hparams.matrices)),
        # the hypernetwork
        "rank": hparams.rank,
        "n_hidden": 1,
        "hidden_dim": None,
        "init": "id",
        "act": "relu",
        "mlp_class": "IDMLP",
        "norm": True,
        "combine": True,
        "shared": True,
        "one_sided": False,
        "x_only": False,
        "delta_only": False,
        # its training
        "lr": hparams.lr,
        "edit_lr": hparams.edit_lr,
        "lr_lr": hparams.lr_of_edit_lr,
        "cedit": hparams.c_edit,
        "cloc": hparams.c_loc,
        "cbase": 1.0,
        "opt": "Adam",
        "grad_clip": hparams.clip,
        "accumulate_bs": single,
        "val_interval": hparams.validate_every * single,
        "val_steps": hparams.validation,
        "val_batch_size": 1,
        "early_stop_patience": hparams.patience * single,
        "early_stop_key": "loss/total_edit_val",
        "dropout": 0.0,
        "train_base": False,
        "no_grad_layers": None,
        "half": False,
        "seed": 0,
        # output and logging
        "results_dir": "results",
        "final_eval": False,
        "save": False,
        "debug": False,
        "silent": True,
        "verbose": False,
        "log_interval": hparams.validate_every * single,
        "eval_log_interval": hparams.validate_every * single,
        "model_save_pt": hparams.validate_every * single,
    }
