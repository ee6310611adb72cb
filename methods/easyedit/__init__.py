"""The EasyEdit backend: baselines run by EasyEdit's own code, from a checkout, in a separate process.

With `backend: easyedit`, a suite uses the adapters in this package instead of our own implementations. An adapter is a
`harness.api.Method` that takes the hyper-parameters of our own class, with their files and sources, and translates them to
EasyEdit's. Each method has one module with both halves of its adapter, which imports neither torch nor EasyEdit at the top:

* The caller's half derives from `editor.WeightMethod` (weight edits: the weights are handed over and evaluated in the caller)
  or from `editor.WrapperMethod` (the edited model stays in the worker and is queried there). It is registered like our own
  class, except for version and backend: `@register("rome", title="ROME", family="weights", version=1, backend="easyedit")`.
  It sets `Hparams` (`class X(NativeHparams, Without)`), `inside`, `own_workarounds` and `extras`, and from the `Method`
  interface `preset` (values that override those of the method's files, such as `implementation: faithful-easyedit`) and
  `differences` (known differences from the native variant `faithful-easyedit`, in float32). `options(model)` returns EasyEdit's
  hyper-parameters (start from `common_options`), `check(target)` rejects options that EasyEdit does not support with
  `self.refused(option, instead)`, and `needs(…)` returns its artifacts. `code_identity` (commit and local changes, part of
  every cell's identity) and `provenance` are shared by all adapters.
* The worker's half, named by `inside`, is an `inside.Inside` or, for a wrapper, an `inside.Wrapped`. It gets a `Bench`: our
  model, the options, the active workarounds, artifact folders and the seed. Its constructor is not timed, `apply` is.
  `import easyeditor.models.…` works there. `Applied` names the parameters that may have changed, and carries diagnostics.

A workaround has a name and a description in `workarounds.WORKAROUNDS`, is listed in `own_workarounds`, and is checked with
`"name" in bench.workarounds`. An artifact that EasyEdit itself produces is built with `editor.started(model)` and
`worker.call("run", "module:function", …)`, which calls `function(loaded, home, …)` in the worker.

Importing this package registers the backend, its scoring rules (`protocol: easyedit`) and the adapters. New adapters must be
imported below.
"""

from methods.easyedit.aggregated import EasyEditMalmen, EasyEditUltraEdit
from methods.easyedit.alphaedit import EasyEditAlphaEdit
from methods.easyedit.backend import EasyEdit
from methods.easyedit.defer import EasyEditDefer
from methods.easyedit.ft_l import EasyEditFtL
from methods.easyedit.grace import EasyEditGrace
from methods.easyedit.ike import EasyEditIke
from methods.easyedit.lora import EasyEditLora
from methods.easyedit.memit import EasyEditMemit
from methods.easyedit.mend import EasyEditMend
from methods.easyedit.rome import EasyEditRome
from methods.easyedit.scoring import EasyEditGeneration, EasyEditScoring
from methods.easyedit.wise import EasyEditWise

__all__ = [
    "EasyEdit",
    "EasyEditAlphaEdit",
    "EasyEditDefer",
    "EasyEditFtL",
    "EasyEditGeneration",
    "EasyEditGrace",
    "EasyEditIke",
    "EasyEditLora",
    "EasyEditMalmen",
    "EasyEditMemit",
    "EasyEditMend",
    "EasyEditRome",
    "EasyEditScoring",
    "EasyEditUltraEdit",
    "EasyEditWise",
]
