"""From finished cells to tables and figures in the terminal and as LaTeX, PDF and CSV.

Reads the store and writes only to its `reports/` folder.
"""

from reports.report import write_report

__all__ = ["write_report"]
