"""The tables that a suite can ask for. Modules here register themselves and import pandas only when a table is built."""
