"""Claims of kexue.fm that can be measured, one file each; ``python -m claims`` measures them and says which hold.

claim.py (what a claim is) -> all_claims.py (the list) -> run_claims.py (seeds, time, crashes) -> verdict.py
    -> results.py, table.py, picture.py, page.py (what is kept and shown)
"""
