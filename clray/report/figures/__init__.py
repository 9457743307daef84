"""Figures for the page and for papers: arrays in, matplotlib figures out. Nothing here reads or writes files."""
