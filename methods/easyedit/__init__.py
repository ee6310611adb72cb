"""The baselines as EasyEdit computes them: its own code, from a checkout, in a process of its own.

`backend: easyedit` in a suite takes a method's adapter from here in place of our own implementation. An adapter is a
`harness.api.Method` with the hyper-parameters of our own class, their files and sources, and translates them. One module per
method has both halves of it and imports neither torch nor EasyEdit at the top:

* The caller's half derives from `editor.WeightMethod` (the edit is in the weights, which are handed over and evaluated here)
  or from `editor.WrapperMethod` (the edited model stays in the worker and is asked there), and is decorated with
  `@register("rome", title="ROME", family="weights", version=1, backend="easyedit")`, as our own class is except for the version
  and the backend. It sets `Hparams` (`class X(NativeHparams, Without)`), `inside`, `own_workarounds`, `extras`, and from the
  contract of methods `preset` (values that replace those of the method's files, such as `implementation: faithful-easyedit`)
  and `differences` (what is known to differ from the native variant `faithful-easyedit`). `options(model)` gives EasyEdit's
  hyper-parameters (begin with `common_options`), `check(target)` refuses with `self.refused(option, instead)` what EasyEdit
  has no word for, `needs(…)` are its artifacts. `code_identity` (commit and local changes, part of every cell's identity) and
  `provenance` are the same for all.
* The worker's half, named by `inside`, is an `inside.Inside` or, for a wrapper, an `inside.Wrapped`. It gets a `Bench`: our
  model, the options, the workarounds that are on, folders of artifacts, the seed. Its constructor is not timed, `apply` is.
  There `import easyeditor.models.…` works. `Applied` names the parameters that may have changed, and has diagnostics.

A workaround has a name and a sentence in `workarounds.WORKAROUNDS`, is listed in `own_workarounds`, and is asked for with
`"name" in bench.workarounds`. An artifact that EasyEdit itself makes is built with `editor.started(model)` and
`worker.call("run", "module:function", …)`, which calls `function(loaded, home, …)` in the worker.

Importing this package registers the backend, its scoring rules (`protocol: easyedit`) and the adapters; a new adapter is
imported below.
"""

from methods.easyedit.backend import EasyEdit
from methods.easyedit.defer import EasyEditDefer
from methods.easyedit.ft_l import EasyEditFtL
from methods.easyedit.grace import EasyEditGrace
from methods.easyedit.memit import EasyEditMemit
from methods.easyedit.mend import EasyEditMend
from methods.easyedit.rome import EasyEditRome
from methods.easyedit.scoring import EasyEditGeneration, EasyEditScoring
from methods.easyedit.wise import EasyEditWise

__all__ = [
    "EasyEdit",
    "EasyEditDefer",
    "EasyEditFtL",
    "EasyEditGeneration",
    "EasyEditGrace",
    "EasyEditMemit",
    "EasyEditMend",
    "EasyEditRome",
    "EasyEditScoring",
    "EasyEditWise",
]
