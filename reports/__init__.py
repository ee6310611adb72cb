"""From finished cells to tables: LaTeX, PDF, CSV, terminal. Reads the store, writes only its `reports/` folder."""

from reports.report import write_report

__all__ = ["write_report"]
