"""The baselines as EasyEdit computes them: its own code, from a checkout, in a process of its own.

`backend: easyedit` in a suite takes a method's adapter from here in the place of our own implementation. An adapter has the
hyper-parameters of our own class, with their files and sources, and translates them. One module per method has both halves
of it and imports neither torch nor EasyEdit at the top:

* The caller's half is a `WeightMethod` (the edit lies in the weights, which are handed over and evaluated here) or a
  `WrapperMethod` (the edited model stays in the worker and is asked there), decorated with `@register_backend("easyedit")`.
  It says what is in `editor.EasyEditMethod`: `spec`, `Hparams` (`class X(NativeHparams, Without)`), `inside`,
  `own_workarounds`, `extras`, `instead`; `options(model)` gives EasyEdit's hyper-parameters (begin with `common_options`),
  `check(target)` refuses with `self.refused(option, instead)` what EasyEdit has no word for, `needs(…)` are its artifacts.
* The worker's half, named by `inside`, is an `inside.Inside` or, for a wrapper, an `inside.Wrapped`. It gets a `Bench`: our
  model, the options, the workarounds that are on, folders of artifacts, the seed. Its constructor is not timed, `apply` is.
  There `import easyeditor.models.…` works. `Applied` names the parameters that may have changed, and has figures.

A workaround has a name and a sentence in `workarounds.WORKAROUNDS`, is listed in `own_workarounds`, and is asked for with
`"name" in bench.workarounds`. An artifact that EasyEdit itself makes is built with `editor.started(model)` and
`worker.call("run", "module:function", …)`, which calls `function(loaded, home, …)` in the worker. A new adapter is imported
below, so that it is registered.
"""

from methods.easyedit.backend import EasyEdit
from methods.easyedit.defer import EasyEditDefer
from methods.easyedit.ft_l import EasyEditFtL
from methods.easyedit.grace import EasyEditGrace
from methods.easyedit.memit import EasyEditMemit
from methods.easyedit.mend import EasyEditMend
from methods.easyedit.rome import EasyEditRome
from methods.easyedit.scoring import EasyEdit as EasyEditScoring
from methods.easyedit.wise import EasyEditWise

__all__ = [
    "EasyEdit",
    "EasyEditDefer",
    "EasyEditFtL",
    "EasyEditGrace",
    "EasyEditMemit",
    "EasyEditMend",
    "EasyEditRome",
    "EasyEditScoring",
    "EasyEditWise",
]
