"""Edited models outside of a suite: opened from a cell, exported, loaded, asked, served and made from Python."""
