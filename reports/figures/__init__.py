"""The figures that a suite can ask for.

A figure is a function from `reports.frame.SuiteFrame` to a `matplotlib.figure.Figure`, registered with
`@register_figure("name")` in a module here or in a plug-in.
"""
