"""Where documents come from: input files of many formats, or the documentation installed on this machine.

    patterns ──find_inputs──▶ Source ──read_records──▶ RecordBlock (texts, positions, extras, rejected records)

Nothing is dropped in silence: every record of an input is accepted, blank, or rejected with a reason.
"""
