"""A run folder -> one self-contained page that shows what was made, how good it is and how it went.

run_data.py (read what is there) -> summary.py, tables.py, plots.py (pure) -> build_report.py (page.html.j2)

Works on a run in progress: what is missing is said to be missing.
"""
