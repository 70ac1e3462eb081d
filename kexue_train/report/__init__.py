"""A run folder -> one self-contained page that shows what was made, how good it is and how it went.

run_data.py (read what is there) -> training.py, results.py, anomalies.py, checks.py (pure: what it means)
-> tables.py, charts.py, plots.py, compare.py (pure: what is shown) -> build_report.py, card_results.py

It works on a run in progress, and says what is missing.
"""
